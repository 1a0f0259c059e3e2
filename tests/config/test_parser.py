"""What the parser refuses, and how it says so."""

import os
import threading
import time
from pathlib import Path

import pytest

from appliance.config import OPTIONS, Config, ConfigError, load, parse
from appliance.config.option import shown

# a text, and the error it must give
ERRORS = [
    ("prot 1", '<text>:1: unknown option "prot"; did you mean port?'),
    ("max_spam_size 1", '<text>:1: unknown option "max_spam_size"; did you mean spam_max_size?'),
    ("zzz 1", '<text>:1: unknown option "zzz"; smtp-gated -T lists all options'),
    ("use_netfilter yes", '<text>:1: unknown option "use_netfilter"; it is mode netfilter now'),
    (
        "# c\n\n port",
        "<text>:3: option port: the value is missing; allowed is a whole number from 1 to 65535",
    ),
    ("port 0", '<text>:1: option port: "0" is too small; allowed is a whole number from 1 to 65535'),
    ("port 65536", '<text>:1: option port: "65536" is too large; allowed is a whole number from 1 to 65535'),
    (
        "pipeline_size 15",
        '<text>:1: option pipeline_size: "15" is too small; allowed is a whole number, at least 16',
    ),
    (
        "size_limit -1",
        '<text>:1: option size_limit: "-1" is too small; allowed is a whole number, at least 0',
    ),
    ("size_limit 08", '<text>:1: option size_limit: "08" is not a number; '),
    ("size_limit 1_0", '<text>:1: option size_limit: "1_0" is not a number; '),
    ("size_limit \u0661", '<text>:1: option size_limit: "\u0661" is not a number; '),
    ("size_limit 10M", '<text>:1: option size_limit: "10M" is not a number; '),
    ("size_limit 99999999999999999999", '<text>:1: option size_limit: "99999999999999999999" is too large; '),
    (f"size_limit {'9' * 5000}", '<text>:1: option size_limit: "' + "9" * 60 + '..." is not a number; '),
    (
        "max_load nan",
        '<text>:1: option max_load: "nan" is not a number; allowed is a number such as 2 or 0.5',
    ),
    ("max_load 1e999", '<text>:1: option max_load: "1e999" is not a number; '),
    ("max_load 1,5", '<text>:1: option max_load: "1,5" is not a number; '),
    ("log_helo maybe", '<text>:1: option log_helo: "maybe" is neither yes nor no; allowed is yes or no '),
    (
        "lock_perm 660",
        '<text>:1: option lock_perm: "660" does not begin with 0; allowed is permission bits in octal',
    ),
    ("lock_perm 010000", '<text>:1: option lock_perm: "010000" is too large; '),
    (
        "mode nat",
        '<text>:1: option mode: "nat" is not known; allowed is one of fixed fixed+xclient remote remote-udp',
    ),
    (
        "spool_leave_on erorr",
        '<text>:1: option spool_leave_on: "erorr" is not known; allowed is one or more of error ',
    ),
    ("lock_on virus,never", '<text>:1: option lock_on: "virus,never" says never and something else; '),
    ("auth_skip none,direct", '<text>:1: option auth_skip: "none,direct" says none and something else; '),
    ("lock_on ,", '<text>:1: option lock_on: "," is not known; '),
    ("lock_on 7", '<text>:1: option lock_on: "7" is not known; '),
    ("log_rcpt_to 8", '<text>:1: option log_rcpt_to: "8" is too large; '),
    (
        "bind_address localhost",
        '<text>:1: option bind_address: "localhost" is not an address; allowed is an IPv4 or IPv6',
    ),
    ("bind_address fe80::1%eth0", '<text>:1: option bind_address: "fe80::1%eth0" is not an address; '),
    ("trusted_clients 192.0.2.1/24", '"192.0.2.1/24" is not a network: it has bits behind its mask; '),
    (
        "spool_path msg",
        '<text>:1: option spool_path: "msg" does not begin with /; allowed is an absolute path',
    ),
    (
        "antivirus_path clamd",
        '<text>:1: option antivirus_path: "clamd" is not a socket; allowed is the absolute path',
    ),
    ("antivirus_path ::1:3310", '<text>:1: option antivirus_path: "::1:3310" is not a socket; '),
    ("antivirus_path 127.0.0.1:0", '<text>:1: option antivirus_path: "127.0.0.1:0" is not a socket; '),
    ("nat_header X: y", '<text>:1: option nat_header: "X: y" does not fit; allowed is the name of a header'),
    ("proxy_name zażółć", '<text>:1: option proxy_name: "zażółć" does not fit; allowed is a host name'),
    ("set_user a b", '<text>:1: option set_user: "a b" does not fit; allowed is the name of an account'),
    ("dnsbl .", '<text>:1: option dnsbl: "." does not begin with a zone; allowed is at most 32 values'),
    ("dnsbl a.example=127.0.0", '<text>:1: option dnsbl: "127.0.0" is no answer of four octets such as '),
    ("dnsbl a.example=127.0.0.2.", '<text>:1: option dnsbl: "127.0.0.2." is no answer of four octets '),
    ("dnsbl a.example=127.0.0.[2-11", '<text>:1: option dnsbl: "127.0.0.[2-11" is no answer of four octets '),
    ("dnsbl a.example=127.0.0.[11-2]", '<text>:1: option dnsbl: "11-2" is no number from 0 to 255, and no '),
    ("dnsbl a.example=127.0.0.256", '<text>:1: option dnsbl: "256" is no number from 0 to 255, '),
    ("dnsbl a.example=10.0.0.1", '<text>:1: option dnsbl: "10.0.0.1" can never match: answers of lists lie '),
    ("dnsbl a.example*0", '<text>:1: option dnsbl: "0" is no weight, which is a number up to 9999 and not 0'),
    ("dnsbl a.example*", '<text>:1: option dnsbl: "" is no weight, '),
    ("dnswl a.example*2", '<text>:1: option dnswl: "a.example*2" has a weight, which counts nowhere'),
    ("dns_servers [::1", '<text>:1: option dns_servers: "[::1" is no server; allowed is at most 8 values, '),
    ("dns_servers [::1]x", '<text>:1: option dns_servers: "[::1]x" is no server; '),
    ("dns_servers ns.example", '<text>:1: option dns_servers: "ns.example" is not an address; '),
    ("dnsbl_threshold 0", "<text>:1: option dnsbl_threshold: not above 0; set it to the weight that "),
    ("lan_interfaces eth0;x", '<text>:1: option lan_interfaces: "eth0;x" does not fit; '),
    (
        "dnsbl " + ",".join(f"z{number}.example" for number in range(33)),
        "33 values are too many; allowed is at most 32",
    ),
    ("regex_reject_helo ab(", '"ab(" is no regular expression: missing ) at position 4; allowed is '),
    ("regex_reject_helo a)b", '"a)b" is no regular expression: unexpected ) at position 2; '),
    ("regex_reject_helo [a", '"[a" is no regular expression: missing ] at position 3; '),
    (
        "regex_reject_helo a*|*",
        '"a*|*" is no regular expression: no argument for repetition operator at position 4; ',
    ),
    ("regex_reject_helo ż(?=x)", '"ż(?=x)" is no regular expression: invalid perl operator at position 2; '),
    (
        "regex_reject_helo (a)\\1",
        '"(a)\\1" is no regular expression: invalid escape sequence at position 4; ',
    ),
    (
        "regex_reject_helo a{2,1}",
        '"a{2,1}" is no regular expression: invalid repetition size at position 2; ',
    ),
    ("regex_reject_helo " + "(" * 5000, "is no regular expression: missing ) at position 5001; "),
    ("connect_queue 2147483648", " is too large; allowed is a whole number from 0 to 2147483647"),
    ("lock_duration 2147483648", " is too large; allowed is a whole number from -1 to 2147483647"),
    (
        "workers 257",
        '<text>:1: option workers: "257" is too large; allowed is auto, or a whole number from 1 to 256',
    ),
    ("port 1\nabuse a\x00b", "<text>:2: a control character, which no option may contain"),
    ("abuse a\rb", "<text>:1: a control character"),
    ("abuse " + "a" * 1_050_000, "<text>:1: longer than 1048576 characters"),
    ("regex_reject_helo " + "a" * 270_000, '..." is longer than 262144 characters; allowed is a regular'),
    ("mode fixed", "<text>: option fixed_server: not set; mode fixed needs the address of the mail server"),
    ("mode fixed+xclient", "<text>: option fixed_server: not set; mode fixed+xclient needs the address"),
    (
        "mode fixed\nfixed_server 127.0.0.1\nfixed_server_port 9199",
        "<text>:2: option fixed_server: leads back to the gateway",
    ),
    (
        "mode fixed\nfixed_server 0.0.0.0\nfixed_server_port 9199\nbind_address ::",
        "<text>:2: option fixed_server: leads back to the gateway",
    ),
    ("spf fixed", "<text>: option spf_fixed_ip: not set; spf fixed needs the address to check"),
    (
        "antivirus_type mksd\nantivirus_path 127.0.0.1:9",
        "<text>:2: option antivirus_path: mksd listens at a UNIX socket",
    ),
    (
        "antivirus_type clamd\nantivirus_path 127.0.0.1:9\nantivirus_transfer fd",
        "<text>:3: option antivirus_transfer: open files need a UNIX socket",
    ),
]


