"""What the installer says of a kernel that others change, too: it finds, refuses or leaves alone."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from appliance.config import parse
from appliance.nft import kernel, sysctls
from appliance.nft.installer import Installer, Refused
from tests.nft.machine import BOTH, NETFILTER, TPROXY, as_router, run, traces

pytestmark = pytest.mark.lab


def drift(tmp_path: Path, configuration: str, *commands: str) -> list[str]:
    """Install, do something behind the installer's back, and give what check says."""
    found: list[str] = []

    def work() -> None:
        installer = Installer(parse(configuration), directory=tmp_path)
        installer.up()
        for command in commands:
            run("sh", "-c", command)
        found.extend(installer.check())

    as_router(work)
    return found


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("nft delete table inet appliance", "missing: table inet appliance"),
        ("nft flush ruleset", "missing: table inet appliance"),
        ("nft flush chain inet appliance listener", "missing in chain listener: .*kept_out"),
        ("nft flush set inet appliance trusted_clients4", "set trusted_clients4 lacks 10.0.0.1, 10.0.0.9"),
        ("nft add element inet appliance trusted_clients4 '{ 10.9.9.9 }'", "besides 10.9.9.9"),
        ("nft add element inet appliance intercept_ports '{ 26 }'", "intercept_ports has besides 26"),
        ("nft add rule inet appliance mail accept", "not ours in chain mail: accept"),
        ("nft insert rule inet appliance locks ip saddr 10.0.0.3 drop", "not ours in chain locks: .*0.0.3"),
        ("nft add chain inet appliance more", "not ours: chain more"),
        ("nft add set inet appliance more '{ type mark; }'", "not ours: set more"),
        ("nft add chain inet appliance arrival '{ policy drop; }'", "changed: chain arrival"),
        ("ip rule delete pref 11", "missing: ip -4 rule: 11: from all fwmark 0x1 lookup 100"),
        ("ip -6 rule delete pref 10", "missing: ip -6 rule: 10: "),
        ("ip route flush table 100", "missing: ip -4 route: local default dev lo table 100"),
        ("ip rule add pref 5 iif lan lookup main", "asked before ours: ip -4 rule 5"),
        ("ip rule add pref 10 iif lan lookup main", "asked before ours: ip -4 rule 10"),
        ("sysctl -qw net.ipv4.ip_forward=0", "sysctl net.ipv4.ip_forward was 1 and is 0"),
        (
            "nft 'add table ip evil; add chain ip evil pre { type nat hook prerouting priority -150; }; "
            "add rule ip evil pre tcp dport 25 redirect to :2525'",
            "mail is taken by table ip evil chain pre .*redirect to :2525",
        ),
        (
            "nft 'add table inet fire; "
            "add chain inet fire pre { type filter hook prerouting priority raw; }; "
            "add chain inet fire no; add rule inet fire pre iifname lan jump no; "
            "add rule inet fire no tcp dport { 25, 465 } drop'",
            "stops mail before it comes here: table inet fire chain pre .*drop",
        ),
        (
            "nft 'add table netdev fire; "
            "add chain netdev fire in { type filter hook ingress device lan priority 0; }; "
            "add rule netdev fire in tcp dport 25 drop'",
            "stops mail before it comes here: table netdev fire chain in .ingress, priority 0.: .*drop",
        ),
        (
            "nft 'add table ip late; add chain ip late pre { type filter hook prerouting priority -101; }; "
            "add rule ip late pre meta mark set 5'",
            "mail is taken by table ip late chain pre .*mark set 5",
        ),
        (
            "nft 'add table ip late; add chain ip late pre { type filter hook prerouting priority -100; }; "
            "add rule ip late pre iifname lan meta mark set ct mark'",
            "mail is taken by table ip late chain pre .*meta mark set ct mark",
        ),
        (
            "nft 'add table ip raw; add chain ip raw pre { type filter hook prerouting priority raw; }; "
            "add rule ip raw pre tcp dport 1-1023 notrack'",
            "mail is taken by table ip raw chain pre .*notrack",
        ),
        (
            "nft 'add table ip raw; add chain ip raw pre { type filter hook prerouting priority raw; }; "
            "add rule ip raw pre iifname lan ct zone set 5; add rule ip raw pre ct original zone set 6'",
            "mail is taken by table ip raw chain pre .*zone set 5",
        ),
    ],
)
def test_check_finds(tmp_path: Path, command: str, said: str) -> None:
    found = drift(tmp_path, BOTH, command)
    assert len([line for line in found if re.search(said, line)]) == 1, found


