"""5 and 6: peers that fall silent, and peers that send a byte now and then, at each point of a session."""

import contextlib
import os
import re
import signal
import socketserver
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Timer

import pytest

from tests.lab.loopback import offers
from tests.lab.scripted import Talk, mute
from tests.proxy.inside import Inside, serve

pytestmark = pytest.mark.lab  # for the time they take
SOON, NOT_YET = 1.8, 0.8  # seconds for what is to happen after one, and for what is not


def end_after(client: Talk) -> tuple[float, bytes]:
    """Wait for the end of a connection; give the seconds and what was said."""
    begin = time.monotonic()
    said = client.rest()
    return time.monotonic() - begin, said


def trickle(client: Talk, data: bytes, pause: float = 0.35) -> None:
    for byte in data:
        client.send(bytes([byte]))
        time.sleep(pause)


def after(begin: Callable[[Talk], object], data: bytes) -> Callable[[Talk], None]:
    """Make a client that begins so, says these bytes, and nothing more."""

    def say(client: Talk) -> None:
        begin(client)
        client.send(data)

    return say


POINTS: dict[str, Callable[[Talk], object]] = {
    "after the greeting": Talk.reply,
    "within a command": after(Talk.reply, b"EHL"),
    "after EHLO": Talk.greet,
    "within a message": after(lambda client: client.greet().begin(), b"Subject: x\r\n"),
    "within a line that is not read": after(Talk.greet, b"NOOP " + b"x" * 9000),
}


@pytest.mark.option("timeout_idle")
@pytest.mark.parametrize("point", POINTS)
def test_a_silent_client_is_left_without_a_word(inside: Inside, point: str) -> None:
    inside.use(timeout_idle=1)
    with inside.connect() as client:
        POINTS[point](client)
        seconds, said = end_after(client)
        assert NOT_YET < seconds < SOON
        assert said == b""
    inside.wait_log("CLOSE by=timeout")


@pytest.mark.option("timeout_idle")
@pytest.mark.parametrize("data", [b"EHLO a", b"MAIL"])
def test_a_client_of_a_byte_now_and_then_is_served(inside: Inside, data: bytes) -> None:
    inside.use(timeout_idle=1)
    with inside.connect() as client:
        client.reply()
        trickle(client, data)
        assert client.ask("").startswith("250")
        client.begin()
        trickle(client, b"Subj\r\n")
        assert client.finish("").startswith("250")


@pytest.mark.option("timeout_idle")
def test_a_server_of_a_byte_now_and_then_is_heard(inside: Inside) -> None:
    inside.use(timeout_idle=1)

    def slowly(talk: Talk) -> bool:
        trickle(talk, b"250 ok\r\n", 0.25)
        return True

    inside.server.hooks["NOOP"] = slowly
    with inside.session() as client:
        assert client.ask("NOOP") == "250 ok"


@pytest.mark.option("timeout_idle", "timeout_scanner")
def test_a_client_that_waits_for_a_scanner_is_not_silent(inside: Inside) -> None:
    inside.use(timeout_idle=1, timeout_scanner=2, antivirus_type="clamd")
    with inside.session() as client:
        assert client.begin().finish("X-Virus: hang\r\n").startswith("550 ")
        assert client.ask("NOOP").startswith("250 ")


@pytest.mark.option("timeout_session", "msg_session_timeout")
@pytest.mark.parametrize("trickling", [False, True], ids=["silent", "trickling"])
def test_a_taken_over_session_has_so_long_in_all(inside: Inside, trickling: bool) -> None:
    inside.use(timeout_session=1, timeout_idle=30, regex_reject_helo=".", on_takeover_cmds=100)
    with inside.connect() as client:
        client.reply()
        begin = time.monotonic()
        assert client.ask("EHLO a.test").startswith("550 ")
        if trickling:
            with contextlib.suppress(OSError):
                trickle(client, b"NOOP\r\nNOOP\r\n", 0.15)
        said = client.rest()
        assert NOT_YET < time.monotonic() - begin < (2.5 if trickling else SOON)
        assert re.search(rb"^421 .*\r\n\Z", said, re.MULTILINE)
    inside.wait_log("CLOSE by=timeout")


@pytest.mark.option("timeout_session", "size_limit")
@pytest.mark.parametrize("way", ["DATA", "BDAT"])
def test_a_refused_message_may_take_its_time_to_arrive(inside: Inside, way: str) -> None:
    inside.use(timeout_session=1, size_limit=1000)
    inside.server.hooks |= {"EHLO": offers("CHUNKING"), "BDAT": mute}
    with inside.session() as client:
        if way == "DATA":
            client.begin()
        else:
            client.say("BDAT 2000 LAST")
        client.send(b"x" * 1995)
        assert client.reply().startswith("552 ")
        trickle(client, b"\r\n.\r\n", 0.3)
        assert client.ask("QUIT").startswith("221 ")
    inside.wait_log("CLOSE by=server")
    with inside.session() as client:
        client.begin().send(b"x" * 2000)
        assert client.reply().startswith("552 ")
        seconds, said = end_after(client)
        assert NOT_YET < seconds < SOON
        assert said.startswith(b"421 ")


