"""XDP programs without a compiler: load and attach, as plain calls into the kernel.

For gate.py, compile.py and the tests. Which program, and what for, is not known here.
"""

import contextlib
import ctypes
import struct
from ctypes import addressof
from typing import Final

from appliance.bpf.maps import bpf, info

_LOAD, _LINK_CREATE, _LINK_DETACH = 5, 28, 34
_TYPE_XDP, _ATTACH_XDP = 6, 37
_HAS_FRAGS = 1 << 5  # it takes packets of several pages, or large MTUs and offloads would have to go

GENERIC: Final = 1 << 1  # XDP_FLAGS_SKB_MODE: by the stack, before it looks at a packet
NATIVE: Final = 1 << 2  # XDP_FLAGS_DRV_MODE: by the driver, before there is a socket buffer
MODES: Final = {"native": NATIVE, "generic": GENERIC}

PASSES_ALL: Final = struct.pack("=BBhi", 0xB7, 0, 0, 2) + struct.pack("=BBhi", 0x95, 0, 0, 0)
"""The shortest program: return XDP_PASS."""


def load(instructions: bytes, name: str) -> int:
    """Load an XDP program and give its descriptor. Raises OSError, with the verifier's last words."""
    code = ctypes.create_string_buffer(instructions, len(instructions))
    license_ = ctypes.create_string_buffer(b"GPL")  # the kernel lends its routing table to no other
    said = ctypes.create_string_buffer(1 << 16)
    for flags in (_HAS_FRAGS, 0):  # Linux before 5.18 does not know it
        attributes = struct.pack(
            "=IIQQIIQII16sII",
            *(_TYPE_XDP, len(instructions) // 8, addressof(code), addressof(license_)),
            *(1, len(said), addressof(said), 0, flags, name.encode(), 0, _ATTACH_XDP),
        )
        try:
            return bpf(_LOAD, attributes)[0]
        except OSError as error:
            failure = error
    words = said.value.decode(errors="replace").strip().splitlines()[-3:]
    raise OSError(failure.errno, "; ".join([failure.strerror or "", *words]))


def attach(program: int, interface: int, mode: int) -> int:
    """Attach a program to the interface of this index, NATIVE or GENERIC; give the link's descriptor.

    The program stays as long as somebody has the link open or pinned. Raises OSError: EBUSY when another
    program is there, EOPNOTSUPP when the driver has no such mode.
    """
    return bpf(_LINK_CREATE, struct.pack("=IIII", program, interface, _ATTACH_XDP, mode))[0]


def detach(link: int) -> None:
    """Take the program of a link off its interface, if that is still there."""
    with contextlib.suppress(OSError):
        bpf(_LINK_DETACH, struct.pack("=I", link))


def interface_of(link: int) -> int:
    """Give the index of the interface that a link leads to, 0 when that is gone."""
    (index,) = struct.unpack_from("=I", info(link, 24), 16)
    return int(index)
