"""Other people's tables: which of their rules take the connections that are meant for the gateway.

Called by the installer. Pure: works on a listing of all tables. A rule that leads connections elsewhere is
suspected unless its conditions show that it means other ports, interfaces, protocols or the router itself;
one that stops them only if it names one of our ports, for firewalls have many that stop what is broken. On
the last steps to the gateway (hook input) one that accepts is believed to accept ours unless its conditions
show that it does not.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from appliance.config import Config
from appliance.nft import text
from appliance.nft.expression import Json, daddr, field, meta
from appliance.nft.names import FAMILY, TABLE
from appliance.nft.ruleset import MARKED, versions

_STEALS = ("redirect", "dnat", "tproxy", "queue", "fwd")  # what is copied elsewhere (dup) still comes here
_STOPS = ("drop", "reject")
# What iptables leads elsewhere or stops, by the names of its targets, which are all that nft tells of them.
_TARGETS = {
    "CT": "notrack",  # or a zone, which is as bad
    "DNAT": "dnat",
    "MARK": "mark",
    "NETMAP": "dnat",
    "NFQUEUE": "queue",
    "REDIRECT": "redirect",
    "REJECT": "reject",
    "TPROXY": "tproxy",
}
_UNCONDITIONAL = {"accept", "counter", "drop", "goto", "jump", "log", "reject", "vmap"}
_FAMILIES = {"ip", "ip6", FAMILY, "netdev"}
_DEEPEST = 16  # the kernel's own bound for jumps
_PORT = field("tcp", "dport")
_DESTINATIONS = (daddr(4), daddr(6))
_MARK = meta("mark")
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
        return self.verb not in _STOPS

    def __str__(self) -> str:
        return f"table {self.table} chain {self.chain} ({self.hook}, priority {self.priority}): {self.words}"


def takers(listing: Iterable[Json], config: Config, own: frozenset[str]) -> list[Taker]:
    """Give the rules of other tables that take or stop mail of the LAN on its way to the gateway.

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
            if mangle and mangle.get("key") == _MARK and mangle.get("value") == mark:
                found.append(
                    f"table {about['family']} {about['table']} chain {about['chain']}: {text.rule(about)}"
                )
    return found


class _Way(NamedTuple):
    """What is known of our connections' first packets: ports, type of destination, facts by name."""

    ports: list[int]
    to: str
    seen: dict[str, list[Any]]


