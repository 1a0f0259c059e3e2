"""SPF: every case of the RFC 7208 test suite, through our resolver, against a DNS server on loopback."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
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
