"""Debian packages unpacked into directories: the programs of the lab's hosts, without installing any of them.

Mail servers exclude each other as packages, and installing one starts it and replaces the machine's own mail
system. So their files are only unpacked, under .lab/images in the checkout, and `lab.host` lays them over the
machine's root in a host's own mount namespace. Dependencies that the machine already has are not fetched:
they show through.

Called by `lab.network` at first use, or by hand: python -m lab.image. Nothing here may ever change what is
installed.
"""

import fcntl
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
DIRECTORY = CHECKOUT / ".lab" / "images"

# The order is that of the layers: where two packages have the same file (sendmail), the first one's is seen.
PACKAGES = {
    "postfix": "postfix libsasl2-modules libsasl2-modules-db sasl2-bin",
    "exim": "exim4-daemon-light",
    "opensmtpd": "opensmtpd",
    "unbound": "unbound",
    "tools": "clamav-daemon haproxy msmtp openssl spamassassin spamd swaks"
    " libio-socket-inet6-perl libio-socket-ssl-perl libnet-ssleay-perl",
    "headers": f"linux-headers-{'arm64' if platform.machine() == 'aarch64' else 'amd64'}",
}
# What the tests of deployment need besides: the machine's container, and an administrator's workplace.
WORKPLACE = {
    "workplace": "ansible-core ansible-lint debhelper dpkg-dev fakeroot lintian openssh-client"
    " systemd-container",
    "vagrant": "ruby-rexml vagrant vagrant-libvirt",
}
EMULATOR = {"emulator": "e2fsprogs ipxe-qemu qemu-system-x86 qemu-utils seabios"}
MERGED = ("bin", "sbin", "lib", "lib64")  # links into usr/ on every Debian since 12


class ImageError(Exception):
    """An image cannot be built; the text says what failed and what to do."""


def require(wanted: Mapping[str, str] = PACKAGES) -> list[Path]:
    """Give the directories of these images, topmost layer first; build what is missing, saying so."""
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    with (DIRECTORY / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second process waits, then finds the images built
        for name, packages in wanted.items():
            if not _is_built(name, packages):
                _build(name, packages)
    return [DIRECTORY / name for name in wanted]


def _is_built(name: str, packages: str) -> bool:
    try:
        return (DIRECTORY / name / ".packages").read_text() == packages
    except FileNotFoundError:
        return False


def _build(name: str, packages: str) -> None:
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=DIRECTORY) as scratch:
        archives, image = Path(scratch, "archives"), Path(scratch, "image")
        (archives / "partial").mkdir(parents=True)
        _say(f"{name}: downloading {packages} (once) ..")
        _download(packages.split(), archives)
        files = sorted(archives.glob("*.deb"))
        if not files:
            raise ImageError(f"lab image {name}: apt-get fetched nothing for: {packages}")
        _say(
            f"{name}: unpacking {len(files)} packages, {sum(f.stat().st_size for f in files) / 1e6:.1f} MB .."
        )
        for link in MERGED:
            (image / "usr" / link).mkdir(parents=True)
            (image / link).symlink_to(f"usr/{link}")
        image.chmod(0o755)
        for file in files:
            _unpack(file, image)
        (image / ".packages").write_text(packages)
        shutil.rmtree(DIRECTORY / name, ignore_errors=True)
        image.rename(DIRECTORY / name)


def _download(packages: list[str], archives: Path) -> None:
    """Fetch the packages and what they need that this machine lacks; refresh the lists if that fails."""
    options = [
        f"Dir::Cache::archives={archives}/",
        "Debug::NoLocking=1",  # nothing is installed: no reason to wait for, or to disturb, another apt-get
        "APT::Sandbox::User=root",  # _apt cannot write into the checkout
    ]
    command = ["apt-get", "install", "--download-only", "--no-install-recommends", "--reinstall", "-qq", "-y"]
    command += [word for option in options for word in ("-o", option)] + packages
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    if result.returncode:
        _say("refreshing apt's package lists ..")
        subprocess.run(["apt-get", "update", "-qq"], capture_output=True, timeout=300)
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    if result.returncode:
        raise ImageError(f"cannot download {' '.join(packages)}: {result.stderr.strip()}")


def _unpack(package: Path, image: Path) -> None:
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as archive:
        subprocess.run(
            ["tar", "--extract", "--keep-directory-symlink", "--directory", image],
            stdin=archive.stdout,
            check=True,
            timeout=120,
        )
    if archive.returncode:
        raise ImageError(f"cannot unpack {package.name}: dpkg-deb exited with {archive.returncode}")


def _say(words: str) -> None:
    print(f"lab image {words}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    require()
    _say(f"all in {DIRECTORY}")
