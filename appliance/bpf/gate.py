"""The gate goes up and down: compiled, pinned, attached to the interfaces, and removed without a trace.

`appliance-ctl` and `python -m appliance.bpf.gate` call this. Where a piece is missing the rest of the
gateway works: nothing is raised then, the reason is told in a line. What the gate does is written in gate.c,
how a running one is used in pinned.py.
"""

import argparse
import contextlib
import ctypes
import errno
import fcntl
import importlib.util
import os
import platform
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from appliance.bpf import headers, maps, programs
from appliance.bpf.layout import PROGRAM
from appliance.bpf.pinned import PINS, Gate
from appliance.config import DEFAULT_FILE, Config, ConfigError, load

_COMPILES_WITHIN = 120.0  # seconds
_OURS = "smtp-gated"  # source of a mount that was made here
_OLDEST = (5, 9)  # the first Linux with links for XDP
_ETHERNET = 1  # ARPHRD_ETHER
_SIOCGIFHWADDR = 0x8927
_LINK = re.compile(r"(native|generic)_(\d+)")

_libc = ctypes.CDLL(None, use_errno=True)


def missing() -> list[str]:
    """Say what this machine lacks for the gate, and how to get it, a line for each thing."""
    found = []
    release = tuple(map(int, re.findall(r"\d+", platform.release())[:2]))
    if release < _OLDEST:
        found.append(f"Linux {platform.release()}: XDP needs 5.9 at least; boot a newer kernel")
    else:
        try:
            os.close(programs.load(programs.PASSES_ALL, "probe"))
        except OSError as error:
            found.append(_unloadable(error))
    if not _has_bcc():
        found.append("bcc, the compiler: apt install python3-bpfcc")
    if not headers.find():
        found.append(
            "kernel headers: apt install linux-headers-amd64, which need not be those of the running kernel; "
            "or have BCC_KERNEL_SOURCE name their directory"
        )
    return found


def _unloadable(error: OSError) -> str:
    if error.errno == errno.EPERM:
        return "the right to load programs: run this as root, or with CAP_BPF and CAP_NET_ADMIN"
    return f"XDP: this kernel refuses programs ({error.strerror}); boot one with CONFIG_BPF_SYSCALL"


def _has_bcc() -> bool:
    """Look for Debian's bcc; a stranger of the same name lives on PyPI."""
    found = importlib.util.find_spec("bcc")
    return bool(found and found.origin and Path(found.origin).with_name("libbcc.py").is_file())


def up(config: Config, pins: Path = PINS) -> list[str]:
    """Have the gate stand as the configuration says; give what does not work, a line for each thing.

    One that stands already, of the same source, stays, with its counts; what differs is changed.
    """
    if not _wanted(config):
        return down(pins)
    lacking = missing()
    if lacking and not _is_current(pins):
        return [f"xdp {config.xdp}: no gate; missing is {line}" for line in lacking]
    try:
        with _alone(pins):
            if not _is_current(pins):
                _remove(pins)
                _compile(pins)
                with Gate(pins) as gate:
                    gate.configure(config, fresh=True)
            with Gate(pins) as gate:
                gate.configure(config)
            return [*_attach_all(config, pins)]
    except OSError as error:
        return [f"xdp {config.xdp}: no gate; {error.filename or ''} {error.strerror or error}"]


def _wanted(config: Config) -> bool:
    return config.xdp != "off" and bool(config.lan_interfaces)


def _stands(pins: Path) -> bool:
    return (pins / PROGRAM).exists()


def _is_current(pins: Path) -> bool:
    try:
        with Gate(pins) as gate:
            return _stands(pins) and gate.is_current()
    except OSError:
        return False


