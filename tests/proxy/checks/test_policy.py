"""SPF: every case of the RFC 7208 test suite, through our resolver, against a DNS server on loopback."""

import asyncio
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import spf
import yaml

from appliance.proxy.checks.policy import Outcome, evaluate
from appliance.proxy.resolver import Resolver
from tests.proxy.checks.name_server import FAILURE, NameServer, Record, name_server

SUITE = Path(__file__).with_name("data") / "rfc7208-tests.yml"
RECEIVER = "receiver.example"

Zone = dict[str, list[Record] | str]


def zone(data: dict[str, list[Any]]) -> Zone:
    """Read the zone of a scenario: what is given as SPF stands for TXT, too, unless TXT is given."""
    found: Zone = {}
    for name, entries in data.items():
        records = [next(iter(entry.items())) for entry in entries if isinstance(entry, dict)]
        if not any(kind == "TXT" for kind, _ in records):
            records += [("TXT", value) for kind, value in records if kind == "SPF"]
        lines = [(kind, _written(kind, value)) for kind, value in records if value not in ("NONE", "TIMEOUT")]
        found[name.lower()] = lines + ([(FAILURE, "")] if "TIMEOUT" in entries else [])
    return found


def _written(kind: str, value: Any) -> str:
    match kind:
        case "TXT" | "SPF":
            return " ".join(_quoted(part) for part in ([value] if isinstance(value, str) else value or [""]))
        case "MX":
            return f"{value[0]} {_dotted(value[1])}"
        case "PTR" | "CNAME":
            return _dotted(value)
    return str(value)


def _dotted(name: str) -> str:
    return re.sub(r"[^\w.*-]", lambda match: f"\\{ord(match[0]):03}", name.removesuffix(".")) + "."


def _quoted(text: str) -> str:
    return '"' + "".join(f"\\{byte:03}" for byte in text.encode("utf-8")) + '"'


SCENARIOS = list(yaml.safe_load_all(SUITE.read_text()))
CASES = [
    pytest.param(zone(scenario["zonedata"]), case, id=name)
    for scenario in SCENARIOS
    for name, case in scenario["tests"].items()
]
"""Explanations of DEFAULT stand for none by the domain."""


@pytest.fixture(scope="module")
def server() -> Iterator[NameServer]:
    with name_server() as server:
        server.ttl = 0
        yield server


def judged(server: NameServer, address: str, sender: str, helo: str) -> Outcome:
    return asyncio.run(evaluate(Resolver([server.address]), address, sender, helo, RECEIVER, 2))


@pytest.mark.parametrize(("records", "case"), CASES)
def test_suite(server: NameServer, records: Zone, case: dict[str, Any]) -> None:
    server.zone = records
    outcome = judged(server, case["host"], case["mailfrom"] or "", case["helo"] or "")
    accepted = case["result"] if isinstance(case["result"], list) else [case["result"]]
    assert outcome.result in accepted
    if outcome.result == "fail" and "explanation" in case:
        assert outcome.explanation == ("" if case["explanation"] == "DEFAULT" else case["explanation"])


def policy(server: NameServer, text: str, **more: list[Record] | str) -> None:
    """Let test.example have a policy."""
    server.zone = {
        "test.example": [
            ("TXT", '"' + '" "'.join(text[at : at + 250] for at in range(0, len(text), 250)) + '"')
        ]
    }
    server.zone |= {f"{name}.example": records for name, records in more.items()}


def result(server: NameServer, sender: str = "a@test.example") -> str:
    return judged(server, "192.0.2.1", sender, "helo.example").result


@pytest.mark.parametrize(
    ("sender", "expected"),
    [
        ('"a@b"@test.example', "fail"),
        ("a@TEST.Example", "fail"),
        ("a@test.example.", "fail"),
        ("a @ test.example", "fail"),
        ("test.example", "fail"),
        ("postmaster", "none"),
        ("a@[192.0.2.1]", "none"),
        ("a@b@", "none"),
        ("a@te st.example", "none"),
        ("a@" + "x" * 3000 + ".example", "none"),
        ("a@bücher.example", "fail"),
        ("a@\ufffd\ufffd.example", "none"),
        ("ü" * 500 + "%{}@test.example", "fail"),
    ],
)
def test_senders_of_all_kinds(server: NameServer, sender: str, expected: str) -> None:
    policy(server, "v=spf1 -all", **{"xn--bcher-kva": [("TXT", '"v=spf1 -all"')]})
    assert result(server, sender) == expected


