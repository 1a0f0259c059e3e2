"""The lab's network with a second site and a gateway of its own, for gateways that serve several routers.

    client  10.77.1.5 -- router  198.51.100.1 --+
                                                mail (198.51.100.25, and the way between all of them)
    client2 10.77.1.5 -- router2 198.51.101.1 --+
                                                +-- gateway 192.0.2.9

Both sites use the same private addresses, in IPv6, too, and hide them behind their router's. `Helper` is
appliance-helper on a router.
"""

from collections.abc import Sequence
from pathlib import Path

from lab.host import Host
from lab.image import CHECKOUT
from lab.network import CLIENT, ROUTER_LAN, Network
from lab.process import Process

GATEWAY4, GATEWAY6 = "192.0.2.9", "2001:db8:9::9"
ROUTERS4 = ("198.51.100.1", "198.51.101.1")
ROUTERS6 = ("2001:db8:25::1", "2001:db8:26::1")

GATEWAY, GATEWAY_WAN = ("192.0.2.9/24", "2001:db8:9::9/64"), ("192.0.2.1/24", "2001:db8:9::1/64")
ROUTER2_WAN, CORE2 = ("198.51.101.1/24", "2001:db8:26::1/64"), ("198.51.101.25/24", "2001:db8:26::25/64")
CORE = ("198.51.100.25/24", "2001:db8:25::25/64")
FORWARDING = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding")


class Branches(Network):
    """Six hosts: two sites, and between them `mail`, to which `gateway` is joined, too."""

    NAMES = (*Network.NAMES, "client2", "router2", "gateway")

    def _wire(self) -> None:
        super()._wire()
        self.client2, self.router2, self.gateway = self.hosts[3:]
        for host in (self.mail, self.router2):
            for name in FORWARDING:
                host.sysctl(name, "1")
        self.join(self.router2, "lan", ROUTER_LAN[:2], self.client2, "eth0", CLIENT[:2])
        self.join(self.router2, "wan", ROUTER2_WAN, self.mail, "site2", CORE2)
        self.join(self.gateway, "eth0", GATEWAY, self.mail, "gateway", GATEWAY_WAN)
        for host, next_hops in (
            (self.client2, ROUTER_LAN),
            (self.router, CORE),
            (self.router2, CORE2),
            (self.gateway, GATEWAY_WAN),
        ):
            with host.netlink() as netlink:
                for hop in next_hops[:2]:
                    netlink.route("add", dst="default", gateway=hop.partition("/")[0])


class Helper:
    """appliance-helper on a router, for the lab's gateway; `arguments` are more of its options.

    `before` is a command that starts it, instead of root.
    """

    def __init__(self, router: Host, *arguments: str | Path, before: Sequence[str] = ()) -> None:
        gateways = ("--gateway", GATEWAY4, "--gateway", GATEWAY6)
        program = CHECKOUT / ".venv/bin/python", "-P", "-m", "appliance.helper.cli"
        self._command: list[str | Path] = [*before, *program, *gateways]
        self._command += ["--log-target", "stderr", *arguments]
        self._router = router
        self.process: Process
        self.start()

    def start(self) -> None:
        """Start it, or another one after it has ended, and wait until it answers."""
        self.process = self._router.start(self._command)
        self.process.wait_output(": START ")

    @property
    def log(self) -> list[str]:
        """The lines it has logged, without its name."""
        return [line.partition("]: ")[2] for line in self.process.output().splitlines()]

    def close(self) -> None:
        """End it."""
        self.process.terminate()
