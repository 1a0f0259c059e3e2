"""What `table inet appliance` holds for a configuration, as nftables JSON. Pure: nobody is asked.

Called by `installer.py`; `text.py` makes it readable. docs/kernel.md shows the packet's way through it. What
an administrator ought to know about a rule stands in its comment, which `nft list` shows.
"""

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address, summarize_address_range
from typing import Any

from appliance.config import Config, Network
from appliance.config.network import PRIVATE
from appliance.nft import names
from appliance.nft.expression import (
    ACCEPT,
    BEGINS,
    CONTINUES,
    DROP,
    ICMP_ERRORS,
    OURS,
    RESET,
    TO_OTHERS,
    TO_ROUTER,
    TRANSLATED,
    Json,
    count,
    daddr,
    field,
    goto,
    in_set,
    is_version,
    match,
    meta,
    more_often_than,
    redirect,
    saddr,
    set_mark,
    tproxy,
    update,
)
from appliance.nft.table import Table

_LOCKED_AT_ONCE = 1 << 20  # a bound for the kernel; no lock directory comes near it
_BEGINNING_AT_ONCE = 65_535  # when a flood fills it, only handshakes by SYN cookies suffer
MARKED = -101  # the last before translation: marks that others set at mangle (-150) would replace ours
_TRANSLATED = -99  # the first after it
_HOOKS: dict[str, Json] = {
    "arrival": {"type": "filter", "hook": "prerouting", "prio": -300, "policy": "accept"},
    "intercept": {"type": "filter", "hook": "prerouting", "prio": MARKED, "policy": "accept"},
    "translate": {"type": "nat", "hook": "prerouting", "prio": -100, "policy": "accept"},
    "held": {"type": "filter", "hook": "prerouting", "prio": _TRANSLATED, "policy": "accept"},
    "again": {"type": "filter", "hook": "prerouting", "prio": _TRANSLATED, "policy": "accept"},
    "listener": {"type": "filter", "hook": "input", "prio": 0, "policy": "accept"},
}
_FROM_LAN = in_set(meta("iifname"), names.LAN)
_TO_MAIL = in_set(field("tcp", "dport"), names.PORTS)
Rule = tuple[str, str, list[Json]]


def intercepts(config: Config) -> bool:
    """Tell whether the mode takes connections by rules of this table."""
    return "tproxy" in config.mode or "netfilter" in config.mode


def versions(config: Config) -> tuple[int, ...]:
    """Tell which versions of the internet protocol the listener serves."""
    address = config.bind_address
    return (4, 6) if address.version == 6 and address.is_unspecified else (address.version,)


def build(config: Config) -> list[Json]:
    """Give the commands that make the whole table where there is none, in an order the kernel accepts."""
    rules = [*_locks(config), *(_interception(config) if intercepts(config) else ())]
    chains = dict.fromkeys(chain for chain, _, _ in rules)
    return [
        {"add": {"table": {"family": names.FAMILY, "name": names.TABLE}}},
        *(_add("counter", name=name, comment=comment) for name, comment in _COUNTERS.items()),
        *_sets(config),
        *(_add("chain", name=chain, **_HOOKS.get(chain, {})) for chain in chains),
        *(_add("rule", chain=chain, comment=comment, expr=words) for chain, comment, words in rules),
    ]


_COUNTERS = {
    names.INTERCEPTED: "connections that came to the gateway",
    names.TRUSTED: "packets of trusted clients and servers; the first ones alone, if redirected",
    names.DROPPED_LOCKED: "attempts of locked clients to connect that were dropped",
    names.PASSED_BY: "connections that passed by because no gateway listened",
    names.REFUSED: "connections that were refused because no gateway listened",
    names.KEPT_OUT: "packets to the listener's port that nobody intercepted",
}


def table(config: Config) -> Table:
    """Give the same as a table that can be read and compared."""
    found = Table.find(command["add"] for command in build(config))
    assert found is not None
    return found


def _add(kind: str, **what: object) -> Json:
    return {"add": {kind: {"family": names.FAMILY, "table": names.TABLE} | what}}


# The sets


