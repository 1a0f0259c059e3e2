"""2.1 to 2.6, 4.1 to 4.3 and 6: who is turned away and when, and how large and how many things may be."""

import os
import time
from pathlib import Path

import pytest

from appliance.config import parse
from appliance.log import Log
from appliance.proxy import admission
from appliance.proxy.clients import Clients
from appliance.proxy.lookup import Endpoint, Route
from appliance.proxy.scoreboard import Counter, Scoreboard
from appliance.proxy.service import Service
from appliance.proxy.visit import Visit
from tests.lab.loopback import scene
from tests.proxy.inside import Inside

BEHIND_LOAD = "0.000001"  # less than the load average of any machine that runs tests
CLIENT, OTHER = "127.0.0.1", "127.0.0.9"


def told(inside: Inside, source: str = CLIENT) -> str:
    with inside.connect(source) as client:
        return client.rest().decode()


@pytest.mark.option("max_connections", "max_load", "max_per_host", "lock_path", "lock_duration")
def test_a_client_with_every_fault_is_told_the_first(inside: Inside) -> None:
    faults: dict[str, str | int] = {"max_connections": 1, "max_load": BEHIND_LOAD, "max_per_host": 1}
    texts = ["msg_max_reached", "msg_system_load", "msg_max_per_host", "msg_virus_locked"]
    words = {name: f"{name} it is" for name in texts}
    inside.use(**words, lock_on="never")
    with inside.session():
        for number, text in enumerate(texts):
            inside.use(**words, **dict(list(faults.items())[number:]), lock_on="never")
            (inside.locks / CLIENT).touch()
            assert told(inside) == f"554 gw.example.test {text} it is\r\n"
        (inside.locks / CLIENT).unlink()
        with inside.connect() as client:
            assert client.reply().startswith("220 ")
    inside.idle()


@pytest.mark.option("max_connections")
def test_sessions_of_all_clients_count_and_one_that_leaves_makes_room(inside: Inside) -> None:
    inside.use(max_connections=3)
    before = inside.board.total(Counter.REJECT_OTHER)
    members = [inside.session(f"127.0.0.{number}") for number in (1, 2, 3)]
    assert told(inside, OTHER).startswith("554 ")
    assert "sessions=4" in inside.wait_log("REJECT:MAX_CONNECTIONS")
    assert inside.board.total(Counter.REJECT_OTHER) == before + 1
    members.pop().close()
    inside.wait_log("CLOSE ")
    members.append(inside.session(OTHER))
    for member in members:
        member.close()
    inside.idle()


@pytest.mark.option("max_load")
def test_load_is_only_minded_above_the_limit(inside: Inside) -> None:
    before = inside.board.total(Counter.REJECT_OTHER)
    for limit in (0, -1, 100_000):
        inside.use(max_load=limit)
        inside.session().close()
    inside.use(max_load=BEHIND_LOAD)
    assert told(inside).startswith("554 ")
    inside.wait_log("REJECT:LOAD")
    assert inside.board.total(Counter.REJECT_OTHER) == before + 1


@pytest.mark.option("max_per_host", "lock_on")
@pytest.mark.parametrize("lock_on", ["maxhost", "never"])
def test_sessions_of_one_client_are_limited_and_others_not_touched(inside: Inside, lock_on: str) -> None:
    inside.use(max_per_host=2, lock_on=lock_on)
    before = inside.board.total(Counter.REJECT_HOST)
    with inside.session() as first, inside.session() as second, inside.session(OTHER):
        assert told(inside).startswith("554 ")
        assert inside.board.total(Counter.REJECT_HOST) == before + 1
        assert inside.locked() == ([CLIENT] if lock_on == "maxhost" else [])
        assert first.begin().finish().startswith("250" if lock_on == "never" else "451 ")
        second.close()
        inside.wait_log("CLOSE ")
        if lock_on == "never":
            inside.session().close()
        with inside.session(OTHER) as other:
            assert other.begin().finish().startswith("250")
    inside.idle()


