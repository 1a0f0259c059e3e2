"""The project as a wheel, and the wheels it needs: `make dist` writes both to dist/.

Built in a copy, so that neither leftovers of an earlier build get in nor anything is left in the checkout.
The tests of deployment build other versions of it.
"""

import argparse
import hashlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
PARTS = ("pyproject.toml", "README.md", "appliance", "man", "systemd")


def wheel(into: Path, version: str = "", source: Path = CHECKOUT) -> Path:
    """Build the project's wheel, with another version if given, and give its path. Exits if it fails."""
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        for part in PARTS:
            if (source / part).is_dir():
                shutil.copytree(source / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source / part, copy)
        if version:
            project = copy / "pyproject.toml"
            project.write_text(re.sub(r'(?m)^version = ".*"$', f'version = "{version}"', project.read_text()))
        into.mkdir(parents=True, exist_ok=True)
        for old in into.glob("smtp_gateway_appliance-*.whl"):
            old.unlink()
        _pip("wheel", "--no-deps", f"--wheel-dir={into}", copy)
    return next(into.glob("smtp_gateway_appliance-*.whl"))


def wheelhouse(into: Path) -> Path:
    """Fetch or build the wheels that the project needs on a machine like this, unless they are there."""
    project = (CHECKOUT / "pyproject.toml").read_text()
    needed = re.findall(r'"([^"]+)"', project.partition("\ndependencies = [")[2].partition("\n]")[0])
    recipe = hashlib.sha256("\n".join([sys.version, *needed]).encode()).hexdigest()
    made_of = into / ".recipe"
    if not made_of.exists() or made_of.read_text() != recipe:
        shutil.rmtree(into, ignore_errors=True)
        into.mkdir(parents=True)
        _pip("wheel", f"--wheel-dir={into}", *needed)
        made_of.write_text(recipe)
    return into


def _pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", *map(str, arguments), "--quiet", "--use-pep517"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600)
    if done.returncode:
        sys.exit(f"{shlex.join(command)} failed:\n{done.stdout}")


def main() -> int:
    """Write dist/ or another directory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--into", type=Path, default=CHECKOUT / "dist")
    parser.add_argument("--version", default="", help="instead of the one in pyproject.toml")
    given = parser.parse_args()
    print(wheel(given.into, given.version))
    print(wheelhouse(given.into / "wheelhouse"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
