"""The sysctls that the mail's way depends on.

Interception works whatever rp_filter, src_valid_mark, tcp_fwmark_accept and others say (a lab test tries
them), but for those of br_netfilter where the LAN is a bridge, and that of VRFs. What passes by the gateway
passes only if this is a router at all. All that is the administrator's decision, so it is looked at and never
changed. Called by the installer.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from pyroute2 import IPRoute

from appliance.config import Config
from appliance.nft.ruleset import intercepts, versions

_PROC = Path("/proc/sys")
_BRIDGED = {4: "net.bridge.bridge-nf-call-iptables", 6: "net.bridge.bridge-nf-call-ip6tables"}
_FOR_VRFS = "net.ipv4.tcp_l3mdev_accept"
_FORWARDING = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}


def found(config: Config) -> dict[str, str]:
    """Give the values of what matters to a configuration, by name; what this kernel lacks is left out."""
    if not intercepts(config):
        return {}
    values: dict[str, str] = {}
    for name in _FORWARDING.values():
        if value := _read(name):
            values[name] = value
    return values


def conflicts(config: Config) -> Iterator[str]:
    """Tell, in a mode with tproxy, which bridges show their packets to the rules too early, and what to do.

    What TPROXY chooses is forgotten when a packet leaves the bridge for the router, and nobody asks it again.
    """
    with IPRoute() as netlink:
        bridges = {link.get_attr("IFLA_IFNAME") for link in netlink.get_links(kind="bridge")}
    for interface in sorted(bridges & set(config.lan_interfaces)):
        for name in [_BRIDGED[version] for version in versions(config)]:
            if _read(name) == "1":
                yield (
                    f"lan_interfaces: {interface} is a bridge, over which mode {config.mode} does not work "
                    f"while sysctl {name} is 1; set it to 0, or use mode netfilter"
                )


def of_vrfs(config: Config) -> Iterator[str]:
    """Tell what is wrong where interfaces of clients are in a VRF: mail would be reset or pass by there."""
    if not intercepts(config):
        return
    with IPRoute() as netlink:
        vrfs = {link["index"]: link.get_attr("IFLA_IFNAME") for link in netlink.get_links(kind="vrf")}
        links = {link.get_attr("IFLA_IFNAME"): link.get_attr("IFLA_MASTER") for link in netlink.get_links()}
    masters = {name: vrfs[master] for name, master in links.items() if master in vrfs}
    yield from wrong_with_vrfs(config.lan_interfaces, masters, _read(_FOR_VRFS))


def wrong_with_vrfs(named: Collection[str], masters: Mapping[str, str], accepts: str) -> Iterator[str]:
    """Tell the same of `masters`, interfaces' VRFs by name, and the sysctl's value.

    A packet passes the rules by the names of both. Others than clients may share their VRF.
    """
    for name, vrf in sorted(masters.items()):
        if name in named and vrf not in named:
            yield f"lan_interfaces: {name} is in the VRF {vrf}, which has to be named, too"
    for vrf in sorted({*masters.values()}.intersection(named)):
        if not any(name in named for name in masters if masters[name] == vrf):
            yield f"lan_interfaces: {vrf} is a VRF; its interfaces where clients are have to be named, too"
    if accepts == "0" and not {*masters, *masters.values()}.isdisjoint(named):
        yield f"lan_interfaces: clients are in a VRF, and sysctl {_FOR_VRFS} is 0; set it to 1"


def _read(name: str) -> str:
    """Give the value, or nothing if this kernel lacks it."""
    path = _PROC / name.replace(".", "/")
    return path.read_text().strip() if path.exists() else ""


def warnings(values: dict[str, str]) -> list[str]:
    """Tell what will not work with these values."""
    return [
        f"sysctl {name} is 0: mail of trusted clients, and of all while no gateway runs, does not pass"
        for name, value in values.items()
        if value == "0"
    ]


def drift(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """Tell which of them has been changed for the worse."""
    return [
        f"sysctl {name} was {value} and is {now[name]}: what passes by the gateway does not pass any more"
        for name, value in before.items()
        if name in now and now[name] == "0" and value != "0"
    ]