@pytest.mark.parametrize(("text", "error"), ERRORS, ids=[text[:40] for text, _ in ERRORS])
def test_error(text: str, error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert error in str(caught.value)
    assert len(caught.value.problems) == 1


def test_all_errors_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("port x\n# fine\nprot 1\nmax_load y\n", "gate.conf")
    first, second, third = str(caught.value).split("\n")
    assert first.startswith("gate.conf:1: option port: ")
    assert second.startswith("gate.conf:3: unknown option ")
    assert third.startswith("gate.conf:4: option max_load: ")
    problems = caught.value.problems
    assert (problems[0].file, problems[0].line) == ("gate.conf", 1)
    assert problems[0].message.startswith('"x" is not a number; allowed is ')
    assert [problem.option for problem in problems] == ["port", "", "max_load"]


def test_a_file_of_nothing_but_errors_costs_little() -> None:
    began = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        parse("nonsense-of-some-length 1\n" * 30000)
    assert time.monotonic() - began < 5
    assert len(caught.value.problems) == 101
    assert "too many errors" in str(caught.value)


def test_comments_blanks_and_line_ends() -> None:
    text = (
        "\ufeff# comment\r\n  ; another\r\n\r\n\t port \t 26 \t\r\nabuse  a # no comment ; here\nlog_helo yes"
    )
    config = parse(text)
    assert (config.port, config.abuse, config.log_helo) == (26, "a # no comment ; here", True)
    assert config.warnings == ()


def test_of_two_lines_the_last_counts_with_a_warning() -> None:
    config = parse("earlytalker yes\nport 2\nearlytalk no\n")
    assert not config.earlytalk
    assert config.warnings == ("<text>:3: option earlytalk: given before on line 1; this one counts",)


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        (
            "antispam_type spamassassin",
            "<text>:1: option antispam_type: spam_max_size is 0, so nothing is scanned for spam",
        ),
        (
            "antivirus_type clamd\nscan_max_size 0",
            "<text>:1: option antivirus_type: scan_max_size is 0, so nothing is ",
        ),
        ("nat_header simple", "<text>:1: option nat_header: names the header; what it says is set by nat_"),
        (
            "auth_skip direct,regex",
            "<text>:1: option auth_skip: direct stops all inspection; regex beside it",
        ),
        ("auth_skip direct,dnsbl", None),  # which is asked when they connect otherwise
        ("dnsbl a.example*2,b.example*-1\ndnsbl_threshold 3", "<text>:2: option dnsbl_threshold: more than "),
        ("dnsbl a.example*0.7,b.example*0.1\ndnsbl_threshold 0.8", None),
        ("dnswl a.example", "<text>:1: option dnswl: dnsbl is not set"),
        (
            "\nratelimit_bytes 5",
            "<text>:2: option ratelimit_bytes: ratelimit_period is 0, so nothing is limited",
        ),
        (
            "ratelimit_dst_expiration 0",
            "<text>:1: option ratelimit_dst_expiration: ratelimit_period is 0, so",
        ),
        ("ratelimit_dst_expiration -1\nratelimit_bytes 0", None),
        ("ratelimit_period 9\nratelimit_bytes 5", None),
        ("port 1\npid_hash_size 5", None),
        ("lock_on fanout\nxdp off", "<text>:1: option lock_on: fanout is found by the gate alone"),
        ("lock_on fanout", "<text>:1: option lock_on: fanout is found on lan_interfaces alone"),
        ("intercept_ports 25,465", "<text>:1: option intercept_ports: 465 is TLS from the first byte"),
        ("intercept_ports 25,587", None),
        ("dnsbl", None),
        ("antispam_type spamassassin\nspam_max_size 1", None),
    ],
)
def test_warning(text: str, warning: str | None) -> None:
    warnings = parse(text).warnings
    assert (warnings == ()) if warning is None else warnings[0].startswith(warning)


