"""Interception on the lab's router: the rules that send the clients' port 25 to the gateway.

Called by `lab.gateway` and tests. The rules are the product's own, installed as `appliance-ctl up` does.
Everything is set inside the router's namespace and goes with it.
"""

from appliance.config import parse
from appliance.nft.installer import Installer, Plan
from lab.host import Host
from lab.namespace import inside

PORT = 9199  # of the gateway
ELSEWHERE = "fib daddr type != local"  # what is meant for the router itself is left alone
PRIVATE4 = "{ 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 169.254.0.0/16 }"
PRIVATE6 = "{ fc00::/7, fe80::/10 }"


def installer(router: Host, text: str) -> Installer:
    """Give the installer for a configuration; its methods have to be called inside the router's namespace."""
    return Installer(parse(text), directory=router.run_directory / f"rules-{router.name}")


def install(router: Host, text: str) -> Plan:
    """Install the rules for a configuration; clients are where the lab has them, if it does not say."""
    if "lan_interfaces" not in text:
        text += "lan_interfaces lan\n"
    return inside(router.namespace, lambda: installer(router, text).up())


def intercept(router: Host, mode: str) -> None:
    """Send the clients' port 25 to the gateway on the router, replacing an earlier interception."""
    install(router, f"mode {mode}\nbind_address ::\nport {PORT}\non_failure closed\n")


def release(router: Host) -> None:
    """Forward port 25 as if there were no gateway; the routes, which only marked packets take, stay."""
    tables = ("inet appliance", "inet lab")
    clear = "".join(f"table {table}\ndelete table {table}\n" for table in tables)
    router.run(["nft", "-f", "-"], input=clear)


def hand_over(router: Host, gateway4: str, gateway6: str) -> None:
    """Send the clients' port 25 to a gateway elsewhere, from the router's own address where it is private.

    What the gateway asks a client of a public IPv6 address, the router answers in its place.
    """
    rules = f"""
        table inet lab {{
            chain translate {{
                type nat hook prerouting priority dstnat; policy accept;
                iifname "lan" meta nfproto ipv4 tcp dport 25 {ELSEWHERE} dnat ip to {gateway4}:{PORT}
                iifname "lan" meta nfproto ipv6 tcp dport 25 {ELSEWHERE} dnat ip6 to [{gateway6}]:{PORT}
                iifname != "lan" ip6 saddr {gateway6} udp dport 114 {ELSEWHERE} redirect
            }}
            chain hide {{
                type nat hook postrouting priority srcnat; policy accept;
                oifname != "lan" ip saddr {PRIVATE4} masquerade
                oifname != "lan" ip6 saddr {PRIVATE6} masquerade
            }}
        }}
    """
    router.run(["nft", "-f", "-"], input=f"table inet lab\ndelete table inet lab\n{rules}")
