"""Interception on the lab's router: the rules that send the clients' port 25 to the gateway.

Called by `lab.gateway` and tests. Everything is set inside the router's namespace and goes with it.
"""

from lab.host import Host

MARK, TABLE = 1, 100
HERE = 254  # the scope that the kernel wants for local routes
PRIVATE4 = "{ 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 169.254.0.0/16 }"
PRIVATE6 = "{ fc00::/7, fe80::/10 }"

# A mail server's answers to a client's address find the socket that the gateway opened in its name.
DIVERT = "meta l4proto tcp socket transparent 1 meta mark set {mark} accept"
TPROXY = """
    iifname "lan" {only4} tcp dport 25 {elsewhere} tproxy ip to :{port} meta mark set {mark} accept
    iifname "lan" {only6} tcp dport 25 {elsewhere} tproxy ip6 to :{port} meta mark set {mark} accept
"""
REDIRECT = """
    iifname "lan" {only4} tcp dport 25 {elsewhere} redirect to :{port}
    iifname "lan" {only6} tcp dport 25 {elsewhere} redirect to :{port}
"""
ELSEWHERE = "fib daddr type != local"  # what is meant for the router itself is left alone
ALL4, ALL6 = "meta nfproto ipv4", "meta nfproto ipv6"


def rules(mode: str, port: int = 9199) -> str:
    """Give the nft ruleset for a mode; with both, private clients are redirected, the rest TPROXYed."""
    both = mode == "tproxy,netfilter"
    prerouting = redirected = ""
    if "tproxy" in mode:
        only4, only6 = (f"ip saddr != {PRIVATE4}", f"ip6 saddr != {PRIVATE6}") if both else (ALL4, ALL6)
        prerouting = (DIVERT + TPROXY).format(
            port=port, mark=MARK, elsewhere=ELSEWHERE, only4=only4, only6=only6
        )
    if "netfilter" in mode:
        only4, only6 = (f"ip saddr {PRIVATE4}", f"ip6 saddr {PRIVATE6}") if both else (ALL4, ALL6)
        redirected = REDIRECT.format(port=port, elsewhere=ELSEWHERE, only4=only4, only6=only6)
    return f"""
        table inet lab {{
            chain intercept {{ type filter hook prerouting priority mangle; policy accept; {prerouting} }}
            chain translate {{ type nat hook prerouting priority dstnat; policy accept; {redirected} }}
        }}
    """


def intercept(router: Host, mode: str, port: int = 9199) -> None:
    """Send the clients' port 25 to the gateway's `port`, replacing an earlier interception."""
    clear = "table inet lab\ndelete table inet lab\n"
    router.run(["nft", "-f", "-"], input=clear + rules(mode, port))
    _route_marked_packets_here(router)


def release(router: Host) -> None:
    """Forward port 25 as if there were no gateway."""
    router.run(["nft", "-f", "-"], input="table inet lab\ndelete table inet lab\n")


def hand_over(router: Host, gateway4: str, gateway6: str, port: int = 9199) -> None:
    """Send the clients' port 25 to a gateway elsewhere, from the router's own address where it is private.

    What the gateway asks a client of a public IPv6 address, the router answers in its place.
    """
    rules = f"""
        table inet lab {{
            chain translate {{
                type nat hook prerouting priority dstnat; policy accept;
                iifname "lan" meta nfproto ipv4 tcp dport 25 {ELSEWHERE} dnat ip to {gateway4}:{port}
                iifname "lan" meta nfproto ipv6 tcp dport 25 {ELSEWHERE} dnat ip6 to [{gateway6}]:{port}
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


def _route_marked_packets_here(router: Host) -> None:
    """Policy routing: whatever carries the mark is delivered locally, whoever it is addressed to."""
    with router.netlink() as netlink:
        loopback = netlink.link_lookup(ifname="lo")[0]
        for family, everything in ((2, "0.0.0.0/0"), (10, "::/0")):
            if not netlink.get_rules(family=family, FRA_FWMARK=MARK):
                netlink.rule("add", family=family, fwmark=MARK, table=TABLE)
            netlink.route(
                "replace", family=family, type="local", dst=everything, table=TABLE, scope=HERE, oif=loopback
            )
