"""The XCLIENT command, which tells a mail server who the client is (mode fixed+xclient)."""

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ClientOrigin:
    """Both ends of the client's connection as the gateway saw them."""

    address: str
    port: int
    local_address: str
    local_port: int

    def command(self, attributes: Collection[bytes]) -> bytes:
        """Write the command line with the attributes that the server takes."""
        values = [
            (b"ADDR", _address(self.address)),
            (b"NAME", "[UNAVAILABLE]"),
            (b"PORT", str(self.port)),
            (b"DESTADDR", _address(self.local_address)),
            (b"DESTPORT", str(self.local_port)),
        ]
        wanted = [
            name + b"=" + value.encode()
            for name, value in values
            if name in (b"ADDR", b"NAME") or name in attributes
        ]
        return b"XCLIENT " + b" ".join(wanted) + b"\r\n"


def _address(address: str) -> str:
    return f"IPV6:{address}" if ":" in address else address