def test_a_dormant_table_is_woken(tmp_path: Path) -> None:
    def work() -> None:
        installer = Installer(parse(TPROXY), directory=tmp_path)
        installer.up()
        before = run("nft", "list", "ruleset")
        run("nft", "add table inet appliance { flags dormant; }")
        try:
            assert installer.check() == [
                "changed: table inet appliance has flags; while dormant it does nothing"
            ]
            assert not installer.up().empty
        except kernel.Unreadable as error:  # the library of Debian 12 can list it now and then
            assert str(error).endswith("without them it can: nft add table inet appliance")
            run("nft", "add table inet appliance")
        assert installer.check() == []
        assert run("nft", "list", "ruleset") == before

    as_router(work)


def test_a_rule_of_the_same_priority_is_asked_first_if_it_was_there_first(tmp_path: Path) -> None:
    def work() -> None:
        installer = Installer(parse(TPROXY), directory=tmp_path)
        installer.up()
        run("ip", "-6", "rule", "add", "pref", "11", "iif", "lan", "lookup", "55")  # behind ours
        assert installer.check() == []
        run("ip", "rule", "del", "pref", "11")
        run("ip", "rule", "add", "pref", "11", "iif", "lan", "lookup", "55")
        run("ip", "rule", "add", "pref", "11", "fwmark", "1", "lookup", "100", "proto", "147")
        assert installer.check() == ["asked before ours: ip -4 rule 11"]
        installer.up()
        assert installer.check() == []

    as_router(work)


def test_rules_that_others_add_without_a_priority_come_before_ours_until_up_goes_before_them(
    tmp_path: Path,
) -> None:
    """As wg-quick does; the kernel gives them the priority before the first there is."""

    def at(number: int) -> list[str]:
        places = (
            f"\n{number}:\tfrom all fwmark 0x1 iif lo goto {number + 2}",
            f"\n{number + 1}:\tfrom all fwmark",
        )
        return [place for place in places if place in run("ip", "rule")]

    def work() -> None:
        installer = Installer(parse(TPROXY), directory=tmp_path)
        installer.up()
        assert len(at(10)) == 2
        theirs = ("not fwmark 51820 lookup 51", "lookup main suppress_prefixlength 0")
        for rule in theirs:
            run("ip", "rule", "add", *rule.split())
        before = ["asked before ours: ip -4 rule 8", "asked before ours: ip -4 rule 9"]
        assert installer.check() == before
        assert not installer.up().empty
        assert installer.up().empty
        assert (len(at(5)), at(10), installer.check()) == (2, [], [])
        for rule in theirs:
            run("ip", "rule", "del", *rule.split())
        assert installer.check() == []  # no harm is done there
        installer.up()
        assert (at(5), len(at(10)), installer.check()) == ([], 2, [])
        installer.down()
        assert "147" not in run("ip", "rule")

    as_router(work)


def test_the_order_of_rules_matters(tmp_path: Path) -> None:
    def work() -> None:
        installer = Installer(parse(TPROXY), directory=tmp_path)
        installer.up()
        mail = [each["rule"] for each in kernel.ruleset() if each.get("rule", {}).get("chain") == "mail"]
        kernel.transact([{"delete": {"rule": mail[0]}}, {"add": {"rule": mail[0]}}])
        assert installer.check() == ["changed: the order of rules in chain mail"]
        installer.up()
        assert installer.check() == []

    as_router(work)


