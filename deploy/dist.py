"""The project as wheels, and the wheels it needs: `make dist` writes both to dist/.

A release is two wheels of one version, between which pip chooses: with the hot path as machine code, for this
version of Python, and plain, for every other. Built in a copy, so that neither leftovers of an earlier build
get in nor anything is left in the checkout; what is built already is not built again. The tests of deployment
build other versions.
"""

import argparse
import fcntl
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
PARTS = ("pyproject.toml", "setup.py", "README.md", "appliance", "man", "systemd")
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux2014")  # what Debian 12 and later can run
WHEELS = "smtp_gateway_appliance-*.whl"


def release(into: Path) -> Path:
    """Build the two wheels unless they are there; give their directory. Exits if it fails."""
    recipe = _recipe()
    made_of = into / ".release"
    with _alone(into):
        if made_of.exists() and made_of.read_text() == recipe and len(list(into.glob(WHEELS))) == 2:
            return into
        with tempfile.TemporaryDirectory(prefix=".", dir=into) as name:
            made = wheel(Path(name))
            with tempfile.TemporaryDirectory() as copy:
                _build(made, Path(copy), compiled=True)
            # Whoever looks at the directory meanwhile finds a release, the old one or this.
            fresh = {path.name: path for path in made.glob(WHEELS)}
            for old in into.glob(WHEELS):
                if old.name not in fresh:
                    old.unlink()
            for path_name, path in fresh.items():
                path.rename(into / path_name)
        made_of.write_text(recipe)
    return into


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Keep others from building there meanwhile: they wait, and find it built."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def wheel(into: Path, version: str = "", source: Path = CHECKOUT) -> Path:
    """Build the plain one alone, with another version if given; give its directory. Exits if it fails."""
    with tempfile.TemporaryDirectory() as name:
        _build(into, Path(name), version, source)
    return into


def wheelhouse(into: Path, python: str = "") -> Path:
    """Fetch or build the wheels that the project needs on a machine like this, unless they are there.

    With `python` they are for that version of it, such as 3.13, as far as the index has them.
    """
    project = (CHECKOUT / "pyproject.toml").read_text()
    needed = re.findall(r'"([^"]+)"', project.partition("\ndependencies = [")[2].partition("\n]")[0])
    recipe = hashlib.sha256("\n".join([sys.version, python, *needed]).encode()).hexdigest()
    made_of = into / ".recipe"
    with _alone(into):
        if not made_of.exists() or made_of.read_text() != recipe:
            for old in into.glob("*.whl"):
                old.unlink()
            if python:
                _fetch(into, python, needed)
            else:
                _pip("wheel", "--use-pep517", f"--wheel-dir={into}", *needed)
            made_of.write_text(recipe)
    return into


def _fetch(into: Path, python: str, needed: list[str]) -> None:
    """Fetch wheels for another version of Python; what the index has no wheel of is built here, for any."""
    kinds = [f"--platform={kind}_{platform.machine()}" for kind in PLATFORMS]
    with tempfile.TemporaryDirectory() as built:
        _pip("wheel", "--use-pep517", f"--wheel-dir={built}", *needed)
        options = [f"--dest={into}", "--only-binary=:all:", f"--python-version={python}", *kinds]
        _pip("download", *options, f"--find-links={built}", *needed)


def _build(
    into: Path, copy: Path, version: str = "", source: Path = CHECKOUT, *, compiled: bool = False
) -> None:
    for part in PARTS:
        if (source / part).is_dir():
            shutil.copytree(source / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source / part, copy)
    if version:
        project = copy / "pyproject.toml"
        project.write_text(re.sub(r'(?m)^version = ".*"$', f'version = "{version}"', project.read_text()))
    # What compiles is among the checkout's own packages; an environment made for the build has none of them.
    isolated = ["--no-build-isolation"] if compiled else []
    _pip("wheel", "--use-pep517", "--no-deps", *isolated, f"--wheel-dir={into}", copy, compiled=compiled)


def _recipe() -> str:
    """Give what tells one release's sources, and the Python it is compiled for, from all others."""
    digest = hashlib.sha256(sys.version.encode())
    for path in _sources():
        digest.update(f"\n{path.relative_to(CHECKOUT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _sources() -> Iterator[Path]:
    for part in PARTS:
        place = CHECKOUT / part
        found = sorted(place.rglob("*")) if place.is_dir() else [place]
        yield from (path for path in found if path.is_file() and "__pycache__" not in path.parts)


def _pip(*arguments: str | Path, compiled: bool = False) -> None:
    command = [sys.executable, "-m", "pip", *map(str, arguments), "--quiet", "--disable-pip-version-check"]
    environment = os.environ | {"SMTP_GATEWAY_COMPILE": str(int(compiled))}
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600
    )
    if done.returncode:
        sys.exit(f"{shlex.join(command)} failed:\n{done.stdout}")


def main() -> int:
    """Write dist/ or another directory."""
    parser = argparse.ArgumentParser(description="Build the project's wheels.")
    parser.add_argument("--into", type=Path, default=CHECKOUT / "dist")
    parser.add_argument("--alone", action="store_true", help="without the wheels it needs")
    parser.add_argument("--python", default="", help="the wheels it needs are for this version, such as 3.13")
    given = parser.parse_args()
    for path in sorted(release(given.into).glob(WHEELS)):
        print(path)
    if not given.alone:
        print(wheelhouse(given.into / "wheelhouse", given.python))
    return 0


if __name__ == "__main__":
    sys.exit(main())