def test_the_edges_of_words_are_warned_about() -> None:
    assert any(r"write \b" in warning for warning in parse(r"regex_reject_helo \<pc").warnings)
    assert parse("regex_reject_helo [[:alpha:]]").warnings == ()


def test_modes_of_the_system() -> None:
    assert parse("mode pf").mode == "pf"
    with pytest.raises(ConfigError) as caught:
        parse("\nmode pf", modes=["netfilter", "fixed"])
    assert str(caught.value) == (
        "<text>:2: option mode: this system does not have the mode pf; it has fixed netfilter; "
        "install the package appliance-bsd to add it"
    )
    with pytest.raises(ConfigError, match=r"tproxy; it has fixed$"):
        parse("mode tproxy", modes=["fixed"])


def test_only_a_gateway_that_is_to_run_needs_a_mode(tmp_path: Path) -> None:
    assert parse("").mode == ""
    file = tmp_path / "gate.conf"
    file.write_text("port 26\n")
    with pytest.raises(ConfigError) as caught:
        load(file, modes=["tproxy", "fixed"])
    assert str(caught.value) == f"{file}: option mode: not set; set mode to one of fixed tproxy"
    file.write_text("mode tproxy\n")
    assert load(file, modes=["tproxy"]) == parse("mode tproxy")