class _Others:
    def __init__(self, listing: Iterable[Json], config: Config, own: frozenset[str]) -> None:
        self._config, self._own = config, own
        self._way = self._begin = _Way(list(config.intercept_ports), "unicast", {})
        self._served = {FAMILY, *("ip" if version == 4 else "ip6" for version in versions(config))}
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
            if about.get("hook") in ("prerouting", "ingress") and self._sees_clients(about):
                self._way = self._begin
                for verb, rule in self._follow(chain, self._steals(about), named=False, depth=0):
                    yield _taker(chain, about, verb, text.rule(rule))
            elif about.get("hook") == "input" and chain[0] in self._served:
                for what, way in self._ends():
                    self._way = way
                    if (self._fate(chain, 0) or about.get("policy")) == "drop":
                        words = f"drops what it does not accept, such as {what}"
                        yield _taker(chain, about, "drop", words)

    def _sees_clients(self, about: Json) -> bool:
        """Tell whether a chain is for interfaces of clients; older libraries do not tell for which it is."""
        devices = about.get("dev", list(self._config.lan_interfaces))
        return not set(devices if isinstance(devices, list) else [devices]).isdisjoint(
            self._config.lan_interfaces
        )

    def _steals(self, about: Json) -> set[str]:
        """Give what leads connections elsewhere when it is done in a chain."""
        found = set(_STEALS)
        if about["hook"] == "ingress" and "dev" not in about:  # it may be another's, and up must not refuse
            return set()
        if "netfilter" in self._config.mode:
            found |= {"notrack", "zone"}
        if "tproxy" in self._config.mode and about["hook"] == "prerouting" and about["prio"] >= MARKED:
            found |= {"mangle", "mark"}
        return found

    def _ends(self) -> Iterator[tuple[str, _Way]]:
        """Give what connections are when they come to the gateway, as a firewall can name it."""
        config = self._config
        if "tproxy" in config.mode:
            way = self._begin._replace(seen={"mark": [config.fwmark], "state": ["new"], "status": []})
            yield f"meta mark {config.fwmark}", way
        if "netfilter" in config.mode:
            way = _Way([config.port], "local", {"state": ["new"], "status": ["dnat"]})
            yield f"tcp dport {config.port} ct status dnat", way

    def _follow(
        self, chain: Place, steals: set[str], *, named: bool, depth: int
    ) -> Iterator[tuple[str, Json]]:
        """Give the rules that act on our connections, in this chain and those it leads to.

        `named` tells whether our ports were named on the way.
        """
        for rule, words, _ in self._matching(chain, depth):
            port = named or any(each.get("match", {}).get("left") == _PORT for each in words)
            judged = set() if any("xt" in each for each in words) else steals
            for each in words:
                kind = _kind(each)
                if kind in judged or (kind in _STOPS and port):
                    yield kind, rule
                for verdict, _ in self._verdicts(chain, each):
                    for target in _targets(verdict):
                        yield from self._follow((*chain[:2], target), judged, named=port, depth=depth + 1)

    def _fate(self, chain: Place, depth: int) -> str:
        """Tell what becomes of our connections in a chain: accept, drop, or nothing for sure."""
        for _, words, surely in self._matching(chain, depth):
            for each in words:
                for verdict, sure in self._verdicts(chain, each):
                    kind = next(iter(verdict))
                    for target in _targets(verdict):
                        kind = self._fate((*chain[:2], target), depth + 1)
                    if kind == "return":
                        return ""
                    if kind == "accept" and not _is_for_the_known(words):
                        return kind
                    if kind in _STOPS and surely and sure:
                        return "drop"
        return ""

    def _matching(self, chain: Place, depth: int) -> Iterator[tuple[Json, list[Json], bool]]:
        """Give the rules of a chain that may match our connections, with their words, and whether they do."""
        for rule in self._rules.get(chain, []) if depth < _DEEPEST else ():
            words = [*_words(rule)]
            found = [self._matches(chain, each) for each in words]
            if False not in found:
                yield rule, words, all(found)

    def _verdicts(self, chain: Place, words: Json) -> Iterator[tuple[Json, bool]]:
        """Give a statement, or those of its map, and whether they mean us; maps with names are not known."""
        about = words.get("vmap", {})
        if not about:
            yield words, True
        for key, verdict in about["data"]["set"] if isinstance(about.get("data"), dict) else ():
            matches = self._matches(chain, {"match": {"op": "==", "left": about["key"], "right": key}})
            if matches is not False:
                yield verdict, bool(matches)

    def _matches(self, chain: Place, condition: Json) -> bool | None:
        """Tell whether our connections meet a condition, or None when that cannot be told."""
        about = condition.get("match")
        if not about:
            return True if next(iter(condition)) in _UNCONDITIONAL else None
        if about["op"] not in ("==", "in", "!="):
            return None
        named = self._constants(chain, about["right"])
        if named is None:
            return None
        if about["left"] in _DESTINATIONS:  # connections to the router itself are not ours
            others = about["op"] == "!=" or not all(low == high and low in self._own for low, high in named)
            return None if others or self._way.to == "local" else False
        ours = self._ours(about["left"])
        if ours is None:
            return None
        within = [any(_lies(mine, low, high) for low, high in named) for mine in ours]
        return not all(within) if about["op"] == "!=" else any(within)

    def _ours(self, left: Any) -> list[Any] | None:
        """Give what our connections have there, or None when that is anything."""
        match left:
            case {"payload": {"protocol": "tcp" | "th", "field": "dport"}}:
                return self._way.ports
            case {"payload": {"protocol": "udp" | "sctp" | "dccp" | "icmp" | "icmpv6"}}:
                return []
            case (
                {"meta": {"key": "l4proto"}}
                | {"payload": {"protocol": "ip", "field": "protocol"}}
                | {"payload": {"protocol": "ip6", "field": "nexthdr"}}
            ):
                return ["tcp"]
            case {"meta": {"key": "iifname" | "iif"}}:
                return list(self._config.lan_interfaces)
            case {"fib": {"result": "type", "flags": ["daddr"] | "daddr"}}:
                return [self._way.to]
            case {"meta": {"key": "mark" as key}} | {"ct": {"key": "state" | "status" as key}}:
                return self._way.seen.get(key)
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


def _words(rule: Json) -> Iterator[Json]:
    """Give the conditions and statements of a rule, those of iptables that are known by nft's names."""
    for each in rule["expr"]:
        if isinstance(each, dict) and each:
            extension = each.get("xt") or {}
            if extension.get("type") == "target" and extension["name"] in _TARGETS:
                yield {_TARGETS[extension["name"]]: extension}
            elif extension.get("name") != "comment":
                yield each


def _kind(statement: Json) -> str:
    """Name what a statement does; of what can be set only marks and zones have a name."""
    kind = next(iter(statement))
    if kind != "mangle":
        return kind
    key = statement["mangle"]["key"]
    if key == _MARK:
        return kind
    zone = key.get("ct", {})  # of the original direction alone it hides no destination from the gateway
    return "zone" if zone.get("key") == "zone" and zone.get("dir") != "original" else ""


def _is_for_the_known(words: list[Json]) -> bool:
    """Tell whether a rule asks connection tracking alone, in words of iptables that nft does not tell.

    Firewalls let in like that what belongs to a connection that they have let in before.
    """
    asks = [each for each in words if "match" in each or "xt" in each]
    return [(each.get("xt") or {}).get("name") for each in asks] in (["conntrack"], ["state"])


def _taker(chain: Place, about: Json, verb: str, words: str) -> Taker:
    return Taker(verb, f"{chain[0]} {chain[1]}", chain[2], about["hook"], about["prio"], words)


def _targets(verdict: Json) -> list[str]:
    return [verdict[kind]["target"] for kind in ("jump", "goto") if kind in verdict]


def _lies(mine: Any, low: Any, high: Any) -> bool:
    try:
        return bool(low <= mine <= high)
    except TypeError:  # one a number, the other a name of one: cannot be told
        return True