@pytest.mark.option("max_per_host", "max_connections")
def test_zero_is_no_limit(inside: Inside) -> None:
    inside.use(max_per_host=0, max_connections=0)
    crowd = [inside.session() for _ in range(70)]
    for member in crowd:
        member.close()
    inside.idle()


@pytest.mark.option("max_per_ident", "msg_max_per_ident", "lock_on")
def test_sessions_of_one_user_behind_a_client(tmp_path: Path) -> None:
    config = parse(f"mode fixed\nfixed_server ::1\nmax_per_ident 2\nlock_path {tmp_path}\nlock_on maxident")
    service = Service(config, Log("crit", "mail", stderr=False), Scoreboard.create(1), Clients())

    def visit(ident: str, address: str = "192.0.2.1") -> str | None:
        made = Visit(service, Endpoint(address, 1025), Endpoint("192.0.2.9", 25))
        made.route = Route(Endpoint("198.51.100.1", 25), ident=ident)
        return admission.refusal_of_ident(made)

    assert [visit("anna") for _ in range(3)] == [None, None, config.msg_max_per_ident]
    assert (tmp_path / "192.0.2.1-anna").read_text() == "MAX_IDENT too many sessions at a time\n"
    assert service.board.total(Counter.REJECT_IDENT) == 1
    assert visit("bert") is visit("anna", "192.0.2.2") is visit("") is None
    service.clients.closed("192.0.2.1", "anna")
    service.clients.closed("192.0.2.1", "anna")
    assert visit("anna") == config.msg_virus_locked
    assert os.listdir(tmp_path) == ["192.0.2.1-anna"]  # noqa: PTH208


@pytest.mark.option("size_limit", "msg_size_limit")
def test_a_message_at_the_limit_passes_and_one_byte_more_ends_the_session(inside: Inside) -> None:
    inside.use(size_limit=2000, msg_size_limit="too large it is")
    for size, answer in ((2000, "250"), (2001, "552 5.3.4 too large it is")):
        with inside.session() as client:
            assert client.begin().finish(sized(size, "Subject: x\r\n\r\n")).startswith(answer)
            code = "250" if size == 2000 else "451"
            assert client.ask("MAIL FROM:<a@b.test>").startswith(code)
    assert [len(message.partition("Subject")[2]) for message in inside.server.messages] == [1991]
    inside.idle()


VIRUS = "X-Virus: Eicar\r\n"
SPAM = "X-Spam: 9\r\n"


def sized(size: int, head: str) -> str:
    return head + "x" * (size - len(head) - 2) + "\r\n"


@pytest.mark.option("scan_max_size", "antivirus_type")
def test_messages_up_to_a_size_are_scanned_for_viruses(inside: Inside) -> None:
    inside.use(antivirus_type="clamd", scan_max_size=1000, lock_on="never")
    assert inside.send(sized(1000, VIRUS)).startswith("550 ")
    assert inside.send(sized(1001, VIRUS)).startswith("250 ")
    inside.wait_log("SCAN:SKIPPED src=")
    inside.use(antivirus_type="clamd", scan_max_size=0, lock_on="never")
    assert inside.send(VIRUS).startswith("250 ")
    assert not [line for line in inside.log if "SCAN:" in line]


@pytest.mark.option("spam_max_size", "antispam_type")
def test_messages_up_to_a_size_are_scanned_for_spam(inside: Inside) -> None:
    inside.use(antispam_type="spamassassin", spam_max_size=1000, lock_duration=0)
    assert inside.send(sized(1000, SPAM)).startswith("550 ")
    assert inside.send(sized(1001, SPAM)).startswith("250 ")
    inside.wait_log("SPAM:SKIPPED src=")
    for off in (0, -1):
        inside.use(antispam_type="spamassassin", spam_max_size=off, lock_duration=0)
        assert inside.send(SPAM).startswith("250 ")
        assert not [line for line in inside.log if "SPAM:" in line]


