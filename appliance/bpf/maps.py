"""bpf(2) without a compiler: pinned objects and maps, as plain calls into the kernel.

bcc carries 146 MB of compiler; whoever only reads and writes what is pinned uses this. Callers are the other
modules of this package and the tests. Programs are in programs.py; what the bytes mean is said in layout.py.
"""

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterator, Sequence
from ctypes import addressof
from pathlib import Path
from typing import Self

_NUMBERS = {
    "x86_64": 321,
    "aarch64": 280,
    "riscv64": 280,
    "armv7l": 386,
    "i686": 357,
    "ppc64le": 361,
    "s390x": 351,
}
_LOOKUP, _UPDATE, _DELETE, _NEXT_KEY, _PIN, _GET = 1, 2, 3, 4, 6, 7
_INFO, _POP, _BATCH_LOOKUP, _BATCH_UPDATE = 15, 21, 24, 26

_BATCH = 4096  # entries asked for at once

_libc = ctypes.CDLL(None, use_errno=True)


def _call(command: int, attributes: bytes) -> tuple[int, int, bytes]:
    """Call bpf(2); give its result, an error number or 0, and the attributes as the kernel left them."""
    number = _NUMBERS.get(platform.machine())
    if number is None:
        return -1, errno.ENOSYS, attributes
    buffer = ctypes.create_string_buffer(attributes, 128)
    result = int(_libc.syscall(number, command, buffer, len(buffer)))
    return result, ctypes.get_errno() if result < 0 else 0, buffer.raw


def bpf(command: int, attributes: bytes) -> tuple[int, bytes]:
    """Call bpf(2); give its result and the attributes as the kernel left them. Raises OSError.

    Buffers whose addresses are among the attributes must live until this returns.
    """
    result, code, left = _call(command, attributes)
    if code:
        raise OSError(code, os.strerror(code))
    return result, left


def pin(descriptor: int, path: Path) -> None:
    """Give a map, program or link a name in a BPF file system. Raises OSError."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    bpf(_PIN, struct.pack("=QII", addressof(name), descriptor, 0))


def get(path: Path) -> int:
    """Open what is pinned under a name; the descriptor is the caller's to close. Raises OSError."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    try:
        return bpf(_GET, struct.pack("=QII", addressof(name), 0, 0))[0]
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def info(descriptor: int, size: int) -> bytes:
    """Give the first bytes of what the kernel tells of a map, program or link. Raises OSError."""
    answer = ctypes.create_string_buffer(size)
    bpf(_INFO, struct.pack("=IIQ", descriptor, size, addressof(answer)))
    return answer.raw


class Map:
    """A map, by its descriptor, which this owns: a context manager. Keys and values are bytes.

    The kernel copies as many bytes as the map's entries have, so lengths are checked here.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        _, _, self.key_size, self.value_size, self.capacity = struct.unpack_from("=5I", info(descriptor, 80))

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a pinned map. Raises OSError."""
        return cls(get(path))

    def close(self) -> None:
        """Close it; what it holds stays. May be called twice."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _buffer(self, data: bytes, size: int) -> ctypes.Array[ctypes.c_char]:
        if len(data) != size:
            raise ValueError(f"{len(data)} bytes where the map has {size}")
        return ctypes.create_string_buffer(data, max(size, 1))

    def _element(self, command: int, key: bytes, value: ctypes.Array[ctypes.c_char] | None) -> None:
        name = self._buffer(key, self.key_size)
        bpf(
            command,
            struct.pack("=I4xQQQ", self.descriptor, addressof(name), addressof(value) if value else 0, 0),
        )

    def lookup(self, key: bytes) -> bytes | None:
        """Give the value of a key, None if there is none."""
        value = ctypes.create_string_buffer(self.value_size)
        try:
            self._element(_LOOKUP, key, value)
        except FileNotFoundError:
            return None
        return value.raw

    def update(self, key: bytes, value: bytes) -> None:
        """Set the value of a key. Raises OSError, E2BIG when the map is full."""
        self._element(_UPDATE, key, self._buffer(value, self.value_size))

    def delete(self, key: bytes) -> bool:
        """Remove a key; tell whether it was there."""
        try:
            self._element(_DELETE, key, None)
        except FileNotFoundError:
            return False
        return True

    def pop(self) -> bytes | None:
        """Take the oldest value of a queue, None when it is empty."""
        value = ctypes.create_string_buffer(self.value_size)
        try:
            bpf(_POP, struct.pack("=I4xQQQ", self.descriptor, 0, addressof(value), 0))
        except FileNotFoundError:
            return None
        return value.raw

    def keys(self) -> Iterator[bytes]:
        """Give the keys one by one, for tries and others without batches. Nobody may delete meanwhile."""
        following = ctypes.create_string_buffer(self.key_size)
        previous = None
        for _ in range(self.capacity + 1):
            try:
                place = addressof(previous) if previous else 0
                bpf(_NEXT_KEY, struct.pack("=I4xQQQ", self.descriptor, place, addressof(following), 0))
            except FileNotFoundError:
                return
            yield following.raw
            previous = ctypes.create_string_buffer(following.raw, self.key_size)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Give keys and values of a hash, some thousand with each call of the kernel."""
        size = min(_BATCH, self.capacity)
        keys = ctypes.create_string_buffer(size * self.key_size)
        values = ctypes.create_string_buffer(size * self.value_size)
        token = ctypes.create_string_buffer(8)
        first, last = True, False
        while not last:
            attributes = struct.pack(
                "=QQQQIIQQ",
                *(0 if first else addressof(token), addressof(token), addressof(keys), addressof(values)),
                *(size, self.descriptor, 0, 0),
            )
            _, code, left = _call(_BATCH_LOOKUP, attributes)
            if code not in (0, errno.ENOENT):  # there are no more
                raise OSError(code, os.strerror(code))
            first, last = False, bool(code)
            (count,) = struct.unpack_from("=I", left, 32)
            names, contents = keys.raw, values.raw
            for n in range(count):
                key, value = n * self.key_size, n * self.value_size
                yield names[key : key + self.key_size], contents[value : value + self.value_size]

    def update_all(self, entries: Sequence[tuple[bytes, bytes]]) -> None:
        """Set many values of a hash with few calls. Raises OSError; some may be set then."""
        for begin in range(0, len(entries), _BATCH):
            some = entries[begin : begin + _BATCH]
            keys = ctypes.create_string_buffer(b"".join(key for key, _ in some))
            values = ctypes.create_string_buffer(b"".join(value for _, value in some))
            bpf(
                _BATCH_UPDATE,
                struct.pack(
                    "=QQQQIIQQ", 0, 0, addressof(keys), addressof(values), len(some), self.descriptor, 0, 0
                ),
            )
