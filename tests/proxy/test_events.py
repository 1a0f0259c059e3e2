"""What follows an event (rule 7): the lock, its exemptions, the script, and the client's other sessions."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from appliance.config import parse
from appliance.config.options import EVENTS
from appliance.log import Log
from appliance.proxy import events
from appliance.proxy.clients import Clients
from appliance.proxy.lookup import Endpoint
from appliance.proxy.scoreboard import Scoreboard
from appliance.proxy.service import Service
from appliance.proxy.visit import Visit
from lab.process import wait_until
from tests.proxy.inside import Inside

VIRUS = "X-Virus: Eicar\r\n\r\ntext\r\n"
SPAM = "X-Spam: 12.5\r\n\r\ntext\r\n"
CLEAN = "Subject: clean\r\n\r\ntext\r\n"
SCAN: dict[str, str | int] = {
    "antivirus_type": "clamd",
    "antispam_type": "spamassassin",
    "spam_max_size": 100_000,
}
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to another user")


def told(script: Path) -> list[dict[str, str]]:
    """Give what each run of the script was told."""
    runs = sorted(script.parent.glob("told.*"), key=lambda path: path.stat().st_mtime_ns)
    return [dict(line.split("=", 1) for line in run.read_text().splitlines()) for run in runs]


@pytest.mark.option("lock_on")
@pytest.mark.parametrize("event", EVENTS)
def test_an_event_locks_if_it_is_listed(tmp_path: Path, event: str) -> None:
    for number, listed in enumerate((event, ",".join(EVENTS), "never", ",".join({*EVENTS} - {event}))):
        directory = tmp_path / str(number)
        directory.mkdir()
        config = parse(f"mode getsockname\nlock_path {directory}\nlock_on {listed}\n")
        log = Log("crit", "daemon", stderr=False, path=str(tmp_path / "none"))
        service = Service(config, log, Scoreboard.create(1), Clients())
        visit = Visit(service, Endpoint("192.0.2.7", 1), Endpoint("192.0.2.1", 25))
        events.report(visit, event, event.upper(), f"{event.upper()} of a test")
        made = [path.name for path in directory.iterdir()]
        assert made == (["192.0.2.7"] if event in listed.split(",") else [])


def early(inside: Inside) -> str:
    """Speak before the greeting, which comes late."""
    inside.server.hooks["connect"] = lambda _: time.sleep(0.2)
    with inside.connect() as client:
        client.say("NOOP")
        return client.reply()


def crowd(inside: Inside) -> str:
    """Open more sessions than max_per_host."""
    with inside.session(), inside.connect() as second:
        return second.reply()


DEEDS: dict[str, tuple[Callable[[Inside], str], str, str]] = {
    "virus": (lambda inside: inside.send(VIRUS), "550", "VIRUS Eicar\n"),
    "spam": (lambda inside: inside.send(SPAM), "550", "SPAM 12.5\n"),
    "maxhost": (crowd, "554", "MAX_HOST too many sessions at a time\n"),
    "earlytalk": (early, "554", "EARLYTALK spoke before the greeting\n"),
}


@pytest.mark.option("lock_on", "lock_path", "lock_perm")
@pytest.mark.parametrize("event", DEEDS)
def test_a_deed_locks_its_doer_out_until_the_file_is_removed(inside: Inside, event: str) -> None:
    deed, code, cause = DEEDS[event]
    inside.use(**SCAN, max_per_host=1, lock_on=event, lock_perm="0604", msg_virus_locked="shut out")
    assert deed(inside).startswith(code)
    inside.idle()
    lock = inside.locks / "127.0.0.1"
    assert lock.read_text() == cause
    assert lock.stat().st_mode & 0o7777 == 0o604
    with inside.connect() as client:
        assert client.reply() == "554 gw.example.test shut out"
    inside.wait_log(f"LOCK:CREATED lock={lock}, src=127.0.0.1, ident=, cause={cause.strip()}")
    inside.wait_log("LOCK:LOCKED src=127.0.0.1:")
    inside.server.hooks.clear()
    lock.unlink()
    inside.idle()
    assert inside.send(CLEAN).startswith("250")


@pytest.mark.option("lock_on", "lock_duration")
@pytest.mark.parametrize("event", DEEDS)
@pytest.mark.parametrize("off", [{"lock_on": "never"}, {"lock_duration": 0}])
def test_without_locking_each_deed_is_refused_and_told_but_nobody_is_shut_out(
    inside: Inside, script: Path, event: str, off: dict[str, str | int]
) -> None:
    deed, code, _ = DEEDS[event]
    inside.use(**SCAN, max_per_host=1, action_script=str(script), **off)
    passes = event == "spam" and "lock_on" in off  # spam is refused only if it locks
    for _ in range(2):
        assert deed(inside).startswith("250" if passes else code)
        inside.idle()
    assert inside.locked() == []
    if passes:
        inside.wait_log("SPAM:FOUND score=12.5")
    else:
        wait_until(lambda: len(told(script)) == 2, 5, "two runs of the script")
        assert {run["LOCK_FILE"] for run in told(script)} == {""}


@pytest.mark.option("action_script", "proxy_name")
def test_the_script_is_told_everything_about_the_session(inside: Inside, script: Path) -> None:
    inside.use(**SCAN, action_script=str(script), spool_leave_on="virus", lock_duration=77)
    with inside.connect() as client:
        port = client.socket.getsockname()[1]
        assert client.reply().startswith("220")
        for line in (
            "EHLO first.test",
            "EHLO last.test",
            "MAIL FROM:<a@b.test> SIZE=5",
            "RCPT TO:<c@d.test>",
        ):
            assert client.ask(line).startswith("250")
        assert client.ask("DATA").startswith("354")
        assert client.finish(CLEAN).startswith("250")
        for line in ("MAIL FROM:<e@f.test>", "RCPT TO:<g@h.test>", "RCPT TO:<i@j.test>"):
            assert client.ask(line).startswith("250")
        assert client.ask("DATA").startswith("354")
        assert client.finish(VIRUS).startswith("550")
    wait_until(lambda: told(script), 5, "a run of the script")
    (run,) = told(script)
    (copy,) = inside.copies()
    begun = int(run["UNIXTIME"])
    assert abs(begun - time.time()) < 10
    expected = {
        "ARGUMENTS": "<VIRUS><127.0.0.1><-><127.0.0.1>",
        "PROXY_NAME": "gw.example.test",
        "FOUND": "VIRUS",
        "VIRUS_NAME": "Eicar",
        "SPAM_SCORE": "0.000",
        "SOURCE_IP": "127.0.0.1",
        "SOURCE_PORT": str(port),
        "TARGET_IP": "127.0.0.1",
        "TARGET_PORT": str(inside.server.address[1]),
        "LOCAL_IP": "127.0.0.1",
        "LOCAL_PORT": str(inside.port),
        "IDENT": "",
        "IDENT_COUNT": "0",
        "HELO": "last.test",
        "MAIL_FROM": "e@f.test",
        "RCPTS_TOTAL": "3",
        "SIZE": str(len(VIRUS)),
        "TRANSACTION": "2",
        "AUTH": "0",
        "SPOOL_NAME": str(copy),
        "LOCK_FILE": str(inside.locks / "127.0.0.1"),
        "LOCK_DURATION": "77",
        "TIME": time.ctime(begun),
    }
    assert {name: run[name] for name in expected} == expected


@pytest.mark.option("action_script")
def test_spam_is_told_with_its_score(inside: Inside, script: Path) -> None:
    inside.use(**SCAN, action_script=str(script))
    inside.send(SPAM)
    wait_until(lambda: told(script), 5, "a run of the script")
    (run,) = told(script)
    assert (run["FOUND"], run["SPAM_SCORE"], run["VIRUS_NAME"], run["SPOOL_NAME"]) == (
        "SPAM",
        "12.500",
        "",
        "",
    )


def test_a_score_of_nothing_is_no_negative_one(inside: Inside) -> None:
    """As spamd says it of most mail."""
    inside.use(**SCAN)
    assert inside.send("X-Spam: -0.0\r\n\r\ntext\r\n").startswith("250")
    inside.wait_log("SPAM:CLEAN score=0, ")


@pytest.mark.option("action_script")
def test_of_sessions_caught_at_once_one_makes_the_lock_and_runs_the_script(
    inside: Inside, script: Path
) -> None:
    inside.use(**SCAN, action_script=str(script))
    sessions = [inside.session().begin() for _ in range(12)]
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda session: session.finish(VIRUS), sessions))
    assert all(answer.startswith("550 5.7.1 ") for answer in answers)
    for session in sessions:
        session.close()
    time.sleep(0.3)
    assert len(told(script)) == 1
    assert len([line for line in inside.log if "LOCK:CREATED" in line]) == 1


@pytest.mark.option("msg_virus_locked")
def test_the_other_sessions_of_a_locked_client_end_with_their_message(inside: Inside) -> None:
    inside.use(**SCAN, msg_virus_locked="shut out")
    with inside.session().begin() as other, inside.session("127.0.0.2").begin() as stranger:
        assert inside.send(VIRUS).startswith("550")
        assert other.finish(CLEAN) == "451 4.4.0 shut out"
        assert other.rest() == b""
        assert stranger.finish(CLEAN).startswith("250")
    assert len(inside.server.messages) == 1


@ROOT_ONLY
def test_a_client_whose_lock_belongs_to_another_user_is_never_locked(inside: Inside, script: Path) -> None:
    inside.use(**SCAN, action_script=str(script))
    note = inside.locks / "127.0.0.1"
    note.write_text("our own mail server\n")
    os.chown(note, 12345, 12345)
    for _ in range(2):
        assert inside.send(VIRUS).startswith("550")
        assert inside.send(CLEAN).startswith("250")
    time.sleep(0.2)
    assert note.read_text() == "our own mail server\n"
    assert told(script) == []


@pytest.mark.option("lock_duration")
def test_a_lock_ends_by_itself_and_is_told_once(inside: Inside) -> None:
    inside.use(**SCAN, lock_duration=1)
    assert inside.send(VIRUS).startswith("550")
    wait_until(lambda: not inside.locked(), 10, "the end of the lock")
    assert inside.send(CLEAN).startswith("250")
    assert len([line for line in inside.log if "LOCK:EXPIRED" in line]) == 1


@pytest.mark.option("action_script")
@pytest.mark.parametrize("text", ["#!/bin/sh\nsleep 5\n", "#!/bin/sh\nexit 1\n", "no program", None])
def test_a_script_that_hangs_or_fails_keeps_no_mail_from_flowing(
    inside: Inside, script: Path, text: str | None
) -> None:
    if text is None:
        script.unlink()
    else:
        script.write_text(text)
    inside.use(**SCAN, action_script=str(script), lock_on="never")
    for _ in range(3):
        assert inside.send(VIRUS).startswith("550")
        assert inside.send(CLEAN).startswith("250")
