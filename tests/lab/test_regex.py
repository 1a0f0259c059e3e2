"""Patterns for HELO, senders and recipients: what is refused, logged, locked and counted, and how fast."""

import time
from collections.abc import Iterator

import pytest

from tests.lab.loopback import NAME, Scene, offers, says, scene
from tests.lab.scripted import Talk

pytestmark = pytest.mark.lab

PATTERNS = {
    "regex_enforce_helo": r"(?i)^[a-z0-9.-]+\.test$",
    "regex_reject_helo": r"^(a+)+\.test$",
    "regex_enforce_mail_from": r"^$|@client\.test$",
    "regex_reject_mail_from": r"^[[:digit:]]{5,}@",
    "regex_enforce_rcpt_to": r"@example\.(test|org)$",
    "regex_reject_rcpt_to": r"^abuse@",
}


@pytest.fixture(scope="module")
def gate() -> Iterator[Scene]:
    hooks = {"EHLO": offers("ENHANCEDSTATUSCODES", "AUTH PLAIN"), "AUTH": says("235 2.7.0 ok")}
    with scene(
        hooks, auth_skip="regex", lock_on="regex", log_mail_from="accepted,base64", **PATTERNS
    ) as found:
        yield found


def dialogue(helo: str, sender: str, recipient: str) -> list[str]:
    return [f"EHLO {helo}", f"MAIL FROM:<{sender}> SIZE=5", f"RCPT TO:<{recipient}>"]


FINE = ("mail.client.test", "sender@client.test", "alice@example.test")


@pytest.mark.option(*PATTERNS)
@pytest.mark.parametrize(
    "said",
    [
        FINE,
        ("MAIL.CLIENT.TEST", "", "alice@example.org"),
        ("aaab.test", "1234@client.test", "Abuse@example.test"),
    ],
)
def test_what_fits_passes(gate: Scene, said: tuple[str, str, str]) -> None:
    client = gate.client()
    assert client.reply().startswith("220 ")
    assert all(client.ask(line).startswith("250 ") for line in dialogue(*said))
    assert client.ask("QUIT").startswith("221 ")


REFUSED = [
    ("helo", "enforce", ("localhost", *FINE[1:])),
    ("helo", "enforce", ("mail.test;rm", *FINE[1:])),
    ("helo", "enforce", ("\xff\xfe", *FINE[1:])),
    ("helo", "reject", ("aaaa.test", *FINE[1:])),
    ("mail_from", "enforce", (FINE[0], "sender@elsewhere.test", FINE[2])),
    ("mail_from", "reject", (FINE[0], "12345@client.test", FINE[2])),
    ("rcpt_to", "enforce", (*FINE[:2], "alice@example.com")),
    ("rcpt_to", "reject", (*FINE[:2], "abuse@example.test")),
]


@pytest.mark.option(*PATTERNS, "msg_regex_helo", "msg_regex_mail_from", "msg_regex_rcpt_to")
@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_what_does_not_is_taken_over_and_locks(gate: Scene, number: int) -> None:
    what, option, said = REFUSED[number]
    source = f"127.0.1.{number + 1}"
    count = int(gate.status("Found")[4])
    client = gate.client(source)
    client.reply()
    *before, refused = dialogue(*said)[: 1 + ("helo", "mail_from", "rcpt_to").index(what)]
    assert all(client.ask(line).startswith("250 ") for line in before)
    client.send(refused.encode("latin-1") + b"\r\n")
    code = "550" if what == "helo" else "550 5.7.1"  # before EHLO nobody has offered enhanced codes
    texts = {
        "helo": "the name in HELO is not accepted here; please check your mail program's settings",
        "mail_from": "this sender address is not accepted here",
        "rcpt_to": "this recipient address is not accepted here",
    }
    assert client.reply() == f"{code} {NAME} {texts[what]}"
    assert client.ask("MAIL FROM:<sender@client.test>").endswith(f"{NAME} {texts[what]}")
    assert client.ask("QUIT").startswith("221 ")
    assert gate.lock(source) == f"REGEX_{what.upper()} regex_{option}_{what}"
    assert f"REGEX:REJECT src={source}:" in gate.log
    assert int(gate.status("Found")[4]) == count + 1
    assert gate.told(source).startswith(f"554 {NAME} ")


@pytest.mark.option("auth_skip", "regex_enforce_mail_from")
def test_those_who_have_authenticated_are_spared(gate: Scene) -> None:
    client = gate.client()
    client.reply()
    client.ask("EHLO mail.client.test")
    assert client.ask("AUTH PLAIN AGEAYg==").startswith("235 ")
    assert client.ask("EHLO localhost").startswith("250 ")
    assert client.ask("MAIL FROM:<12345@elsewhere.test>").startswith("250 ")
    assert client.ask("RCPT TO:<abuse@example.com>").startswith("250 ")


@pytest.mark.option("log_mail_from")
def test_addresses_are_logged_as_digests_where_the_others_are(gate: Scene) -> None:
    client = gate.client("127.0.2.1")
    client.reply()
    client.ask("EHLO mail.client.test")
    assert client.ask("MAIL FROM:<secret@elsewhere.test>").startswith("550 ")
    gate.wait_log("src=127.0.2.1")
    assert "secret@" not in gate.log


@pytest.mark.option("regex_reject_helo")
def test_a_name_made_for_the_pattern_keeps_nobody_waiting(gate: Scene) -> None:
    begin = time.monotonic()
    for number in range(20):
        client = gate.client(f"127.0.3.{number + 1}")
        client.reply()
        assert client.ask(f"EHLO {'a' * 2000}.test").startswith("550 ")
        client = gate.client(f"127.0.3.{number + 1 + 100}")
        client.reply()
        assert client.ask(f"EHLO {'a' * 2000}b.test").startswith("250")
    assert time.monotonic() - begin < 3


@pytest.mark.option("email_length", "regex_reject_rcpt_to")
def test_addresses_are_cut_before_they_are_looked_at() -> None:
    with scene(email_length=10, regex_reject_rcpt_to=r"test$", regex_reject_mail_from=r"^.{10}$") as gate:
        client: Talk = gate.greeted()
        assert client.ask("MAIL FROM:<a@b.test>").startswith("250 ")
        assert client.ask("RCPT TO:<alice@example.test>").startswith("250 ")
        assert client.ask("RCPT TO:<a@b.test>").startswith("550 ")
        client = gate.greeted("127.0.0.3")
        client.send("MAIL FROM:<ärgerlich@client.test> SMTPUTF8\r\n".encode())  # characters, not bytes
        assert client.reply().startswith("550 ")


@pytest.mark.option("email_length")
def test_without_a_length_addresses_are_looked_at_as_they_are() -> None:
    with scene(email_length=0, regex_enforce_mail_from=r"@client\.test$") as gate:
        assert gate.greeted().ask("MAIL FROM:<sender@client.test>").startswith("250 ")
        assert gate.greeted().ask("MAIL FROM:<sender@other.test>").startswith("550 ")


@pytest.mark.option("lock_on")
def test_without_the_event_nobody_is_locked() -> None:
    with scene(lock_on="virus", regex_reject_mail_from="^spam") as gate:
        assert gate.greeted().ask("MAIL FROM:<spam@client.test>").startswith("550 ")
        assert gate.lock("127.0.0.2") == ""
        assert gate.greeted().ask("MAIL FROM:<ham@client.test>").startswith("250 ")
