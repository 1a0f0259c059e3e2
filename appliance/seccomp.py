"""Which sockets a process may still open once it has given up its privileges: a filter of seccomp(2).

`privileges.drop` puts it on. CAP_NET_RAW, which a worker keeps in the tproxy modes, is needed to bind foreign
addresses, but would also let it read every packet on the wire and send any. So TCP, UDP, UNIX and netlink
sockets can be made and no others. What goes through an existing socket is not looked at here.
"""

import ctypes
import errno
import os
import platform
import struct
import sys
from typing import Final, NamedTuple

_SECCOMP_SET_MODE_FILTER = 1
_SPEC_ALLOW = 4  # SECCOMP_FILTER_FLAG_SPEC_ALLOW: no slowing down against attacks on ourselves
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_IO_URING_SETUP = 425
_X32 = 0x40000000  # marks calls of another kind of program, which have numbers of their own

# Opcodes of linux/bpf_common.h and linux/filter.h, and places in struct seccomp_data.
_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06
_JUMP_IF_EQUAL, _JUMP_IF_AT_LEAST = 0x15, 0x35
_NUMBER, _ARCHITECTURE, _FAMILY, _KIND = 0, 4, 16, 24

_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16
_STREAM, _DGRAM, _KINDS = 1, 2, 0xF


class _Machine(NamedTuple):
    architecture: int
    socket: int
    seccomp: int


_MACHINES: Final = {
    "x86_64": _Machine(0xC000003E, 41, 317),
    "aarch64": _Machine(0xC00000B7, 198, 277),
    "riscv64": _Machine(0xC00000F3, 198, 277),
}
_Instruction = tuple[int, int, int, int]  # opcode, instructions to skip if true, if false, operand


def allow_plain_sockets_alone() -> None:
    """Let this thread and what it starts make no sockets but plain ones, for good.

    io_uring, which could make them unseen, and system calls of foreign kinds of programs are refused, too.
    Needs PR_SET_NO_NEW_PRIVS to be set. Does nothing where the kernel or the processor is not known here.
    Raises OSError.
    """
    machine = _MACHINES.get(platform.machine())
    if sys.platform != "linux" or machine is None:
        return
    instructions = _program(machine)
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in instructions))
    program = struct.pack("HP", len(instructions), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    words = [ctypes.c_long(word) for word in (machine.seccomp, _SECCOMP_SET_MODE_FILTER, _SPEC_ALLOW)]
    if libc.syscall(*words, program):
        number = ctypes.get_errno()
        if number not in (errno.ENOSYS, errno.EINVAL):  # a kernel without filters, or too old for the flag
            raise OSError(number, os.strerror(number))


def _program(machine: _Machine) -> list[_Instruction]:
    allow: _Instruction = (_RETURN, 0, 0, _ALLOW)
    refuse: _Instruction = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    return [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_IF_EQUAL, 1, 0, machine.architecture),
        refuse,
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_IF_EQUAL, 4, 0, machine.socket),
        (_JUMP_IF_AT_LEAST, 2, 0, _X32),
        (_JUMP_IF_EQUAL, 1, 0, _IO_URING_SETUP),
        allow,
        refuse,
        (_LOAD, 0, 0, _FAMILY),
        (_JUMP_IF_EQUAL, 4, 0, _AF_UNIX),
        (_JUMP_IF_EQUAL, 3, 0, _AF_NETLINK),
        (_JUMP_IF_EQUAL, 3, 0, _AF_INET),
        (_JUMP_IF_EQUAL, 2, 0, _AF_INET6),
        refuse,
        allow,
        (_LOAD, 0, 0, _KIND),
        (_AND, 0, 0, _KINDS),
        (_JUMP_IF_EQUAL, 2, 0, _STREAM),
        (_JUMP_IF_EQUAL, 1, 0, _DGRAM),
        refuse,
        allow,
    ]