def _compile(pins: Path) -> None:
    """Compile and pin in a process that takes the compiler with it. Raises OSError."""
    command = [sys.executable, "-P", "-m", "appliance.bpf.compile", str(pins)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILES_WITHIN)
    except subprocess.TimeoutExpired:
        why = f"the compiler took longer than {_COMPILES_WITHIN:.0f} s"
    else:
        if not done.returncode:
            return
        why = "; ".join(done.stderr.strip().splitlines()[-3:]) or f"the compiler ended with {done.returncode}"
    _remove(pins)
    raise OSError(errno.ENOEXEC, why)


def _attach_all(config: Config, pins: Path) -> Iterator[str]:
    """Attach to the LAN interfaces and to no other; give what does not work."""
    wanted: dict[int, str] = {}
    for name in config.lan_interfaces:
        try:
            _demand_ethernet(name)
            wanted[socket.if_nametoindex(name)] = name
        except OSError as error:
            yield f"xdp {config.xdp}: interface {name}: {error.strerror}"
    for path, mode, index in _links(pins):
        if index in wanted and config.xdp in ("auto", mode) and _leads_to(path) == index:
            del wanted[index]
        else:
            _detach(path)
    with _opened(pins / PROGRAM) as program:
        for index, name in wanted.items():
            if why := _attach(program, index, config.xdp, pins):
                yield f"xdp {config.xdp}: interface {name}: {why}"