def _sets(config: Config) -> Iterator[Json]:
    yield _set(names.LAN, "ifname", "where clients are", elem=sorted(config.lan_interfaces))
    yield _set(names.PORTS, "inet_service", "which ports are taken", elem=sorted(config.intercept_ports))
    for version, kind in ((4, "ipv4_addr"), (6, "ipv6_addr")):
        for kinds, networks, comment in (
            (names.TRUSTED_CLIENTS, config.trusted_clients, "clients that are never taken, never dropped"),
            (names.TRUSTED_SERVERS, config.trusted_servers, "servers that are reached directly"),
        ):
            found = elements(networks, version)
            yield _set(kinds[version], kind, comment, flags=["interval"], elem=found)
        yield _set(
            names.LOCKED[version],
            kind,
            "locked clients: time left, attempts to connect, cause",
            flags=["timeout"],
            size=_LOCKED_AT_ONCE,
            stmt=[{"counter": None}],
        )
        if config.lock_talk:  # a set that no rule adds to would not be made fit for that
            yield _set(
                names.TALK[version],
                kind,
                "locked clients that tried lately",
                flags=["timeout"],
                size=_LOCKED_AT_ONCE,
                timeout=120,
            )
        if "tproxy" in config.mode:
            yield _set(
                names.BEGINNING[version],
                [kind, "inet_service"],
                "connections that are about to begin",
                flags=["timeout"],
                size=_BEGINNING_AT_ONCE,
                timeout=60,
            )
        if config.mode == "tproxy,netfilter":
            comment = "clients that are redirected, because their addresses are translated"
            private = elements(PRIVATE, version)
            yield _set(names.PRIVATE[version], kind, comment, flags=["interval"], elem=private)


def _set(name: str, kind: str | list[str], comment: str, **more: Any) -> Json:
    return _add(
        "set", name=name, type=kind, comment=comment, **{key: value for key, value in more.items() if value}
    )


def elements(networks: Iterable[Network], version: int) -> list[Any]:
    """Give the networks of one version as elements of an interval set: sorted, what touches joined."""
    spans: list[tuple[int, int]] = []
    for first, last in sorted((int(each[0]), int(each[-1])) for each in networks if each.version == version):
        if spans and first <= spans[-1][1] + 1:
            spans[-1] = (spans[-1][0], max(last, spans[-1][1]))
        else:
            spans.append((first, last))
    return [_span(first, last, version) for first, last in spans]


def _span(first: int, last: int, version: int) -> Any:
    if version == 4:
        networks: list[Network] = [*summarize_address_range(IPv4Address(first), IPv4Address(last))]
    else:
        networks = [*summarize_address_range(IPv6Address(first), IPv6Address(last))]
    if first == last:
        return str(networks[0][0])
    if len(networks) == 1:
        return {"prefix": {"addr": str(networks[0][0]), "len": networks[0].prefixlen}}
    return {"range": [str(networks[0][0]), str(networks[-1][-1])]}


# Locks: before connection tracking, so that a flood costs next to nothing


def _locks(config: Config) -> Iterator[Rule]:
    beginnings = [_FROM_LAN, _TO_MAIL, BEGINS, TO_OTHERS, goto("locks")]
    yield "arrival", "a client of the LAN begins a connection to a mail server: is it locked?", beginnings
    if not intercepts(config):
        itself = [match(field("tcp", "dport"), config.port), BEGINS, TO_ROUTER, goto("locks")]
        yield "arrival", "somebody connects to the gateway: is it locked?", itself
    yield from _trusted("locks", [ACCEPT], "is never dropped")
    for version in (4, 6):
        locked = [in_set(saddr(version), names.LOCKED[version])]
        comment = "locked: not a single connection"
        if config.lock_talk:
            locked.append(update(names.TALK[version], saddr(version), more_often_than(config.lock_talk)))
            comment = (
                f"locked: dropped, but lock_talk {config.lock_talk} a minute reach the gateway to be told why"
            )
        yield "locks", comment, [*locked, count(names.DROPPED_LOCKED), DROP]


def _trusted(chain: str, verdict: list[Json], what: str) -> Iterator[Rule]:
    for version in (4, 6):
        client = in_set(saddr(version), names.TRUSTED_CLIENTS[version])
        yield chain, f"a trusted client {what}", [client, *verdict]
    for version in (4, 6):
        server = in_set(daddr(version), names.TRUSTED_SERVERS[version])
        yield chain, f"on the way to a trusted server: {what}", [server, *verdict]


# Interception


def _interception(config: Config) -> Iterator[Rule]:
    by_tproxy, by_redirect = "tproxy" in config.mode, "netfilter" in config.mode
    if by_tproxy:
        yield from _tproxy(config, private=by_redirect)
    if by_redirect:
        yield from _redirection(config, private=by_tproxy)
    yield from _listener(config, by_redirect=by_redirect)


