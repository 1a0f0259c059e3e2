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


def extension(name: str) -> Json:
    return {"xt": {"type": "match", "name": name}}


KNOWN = [extension("conntrack"), COUNTED, ACCEPT]  # --ctstate RELATED,ESTABLISHED
NOT_LOCAL = [[extension("addrtype"), COUNTED, RETURN], [COUNTED, DROP]]  # as ufw has it: --dst-type LOCAL


def stopped(configuration: str, rules: list[list[Json]], more: list[list[Json]] | None = None) -> bool:
    """Tell whether a chain that drops the rest is said to stop mail; it may go to `more`."""
    place: dict[str, Any] = {"family": "ip", "table": "filter"}
    hook = {"type": "filter", "hook": "input", "prio": 0, "policy": "drop"}
    listing: list[Json] = [{"chain": place | {"name": "INPUT"} | hook}, {"chain": place | {"name": "more"}}]
    for chain, its in (("INPUT", rules), ("more", more or [])):
        listing += [{"rule": place | {"chain": chain, "expr": expr}} for expr in its]
    return bool(foreign.takers(listing, parse(configuration), frozenset()))


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
