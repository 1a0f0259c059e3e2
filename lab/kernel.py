"""The appliance's own rules on a lab host, what they know of locked clients, and floods to try them with.

Called by tests and benchmarks. The rules come with their lock sets; routes are those of `lab.router`. As a
program, `python -m lab.kernel SERVER PORT EACH RATE SOURCE..`, this is the flood itself.
"""

import contextlib
import os
import pwd
import socket
import struct
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from appliance.config import parse
from appliance.nft import ruleset
from appliance.nft.kernel import transact
from appliance.nft.locks import Element, LockSets
from lab.gateway import USER, Gateway, Options
from lab.host import Host
from lab.image import CHECKOUT
from lab.namespace import inside
from lab.process import Process, wait_until

_AT_ONCE = 200  # packets that a flood sends before it looks at the clock


class Kernel:
    """The appliance's table on a host, and the locked clients in it; `remove` and `close` end it."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._sets = inside(host.namespace, LockSets)

    def install(self, options: Options) -> None:
        """Make the table anew that a configuration means, as the installer would."""
        self.remove()
        given: Options = {"lan_interfaces": "lan", **options}
        text = "".join(f"{name} {value}\n" for name, value in given.items() if value is not None)
        commands = ruleset.build(parse(text))
        inside(self._host.namespace, lambda: transact(commands))

    def remove(self) -> None:
        """Remove the table, if there is one."""
        self.nft("table inet appliance\ndelete table inet appliance\n")

    def nft(self, text: str) -> str:
        """Execute nft's own language on the host; give what it prints."""
        return self._host.run(["nft", "-f", "-"], input=text).stdout

    def locked(self) -> dict[str, Element]:
        """Give the locked clients by their addresses."""
        return {str(element.address): element for element in self._sets.dump()}

    def wait_locked(self, *clients: str, timeout: float = 5) -> None:
        """Wait until these clients are locked and no others."""
        wanted = set(clients)
        wait_until(lambda: set(self.locked()) == wanted, timeout, f"locks on {clients}", 0.002)

    def close(self) -> None:
        """Leave the host alone."""
        self._sets.close()


def lock(gateway: Gateway, client: str, cause: str = "VIRUS Eicar") -> Path:
    """Lock a client as the gateway does: a file that is whole and its user's as soon as it has its name."""
    account, path = pwd.getpwnam(USER), gateway.locks / client
    making = gateway.locks / f".{client}.1.2.3"
    making.write_text(f"{cause}\n")
    os.chown(making, account.pw_uid, account.pw_gid)
    making.rename(path)
    return path


def flood(host: Host, sources: Sequence[str], server: str, *, each: int, rate: int = 0) -> Process:
    """Begin to send `each` SYNs to a server from each source, `rate` a second in all (0: at will)."""
    python = CHECKOUT / ".venv" / "bin" / "python"
    return host.start([python, "-m", "lab.kernel", server, "25", str(each), str(rate), *sources])


def _syn(source: str, server: str, port: int, source_port: int) -> bytes:
    addresses = socket.inet_aton(source) + socket.inet_aton(server)
    header = struct.pack("!BBHHHBBH", 0x45, 0, 40, 0, 0x4000, 64, socket.IPPROTO_TCP, 0) + addresses
    segment = struct.pack("!HHIIBBHHH", source_port, port, 1, 0, 0x50, 0x02, 65535, 0, 0)
    summed = addresses + struct.pack("!BBH", 0, socket.IPPROTO_TCP, len(segment)) + segment
    total = sum(struct.unpack(f"!{len(summed) // 2}H", summed))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return header + segment[:16] + struct.pack("!H", checksum) + segment[18:]


def main() -> None:
    """Flood, as the command line says."""
    server, port, each, rate, *sources = sys.argv[1:]
    packets = [
        _syn(source, server, int(port), 20_000 + number % 40_000)
        for number in range(min(int(each), 100))
        for source in sources
    ]
    left, begin, sent = int(each) * len(sources), time.monotonic(), 0
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        while left:
            for packet in (packets[(sent + number) % len(packets)] for number in range(min(left, _AT_ONCE))):
                with contextlib.suppress(PermissionError):  # the sender's own rules drop it
                    raw.sendto(packet, (server, 0))
            sent, left = sent + min(left, _AT_ONCE), left - min(left, _AT_ONCE)
            if int(rate):
                time.sleep(max(0.0, begin + sent / int(rate) - time.monotonic()))


if __name__ == "__main__":
    main()
