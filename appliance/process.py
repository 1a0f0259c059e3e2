"""What a process may tell the kernel about itself and its peers: prctl(2), capabilities, ends of children.

Used by the supervisor and the workers alike. No policy lives here: who may do what is decided by the callers.
Other systems than Linux have neither prctl nor capabilities: there requests do nothing, and root may all.
"""

import asyncio
import ctypes
import os
import signal
import socket
import subprocess
import sys
from typing import Final

LINUX: Final = sys.platform == "linux"

PR_SET_PDEATHSIG: Final = 1
PR_GET_PDEATHSIG: Final = 2
PR_SET_DUMPABLE: Final = 4
PR_SET_KEEPCAPS: Final = 8
PR_SET_NAME: Final = 15
PR_CAPBSET_DROP: Final = 24
PR_SET_NO_NEW_PRIVS: Final = 38
PR_GET_NO_NEW_PRIVS: Final = 39
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4

SIGNALS: Final = (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
"""What the daemon is told by signals; they are for the supervisor."""

CAP_SETUID: Final = 7
CAP_NET_ADMIN: Final = 12
CAP_NET_RAW: Final = 13
CAP_SYS_CHROOT: Final = 18
CAP_LAST: Final = 63  # the bits a capability set has; the kernel knows fewer

_VERSION_3: Final = 0x20080522
_GLANCE: Final = 0.05  # seconds between two looks at a child, where the kernel does not tell of its end
_libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, argument: int = 0) -> int:
    """Call prctl(2) with one argument; give its result or raise OSError."""
    if not LINUX:
        return 0
    result: int = _libc.prctl(option, ctypes.c_ulong(argument), *[ctypes.c_ulong(0)] * 3)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def load_average() -> float:
    """The load average of the last minute; needs no /proc, which a chroot may lack, as os.getloadavg does."""
    if not LINUX:
        return os.getloadavg()[0]
    information = (ctypes.c_ulong * 16)()  # struct sysinfo, some 110 bytes: uptime, then the three averages
    if _libc.sysinfo(information):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return float(information[1]) / 65536


def owns(address: str) -> bool:
    """Tell whether connections can come from an address, which is so if it is one of this machine's."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def set_name(name: str) -> None:
    """Name this process as ps and top show it; the kernel keeps 15 bytes."""
    buffer = ctypes.create_string_buffer(name.encode())
    prctl(PR_SET_NAME, ctypes.addressof(buffer))


def leave_signals_to_parent() -> None:
    """Do nothing about SIGNALS, which pkill and `systemctl kill` send to all processes.

    They are caught, not ignored, or what this process starts would ignore them, too.
    """
    for number in SIGNALS:
        signal.signal(number, lambda *_: None)


def begin_as_child() -> None:
    """Before exec: die with the parent, and ignore SIGNALS until they can be caught."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    die_with_parent()


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends. A change of identity undoes it."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def death_signal() -> int:
    """The signal this process gets when its parent ends, 0 = none."""
    number = ctypes.c_int()
    prctl(PR_GET_PDEATHSIG, ctypes.addressof(number))
    return number.value


def capabilities() -> tuple[int, int, int]:
    """Effective, permitted and inheritable capabilities of this thread as bit sets."""
    if not LINUX:
        every = (1 << CAP_LAST + 1) - 1 if os.geteuid() == 0 else 0
        return every, every, 0
    data = (ctypes.c_uint32 * 6)()
    if _libc.capget((ctypes.c_uint32 * 2)(_VERSION_3, 0), data):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    effective, permitted, inheritable = (data[i] | data[i + 3] << 32 for i in range(3))
    return effective, permitted, inheritable


def set_capabilities(keep: int) -> None:
    """Make `keep` the effective and permitted set of this thread, and nothing inheritable."""
    if not LINUX:
        return
    low, high = keep & 0xFFFFFFFF, keep >> 32
    data = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)
    if _libc.capset((ctypes.c_uint32 * 2)(_VERSION_3, 0), data):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


async def ended(child: "subprocess.Popen[bytes]") -> int:
    """Wait for a child's end and reap it; give its exit status as Popen.wait does."""
    try:
        descriptor = os.pidfd_open(child.pid) if LINUX else -1
    except OSError:  # no more files may be opened
        descriptor = -1
    if descriptor < 0:
        while (status := child.poll()) is None:  # noqa: ASYNC110 - there is nobody to set an Event
            await asyncio.sleep(_GLANCE)
        return status
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    return child.wait()


def peer(descriptor: int) -> tuple[int, int]:
    """Give the effective user and group of who connected to a UNIX socket, as BSD systems tell; OSError."""
    uid, gid = ctypes.c_uint32(), ctypes.c_uint32()
    if _libc.getpeereid(descriptor, ctypes.byref(uid), ctypes.byref(gid)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return uid.value, gid.value