@pytest.mark.parametrize(
    "text",
    [
        "v=spf1 a:." + "a" * 3000 + "! -all",  # would keep a regular expression busy for long
        "v=spf1 " + "ip4:192.0.2.9 " * 1000 + "-all",
        "v=spf1 " + "?all " * 2000,
        "v=spf1 include:test.example -all",
        "v=spf1 redirect=test.example",
        "v=spf1 a:a.example mx:b.example exists:c.example -all",
        "v=spf1 mx:many.example -all",
        "v=spf1 " + "a " * 11 + "-all",
        "v=spf1 \u00fc -all",
    ],
)
def test_hostile_policies_end_soon_and_refuse_nobody(server: NameServer, text: str) -> None:
    policy(server, text, many=[("MX", f"1 {number}.example.") for number in range(11)])
    server.asked.clear()
    begin = time.process_time()
    local = "x" * 60 + "!"
    assert result(server, f"{local}@test.example") == "permerror"
    assert time.process_time() - begin < 2
    assert sum(server.asked.values()) < 50


def test_names_that_macros_make_too_long_lose_labels_on_their_left(server: NameServer) -> None:
    policy(server, "v=spf1 exists:%{l}%{l}%{l}%{l}.test.example -all")
    long = ".".join(["x" * 50] * 5) + ".test.example"
    server.zone[long[-253:].partition(".")[2]] = [("A", "127.0.0.2")]
    assert result(server, ".".join(["x" * 50] * 20) + "@test.example") == "pass"


def test_answers_are_asked_for_together_and_explanations_only_when_needed(server: NameServer) -> None:
    hosts: dict[str, list[Record] | str] = {
        f"h{number}": [("A", f"192.0.2.{number}")] for number in range(1, 9)
    }
    hosts["mail"] = [("MX", f"1 h{number}.example.") for number in range(1, 9)]
    policy(server, "v=spf1 mx:mail.example -all exp=why.example", **hosts)
    server.asked.clear()
    assert result(server) == "pass"
    assert len(server.asked) == sum(server.asked.values()) == 10
    assert ("why.example", "TXT") not in server.asked


def test_addresses_are_compared_once(server: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The evaluation begins anew for each host, each of which may have 128 addresses."""
    compared = 0

    def counted(query: Any, addresses: list[str], length: int) -> Any:
        nonlocal compared
        compared += len(addresses)
        return cidrmatch(query, addresses, length)

    cidrmatch = spf.query.cidrmatch
    monkeypatch.setattr(spf.query, "cidrmatch", counted)
    hosts: dict[str, list[Record] | str] = {
        f"h{number}": [("A", f"198.51.{number}.{last}") for last in range(20)] for number in range(9)
    }
    policy(server, "v=spf1 " + " ".join(f"a:{host}.example" for host in hosts) + " -all", **hosts)
    assert result(server) == "fail"
    assert compared == 9 * 20


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no", "no"),
        ("two\\013\\010lines \\195\\188", ""),
        ("tab\\009 and more", "tab? and more"),
        ("x" * 250, "x" * 200),
        ("%{p}", "unknown"),
        ("%x", ""),
    ],
)
def test_explanations_are_made_safe(server: NameServer, text: str, expected: str) -> None:
    policy(server, "v=spf1 -all exp=why.example", why=[("TXT", f'"{text}"')])
    assert judged(server, "192.0.2.1", "a@test.example", "h") == Outcome("fail", "test.example", expected)


def test_an_explanation_that_does_not_come_changes_nothing(server: NameServer) -> None:
    policy(server, "v=spf1 -all exp=why.example", why=FAILURE)
    assert judged(server, "192.0.2.1", "a@test.example", "h") == Outcome("fail", "test.example")


def test_a_domain_that_fails_is_a_temporary_error(server: NameServer) -> None:
    server.zone = {"test.example": FAILURE}
    assert result(server) == "temperror"
