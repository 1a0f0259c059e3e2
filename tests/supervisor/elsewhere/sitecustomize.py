"""Makes Python on Linux look like Python on FreeBSD to all that is imported later.

Python runs this at its start where PYTHONPATH leads here. What only Linux has is taken away: constants,
functions of the C library, socket options, /proc. The kernel stays Linux's.
"""

import ctypes
import errno
import os
import re
import resource
import select
import selectors
import socket
import struct
import sys
from types import SimpleNamespace
from typing import Any

selectors.select = SimpleNamespace(**vars(select))  # type: ignore[attr-defined] # epoll, in kqueue's place
for _name in [name for name in dir(select) if name.lower().startswith("epoll")]:
    delattr(select, _name)

_OS = "O_PATH O_TMPFILE eventfd getxattr memfd_create pidfd_open sched_getaffinity setns splice unshare"
_SOCKET = re.compile(
    r"AF_(ALG|CAN|NETLINK|PACKET|QIPCRTR|RDS|TIPC|VSOCK)|IP_(TRANSPARENT|BIND_ADDRESS_NO_PORT)|NETLINK_\w+"
    r"|SO_(BINDTODEVICE|DOMAIN|INCOMING_CPU|MARK|PASSCRED|PASSSEC|PEERCRED|PEERSEC|PRIORITY)"
    r"|TCP_(CORK|DEFER_ACCEPT|LINGER2|QUICKACK|SYNCNT|USER_TIMEOUT|WINDOW_CLAMP)"
)
_LIBC = {"capget", "capset", "inotify_add_watch", "inotify_init1", "prctl", "setns", "sysinfo", "unshare"}
_OPTIONS = {(socket.SOL_SOCKET, 51), (socket.SOL_SOCKET, 59), (0, 19), (0, 24), (0, 80), (41, 75), (41, 80)}
_PEERCRED = 17

sys.platform = "freebsd14"
for _module, _names in (
    (os, _OS.split()),
    (resource, ["prlimit"]),
    (socket, [name for name in dir(socket) if _SOCKET.fullmatch(name)]),
):
    for _name in _names:
        if hasattr(_module, _name):
            delattr(_module, _name)

_function = ctypes.CDLL.__getattr__
_setsockopt = socket.socket.setsockopt


def _of_libc(library: ctypes.CDLL, name: str) -> Any:
    if name in _LIBC:
        raise AttributeError(f"undefined symbol: {name}")
    return _getpeereid if name == "getpeereid" else _function(library, name)


def _getpeereid(descriptor: int, uid: Any, gid: Any) -> int:
    with socket.socket(fileno=os.dup(descriptor)) as peer:
        told = peer.getsockopt(socket.SOL_SOCKET, _PEERCRED, 12)
    _, uid._obj.value, gid._obj.value = struct.unpack("iII", told)
    return 0


def _set(self: socket.socket, level: int, option: int, *value: Any) -> None:
    if (level, option) in _OPTIONS:
        raise OSError(errno.ENOPROTOOPT, os.strerror(errno.ENOPROTOOPT))
    _setsockopt(self, level, option, *value)


def _no_proc(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("open", "os.listdir", "os.scandir") and str(arguments[0]).startswith("/proc"):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(arguments[0]))


ctypes.CDLL.__getattr__ = _of_libc  # type: ignore[method-assign]
socket.socket.setsockopt = _set  # type: ignore[assignment, method-assign]
sys.addaudithook(_no_proc)
