"""The table of options against a list of facts, `options.tsv`, that old configuration files rely on."""

import csv
import socket
from ipaddress import IPv4Network, ip_address
from pathlib import Path
from typing import Any

import pytest

from appliance.config import NAMES, OPTIONS, Config, DnsList, SocketAddress, parse
from appliance.config.option import Enum, Flags

with Path(__file__).with_name("options.tsv").open() as facts:
    FACTS = list(csv.DictReader(facts, delimiter="\t"))

OBSOLETE = {"scanner_path", "dspam_storage", "pid_hash_size", "host_hash_size", "msg_unknown_scanner"}


def test_every_option_is_there_and_no_other() -> None:
    assert sorted(OPTIONS) == sorted(fact["name"] for fact in FACTS)


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: str(fact["name"]))
def test_option(fact: dict[str, str]) -> None:
    option = OPTIONS[fact["name"]]
    assert option.section == fact["section"]
    assert option.kind.word == fact["type"]
    assert option.restart == (fact["restart"] == "yes")
    assert option.aliases == tuple(fact["alias"].split())
    assert option.help.endswith(".")
    if fact["default"] != "-":  # the texts for mail users are free
        assert option.kind.write(option.default) == fact["default"]
        assert option.kind.read(fact["default"]) == option.default
    if isinstance(option.kind, Enum):
        assert option.kind.words == tuple(fact["allowed words"].split())
    if isinstance(option.kind, Flags):
        assert {*option.kind.words, *option.kind.nothing[:1]} == set(fact["allowed words"].split())


@pytest.mark.parametrize("name", OPTIONS)
def test_what_is_without_effect_is_marked(name: str) -> None:
    assert OPTIONS[name].obsolete == (name in OBSOLETE)


@pytest.mark.parametrize("name", [name for name in OPTIONS if name.startswith("msg_")])
def test_texts_for_mail_users_fit_a_reply_line(name: str) -> None:
    text = OPTIONS[name].default
    assert text.isascii()
    assert text.isprintable()
    assert 5 < len(text) < 120
    assert not text.endswith((" ", "."))


def test_texts_for_mail_users_are_told_apart() -> None:
    texts = [option.default for name, option in OPTIONS.items() if name.startswith("msg_")]
    assert len(set(texts)) == len(texts)


