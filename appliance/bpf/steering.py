"""How the kernel finds the listener, and so the worker, that a client belongs to.

A classic BPF program on a SO_REUSEPORT group hashes the client's IPv4 address, or the first 64 bits of its
IPv6 address, and returns the index of a listener; listeners are numbered in the order in which they began to
listen. The supervisor attaches it. `worker_of` is the same computation for whoever has to know where a client
lives. Everything known about a client lives in one worker, so nothing but the address may ever decide.
"""

import ctypes
import socket
import struct
import sys
from typing import Final

from appliance.config.network import Address, unmapped

AVAILABLE: Final = sys.platform == "linux"
_SO_ATTACH_REUSEPORT_CBPF = 51
_NETWORK_HEADER = 0xFFF00000  # SKF_NET_OFF: a load from there counts from the IP header, not from the payload

# Opcodes of linux/bpf_common.h and linux/filter.h that the program uses.
_LOAD_WORD, _LOAD_BYTE = 0x20, 0x30
_COPY_TO_X, _XOR_X, _RETURN_A = 0x07, 0xAC, 0x16
_MULTIPLY, _SHIFT_RIGHT, _MODULO = 0x24, 0x74, 0x94
_JUMP, _JUMP_IF_EQUAL = 0x05, 0x15

_FIRST_HALF = 0x9E3779B1  # spreads the upper half of an IPv6 prefix before the lower one is mixed in
_ROUNDS = ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1))  # the finaliser of MurmurHash3: each bit sways all

_Instruction = tuple[int, int, int, int]  # opcode, instructions to skip if true, if false, operand


def attach(sock: socket.socket, count: int) -> None:
    """Have the group of a listening socket, which has `count` members, steered. Raises OSError."""
    instructions = _program(count)
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in instructions))
    program = struct.pack("HP", len(instructions), ctypes.addressof(code))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, program)


def worker_of(address: Address, count: int) -> int:
    """Index of the worker, of `count`, that a client with this address belongs to."""
    address = unmapped(address)
    if address.version == 4:
        return _mix(int(address)) % count
    prefix = int(address) >> 64
    return _mix(((prefix >> 32) * _FIRST_HALF & 0xFFFFFFFF) ^ (prefix & 0xFFFFFFFF)) % count


def _mix(word: int) -> int:
    for shift, factor in _ROUNDS:
        word = (word ^ word >> shift) * factor & 0xFFFFFFFF
    return word


def _program(count: int) -> list[_Instruction]:
    """`worker_of` in the kernel's words; a mapped address is a matter of sockets, its packets are IPv4's."""
    mix: list[_Instruction] = []
    for shift, factor in _ROUNDS:
        mix += [
            (_COPY_TO_X, 0, 0, 0),
            (_SHIFT_RIGHT, 0, 0, shift),
            (_XOR_X, 0, 0, 0),
            (_MULTIPLY, 0, 0, factor),
        ]
    return [
        (_LOAD_BYTE, 0, 0, _NETWORK_HEADER),
        (_SHIFT_RIGHT, 0, 0, 4),
        (_JUMP_IF_EQUAL, 2, 0, 6),
        (_LOAD_WORD, 0, 0, _NETWORK_HEADER + 12),
        (_JUMP, 0, 0, 5),
        (_LOAD_WORD, 0, 0, _NETWORK_HEADER + 8),
        (_MULTIPLY, 0, 0, _FIRST_HALF),
        (_COPY_TO_X, 0, 0, 0),
        (_LOAD_WORD, 0, 0, _NETWORK_HEADER + 12),
        (_XOR_X, 0, 0, 0),
        *mix,
        (_MODULO, 0, 0, count),
        (_RETURN_A, 0, 0, 0),
    ]
