"""Other people's tables: which of their rules take the connections that are meant for the gateway.

Called by the installer. Pure: works on a listing of all tables. A rule that leads connections elsewhere is
suspected unless its conditions show that it means other ports, interfaces, protocols or the router itself;
one that stops them only if it names one of our ports, for firewalls have many that stop what is broken.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from appliance.config import Config
from appliance.nft import text
from appliance.nft.expression import Json, daddr, field
from appliance.nft.names import FAMILY, TABLE

_STEALS = ("redirect", "dnat", "tproxy", "queue", "fwd", "dup")
_STOPS = ("drop", "reject")
_FAMILIES = {"ip", "ip6", FAMILY}
_DEEPEST = 16  # the kernel's own bound for jumps
_PORT = field("tcp", "dport")
_DESTINATIONS = (daddr(4), daddr(6))
Place = tuple[str, str, str]  # family, table, chain


@dataclass(frozen=True)
class Taker:
    """A rule of somebody else's: what it does to our connections, where it stands, and its words."""

    verb: str
    table: str
    chain: str
    hook: str
    priority: int
    words: str

    @property
    def steals(self) -> bool:
        """Whether it leads connections somewhere else, rather than stopping them."""
        return self.verb in _STEALS

    def __str__(self) -> str:
        return f"table {self.table} chain {self.chain} ({self.hook}, priority {self.priority}): {self.words}"


def takers(listing: Iterable[Json], config: Config, own: frozenset[str]) -> list[Taker]:
    """Give the rules of other tables, hooked before routing, that take or stop mail of the LAN.

    `own` are the router's own addresses.
    """
    return list(_Others(listing, config, own).takers())


def marks(listing: Iterable[Json], mark: int) -> list[str]:
    """Give the rules of other tables that set our mark."""
    found: list[str] = []
    for entry in listing:
        about = entry.get("rule", {})
        for each in about.get("expr", []) if about.get("table") != TABLE else ():
            mangle = each.get("mangle") if isinstance(each, dict) else None
            if mangle and mangle.get("key") == {"meta": {"key": "mark"}} and mangle.get("value") == mark:
                found.append(
                    f"table {about['family']} {about['table']} chain {about['chain']}: {text.rule(about)}"
                )
    return found


class _Others:
    def __init__(self, listing: Iterable[Json], config: Config, own: frozenset[str]) -> None:
        self._config, self._own = config, own
        self._chains: dict[Place, Json] = {}
        self._rules: dict[Place, list[Json]] = {}
        self._sets: dict[Place, Json] = {}
        for entry in listing:
            ((kind, about),) = entry.items()
            if about.get("table") in (None, TABLE) or about.get("family") not in _FAMILIES:
                continue
            if kind == "chain":
                self._chains[about["family"], about["table"], about["name"]] = about
            elif kind == "rule":
                self._rules.setdefault((about["family"], about["table"], about["chain"]), []).append(about)
            elif kind == "set":
                self._sets[about["family"], about["table"], about["name"]] = about

    def takers(self) -> Iterator[Taker]:
        for chain, about in self._chains.items():
            if about.get("hook") in ("prerouting", "ingress"):
                for verb, rule in self._follow(chain, named=False, depth=0):
                    where = f"{chain[0]} {chain[1]}"
                    yield Taker(verb, where, chain[2], about["hook"], about["prio"], text.rule(rule))

    def _follow(self, chain: Place, *, named: bool, depth: int) -> Iterator[tuple[str, Json]]:
        """Give the rules that act on our connections, in this chain and those it leads to.

        `named` tells whether our ports were named on the way.
        """
        for rule in self._rules.get(chain, []) if depth < _DEEPEST else ():
            words = [each for each in rule["expr"] if isinstance(each, dict) and each]
            if not all(self._may_match(chain, each) for each in words):
                continue
            port = named or any(each.get("match", {}).get("left") == _PORT for each in words)
            for each in words:
                kind = next(iter(each))
                if kind in _STEALS or (kind in _STOPS and port):
                    yield kind, rule
                for target in self._targets(chain, each):
                    yield from self._follow((*chain[:2], target), named=port, depth=depth + 1)

    def _targets(self, chain: Place, words: Json) -> Iterator[str]:
        """Give the chains a statement may lead our connections to; maps that have names are not known."""
        for kind in ("jump", "goto"):
            if kind in words:
                yield words[kind]["target"]
        about = words.get("vmap", {})
        for key, verdict in about["data"]["set"] if isinstance(about.get("data"), dict) else ():
            if self._may_match(chain, {"match": {"op": "==", "left": about["key"], "right": key}}):
                yield from self._targets(chain, verdict)

    def _may_match(self, chain: Place, condition: Json) -> bool:
        about = condition.get("match")
        if not about or about["op"] not in ("==", "in", "!="):
            return True
        named = self._constants(chain, about["right"])
        if named is None:
            return True
        if about["left"] in _DESTINATIONS:  # connections to the router itself are not ours
            return about["op"] == "!=" or not all(low == high and low in self._own for low, high in named)
        ours = self._ours(about["left"])
        if ours is None:
            return True
        within = [any(_lies(mine, low, high) for low, high in named) for mine in ours]
        return not all(within) if about["op"] == "!=" else any(within)

    def _ours(self, left: Any) -> list[Any] | None:
        """Give what our connections have there, or None when that is anything."""
        match left:
            case {"payload": {"protocol": "tcp" | "th", "field": "dport"}}:
                return list(self._config.intercept_ports)
            case {"payload": {"protocol": "udp" | "sctp" | "dccp" | "icmp" | "icmpv6"}}:
                return []
            case {"meta": {"key": "l4proto"}} | {"payload": {"protocol": "ip", "field": "protocol"}}:
                return ["tcp"]
            case {"meta": {"key": "iifname" | "iif"}}:
                return list(self._config.lan_interfaces)
            case {"fib": {"result": "type", "flags": ["daddr"] | "daddr"}}:
                return ["unicast"]
        return None

    def _constants(self, chain: Place, right: Any) -> list[tuple[Any, Any]] | None:
        """Give the ranges that a condition names, or None when they cannot be told."""
        if isinstance(right, str) and right.startswith("@"):
            right = self._sets.get((*chain[:2], right[1:]), {}).get("elem", [])
        elif isinstance(right, dict) and "set" in right:
            right = right["set"]
        ranges: list[tuple[Any, Any]] = []
        for each in right if isinstance(right, list) else [right]:
            match each["elem"]["val"] if isinstance(each, dict) and "elem" in each else each:
                case {"range": [low, high]}:
                    ranges.append((low, high))
                case str(start) if start.endswith("*"):
                    ranges.append((start[:-1], start[:-1] + "\U0010ffff"))
                case int(constant) | str(constant):
                    ranges.append((constant, constant))
                case _:
                    return None
        return ranges


def _lies(mine: Any, low: Any, high: Any) -> bool:
    try:
        return bool(low <= mine <= high)
    except TypeError:  # one a number, the other a name of one: cannot be told
        return True
