"""What is believed of firewalls made by iptables, of whose extensions nft tells the name and no more."""

from typing import Any

import pytest

from appliance.config import parse
from appliance.nft import foreign
from appliance.nft.expression import ACCEPT, DROP, Json, field, goto, match, meta
from tests.nft.machine import NETFILTER, TPROXY

COUNTED: Json = {"counter": {"packets": 0, "bytes": 0}}
LOOPBACK = [match(meta("iifname"), "lo"), COUNTED, ACCEPT]
SSH = [match(field("tcp", "dport"), 22), COUNTED, ACCEPT]
GATEWAY = match(field("tcp", "dport"), 9199)
RETURN: Json = {"return": None}


def extension(name: str, kind: str = "match") -> Json:
    return {"xt": {"type": kind, "name": name}}


KNOWN = [extension("conntrack"), COUNTED, ACCEPT]  # --ctstate RELATED,ESTABLISHED
NOT_LOCAL = [[extension("addrtype"), COUNTED, RETURN], [COUNTED, DROP]]  # as ufw has it: --dst-type LOCAL


def stopped(configuration: str, rules: list[list[Json]], more: list[list[Json]] | None = None) -> bool:
    """Tell whether a chain that drops the rest is said to stop mail; it may go to `more`."""
    hook = {"type": "filter", "hook": "input", "prio": 0, "policy": "drop"}
    return bool(takers(configuration, hook, rules, more))


def takers(
    configuration: str, hook: Json, rules: list[list[Json]], more: list[list[Json]] | None = None
) -> list[foreign.Taker]:
    place: dict[str, Any] = {"family": hook.get("family", "ip"), "table": "theirs"}
    listing: list[Json] = [{"chain": place | {"name": "FIRST"} | hook}, {"chain": place | {"name": "more"}}]
    for chain, its in (("FIRST", rules), ("more", more or [])):
        listing += [{"rule": place | {"chain": chain, "expr": expr}} for expr in its]
    return foreign.takers(listing, parse(configuration), frozenset())


@pytest.mark.parametrize("configuration", [TPROXY, NETFILTER])
@pytest.mark.parametrize("name", ["conntrack", "state"])
def test_what_lets_in_known_connections_alone_does_not_let_in_mail(configuration: str, name: str) -> None:
    assert stopped(configuration, [LOOPBACK, [extension(name), COUNTED, ACCEPT], SSH])


@pytest.mark.parametrize(
    ("configuration", "rule"),
    [
        (TPROXY, [extension("mark"), COUNTED, ACCEPT]),
        (TPROXY, [match(meta("iifname"), "lan"), extension("conntrack"), COUNTED, ACCEPT]),  # perhaps NEW
        (NETFILTER, [GATEWAY, extension("conntrack"), COUNTED, ACCEPT]),  # --ctstate DNAT
    ],
)
def test_what_may_let_in_mail_is_believed_to(configuration: str, rule: list[Json]) -> None:
    assert not stopped(configuration, [LOOPBACK, KNOWN, rule])


def test_a_chain_that_is_perhaps_left_stops_nothing_for_sure() -> None:
    jump = [COUNTED, {"jump": {"target": "more"}}]
    assert not stopped(NETFILTER, [KNOWN, jump, [GATEWAY, COUNTED, ACCEPT]], NOT_LOCAL)
    assert stopped(NETFILTER, [KNOWN, jump, SSH], NOT_LOCAL)
    assert stopped(NETFILTER, [KNOWN, [COUNTED, goto("more")], [GATEWAY, COUNTED, ACCEPT]], NOT_LOCAL[1:])


COMMENT = extension("comment")
MAIL = match(field("tcp", "dport"), 25)


