"""The destination before a rdr rule of pf changed it: mode pf."""

import errno
import os
import socket
import sys
from typing import ClassVar

from appliance.config import Config
from appliance.proxy.lookup import Endpoint, Lookup, LookupFailure, Route
from appliance_bsd.kernel import Device, is_six, pack, read_write, unpack
from appliance_bsd.pf_layout import INET, OUT, System, system


class Pf(Lookup):
    """For connections that a rdr-to or rdr rule on this machine handed to the gateway."""

    _device: ClassVar[Device]
    _system: ClassVar[System]

    @classmethod
    def prepare(cls) -> None:
        """Open /dev/pf, which belongs to root; raises ValueError."""
        try:
            cls._system = system(sys.platform)
            cls._device = Device("/dev/pf", os.O_RDWR)
        except ValueError as error:
            raise ValueError(f"mode pf: {error}") from None

    def __init__(self, config: Config) -> None:
        """Keep the words for a connection that pf does not know."""
        self._not_found = config.msg_lookup_notfound

    def known(self, accepted: socket.socket, client: Endpoint, local: Endpoint) -> Route:  # noqa: ARG002
        """Ask pf for the original destination; raises LookupFailure, or OSError when pf cannot tell."""
        six = is_six(client.address)
        query = self._system.natlook(
            saddr=pack(client.address),
            daddr=pack(local.address),
            sport=socket.htons(client.port),
            dport=socket.htons(local.port),
            af=self._system.inet6 if six else INET,
            proto=socket.IPPROTO_TCP,
            direction=OUT,  # the gateway's side of the state, whose other side has the destination
        )
        try:
            self._device.ask(read_write("D", 23, self._system.natlook), query)  # DIOCNATLOOK
        except OSError as error:
            if error.errno == errno.ENOENT:
                raise LookupFailure(self._not_found) from None
            raise
        return Route(Endpoint(unpack(query.rdaddr, six=six), socket.ntohs(query.rdport)))