def _demand_ethernet(interface: str) -> None:
    """Raise OSError for what does not exist or carries other frames than Ethernet's, as ppp and tun do."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        found = fcntl.ioctl(probe, _SIOCGIFHWADDR, struct.pack("16s24x", interface.encode()))
    if struct.unpack_from("=H", found, 16)[0] != _ETHERNET:
        raise OSError(errno.EPROTOTYPE, "it carries no Ethernet frames; nft alone drops locked clients there")


def _has_other_frames(interface: str) -> bool:
    try:
        _demand_ethernet(interface)
    except OSError as error:
        return error.errno == errno.EPROTOTYPE
    return False


def _attach(program: int, index: int, wanted: str, pins: Path) -> str:
    """Attach to one interface, natively if it can be; give the reason if not at all."""
    failure = ""
    for mode in ("native", "generic") if wanted == "auto" else (wanted,):
        try:
            link = programs.attach(program, index, programs.MODES[mode])
        except OSError as error:
            if error.errno in (errno.EBUSY, errno.EEXIST):  # in this mode, in the other
                return "another XDP program is there; remove it (ip link set dev INTERFACE xdp off)"
            failure = f"{mode}: {error.strerror}"
            continue
        try:
            maps.pin(link, pins / f"{mode}_{index}")
        finally:
            os.close(link)
        return ""
    return failure


def _links(pins: Path) -> list[tuple[Path, str, int]]:
    """Give the pinned links: path, mode, index of the interface they were made for."""
    with contextlib.suppress(FileNotFoundError):
        found = [(path, _LINK.fullmatch(path.name)) for path in sorted(pins.iterdir())]
        return [(path, match[1], int(match[2])) for path, match in found if match]
    return []


def _leads_to(path: Path) -> int:
    with _opened(path) as link:
        return programs.interface_of(link)


def _detach(path: Path) -> None:
    """Take the program off an interface at once; closing the link would do it a moment later."""
    with _opened(path) as link:
        programs.detach(link)
    path.unlink()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Give the descriptor of what is pinned there. Raises OSError."""
    descriptor = maps.get(path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def attached(pins: Path = PINS) -> dict[str, str]:
    """Give the interfaces that the gate watches and how, native or generic. Raises OSError if forbidden."""
    found = {}
    for path, mode, index in _links(pins):
        if _leads_to(path) == index:
            with contextlib.suppress(OSError):  # an interface of another namespace
                found[socket.if_indextoname(index)] = mode
    return found


def differences(config: Config, pins: Path = PINS) -> list[str]:
    """Say in what the gate differs from the configuration, a line for each thing; what `up` would change."""
    if not _wanted(config):
        return [f"the gate stands ({pins})"] if pins.exists() else []
    try:
        if not _is_current(pins):
            return (
                ["the gate is of another version; up renews it"]
                if _stands(pins)
                else ["there is no gate; up makes one"]
            )
        with Gate(pins) as gate:
            found = [] if gate.is_configured(config) else ["the gate works to other settings"]
        watched = attached(pins)
    except OSError as error:
        return [f"the gate cannot be asked: {error.strerror}"]
    found += [
        f"the gate is not on {name}"
        for name in config.lan_interfaces
        if name not in watched and not (config.xdp == "auto" and _has_other_frames(name))
    ]
    for name, mode in watched.items():
        if name not in config.lan_interfaces:
            found.append(f"the gate is on {name}, which is not in lan_interfaces")
        elif config.xdp not in ("auto", mode):
            found.append(f"the gate is on {name} in {mode} mode")
    return found


def check(config: Config, pins: Path = PINS) -> tuple[list[str], list[str]]:
    """Give what `up` would mend, and what this machine lacks for a gate.

    Where xdp is auto and something is lacking there need be no gate.
    """
    lacking = missing() if _wanted(config) and not _is_current(pins) else []
    try:
        if lacking and config.xdp == "auto" and not _stands(pins):
            return [], lacking
        return differences(config, pins), lacking
    except PermissionError as error:  # only root may look
        return [f"the gate cannot be asked: {error.strerror}"], lacking


def down(pins: Path = PINS) -> list[str]:
    """Remove programs, maps, pins, and the mount if it was made here; give what does not work, in lines."""
    if not pins.exists():
        return []
    try:
        with _alone(pins):
            _remove(pins)
        if (_OURS, str(pins.parent)) in _mounts() and _is_bare(pins.parent):
            _libc.umount2(os.fsencode(pins.parent), 0)
    except OSError as error:
        return [f"the gate cannot be removed: {error.filename or pins}: {error.strerror}"]
    return []


def _is_bare(file_system: Path) -> bool:
    """Tell whether nobody has pinned anything: the kernel itself puts two files there."""
    return {path.name for path in file_system.iterdir()} <= {"maps.debug", "progs.debug"}


def _remove(pins: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        for path, _, _ in _links(pins):
            _detach(path)
        for path in pins.iterdir():
            path.unlink()
        pins.rmdir()


@contextlib.contextmanager
def _alone(pins: Path) -> Iterator[None]:
    """Keep others from doing the same here, in a BPF file system. Raises OSError."""
    if not any(pins.parent.is_relative_to(place) for _, place in _mounts()):
        _mount(pins.parent)
    directory = os.open(pins.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def _mounts() -> list[tuple[str, str]]:
    """Give source and place of each BPF file system."""
    lines = [line.split(" ") for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [(source, place) for source, place, kind, *_ in lines if kind == "bpf"]


def _mount(place: Path) -> None:
    """Mount a BPF file system where the machine has none, as systemd would have."""
    if _libc.mount(_OURS.encode(), os.fsencode(place), b"bpf", 0, b"mode=0700"):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(place))


def main() -> int:
    """Do what the command line says; 1 if something does not work or is not as it should be."""
    parser = argparse.ArgumentParser(prog="python -m appliance.bpf.gate", description=__doc__)
    parser.add_argument("do", choices=("up", "down", "check", "missing"))
    parser.add_argument("--config", type=Path, default=DEFAULT_FILE, metavar="FILE")
    parser.add_argument("--pins", type=Path, default=PINS, metavar="DIRECTORY")
    given = parser.parse_args()
    try:
        match given.do:
            case "up":
                lines = up(load(given.config), given.pins)
            case "check":
                found, lacking = check(load(given.config), given.pins)
                lines = found + lacking
            case "down":
                lines = down(given.pins)
            case _:
                lines = missing()
    except ConfigError as error:
        lines = [str(problem) for problem in error.problems]
    for line in lines:
        print(line, file=sys.stderr)
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
