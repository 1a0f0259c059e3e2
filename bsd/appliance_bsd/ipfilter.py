"""The destination before a rdr rule of ipfilter (ipnat) changed it: mode ipfilter."""

import ctypes
import errno
import os
import socket
from typing import ClassVar

from appliance.config import Config
from appliance.proxy.lookup import Endpoint, Lookup, LookupFailure, Route
from appliance_bsd.kernel import Address, Device, is_six, pack, read_write, unpack

_REVISION = 5010200  # IPFilter 5.1.2, the one in FreeBSD
_NAT_LOOKUP = 9  # IPFOBJ_NATLOOKUP
_TCP = 1  # IPN_TCP
_UNKNOWN = {errno.ENOENT, errno.ESRCH}


class NatLookup(ctypes.Structure):
    """What ipfilter is asked: `out` is the client, `in` where it came out, `real` what it meant.

    Ports are in network byte order.
    """

    realip: ctypes.Array[ctypes.c_ubyte]
    realport: int

    _fields_ = [
        ("inip", Address),
        ("outip", Address),
        ("realip", Address),
        ("v", ctypes.c_int),
        ("flags", ctypes.c_int),
        ("inport", ctypes.c_uint16),
        ("outport", ctypes.c_uint16),
        ("realport", ctypes.c_uint16),
    ]


class Request(ctypes.Structure):
    """The envelope in which ipfilter takes every structure, struct ipfobj."""

    _fields_ = [
        ("rev", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("ptr", ctypes.c_void_p),
        ("type", ctypes.c_int),
        ("offset", ctypes.c_int),
        ("retval", ctypes.c_int),
        ("padding", ctypes.c_ubyte * 28),
    ]


class Ipfilter(Lookup):
    """For connections that a rdr rule of ipnat on this machine handed to the gateway."""

    _device: ClassVar[Device]

    @classmethod
    def prepare(cls) -> None:
        """Open /dev/ipnat, which belongs to root; raises ValueError."""
        try:
            cls._device = Device("/dev/ipnat", os.O_RDONLY)
        except ValueError as error:
            raise ValueError(f"mode ipfilter: {error}") from None

    def __init__(self, config: Config) -> None:
        """Keep the words for a connection that ipfilter does not know."""
        self._not_found = config.msg_lookup_notfound

    def known(self, accepted: socket.socket, client: Endpoint, local: Endpoint) -> Route:  # noqa: ARG002
        """Ask ipfilter for the original destination; raises LookupFailure, or OSError when it cannot tell."""
        six = is_six(client.address)
        query = NatLookup(
            inip=pack(local.address),
            outip=pack(client.address),
            v=6 if six else 4,
            flags=_TCP,
            inport=socket.htons(local.port),
            outport=socket.htons(client.port),
        )
        request = Request(
            rev=_REVISION, size=ctypes.sizeof(query), ptr=ctypes.addressof(query), type=_NAT_LOOKUP
        )
        try:
            self._device.ask(read_write("r", 63, Request), request)  # SIOCGNATL
        except OSError as error:
            if error.errno in _UNKNOWN:
                raise LookupFailure(self._not_found) from None
            raise
        return Route(Endpoint(unpack(query.realip, six=six), socket.ntohs(query.realport)))
