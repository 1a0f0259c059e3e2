"""A bare Debian machine to be: its root, and the packages that it may install later, without a network.

Built once by debootstrap, from the mirror that this machine itself uses, into a cache outside of the
checkout, so that a fresh clone finds it. Called by `lab.machine`, or by hand: python -m lab.machine_image.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.image import ImageError

CACHE = Path(os.environ.get("APPLIANCE_CACHE") or Path.home() / ".cache" / "smtp-gateway-appliance")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

# What Debian's installer leaves on a machine without tasks but the SSH server, as far as it matters here.
# libidn2-0 is there because libc6 recommends it, for which reason apt would keep it, too.
BARE = "ca-certificates dbus iproute2 libidn2-0 logrotate openssh-server python3 systemd systemd-sysv udev"
# What its administrator, or the role in his name, may ask apt for.
OFFERED = (
    "clamav-daemon logrotate man-db nftables procps python3-apt python3-bpfcc python3-nftables python3-venv"
    " rsyslog spamd"
)

KERNEL, HEADERS = "linux-image-amd64 zstd", "linux-headers-amd64"


@dataclass(frozen=True)
class MachineImage:
    """The directories of a built image: a root to be copied, and a repository of packages for apt."""

    root: Path
    packages: Path


def require(suite: str = "", *, kernel: bool = False) -> MachineImage:
    """Give the image of a Debian release, by default this machine's own; build it if it is missing.

    With `kernel` it has Debian's own, and may ask for its headers.
    """
    suite = suite or _own_suite()
    bare, offered = BARE, OFFERED
    if kernel:
        bare, offered = f"{BARE} {KERNEL}", f"{OFFERED} {HEADERS}"
    CACHE.mkdir(parents=True, exist_ok=True)
    recipe = f"{bare}\n{offered}\n"
    place = CACHE / (f"{suite}-kernel" if kernel else suite)
    with (CACHE / f".{suite}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second process waits, then finds the image built
        made_of = place / "recipe"
        if not made_of.exists() or made_of.read_text() != recipe:
            with tempfile.TemporaryDirectory(prefix=f".{suite}-", dir=CACHE) as scratch:
                _build(suite, Path(scratch), bare, offered)
                (Path(scratch) / "recipe").write_text(recipe)
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir()
                for part in ("root", "packages", "recipe"):
                    (Path(scratch) / part).rename(place / part)
    return MachineImage(place / "root", place / "packages")


def _build(suite: str, place: Path, bare: str, offered: str) -> None:
    sources = _sources(suite)
    root = place / "root"
    _say(f"{suite}: installing the bare system (once, two minutes) ..")
    command = ["debootstrap", "--variant=minbase", f"--include={bare.replace(' ', ',')}"]
    _run([*command, suite, root, sources[0].uri], timeout=900)
    shutil.rmtree(root / "var/cache/apt/archives")
    (root / "var/cache/apt/archives/partial").mkdir(parents=True)
    _say(f"{suite}: downloading the packages it may ask for (once) ..")
    # Updates would bring headers of another kernel than the installed one, and that kernel with them.
    _download(sources[:1] if HEADERS in offered else sources, place, offered.split())


@dataclass(frozen=True)
class _Source:
    uri: str
    name: str

    @property
    def line(self) -> str:
        return f"deb [signed-by={KEYRING}] {self.uri} {self.name} main\n"


def _own_suite() -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("VERSION_CODENAME="):
            return line.partition("=")[2].strip('"')
    raise ImageError("/etc/os-release has no VERSION_CODENAME: name the Debian release to build")


def _sources(suite: str) -> list[_Source]:
    """Give this machine's sources of Debian proper, main archive first, for another release if need be."""
    own = _own_suite()
    known: dict[str, _Source] = {}
    # A machine whose lists were never fetched does not know its own targets.
    for attempt in (["apt-get", "update", "-qq"], None):
        form = ["--format", "$(LABEL)|$(REPO_URI)|$(CODENAME)", "Created-By: Packages"]
        for line in _run(["apt-get", "indextargets", *form], timeout=60).splitlines():
            label, uri, name = line.split("|")
            if label in ("Debian", "Debian-Security") and name.startswith(own):
                known[name] = _Source(uri, suite + name.removeprefix(own))
        if own in known:
            return [known.pop(own), *known.values()]
        if attempt:
            _run(attempt, timeout=300)
    raise ImageError(f"apt on this machine has no source of Debian {own}")


def _download(sources: list[_Source], place: Path, offered: list[str]) -> None:
    """Fetch what the bare root lacks of the offered packages, and index it for apt."""
    packages, state = place / "packages", place / "apt"
    (packages / "partial").mkdir(parents=True)
    (state / "lists" / "partial").mkdir(parents=True)
    (state / "sources.list").write_text("".join(source.line for source in sources))
    options = {
        "Dir::Etc::sourcelist": state / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": state / "lists",
        "Dir::State::status": place / "root/var/lib/dpkg/status",
        "Dir::Cache::archives": packages,
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
        "Debug::NoLocking": "1",  # nothing is installed here
        "APT::Sandbox::User": "root",  # _apt cannot write into the cache
        "APT::Install-Recommends": "0",
    }
    apt = [
        "apt-get",
        "-qq",
        "-y",
        *(word for name, value in options.items() for word in ("-o", f"{name}={value}")),
    ]
    _run([*apt, "update"], timeout=300)
    _run([*apt, "install", "--download-only", *offered], timeout=900)
    shutil.rmtree(packages / "partial")
    with (packages / "Packages").open("w") as index:
        for file in sorted(packages.glob("*.deb")):
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            control = _run(["dpkg-deb", "--field", file], timeout=60).strip()
            index.write(
                f"{control}\nFilename: ./{file.name}\nSize: {file.stat().st_size}\nSHA256: {digest}\n\n"
            )


def _run(command: Sequence[str | Path], timeout: float) -> str:
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    except FileNotFoundError:
        raise ImageError(f"{command[0]} is not installed on this machine (make test-deploy)") from None
    if done.returncode:
        raise ImageError(f"{' '.join(map(str, command[:2]))}: {(done.stdout + done.stderr)[-2000:].strip()}")
    return done.stdout


def _say(words: str) -> None:
    print(f"machine image {words}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    _say(f"in {require(*sys.argv[1:2]).root.parent}")