@pytest.mark.option("timeout_direct")
@pytest.mark.parametrize("speaker", ["client", "server", "nobody"])
def test_a_direct_session_ends_when_both_are_silent(inside: Inside, speaker: str) -> None:
    inside.use(timeout_direct=1, timeout_idle=30)

    def starttls(talk: Talk) -> bool:
        talk.say("220 go on")
        if speaker == "server":
            trickle(talk, b"12345")
        mute(talk)
        return True

    inside.server.hooks["STAR"] = starttls
    with inside.session() as client:
        assert client.ask("STARTTLS").startswith("220 ")
        begin = time.monotonic()
        if speaker == "client":
            trickle(client, b"12345")
        said = client.rest()
        seconds = time.monotonic() - begin
        assert said == (b"12345" if speaker == "server" else b"")
        assert (NOT_YET < seconds < SOON) if speaker == "nobody" else (2.0 < seconds < 3.5)
    inside.wait_log("CLOSE:DIRECT by=timeout")


class Trickling(socketserver.BaseRequestHandler):
    """A scanner of either kind whose answer has no end."""

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                time.sleep(0.2)
                self.request.sendall(b"S")


class Silent(socketserver.BaseRequestHandler):
    """A scanner that hears all and says nothing."""

    def handle(self) -> None:
        while self.request.recv(65536):
            pass
        time.sleep(5)


@pytest.fixture(params=[Trickling, Silent])
def scanner(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    server = serve(tmp_path / "scanner", request.param)
    yield tmp_path / "scanner"
    server.shutdown()
    server.server_close()


@pytest.mark.option("timeout_scanner", "ignore_errors", "msg_scanner_failed")
@pytest.mark.parametrize("ignore", ["no", "yes"])
def test_a_virus_scanner_that_does_not_come_to_an_end(inside: Inside, scanner: Path, ignore: str) -> None:
    inside.use(timeout_scanner=1, antivirus_type="clamd", antivirus_path=str(scanner), ignore_errors=ignore)
    begin = time.monotonic()
    answer = inside.send("Subject: x\r\n")
    assert NOT_YET < time.monotonic() - begin < SOON
    assert answer.startswith("250 " if ignore == "yes" else "550 ")
    inside.wait_log("SCAN:TIMEOUT")


@pytest.mark.option("timeout_spam")
def test_a_spam_scanner_that_does_not_come_to_an_end(inside: Inside, scanner: Path) -> None:
    inside.use(timeout_spam=1, antispam_type="spamassassin", spam_max_size=1000, antispam_path=str(scanner))
    begin = time.monotonic()
    assert inside.send("Subject: x\r\n").startswith("250 ")
    assert NOT_YET < time.monotonic() - begin < SOON
    inside.wait_log("SPAM:TIMEOUT")


def stand_still(inside: Inside) -> None:
    """Let the worker stand still for longer than its timeouts, as in a machine that is suspended."""
    os.kill(inside.pid, signal.SIGSTOP)
    Timer(3.5, os.kill, (inside.pid, signal.SIGCONT)).start()


def test_an_answer_that_came_while_the_worker_stood_still_counts(inside: Inside) -> None:
    def end(talk: Talk) -> bool:
        stand_still(inside)
        talk.say("250 2.0.0 taken")  # its client would send the message again
        return True

    inside.use(timeout_idle=1)
    inside.server.hooks["end"] = end
    assert inside.send("Subject: x\r\n") == "250 2.0.0 taken"


def test_a_command_that_came_while_the_worker_stood_still_counts(inside: Inside) -> None:
    inside.use(timeout_idle=1)
    with inside.session() as client:
        stand_still(inside)
        assert client.ask("NOOP").startswith("250 ")
        seconds, _ = end_after(client)
        assert NOT_YET < seconds < SOON


def test_a_verdict_that_came_while_the_worker_stood_still_counts(inside: Inside, tmp_path: Path) -> None:
    class Scanner(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65536)
            stand_still(inside)
            self.request.sendall(b"fd: OK\n")

    server = serve(tmp_path / "scanner", Scanner)
    inside.use(timeout_scanner=1, antivirus_type="clamd", antivirus_path=str(tmp_path / "scanner"))
    assert inside.send("Subject: x\r\n").startswith("250 ")
    server.shutdown()
    server.server_close()


@pytest.mark.option("timeout_idle", "msg_fixed_xclient_fail")
@pytest.mark.parametrize("point", ["connect", "EHLO", "XCLI"])
def test_a_server_silent_at_the_introduction_is_played_by_the_gateway(inside: Inside, point: str) -> None:
    def offer(talk: Talk) -> bool:
        talk.say("250-mail.example.test", "250 XCLIENT ADDR")
        return True

    inside.use(timeout_idle=1, mode="fixed+xclient", msg_fixed_xclient_fail="not introduced")
    inside.server.hooks["EHLO"] = offer
    inside.server.hooks[point] = mute
    with inside.connect() as client:
        begin = time.monotonic()
        assert client.greet().ask("MAIL FROM:<a@b>").endswith("not introduced")
        assert NOT_YET < time.monotonic() - begin < SOON


@pytest.mark.option("timeout_idle", "timeout_connect")
@pytest.mark.parametrize(
    ("point", "connecting"), [("connect", 0), ("connect", 30), ("EHLO", 30), ("DATA", 30), ("end", 30)]
)
def test_a_silent_server_is_left_and_its_client_with_it(inside: Inside, point: str, connecting: int) -> None:
    inside.use(timeout_idle=1, timeout_connect=connecting)
    inside.server.hooks[point] = mute
    with inside.connect() as client:
        begin = time.monotonic()
        with contextlib.suppress(EOFError):
            client.greet().begin().finish()
        assert NOT_YET < time.monotonic() - begin < SOON
    inside.wait_log("CLOSE by=timeout")
