"""The Debian package: `make deb` writes it to dist/. Root is needed: it is built where it will be installed.

The same layout as the Ansible role makes: a release under /opt with its virtual environment, `current` that
points to it, links to its programs and manual pages; only the units are where packages have theirs. A virtual
environment knows its own path, so it is made under /opt, in a mount namespace in which /opt is an empty
directory of ours. What else belongs to the package is in deploy/debian.
"""

import argparse
import gzip
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from deploy import dist

PARTS = dist.CHECKOUT / "deploy" / "debian"
ROOT = "opt/smtp-appliance"
PROGRAMS = ("smtp-gated", "appliance-ctl", "appliance-helper")
MODES = {"postinst": 0o755, "prerm": 0o755, "postrm": 0o755}


def build(into: Path, wheelhouse: Path) -> Path:
    """Build the package, of wheels left in both places, for this machine's Debian; give its path."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name, "root")
        root.mkdir(mode=0o755)
        (root / "opt").mkdir(mode=0o755)
        wheels = dist.release(into)
        version = next(wheels.glob(dist.WHEELS)).name.split("-")[1]
        release = f"{ROOT}/releases/{version}"
        _virtual_environment(root, release, wheels, dist.wheelhouse(wheelhouse))
        (root / ROOT / "current").symlink_to(f"releases/{version}")
        _links(root, release)
        _papers(root, version)
        return _pack(root, version, into)


def _virtual_environment(root: Path, release: str, wheels: Path, wheelhouse: Path) -> None:
    pip = f"/{release}/bin/python -m pip --isolated install --quiet --disable-pip-version-check --no-compile"
    sources = f"--no-index --find-links {wheels} --find-links {wheelhouse}"
    steps = [
        f"mount --bind {root}/opt /opt",
        f"/usr/bin/python3 -m venv --system-site-packages /{release}",
        f"{pip} --ignore-installed {sources} smtp-gateway-appliance",
    ]
    command = ["unshare", "--mount", "sh", "-ec", "\n".join(steps)]
    # pip's own settings may name places below /opt, which are not there now.
    subprocess.run(command, env=os.environ | {"PIP_CONFIG_FILE": os.devnull}, check=True, timeout=300)
    home = root / release
    for cache in home.rglob("__pycache__"):
        shutil.rmtree(cache)
    # What made the environment is not needed to run it.
    for pattern in (
        "pip",
        "pip-*",
        "setuptools*",
        "pkg_resources",
        "_distutils_hack",
        "distutils-precedence.pth",
    ):
        for path in home.glob(f"lib/python*/site-packages/{pattern}"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in (home / "bin").iterdir():
        if path.name not in (*PROGRAMS, "python", "python3") and not path.is_symlink():
            path.unlink()
    for module in home.rglob("lib/**/*.py"):
        text = module.read_text(errors="surrogateescape")
        if text.startswith("#!"):  # of libraries, which nobody starts
            module.write_text(text.partition("\n")[2], errors="surrogateescape")
    for library in home.rglob("*.so*"):
        subprocess.run(["strip", "--strip-unneeded", library], check=True)


def _links(root: Path, release: str) -> None:
    share = root / release / "share"
    for directory in (
        "usr/bin",
        "usr/lib/systemd/system",
        "usr/lib/systemd/networkd.conf.d",
        "usr/lib/sysusers.d",
        "usr/lib/tmpfiles.d",
    ):
        (root / directory).mkdir(parents=True)
    for program in PROGRAMS:
        (root / "usr/bin" / program).symlink_to(f"/{ROOT}/current/bin/{program}")
    units = share / "smtp-appliance" / "systemd"
    for unit in units.glob("*.service"):
        text = unit.read_text().replace("/usr/local/bin/", "/usr/bin/")
        (root / "usr/lib/systemd/system" / unit.name).write_text(text)
    for kind, place in (
        ("networkd", "systemd/networkd.conf.d"),
        ("sysusers", "sysusers.d"),
        ("tmpfiles", "tmpfiles.d"),
    ):
        shutil.copy(units / f"smtp-gated.{kind}", root / "usr/lib" / place / "smtp-gated.conf")
    for page in share.glob("man/man?/*"):
        manual = root / "usr/share/man" / page.parent.name / f"{page.name}.gz"
        manual.parent.mkdir(parents=True, exist_ok=True)
        manual.write_bytes(gzip.compress(page.read_bytes(), 9, mtime=0))


def _papers(root: Path, version: str) -> None:
    papers = root / "usr/share/doc/smtp-gateway-appliance"
    papers.mkdir(parents=True)
    shutil.copy(PARTS / "copyright", papers)
    changes = (PARTS / "changelog").read_text().replace("@VERSION@", version)
    (papers / "changelog.gz").write_bytes(gzip.compress(changes.encode(), 9, mtime=0))
    overrides = root / "usr/share/lintian/overrides"
    overrides.mkdir(parents=True)
    shutil.copy(PARTS / "lintian-overrides", overrides / "smtp-gateway-appliance")


def _pack(root: Path, version: str, into: Path) -> Path:
    architecture = _output("dpkg", "--print-architecture")
    control = root / "DEBIAN"
    control.mkdir(mode=0o755)
    size = sum(path.lstat().st_size for path in root.rglob("*") if not path.is_dir()) // 1024
    minor = sys.version_info.minor
    values = {
        "VERSION": version,
        "ARCHITECTURE": architecture,
        "SIZE": str(size),
        "PYTHON": f"python3 (>= 3.{minor}), python3 (<< 3.{minor + 1})",
    }
    for part, mode in {"control": 0o644, **MODES}.items():
        text = re.sub(r"@([A-Z]+)@", lambda found: values[found[1]], (PARTS / part).read_text())
        (control / part).write_text(text)
        (control / part).chmod(mode)
    _permissions(root)
    sums = [
        f"{_output('md5sum', path).split()[0]}  {path.relative_to(root)}\n"
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.is_symlink() and control not in path.parents
    ]
    (control / "md5sums").write_text("".join(sums))
    into.mkdir(parents=True, exist_ok=True)
    package = into / f"smtp-gateway-appliance_{version}_{architecture}.deb"
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "--build", root, package], check=True, stdout=subprocess.DEVNULL
    )
    return package


def _permissions(root: Path) -> None:
    """What an umask or a wheel left otherwise."""
    for path in (root, *root.rglob("*")):
        if path.is_symlink() or path.parent.name == "DEBIAN":
            continue
        executable = path.is_dir() or (path.parent.name == "bin" and os.access(path, os.X_OK))
        path.chmod(0o755 if executable else 0o644)


def _output(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def main() -> int:
    """Write the package to dist/ or another directory."""
    parser = argparse.ArgumentParser(description="Build the Debian package.")
    parser.add_argument("--into", type=Path, default=dist.CHECKOUT / "dist")
    into = parser.parse_args().into
    print(build(into, into / "wheelhouse"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
