"""Servers and clients that vanish, stay mute or talk rubbish: no session hangs, nothing half sent counts."""

import re
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from lab import router
from lab.gateway import Gateway
from lab.network import CLIENT4, Network
from lab.process import wait_until
from tests.lab.scripted import BODY, Hook, Quiet, ScriptedScanner, Talk, mute, server_on

pytestmark = pytest.mark.lab

IDLE = 3  # seconds of silence that the gateway allows here


class Scene:
    """A gateway between one scripted server and its clients, with a scanner that may be left unasked."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.server = server_on(network.mail)
        self.scanner = ScriptedScanner(network.directory / "scripted-clamd")
        self.gateway = Gateway(
            network.router,
            {
                "antivirus_type": "clamd",
                "antivirus_path": str(network.directory / "scripted-clamd"),
                "scan_max_size": 1000,
                "spool_leave_on": "never",
                "timeout_idle": IDLE,
                "lock_on": "never",
            },
        ).start()
        router.intercept(network.router, "tproxy")
        with self.dial() as client:
            assert client.greet().begin().finish(LARGE).startswith("250")
        self.quiet = Quiet(self.gateway)

    def dial(self) -> Talk:
        return Talk(self.network.client.connect(self.server.address, source=CLIENT4))

    def close(self) -> None:
        router.release(self.network.router)
        self.gateway.close()
        self.server.close()
        self.scanner.close()


LARGE = BODY + "too long to be scanned\r\n" * 100


@pytest.fixture(scope="module")
def shared(network: Network) -> Iterator[Scene]:
    scene = Scene(network)
    yield scene
    scene.close()


@pytest.fixture
def scene(shared: Scene) -> Iterator[Scene]:
    """The scene, which has to be quiet again after the test."""
    shared.server.forget()
    yield shared
    shared.quiet.restored()
    assert not re.search("BUG|WORKER:CRASHED", shared.gateway.log)


def leave(_: Talk) -> None:
    raise EOFError


def crash(talk: Talk) -> None:
    time.sleep(0.1)  # the gateway knows by then that it is connected
    talk.reset()
    raise EOFError


def say(text: str) -> Hook:
    """Say something out of turn, then wait to be left."""

    def hook(talk: Talk) -> None:
        talk.say(text)
        mute(talk)

    return hook


def until_cut(client: Talk, message: str = LARGE) -> list[str]:
    """Send a mail as far as the server lets it happen; give the replies, until the connection ends."""
    replies = []
    try:
        replies.append(client.reply())
        replies.append(client.ask("EHLO client.test"))
        replies.append(client.ask("MAIL FROM:<a@client.test>"))
        replies.append(client.ask("RCPT TO:<b@example.test>"))
        replies.append(client.ask("DATA"))
        replies.append(client.finish(message))
        replies.append(client.ask("NOOP"))
    except (EOFError, ConnectionError):
        return replies
    pytest.fail(f"the session went on: {replies}")


POINTS = ("connect", "EHLO", "MAIL", "RCPT", "DATA", "body", "end")


@pytest.mark.parametrize("how", [leave, crash])
@pytest.mark.parametrize(("replies", "point"), list(enumerate(POINTS)))
def test_a_server_that_dies_ends_the_session_there(
    scene: Scene, point: str, replies: int, how: Callable[[Talk], None]
) -> None:
    scene.server.hooks[point] = how
    begin = time.monotonic()
    with scene.dial() as client:
        heard = until_cut(client)
    assert [reply[:3] for reply in heard] == ["220", "250", "250", "250", "354"][:replies]
    assert time.monotonic() - begin < 2
    assert len(scene.server.messages) == (point == "end")


@pytest.mark.parametrize("point", ["connect", "EHLO", "end"])
def test_a_mute_server_is_left_after_timeout_idle_without_a_word(scene: Scene, point: str) -> None:
    scene.server.hooks[point] = mute
    begin = time.monotonic()
    with scene.dial() as client:
        heard = until_cut(client)
        assert len(heard) == POINTS.index(point) - (point == "end")
        assert IDLE - 0.1 < time.monotonic() - begin < IDLE + 2
    wait_until(lambda: not scene.server.talks, 2, "the server's connection closed")
    assert "by=timeout" in scene.gateway.log


@pytest.mark.parametrize("point", ["connect", "EHLO", "MAIL", "DATA", "end"])
@pytest.mark.parametrize(
    "rubbish",
    [
        "hello there",
        "25",
        "9999 what",
        "2\0 0",
        "250-first\r\n354 second",
        "250 " + "x" * 1_000_000,
        "\r\n" * 9,
    ],
    ids=lambda text: repr(text[:14]),
)
def test_rubbish_from_a_server_ends_the_session_and_is_kept_from_the_client(
    scene: Scene, point: str, rubbish: str
) -> None:
    scene.server.hooks[point] = say(rubbish)
    begin = time.monotonic()
    with scene.dial() as client:
        heard = until_cut(client)
    assert time.monotonic() - begin < IDLE - 1
    assert len(heard) == min(POINTS.index(point), 5)
    assert len(scene.server.messages) == (point == "end")


@pytest.mark.parametrize("point", ["connect", "EHLO", "MAIL", "end"])
def test_a_reply_that_nobody_asked_for_ends_the_session(scene: Scene, point: str) -> None:
    scene.server.hooks[point] = say("220 hello\r\n250 and more" if point == "connect" else "250 ok\r\n250 so")
    with scene.dial() as client:
        assert len(until_cut(client)) <= POINTS.index(point) + (point != "end")
    assert len(scene.server.messages) == (point == "end")


def test_a_message_that_is_accepted_before_its_end_goes_no_further(scene: Scene) -> None:
    scene.server.hooks["body"] = say("250 so soon")
    with scene.dial() as client:
        client.greet().begin().send(BODY.encode())
        assert client.rest() == b""
    assert scene.server.messages == []


def test_a_server_without_end_to_its_reply_is_cut_after_timeout_idle(scene: Scene) -> None:
    def drip(talk: Talk) -> None:
        talk.send(b"250 ")
        mute(talk)

    scene.server.hooks["EHLO"] = drip
    with scene.dial() as client:
        assert len(until_cut(client)) == 1


# How far a client goes before it dies.
STAGES = ("greeted", "EHLO", "MAIL", "RCPT", "DATA", "body", "half a line")


def go_until(client: Talk, stage: str) -> None:
    steps = (
        lambda: client.reply(),
        lambda: client.ask("EHLO client.test"),
        lambda: client.ask("MAIL FROM:<a@client.test>"),
        lambda: client.ask("RCPT TO:<b@example.test>"),
        lambda: client.ask("DATA"),
        lambda: client.send(BODY.encode()),
        lambda: client.send(b"this line never\r\n."),
    )
    for step in steps[: STAGES.index(stage) + 1]:
        step()


@pytest.mark.parametrize("how", [Talk.close, Talk.reset])
@pytest.mark.parametrize("stage", STAGES)
def test_a_client_that_dies_leaves_no_message_and_nothing_open(
    scene: Scene, stage: str, how: Callable[[Talk], None]
) -> None:
    client = scene.dial()
    go_until(client, stage)
    wait_until(lambda: stage not in ("body", "half a line") or scene.server.unfinished, 2, "a message begun")
    how(client)
    wait_until(lambda: not scene.server.talks, 2, "the server's connection closed")
    assert scene.server.messages == []
    assert len(scene.server.unfinished) == (stage in ("DATA", "body", "half a line"))


def test_a_client_that_dies_during_the_scan_cancels_it(scene: Scene) -> None:
    client = scene.dial().greet().begin()
    client.send(BODY.encode() + b".\r\n")
    wait_until(lambda: scene.scanner.scans, 2, "a scan")
    client.reset()
    wait_until(lambda: not scene.scanner.scans, 2, "no scan")
    wait_until(lambda: not scene.server.talks, 2, "the server's connection closed")
    assert scene.server.messages == []
    assert len(scene.server.unfinished) == 1


def test_a_server_that_dies_during_the_scan_cancels_it(scene: Scene) -> None:
    client = scene.dial().greet().begin()
    client.send(BODY.encode() + b".\r\n")
    wait_until(lambda: scene.scanner.scans, 2, "a scan")
    for talk in list(scene.server.talks):
        talk.socket.shutdown(socket.SHUT_RDWR)
    assert client.rest() == b""
    client.close()
    wait_until(lambda: not scene.scanner.scans, 2, "no scan")


@pytest.mark.parametrize("how", [Talk.close, Talk.reset])
def test_a_client_that_dies_before_the_answer_has_sent_its_mail(
    scene: Scene, how: Callable[[Talk], None]
) -> None:
    scene.server.hooks["end"] = mute
    client = scene.dial().greet().begin()
    client.send(LARGE.encode() + b".\r\n")
    wait_until(lambda: scene.server.messages, 2, "a message")
    how(client)
    wait_until(lambda: not scene.server.talks, IDLE + 2, "the server's connection closed")
    assert len(scene.server.messages) == 1
