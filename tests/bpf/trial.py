"""A program of XDP tried on one packet, by bpf(2)."""

import ctypes
import struct
from ctypes import addressof

from appliance.bpf.maps import bpf

DROP, PASS = 1, 2
_TEST_RUN = 10


def tried(program: int, packet: bytes, interface: int) -> int:
    """Run a program on a packet as if that had come in at an interface; give the verdict."""
    data = ctypes.create_string_buffer(packet, len(packet))
    result = ctypes.create_string_buffer(len(packet) + 256)
    context = ctypes.create_string_buffer(struct.pack("=IIIIII", 0, len(packet), 0, interface, 0, 0), 24)
    attributes = struct.pack(
        "=IIIIQQIIIIQQ",
        *(program, 0, len(packet), len(result), addressof(data), addressof(result), 1, 0),
        *(24, 0, addressof(context), 0),
    )
    left = bpf(_TEST_RUN, attributes)[1]
    verdict, _, size = struct.unpack_from("=III", left, 4)
    assert result.raw[:size] == packet
    return int(verdict)