INNOCENT = """
    table inet firewall {
        set wans { type ifname; elements = { "wan0" }
        }
        chain pre {
            type filter hook prerouting priority raw;
            ct state invalid drop
            ip saddr 192.0.2.66 drop
            iifname @wans tcp dport 25 drop
        }
        chain nat {
            type nat hook prerouting priority dstnat;
            udp dport { 53, 67 } redirect
            iifname @wans tcp dport 25 dnat ip to 10.0.0.25
            ip daddr 10.0.0.254 tcp dport 25 dnat ip to 10.0.0.25
            fib daddr type local tcp dport 25 redirect to :2525
            tcp dport { 80, 443 } redirect to :3128
            tcp dport 1024-65535 redirect to :3129
            tcp dport vmap { 8080 : goto web }
        }
        chain web { meta l4proto tcp redirect to :3128
        }
        chain mangle {
            type filter hook prerouting priority mangle;
            meta mark set ct mark
            udp dport 53 notrack
        }
        chain input {
            type filter hook input priority 0; policy drop;
            ct state vmap { established : accept, related : accept, invalid : drop }
            tcp dport { 22, 53 } drop
            meta mark 1 accept
        }
    }
"""


FIREWALL = """
    table inet firewall {
        chain input {
            type filter hook input priority 0; policy accept;
            iifname vmap { "lo" : accept, "lan" : jump inside }
            meta l4proto { icmp, ipv6-icmp } accept
            ct status dnat accept
            reject
        }
        chain inside {
            ct state established,related accept
            ip6 nexthdr icmpv6 accept
            icmp type echo-request accept
            fib daddr type local tcp dport { 22, 53 } accept
            udp dport 53 accept
        }
    }
"""
ANSWER = "stops mail before it comes here: table inet firewall chain input (input, priority 0): "


@pytest.mark.parametrize(
    ("configuration", "change", "said"),
    [
        (TPROXY, "", ["meta mark 1"]),
        (NETFILTER, "", []),
        (NETFILTER, "delete rule inet firewall input handle 7", ["tcp dport 9199 ct status dnat"]),
        (BOTH, "", ["meta mark 1"]),
        (BOTH, "add rule inet firewall inside meta mark 1 accept", []),
        (TPROXY, "add rule inet firewall inside tcp dport 25 accept", []),
        (TPROXY, "insert rule inet firewall inside tcp dport 22 accept", ["meta mark 1"]),
        (TPROXY, "insert rule inet firewall inside tcp dport 25 drop", ["meta mark 1"]),
        ("mode fixed\nfixed_server 192.0.2.1\n", "", []),
    ],
)
def test_a_firewall_that_keeps_mail_from_the_gateway_is_told_of(
    tmp_path: Path, configuration: str, change: str, said: list[str]
) -> None:
    """By plan and by check; it is the administrator's, so it is not refused."""

    def work() -> None:
        run("nft", "-f", "-", data=FIREWALL)
        handle = re.search(r"ct status dnat .*handle (\d+)", run("nft", "-a", "list", "ruleset"))
        assert handle
        run("nft", change.replace("handle 7", f"handle {handle[1]}"))
        installer = Installer(parse(configuration), directory=tmp_path)
        told = [f"{ANSWER}drops what it does not accept, such as {what}" for what in said]
        assert installer.up().warnings == told
        assert installer.check() == told

    as_router(work)


def test_other_tables_that_do_no_harm_are_left_alone(tmp_path: Path) -> None:
    def work() -> None:
        run("nft", "-f", "-", data=INNOCENT)
        before = traces()
        installer = Installer(parse(TPROXY), directory=tmp_path)
        installer.up()
        assert installer.check() == []
        installer.down()
        assert traces() == before

    as_router(work)


BRIDGE = """
    ip link delete lan
    ip link add lan type bridge
    sysctl -qw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables={}
"""
NAT = (
    "add table ip mine; add chain ip mine pre { type nat hook prerouting priority 0; }; add rule ip mine pre "
)