@pytest.mark.parametrize("configuration", [TPROXY, NETFILTER])
def test_what_iptables_rejects_is_rejected(configuration: str) -> None:
    """The rule that most of its firewalls end with, under the policy accept."""
    hook = {"type": "filter", "hook": "input", "prio": 0, "policy": "accept"}
    end = [COMMENT, COUNTED, extension("REJECT", "target")]
    assert takers(configuration, hook, [LOOPBACK, [COMMENT, *KNOWN], SSH, end])
    assert not takers(configuration, hook, [LOOPBACK, [COMMENT, *KNOWN], SSH])
    assert not takers(configuration, hook, [LOOPBACK, KNOWN, [extension("addrtype"), *end]])


@pytest.mark.parametrize(
    ("configuration", "target"),
    [
        *((each, name) for each in (TPROXY, NETFILTER) for name in ("REDIRECT", "DNAT", "TPROXY", "NFQUEUE")),
        (NETFILTER, "CT"),  # --notrack
    ],
)
def test_what_iptables_leads_elsewhere_is_taken(configuration: str, target: str) -> None:
    """As the rules of another proxy, or of smtp-gated, do that were left."""
    hook = {"type": "nat", "hook": "prerouting", "prio": -100, "policy": "accept"}
    away = extension(target, "target")
    (taker,) = takers(configuration, hook, [[MAIL, COMMENT, COUNTED, away]])
    assert taker.steals
    assert str(taker).endswith(f"xt match comment counter xt target {target}")
    wan = match(meta("iifname"), "wan")
    jump = [COUNTED, {"jump": {"target": "more"}}]
    assert takers(configuration, hook, [jump], [[MAIL, COUNTED, away]])
    assert not takers(configuration, hook, [[wan, MAIL, COUNTED, away], [wan, *jump]], [[MAIL, away]])
    # As Docker has it, for what is addressed to the router (addrtype --dst-type LOCAL).
    docker = [extension("addrtype"), *jump]
    assert not takers(configuration, hook, [docker], [[MAIL, COUNTED, away]])


def test_what_iptables_does_besides_takes_nothing() -> None:
    hook = {"type": "filter", "hook": "prerouting", "prio": -150, "policy": "accept"}
    for name in ("CT", "LOG", "MARK", "TCPMSS"):
        assert not takers(TPROXY, hook, [[MAIL, COUNTED, extension(name, "target")]])


@pytest.mark.parametrize("configuration", [TPROXY, NETFILTER])
@pytest.mark.parametrize("family", ["netdev", "inet"])
def test_chains_of_interfaces_are_looked_at(configuration: str, family: str) -> None:
    """Where the library tells which ones; else a rule that leads away might be another interface's."""
    hook = {"family": family, "type": "filter", "hook": "ingress", "prio": 0, "policy": "accept"}
    away: list[Json] = [{"fwd": {"dev": "wan"}}]
    for devices, judged in (("lan", True), (["wan", "lan"], True), ("wan", False), (["wan"], False)):
        assert bool(takers(configuration, hook | {"dev": devices}, [[MAIL, DROP]])) == judged
        assert bool(takers(configuration, hook | {"dev": devices}, [away])) == judged
    assert takers(configuration, hook, [[MAIL, DROP]])
    assert not takers(configuration, hook, [away])


def test_marks_that_iptables_sets_behind_ours_lead_away() -> None:
    """In its table nat, which comes after ours; in its table mangle they come before."""
    mark = [match(meta("iifname"), "lan"), COUNTED, extension("MARK", "target")]
    hook = {"hook": "prerouting", "policy": "accept"}
    assert takers(TPROXY, hook | {"type": "nat", "prio": -100}, [mark])
    assert not takers(TPROXY, hook | {"type": "filter", "prio": -150}, [mark])
    assert not takers(NETFILTER, hook | {"type": "nat", "prio": -100}, [mark])


def test_what_is_copied_is_not_taken() -> None:
    """As for another machine that looks at it, too."""
    for hook in ("prerouting", "ingress"):
        about = {"type": "filter", "hook": hook, "prio": -150, "policy": "accept", "dev": "lan"}
        for copy in ({"dup": {"addr": "wan"}}, extension("TEE", "target")):
            assert not takers(TPROXY, about, [[MAIL, copy]])
