"""How a BSD kernel is asked: numbers of requests, addresses as it writes them, and the device they go to.

The modes and the table are built on this. `Device.ask` is the only place that calls the kernel; what is
asked, and what an answer means, stands with those who ask.
"""

import ctypes
import errno
import fcntl
import os
import socket

Address = ctypes.c_ubyte * 16
"""An address on the wire: an IPv6 one, or an IPv4 one in the first four bytes and zeros."""

_ADVICE = {
    errno.EACCES: "start as root, or let the user that starts the gateway open it (its group, devfs.rules)",
    errno.ENOENT: "is it in this kernel? load its module before the gateway starts (kldload)",
}
_ADVICE[errno.EPERM] = _ADVICE[errno.EACCES]
_ADVICE[errno.ENXIO] = _ADVICE[errno.ENODEV] = _ADVICE[errno.ENOENT]


def read_write(group: str, number: int, structure: type[ctypes.Structure]) -> int:
    """Give the number of the request that takes and fills such a structure, _IOWR of sys/ioccom.h."""
    return 0xC0000000 | (ctypes.sizeof(structure) & 0x1FFF) << 16 | ord(group) << 8 | number


def is_six(address: str) -> bool:
    """Tell whether this is an IPv6 address."""
    return ":" in address


def pack(address: str) -> ctypes.Array[ctypes.c_ubyte]:
    """Write an address as the kernel does; the interface of a link-local one is left out."""
    family = socket.AF_INET6 if is_six(address) else socket.AF_INET
    return Address.from_buffer_copy(socket.inet_pton(family, address.partition("%")[0]).ljust(16, b"\0"))


def unpack(packed: ctypes.Array[ctypes.c_ubyte], *, six: bool) -> str:
    """Read an address that the kernel wrote."""
    raw = bytes(packed)
    return socket.inet_ntop(socket.AF_INET6, raw) if six else socket.inet_ntop(socket.AF_INET, raw[:4])


class Device:
    """An open device of the kernel. Raises ValueError, with what to do, when it cannot be opened."""

    def __init__(self, path: str, flags: int) -> None:
        try:
            self._fd = os.open(path, flags | os.O_CLOEXEC)
        except OSError as error:
            advice = _ADVICE.get(error.errno or 0, "choose another mode")
            raise ValueError(f"{path}: {error.strerror}; {advice}") from None

    def ask(self, request: int, structure: ctypes.Structure) -> None:
        """Have the kernel read a structure and write its answer into it. Raises OSError."""
        fcntl.ioctl(self._fd, request, structure)
