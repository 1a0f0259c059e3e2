"""What a daemon tells systemd, and has it keep; nothing where systemd is not listening."""

import array
import contextlib
import functools
import os
import select
import socket
from collections.abc import Iterable

_BARRIER_WITHIN = 5.0  # seconds
_FIRST_KEPT = 3  # the descriptors that systemd hands over are numbered from here


def notify(words: str, *descriptors: int) -> None:
    """Send a message of sd_notify(3), such as READY=1, with descriptors. Never waits, never fails."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with contextlib.suppress(OSError):
        # Not by send_fds, which takes an address and loses it.
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
        _sender().sendmsg([words.encode()], [rights], 0, address)


@functools.cache
def _sender() -> socket.socket:
    """Give one socket for all messages: a daemon that may open no more files can still say that it lives."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)


def keep(name: str, descriptor: int) -> None:
    """Have systemd hold an open file until the service is stopped, and give it to the next of its processes.

    `name` has no colon. Where the unit does not allow that (FileDescriptorStoreMax=), nothing is kept.
    """
    notify(f"FDSTORE=1\nFDPOLL=0\nFDNAME={name}", descriptor)


def forget(names: Iterable[str]) -> None:
    """Have systemd let go what it keeps by these names."""
    for name in names:
        notify(f"FDSTOREREMOVE=1\nFDNAME={name}")


def settle() -> None:
    """Wait until systemd has done what it was told, 5 s at most."""
    reading, writing = os.pipe()
    notify("BARRIER=1", writing)
    os.close(writing)
    select.select([reading], [], [], _BARRIER_WITHIN)  # its end is seen when systemd closes its copy
    os.close(reading)


def kept() -> list[tuple[str, int]]:
    """Give names and descriptors of what systemd kept for this process, which owns them now; only once."""
    names, count, meant = (os.environ.pop(f"LISTEN_{what}", "") for what in ("FDNAMES", "FDS", "PID"))
    if meant != str(os.getpid()) or not count.isdecimal():
        return []
    descriptors = range(_FIRST_KEPT, _FIRST_KEPT + int(count))
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    return list(zip(names.split(":"), descriptors, strict=False))


def watchdog_interval() -> float:
    """Seconds between two signs of life, half of what systemd allows; 0 = it does not ask for any."""
    allowed = os.environ.get("WATCHDOG_USEC", "")
    meant = os.environ.get("WATCHDOG_PID", str(os.getpid()))
    return int(allowed) / 2_000_000 if allowed.isdecimal() and meant == str(os.getpid()) else 0.0