# a line of a file, the option it sets, the value it has in Python
VALUES: list[tuple[str, str, Any]] = [
    ("source_addr 192.0.2.1", "outgoing_addr", ip_address("192.0.2.1")),
    ("bind_address ::", "bind_address", ip_address("::")),
    ("dumpfile /tmp/state", "statefile", Path("/tmp/state")),
    ("dumpfile_perm 0600", "statefile_perm", 0o600),
    ("statefile_perm 0x1b0", "statefile_perm", 0o660),
    ("earlytalker off", "earlytalk", False),
    ("ratelimit_expiration 60", "ratelimit_period", 60),
    ("ratelimit_messages 7", "ratelimit_sessions", 7),
    ("ratelimit_generation 20261123170000", "ratelimit_generation", 20261123170000),
    ("lock_on earlytalker, virus", "lock_on", frozenset({"earlytalk", "virus"})),
    ("lock_on never", "lock_on", frozenset()),
    ("lock_on none", "lock_on", frozenset()),
    ("lock_on off", "lock_on", frozenset()),
    ("lock_duration -1", "lock_duration", -1),
    ("spool_leave_on never", "spool_leave_on", frozenset()),
    ("spool_leave_on Always", "spool_leave_on", frozenset({"always"})),
    ("auth_skip antivir,\tdnsbl", "auth_skip", frozenset({"antivir", "dnsbl"})),
    ("log_mail_from no", "log_mail_from", frozenset()),
    ("log_mail_from 0", "log_mail_from", frozenset()),
    ("log_mail_from 1", "log_mail_from", frozenset({"accepted"})),
    ("log_rcpt_to 6", "log_rcpt_to", frozenset({"rejected", "base64"})),
    ("log_rcpt_to 7", "log_rcpt_to", frozenset({"accepted", "rejected", "base64"})),
    *(
        (f"log_level {number}", "log_level", level)
        for number, level in enumerate(
            ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")
        )
    ),
    ("nat_header_type simple", "nat_header_type", "generic"),
    ("nat_header_type 0", "nat_header_type", "none"),
    ("nat_header_type 1", "nat_header_type", "generic"),
    ("nat_header_type 2", "nat_header_type", "ip-only"),
    ("spf off", "spf", "none"),
    ("spf source", "spf", "incoming"),
    ("mode tproxy,netfilter", "mode", "tproxy,netfilter"),
    ("mode PF", "mode", "pf"),
    ("workers auto", "workers", 0),
    ("workers 3", "workers", 3),
    ("pipeline_size 0x10", "pipeline_size", 16),
    ("size_limit 010", "size_limit", 8),
    ("size_limit 0", "size_limit", 0),
    ("spam_max_size -5", "spam_max_size", -5),
    ("max_load .5", "max_load", 0.5),
    ("spam_threshold 6.31", "spam_threshold", 6.31),
    ("ignore_errors TRUE", "ignore_errors", True),
    ("ignore_errors 1", "ignore_errors", True),
    ("ignore_errors false", "ignore_errors", False),
    ("chroot_path", "chroot_path", None),
    ("chroot_path /srv", "chroot_path", Path("/srv")),
    ("action_script /bin/a b", "action_script", Path("/bin/a b")),
    ("antivirus_path 127.0.0.1:3310", "antivirus_path", SocketAddress(None, "127.0.0.1", 3310)),
    ("antivirus_path [::1]:3310", "antivirus_path", SocketAddress(None, "::1", 3310)),
    ("antispam_path localhost:783", "antispam_path", SocketAddress(None, "localhost", 783)),
    ("antispam_path /run/spamd", "antispam_path", SocketAddress(Path("/run/spamd"))),
    ("dnsbl a.example , B.example.,", "dnsbl", (DnsList("a.example"), DnsList("b.example"))),
    (
        "dnsbl c.example=127.0.[0;2..3].[2-11;20]*2.5",
        "dnsbl",
        (DnsList("c.example", (((127, 127),), ((0, 0),), ((0, 0), (2, 3)), ((2, 11), (20, 20))), 2.5),),
    ),
    ("dnsbl c.example*-1", "dnsbl", (DnsList("c.example", weight=-1),)),
    ("dns_servers 192.0.2.53", "dns_servers", (SocketAddress(None, "192.0.2.53", 53),)),
    (
        "dns_servers ::1,[::1]:54,[::1],192.0.2.1:55",
        "dns_servers",
        (
            SocketAddress(None, "::1", 53),
            SocketAddress(None, "::1", 54),
            SocketAddress(None, "192.0.2.1", 55),
        ),
    ),
    ("dnsbl", "dnsbl", ()),
    ("intercept_ports 25,587", "intercept_ports", (25, 587)),
    ("trusted_clients 192.0.2.0/24", "trusted_clients", (IPv4Network("192.0.2.0/24"),)),
    ("regex_reject_helo ^a( b)?$", "regex_reject_helo", "^a( b)?$"),
    ("regex_reject_helo [[a]", "regex_reject_helo", "[[a]"),
    (r"msg_hello one\ntwo \t", "msg_hello", "one\ntwo \\t"),
    ("msg_hello zażółć; # gęślą", "msg_hello", "zażółć; # gęślą"),
]


@pytest.mark.parametrize(("line", "name", "value"), VALUES, ids=[line for line, _, _ in VALUES])
def test_value(line: str, name: str, value: Any) -> None:
    assert getattr(parse(line), name) == value


def test_names_in_any_case_and_aliases_lead_to_options() -> None:
    assert parse("PORT 1\nSource_Addr 192.0.2.1").port == 1
    assert set(NAMES.values()) == set(OPTIONS)


def test_asterisk_is_this_host() -> None:
    assert Config().proxy_name == parse("proxy_name *").proxy_name == socket.gethostname()
    assert parse("proxy_name gate.example").proxy_name == "gate.example"


def test_each_virus_scanner_has_its_usual_place() -> None:
    assert str(parse("antivirus_type clamd").antivirus_path) == "/var/run/clamav/clamd.ctl"
    assert str(parse("antivirus_type mksd").antivirus_path) == "/var/run/mksd/socket"
    assert str(parse("antivirus_type mksd\nantivirus_path /x").antivirus_path) == "/x"


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(AttributeError, match="port"):
        Config().port = 1
