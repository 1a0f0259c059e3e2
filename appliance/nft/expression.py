"""The few words of nftables JSON that the ruleset is written in, each a function that makes one expression.

Used by `ruleset.py` alone. See libnftables-json(5). Nothing here knows the configuration or the kernel.
"""

from typing import Any

Json = dict[str, Any]


def match(left: Json, right: object, op: str = "==") -> Json:
    """Make a condition."""
    return {"match": {"op": op, "left": left, "right": right}}


def meta(key: str) -> Json:
    """Name a fact about the packet that is not in it, such as iifname or mark."""
    return {"meta": {"key": key}}


def field(protocol: str, name: str) -> Json:
    """Name a field of a header."""
    return {"payload": {"protocol": protocol, "field": name}}


def saddr(version: int) -> Json:
    """Name the source address."""
    return field("ip" if version == 4 else "ip6", "saddr")


def daddr(version: int) -> Json:
    """Name the destination address."""
    return field("ip" if version == 4 else "ip6", "daddr")


def is_version(version: int) -> Json:
    """Ask for a version of the internet protocol."""
    return match(meta("nfproto"), f"ipv{version}")


def _begins() -> Json:
    return {"&": [field("tcp", "flags"), {"|": ["syn", "ack"]}]}


# A client's first packet. FIN and RST are not asked for: some system may take a SYN with them for a SYN.
BEGINS = match(_begins(), "syn")
CONTINUES = match(_begins(), "syn", "!=")

FIB = {"fib": {"result": "type", "flags": ["daddr"]}}
TO_ROUTER = match(FIB, "local")
TO_OTHERS = match(FIB, "local", "!=")
# The gateway has a socket for this very packet, or for the one that an ICMP error is about. Its listener does
# not count: bound to any address, it would be the one for its port of every machine.
OURS = [match({"socket": {"key": "wildcard"}}, 0), match({"socket": {"key": "transparent"}}, 1)]
# By names of types: those of protocols would be looked up in /etc/protocols, which a small machine may lack.
ICMP_ERRORS = [
    match(field("icmp", "type"), {"set": ["destination-unreachable", "time-exceeded", "parameter-problem"]}),
    match(
        field("icmpv6", "type"),
        {"set": ["destination-unreachable", "packet-too-big", "time-exceeded", "parameter-problem"]},
    ),
]
TRANSLATED = match({"ct": {"key": "status"}}, "dnat", "in")
ACCEPT: Json = {"accept": None}
DROP: Json = {"drop": None}
RESET: Json = {"reject": {"type": "tcp reset"}}


def in_set(left: Json, name: str) -> Json:
    """Ask whether a named set holds something."""
    return match(left, f"@{name}")


def set_mark(mark: int) -> Json:
    """Mark the packet."""
    return {"mangle": {"key": meta("mark"), "value": mark}}


def count(name: str) -> Json:
    """Count with a named counter, which outlives its rules."""
    return {"counter": name}


def goto(chain: str) -> Json:
    """Go on in another chain, and not return."""
    return {"goto": {"target": chain}}


def update(name: str, key: Json, *statements: Json) -> Json:
    """Put something into a set, or make it young again; its statements are executed with it."""
    found: Json = {"op": "update", "elem": key, "set": f"@{name}"}
    return {"set": found | ({"stmt": list(statements)} if statements else {})}


def more_often_than(number: int) -> Json:
    """Ask whether something happens more often than that a minute; as many may come at once."""
    return {"limit": {"rate": number, "burst": number, "per": "minute", "inv": True}}


def tproxy(version: int, address: str, port: int) -> Json:
    """Hand the packet to the listener, address unset for any; does not match when nothing listens."""
    target: Json = {"family": "ip" if version == 4 else "ip6", "port": port}
    return {"tproxy": target | ({"addr": address} if address else {})}


def redirect(version: int, address: str, port: int) -> Json:
    """Translate the destination to the listener's port, at this router's address or the one given."""
    if not address:
        return {"redirect": {"port": port}}
    return {"dnat": {"family": "ip" if version == 4 else "ip6", "addr": address, "port": port}}
