"""A router to install on, in a network namespace that goes when the test is over, and its configurations."""

import subprocess
from collections.abc import Callable

from appliance.nft import kernel
from lab.process import wait_until

ALL_ROUTES = ("route", "show", "table", "all")
TPROXY = "mode tproxy\nbind_address ::\nlan_interfaces lan\n"
BOTH = "mode tproxy,netfilter\nbind_address ::\nlan_interfaces lan,lan.5\ntrusted_clients 10.0.0.1,10.0.0.9\n"
NETFILTER = TPROXY.replace("tproxy", "netfilter")


def run(*command: str, data: str = "") -> str:
    return subprocess.run(command, input=data, capture_output=True, text=True, check=True).stdout


def as_router(work: Callable[[], None]) -> None:
    """Call something in a namespace with loopback and the interfaces lan and lan.5."""

    def prepare() -> None:
        run("ip", "link", "set", "lo", "up")
        for name in ("lan", "lan.5"):
            run("ip", "link", "add", name, "type", "veth", "peer", "name", f"from-{name}")
            for end in (name, f"from-{name}"):
                # Without addresses that come by themselves, and when they like.
                run("ip", "link", "set", end, "up", "addrgenmode", "none")
        run("ip", "address", "add", "10.0.0.254/24", "dev", "lan")
        run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        wait_until(settled, 10, "routes of all interfaces that came up")
        work()

    kernel.elsewhere(prepare)


def settled() -> bool:
    """Tell whether the kernel has made the routes of the four ends, some time after they came up."""
    routes = run("ip", "-6", *ALL_ROUTES)
    return not routes or routes.count("multicast ") == 4  # none at all without IPv6


def traces() -> list[str]:
    """Everything that must be the same before and after; of sysctls those that no counter hides behind."""
    alive = ("fs.", "kernel.", "net.netfilter.nf_conntrack_count", "vm.")
    settings = [line for line in run("sysctl", "-a").splitlines() if not line.startswith(alive)]
    routing = [run("ip", family, *what) for family in ("-4", "-6") for what in (("rule",), ALL_ROUTES)]
    return [run("nft", "list", "ruleset"), *routing, *settings]
