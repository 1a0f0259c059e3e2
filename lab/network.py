"""The lab's network: client -- router -- mail, three hosts in namespaces, IPv4 and IPv6.

    client eth0  10.77.1.5      fd77:1::5        a private LAN behind the router
                 203.0.113.5    2001:db8:77::5   and a public-looking one on the same wire
    router lan   10.77.1.1  fd77:1::1  203.0.113.1  2001:db8:77::1
           wan   198.51.100.1  2001:db8:25::1
    mail   eth0  198.51.100.25  2001:db8:25::25  more with add_address, one for each mail server

Used by tests, demo and benchmarks as a context manager. The machine's own network is never touched: the pairs
of virtual interfaces are made inside the hosts.
"""

import os
from pathlib import Path
from typing import Self

from lab import image
from lab.host import Host
from lab.process import LabError
from lab.run_directory import RunDirectory

CLIENT4, CLIENT6 = "10.77.1.5", "fd77:1::5"
PUBLIC_CLIENT4, PUBLIC_CLIENT6 = "203.0.113.5", "2001:db8:77::5"
ROUTER4, ROUTER6 = "10.77.1.1", "fd77:1::1"
MAIL4, MAIL6 = "198.51.100.25", "2001:db8:25::25"

ROUTER_LAN = ("10.77.1.1/24", "fd77:1::1/64", "203.0.113.1/24", "2001:db8:77::1/64")
ROUTER_WAN = ("198.51.100.1/24", "2001:db8:25::1/64")
CLIENT = ("10.77.1.5/24", "fd77:1::5/64", "203.0.113.5/24", "2001:db8:77::5/64")
MAIL = ("198.51.100.25/24", "2001:db8:25::25/64")
Ends = tuple[str, ...]


class Network:
    """The three hosts, wired, routed and reachable from each other. `close` leaves nothing behind."""

    NAMES: tuple[str, ...] = ("client", "router", "mail")

    def __init__(self, name: str = "lab"):
        if os.geteuid():
            raise LabError("the lab makes namespaces and mounts on the machine: run it as root")
        images = image.require()
        self._directory = RunDirectory(name)
        self.directory = self._directory.path
        self.hosts: list[Host] = []
        try:
            self.client, self.router, self.mail, *_ = [self._begin(name, images) for name in self.NAMES]
            for host in self.hosts:
                host.ready()
            self._wire()
        except BaseException:
            self.close()
            raise

    def _begin(self, name: str, images: list[Path]) -> Host:
        host = Host(name, self.directory, images)
        self.hosts.append(host)
        return host

    def _wire(self) -> None:
        for name in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"):
            self.router.sysctl(name, "1")
        for name in ("all", "default"):  # answers to a client's address come in where that client is not
            self.router.sysctl(f"net/ipv4/conf/{name}/rp_filter", "0")
        self.join(self.router, "lan", ROUTER_LAN, self.client, "eth0", CLIENT)
        self.join(self.router, "wan", ROUTER_WAN, self.mail, "eth0", MAIL)
        for host, gateways, sources in (
            (self.client, ROUTER_LAN, (CLIENT4, CLIENT6)),
            (self.mail, ROUTER_WAN, (MAIL4, MAIL6)),
        ):
            with host.netlink() as netlink:
                for gateway, source in zip(gateways, sources, strict=False):
                    netlink.route("add", dst="default", gateway=gateway.partition("/")[0], prefsrc=source)

    @staticmethod
    def join(
        first: Host, interface: str, addresses: Ends, second: Host, other_interface: str, others: Ends
    ) -> None:
        """Lay a wire between two hosts, with these addresses at its ends."""
        with first.netlink() as netlink:
            peer = {"ifname": other_interface, "net_ns_pid": second.pid}
            netlink.link("add", ifname=interface, kind="veth", peer=peer)
        for host, name, own in ((first, interface, addresses), (second, other_interface, others)):
            host.sysctl(f"net/ipv6/conf/{name}/accept_dad", "0")
            host.sysctl(f"net/ipv6/conf/{name}/accept_ra", "0")
            host.link_up(name)
            for address in own:
                host.add_address(address, name)

    def close(self) -> None:
        """End all hosts with what runs on them, and remove the run directory. May be called twice."""
        for host in self.hosts:
            host.close()
        self._directory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()