def test_bytes_that_are_no_utf_8_have_a_line(tmp_path: Path) -> None:
    file = tmp_path / "gate.conf"
    file.write_bytes(b"mode pf\n# old comment \xb1\xe6\nmsg_hello cze\xb6\xe6\nport x\n")
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert [problem.line for problem in caught.value.problems] == [3, 4]
    assert "not UTF-8" in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"/none: cannot be read: No such file"):
        load(tmp_path / "none")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path)
    (tmp_path / "large").write_bytes(b"#" * (1 << 20) + b"\n")
    with pytest.raises(ConfigError, match=r"/large: larger than 1048576 bytes"):
        load(tmp_path / "large")


def test_a_fifo_is_read_if_somebody_writes_and_else_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigError, match="option mode: not set"):
        load(tmp_path / "fifo")
    reading, writing = os.pipe()  # as a shell's <(..)
    os.write(writing, b"mode fixed\nfixed_server 192.0.2.1\n")
    threading.Timer(0.2, os.close, [writing]).start()
    assert load(Path(f"/proc/self/fd/{reading}")).mode == "fixed"
    os.close(reading)


def test_quoted_text_cannot_upset_a_terminal() -> None:
    assert shown("a\x1b[31mb\u202ec") == '"a?[31mb?c"'
    assert len(shown("x" * 1000)) < 70


def test_equality_is_that_of_values() -> None:
    assert parse("port 26") == parse("port 26\nport 032")
    assert parse("port 26") != Config()
    assert Config() != "port"


@pytest.mark.option(*(name for name, option in OPTIONS.items() if option.obsolete))
def test_what_old_files_set_without_effect_is_accepted_in_silence() -> None:
    text = (
        "scanner_path /usr/bin/scan\ndspam_storage /var/dspam\npid_hash_size 64\nhost_hash_size 64\n"
        "msg_unknown_scanner none\n"
    )
    config = parse(text)
    assert config.warnings == ()
    assert config.written("pid_hash_size") == "64"
    assert {name for name, option in OPTIONS.items() if option.obsolete} == {
        line.split()[0] for line in text.splitlines()
    }