@pytest.mark.parametrize(
    ("configuration", "command", "reason"),
    [
        ("mode tproxy\n", "", "lan_interfaces is not set"),
        ("mode tproxy\nlan_interfaces lan,lan9\n", "", "there is no interface lan9"),
        (NETFILTER.replace("::", "127.0.0.1"), "", "127.0.0.1 cannot be reached"),
        (
            TPROXY,
            f"nft '{NAT} tcp dport 20-30 dnat to 10.0.0.25'",
            "mail is taken by table ip mine chain pre",
        ),
        (TPROXY, f"nft '{NAT} meta mark set 1'", "fwmark 1 is set by table ip mine chain pre"),
        (TPROXY, "ip rule add fwmark 0x1/0xff lookup 55", "fwmark 1 is used by ip -4 rule 32765"),
        (TPROXY, "ip -6 rule add from 2001:db8::1 lookup 100", "route_table 100 is used by ip -6 rule"),
        (TPROXY, "ip route add 192.0.2.0/24 dev lan table 100", "route_table 100 has other routes of IPv4"),
        (TPROXY + "route_table 254\n", "", "route_table 254 is the system's table main"),
        (
            TPROXY,
            "sysctl -qw net.ipv6.conf.all.disable_ipv6=1",
            "bind_address :: serves IPv6, which is turned",
        ),
        (
            TPROXY,
            BRIDGE.format(1),
            "lan is a bridge, .* while sysctl net.bridge.bridge-nf-call-ip6tables is 1",
        ),
    ],
)
def test_up_refuses_what_cannot_work(tmp_path: Path, configuration: str, command: str, reason: str) -> None:
    def work() -> None:
        run("sh", "-c", command)
        before = traces()
        installer = Installer(parse(configuration), directory=tmp_path)
        for do in (installer.plan, installer.up):
            with pytest.raises(Refused, match=reason):
                do()
        assert traces() == before

    as_router(work)


@pytest.mark.parametrize(
    ("configuration", "value"), [(TPROXY, 0), (NETFILTER, 1), ("mode tproxy\nlan_interfaces lan", 1)]
)
def test_a_bridge_is_welcome_otherwise(tmp_path: Path, configuration: str, value: int) -> None:
    def work() -> None:
        run("sh", "-c", BRIDGE.format(value))
        Installer(parse(configuration), directory=tmp_path).up()

    as_router(work)


def test_somebody_elses_table_that_cannot_be_read_stops_nothing(tmp_path: Path) -> None:
    """The library of Debian 12 cannot list a table that has flags."""

    def work() -> None:
        with subprocess.Popen(
            ["nft", "-i"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "HOME": str(tmp_path)},  # where it keeps a history
            text=True,
        ) as owner:
            assert owner.stdin
            assert owner.stdout
            print("add table inet theirs { flags owner; }\nlist tables", file=owner.stdin, flush=True)
            while "theirs" not in owner.stdout.readline():
                assert owner.poll() is None
            installer = Installer(parse(TPROXY), directory=tmp_path)
            installer.up()
            assert installer.check() == []
            installer.down()
            assert "appliance" not in run("nft", "list", "tables")

    as_router(work)


UNNAMED = "lan_interfaces: lan is in the VRF vrf-lan, which has to be named, too"


@pytest.mark.parametrize(
    ("interfaces", "accepts", "said"),
    [
        ("lan,vrf-lan", 1, []),
        ("lan,vrf-lan,lan.5,vrf-both", 1, []),
        ("lan9", 0, []),
        ("lan", 1, [UNNAMED]),
        ("lan", 0, [UNNAMED, "sysctl net.ipv4.tcp_l3mdev_accept is 0"]),
        ("vrf-lan", 1, ["vrf-lan is a VRF; its interfaces where clients are have to be named, too"]),
        ("lan,vrf-lan", 0, ["sysctl net.ipv4.tcp_l3mdev_accept is 0"]),
    ],
)
def test_clients_in_a_vrf_need_two_names_and_a_sysctl(interfaces: str, accepts: int, said: list[str]) -> None:
    masters = {"lan": "vrf-lan", "lan.5": "vrf-both", "wan": "vrf-both"}
    told = [*sysctls.wrong_with_vrfs(interfaces.split(","), masters, str(accepts))]
    assert len(told) == len(said)
    assert all(words in line for words, line in zip(said, told, strict=True)), told
