"""The ruleset: its readable text for each mode against files in golden/, and intervals of addresses.

After a change that is meant, write them anew: python -m tests.nft.test_ruleset. Then read the difference.
"""

from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.config import Network, parse
from appliance.nft import ruleset, text

GOLDEN = Path(__file__).with_name("golden")
TRUSTED = "trusted_clients 10.0.0.7,10.0.0.20-10.0.0.29,2001:db8::/48\ntrusted_servers 192.0.2.0/24\n"
CONFIGURATIONS = {
    "tproxy": f"mode tproxy\nbind_address ::\nlan_interfaces lan,eth0.5\nintercept_ports 25,587\n{TRUSTED}",
    "tproxy-closed": "mode tproxy\nlan_interfaces lan\non_failure closed\nlock_talk 0\nfwmark 0x100\n",
    "netfilter": f"mode netfilter\nbind_address ::\nlan_interfaces lan\n{TRUSTED}",
    "netfilter-closed": "mode netfilter\nbind_address 192.0.2.1\nlan_interfaces lan\non_failure closed\n",
    "both": "mode tproxy,netfilter\nbind_address ::\nlan_interfaces lan\n",
    "fixed": "mode fixed\nfixed_server 192.0.2.1\nport 25\n",
}


def written(name: str) -> str:
    return "\n".join(text.lines(ruleset.table(parse(CONFIGURATIONS[name])))) + "\n"


@pytest.mark.option("lan_interfaces", "intercept_ports", "on_failure", "fwmark", "lock_talk")
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_text(name: str) -> None:
    assert written(name) == (GOLDEN / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_rule_says_what_it_is_for(name: str) -> None:
    for command in ruleset.build(parse(CONFIGURATIONS[name])):
        if "rule" in command["add"]:
            assert 10 < len(command["add"]["rule"]["comment"].encode()) <= 128


def test_what_the_listener_does_not_serve_is_not_taken() -> None:
    only4 = "\n".join(text.lines(ruleset.table(parse("mode tproxy\nlan_interfaces lan"))))
    assert "tproxy ip to" in only4
    assert "tproxy ip6" not in only4
    only6 = "\n".join(text.lines(ruleset.table(parse("mode tproxy\nbind_address ::1\nlan_interfaces lan"))))
    assert "tproxy ip6 to [::1]:9199" in only6
    assert "tproxy ip " not in only6


networks: st.SearchStrategy[Network] = st.one_of(
    st.builds(lambda n, bits: IPv4Network((n, bits), strict=False), st.integers(0, 255), st.integers(24, 32)),
    st.builds(lambda n: IPv6Network((0x2001 << 112) + n), st.integers(0, 99)),
)


def addresses(elements: list[Any]) -> list[int]:
    """Read elements as nft would, in their order."""
    found: list[int] = []
    for element in elements:
        match element:
            case {"range": [low, high]}:
                found += range(int(IPv4Address(low)), int(IPv4Address(high)) + 1)
            case {"prefix": {"addr": address, "len": length}}:
                found += map(int, ip_network(f"{address}/{length}"))
            case _:
                found.append(int(IPv4Address(element)))
    return found


@given(st.lists(networks, max_size=20))
def test_elements_hold_each_address_once_and_touch_nowhere(given: list[Network]) -> None:
    wanted = {int(address) for network in given if network.version == 4 for address in network}
    elements = ruleset.elements(given, 4)
    assert addresses(elements) == sorted(wanted)
    gaps = sum(address + 1 not in wanted for address in wanted)
    assert len(elements) == gaps


@pytest.mark.option("trusted_clients", "trusted_servers")
def test_a_range_trusts_its_addresses_and_no_others() -> None:
    config = parse(
        "trusted_clients 192.0.2.9 - 192.0.2.20,192.0.2.30\ntrusted_servers 2001:db8::1-2001:db8::ff"
    )
    assert ruleset.elements(config.trusted_clients, 4) == [
        {"range": ["192.0.2.9", "192.0.2.20"]},
        "192.0.2.30",
    ]
    assert ruleset.elements(config.trusted_servers, 6) == [{"range": ["2001:db8::1", "2001:db8::ff"]}]


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for each in CONFIGURATIONS:
        (GOLDEN / f"{each}.txt").write_text(written(each))
