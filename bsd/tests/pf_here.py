"""Mode pf with a device that only root may open, for a gateway on a machine without pf.

The gateway finds it as an entry point. PF_HERE is the device, PF_LEADS_TO the port, on the loopback
interface, that every client meant.
"""

import os

from conftest import FakePfStates, wire

from appliance_bsd.kernel import Device
from appliance_bsd.pf import Pf
from appliance_bsd.pf_layout import SYSTEMS


class OpenedByRoot(FakePfStates):
    """A device that is really opened, and knows every connection."""

    def __init__(self) -> None:
        super().__init__("freebsd")
        Device.__init__(self, os.environ["PF_HERE"], os.O_RDWR)

    def answer(self, request: int, given: bytes) -> bytes:
        os.fstat(self._fd)
        assert request == self.request
        sport, dport, *_, af, proto, direction = self.form.unpack(given[64:])
        port = int(os.environ["PF_LEADS_TO"])
        rest = self.form.pack(sport, dport, sport, port, af, proto, direction)
        return given[:32] + given[:16] + wire("127.0.0.1") + rest


class PfHere(Pf):
    """Mode pf of FreeBSD with that device."""

    @classmethod
    def prepare(cls) -> None:
        """Open the device."""
        cls._system = SYSTEMS["freebsd"]
        cls._device = OpenedByRoot()