@pytest.mark.option("scan_max_size", "spam_max_size")
def test_each_scanner_has_its_own_size(inside: Inside) -> None:
    options: dict[str, str | int] = {"antivirus_type": "clamd", "antispam_type": "spamassassin"}
    inside.use(**options, scan_max_size=500, spam_max_size=1000, lock_duration=0)
    assert inside.send(sized(700, VIRUS)).startswith("250 ")
    assert inside.send(sized(700, SPAM)).startswith("550 ")
    inside.use(**options, scan_max_size=1000, spam_max_size=500, lock_duration=0)
    assert inside.send(sized(700, SPAM)).startswith("250 ")
    assert inside.send(sized(700, VIRUS)).startswith("550 ")


@pytest.mark.option("spam_max_load")
def test_spam_is_not_looked_for_at_a_high_load(inside: Inside) -> None:
    options: dict[str, str | int] = {
        "antispam_type": "spamassassin",
        "spam_max_size": 1000,
        "lock_duration": 0,
    }
    for limit in (0, -1, 100_000):
        inside.use(**options, spam_max_load=limit)
        assert inside.send(SPAM).startswith("550 ")
    inside.use(**options, spam_max_load=BEHIND_LOAD)
    assert inside.send(SPAM).startswith("250 ")
    assert "load=" in inside.wait_log("SPAM:SKIPPED")


@pytest.mark.option("spam_threshold")
@pytest.mark.parametrize(
    ("threshold", "score", "spam"),
    [(7, "6.9", False), (7, "7.0", True), ("7.5", "7.4", False), (-1, "-0.5", True)],
)
def test_spam_begins_at_the_threshold(inside: Inside, threshold: str | int, score: str, spam: bool) -> None:
    inside.use(antispam_type="spamassassin", spam_max_size=1000, spam_threshold=threshold, lock_duration=0)
    assert inside.send(f"X-Spam: {score}\r\n").startswith("550 " if spam else "250 ")
    inside.wait_log(f"SPAM:{'FOUND' if spam else 'CLEAN'} score={float(score):g}")


@pytest.mark.option("on_takeover_cmds", "msg_transaction_failed")
@pytest.mark.parametrize("most", [0, 1, 5])
def test_a_taken_over_session_has_so_many_commands(inside: Inside, most: int) -> None:
    inside.use(on_takeover_cmds=most, regex_reject_helo=".")
    inside.server.hooks.clear()
    with inside.connect() as client:
        client.reply()
        assert client.ask("EHLO client.test").startswith("550 ")
        for _ in range(most):
            assert client.ask("NOOP").startswith("250 ")
        assert client.ask("NOOP").startswith("554 ")
        assert client.rest() == b""


@pytest.mark.option("pipeline_size", "msg_pipeline_full")
@pytest.mark.parametrize("size", [16, 40])
def test_one_command_more_than_the_queue_holds(inside: Inside, size: int) -> None:
    before = inside.board.total(Counter.PIPELINE)
    for many, last in ((size - 1, "250 "), (size, "503 ")):
        inside.use(pipeline_size=size)
        inside.server.hooks["VRFY"] = lambda _talk: time.sleep(0.3)
        with inside.session() as client:
            client.say("VRFY", *["NOOP"] * (many - 1))
            assert [client.reply()[:4] for _ in range(many)] == ["250 "] * (many - 1) + [last]
    assert inside.board.total(Counter.PIPELINE) == before + 1


@pytest.mark.lab
@pytest.mark.option("antispam_type", "spam_max_size")
def test_a_spam_scanner_without_a_size_is_warned_of() -> None:
    warning = "option antispam_type: spam_max_size is 0, so nothing is scanned for spam"
    with scene(antispam_type="spamassassin") as gate:
        assert warning in gate.gateway.run("-t").stderr
        assert warning in gate.log
        gate.gateway.write(spam_max_size="1000")
        assert gate.gateway.run("-t").stderr == ""