def _tproxy(config: Config, *, private: bool) -> Iterator[Rule]:
    """Take mail of the LAN as it is, `private`: but not that of private clients.

    What belongs to a session is looked for after translation: behind masquerading, packets and errors from
    outside bear the client's address only then. The kernel finds some of them before, but not all.
    """
    mail = [_FROM_LAN, _TO_MAIL, TO_OTHERS, goto("mail")]
    yield "intercept", "mail of the LAN, but not what is meant for this router itself", mail
    yield from _trusted("mail", [count(names.TRUSTED), ACCEPT], "passes by")
    if private:
        for version in (4, 6):
            client = in_set(saddr(version), names.PRIVATE[version])
            yield "mail", "a private client is redirected below, not TPROXYed", [client, ACCEPT]
    for version in versions(config):
        ipv, beginning = is_version(version), names.BEGINNING[version]
        key: Json = {"concat": [saddr(version), field("tcp", "sport")]}
        take = [_ask(config, version), set_mark(config.fwmark)]
        comment = f"IPv{version}: to the gateway; goes on to the next rule when none listens"
        yield "mail", comment, [ipv, BEGINS, *take, goto("taken")]
        comment = f"IPv{version}: the same, if a SYN cookie is all that was kept of its first packet"
        yield "mail", comment, [CONTINUES, in_set(key, beginning), *take, ACCEPT]
        comment = f"IPv{version}: remembers it for the time a SYN cookie is good for"
        yield "taken", comment, [update(beginning, key)]
    yield "taken", "to the gateway", [count(names.INTERCEPTED), ACCEPT]
    yield from _nobody_listens(config, "mail", [])
    held = [*OURS, set_mark(config.fwmark), ACCEPT]
    comment = "sessions the gateway holds: the client's packets, and the server's to its address"
    yield "held", comment, [CONTINUES, *held]
    comment = "errors on the way of such packets, such as: too large for the path"
    yield from (("held", comment, [error, *held]) for error in ICMP_ERRORS)


def _redirection(config: Config, *, private: bool) -> Iterator[Rule]:
    """Translate where mail of the LAN goes to, `private`: that of private clients.

    All of it is in one chain, which asks and translates: no packet meets half of a changed configuration.
    """
    mail = [_FROM_LAN, _TO_MAIL, TO_OTHERS, goto("redirected")]
    yield "translate", "mail of the LAN, but not what is meant for this router itself", mail
    trusted = [] if private else [count(names.TRUSTED)]  # else counted in "mail"
    yield from _trusted("redirected", [*trusted, ACCEPT], "passes by")
    asks = config.on_failure == "open"
    else_ = "goes on to the next rule when none listens" if asks else "the kernel refuses when none listens"
    clients = {
        version: in_set(saddr(version), names.PRIVATE[version]) if private else is_version(version)
        for version in (4, 6)
    }
    for version in versions(config):
        listening = [_ask(config, version)] if asks else []
        to_gateway = redirect(version, _listens_at(config), config.port)
        words = [clients[version], BEGINS, *listening, count(names.INTERCEPTED), to_gateway]
        yield "redirected", f"IPv{version}: to the gateway; {else_}", words
        if asks:
            comment = f"IPv{version}: the listener takes over what is left of the port's last connection"
            words = [is_version(version), *_redirected(config), BEGINS, _ask(config, version), ACCEPT]
            yield "again", comment, words
    for whom in [[client] for client in clients.values()] if private else [[]]:
        yield from _nobody_listens(config, "redirected", whom)


def _ask(config: Config, version: int) -> Json:
    """Have the listener, if there is one, take the packet."""
    return tproxy(version, _listens_at(config), config.port)


def _redirected(config: Config) -> list[Json]:
    return [_FROM_LAN, match(field("tcp", "dport"), config.port), TRANSLATED]


def _nobody_listens(config: Config, chain: str, whom: list[Json]) -> Iterator[Rule]:
    if config.on_failure == "closed":
        comment = "on_failure closed: nobody listens, so the client is refused at once"
        yield chain, comment, [*whom, BEGINS, count(names.REFUSED), RESET]
    else:
        comment = "on_failure open: nobody listens, so mail passes by"
        yield chain, comment, [*whom, BEGINS, count(names.PASSED_BY), ACCEPT]


def _listens_at(config: Config) -> str:
    """Give the listener's address if it is one, else nothing."""
    return "" if config.bind_address.is_unspecified else str(config.bind_address)


def _listener(config: Config, *, by_redirect: bool) -> Iterator[Rule]:
    port = match(field("tcp", "dport"), config.port)
    if by_redirect:
        yield "listener", "redirected connections of the LAN", [*_redirected(config), ACCEPT]
    outside = match(meta("iifname"), "lo", "!=")
    comment = "nobody else reaches the gateway's port: it must never be an open relay"
    yield "listener", comment, [port, outside, TO_ROUTER, count(names.KEPT_OUT), RESET]
