"""The control socket: who is heard, and that nobody who misuses it is in anybody's way."""

import asyncio
import contextlib
import json
import os
import select
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.log import Log
from appliance.supervisor import control
from appliance.supervisor.control import ControlSocket, Refused, Request
from tests.supervisor.served import Served


class ServedControl(Served):
    """A control socket; it echoes, sleeps, fails, or is long."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked: list[Request] = []
        super().__init__(ControlSocket(path, self._answer, Log("debug", "mail", stderr=True)))

    async def _answer(self, request: Request) -> dict[str, object]:
        self.asked.append(request)
        if request["do"] == "refuse":
            raise Refused("no \x1b", "usage")
        if request["do"] == "sleep":
            await asyncio.sleep(60)
        return {"echo": request.get("text"), "long": "x" * int(str(request.get("long", 0)))}

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(self.path))  # waits while the queue is full, as it would not with a timeout
        client.settimeout(10)
        return client

    def say(self, words: bytes) -> dict[str, object]:
        with self.connect() as client:
            with contextlib.suppress(BrokenPipeError):
                client.sendall(words)
            return heard(client)

    def ask(self, **request: object) -> dict[str, object]:
        return self.say(json.dumps(request).encode() + b"\n")


def heard(client: socket.socket) -> dict[str, object]:
    answer = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := client.recv(65536):
            answer += piece
    found: dict[str, object] = json.loads(answer)
    return found


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[ServedControl]:
    monkeypatch.setattr(control, "_ASKED_WITHIN", 0.4)
    monkeypatch.setattr(control, "_ANSWERED_WITHIN", 0.3)
    monkeypatch.setattr(control, "_TAKEN_WITHIN", 0.3)
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        made = ServedControl(Path(name) / "run" / "control")
        yield made
        made.close()


def as_nobody(act: Callable[[], bool]) -> bool:
    """Do something in a process of another user, tell what it returned."""
    if (child := os.fork()) == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        os._exit(bool(act()))
    return bool(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


@pytest.mark.option("control_socket")
def test_a_request_is_answered_with_who_asked(served: ServedControl) -> None:
    found = stat.S_IMODE(served.path.stat().st_mode)
    assert found == 0o660
    assert served.ask(do="echo", text="a", uid=77)["echo"] == "a"
    assert (served.asked[0]["uid"], served.asked[0]["pid"]) == (os.geteuid(), os.getpid())
    assert served.ask(do="refuse") == {"error": "no \x1b", "code": "usage"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_other_users_are_kept_out_twice(served: ServedControl) -> None:
    def refused() -> bool:
        with pytest.raises(PermissionError):
            served.connect()
        return True

    assert as_nobody(refused)
    served.path.chmod(0o666)

    def told() -> bool:
        return served.ask(do="echo")["code"] == "forbidden"

    assert as_nobody(told)
    assert not served.asked


def test_garbage(served: ServedControl) -> None:
    for words in (b"\n", b"\0\xff\xfe\n", b"[" * 4000 + b"\n", b'{"do": 5}\n', b"[]\n", b'"do"\n', b'{"do"'):
        assert served.say(words)["code"] in ("usage", "failed"), words
    assert served.say(b"x" * 1_000_000)["error"] == "a request is a line of at most 4096 bytes"
    assert served.say(b'{"do": "echo", "text": "' + b"x" * 5000 + b'"}\n')["code"] == "usage"
    assert not served.asked
    assert served.ask(do="echo", text="b")["echo"] == "b"


def test_nobody_waits_for_the_slow(served: ServedControl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_ASKED_WITHIN", 2)
    silent, drip, deaf = (served.connect() for _ in range(3))
    drip.sendall(b'{"do"')
    deaf.sendall(b'{"do": "echo", "long": 8000000}\n')
    assert served.ask(do="echo", text="c")["echo"] == "c"
    assert not select.select([silent, drip], [], [], 0)[0]  # nor was anybody cut off before
    assert heard(silent)["error"] == heard(drip)["error"] == "it took too long"
    assert served.ask(do="sleep")["error"] == "it took too long"
    with contextlib.suppress(ConnectionResetError), pytest.raises(json.JSONDecodeError):
        heard(deaf)  # cut off in the middle
    for client in (silent, drip, deaf):
        client.close()


def test_two_hundred_at_once(served: ServedControl) -> None:
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(served.connect()) for _ in range(200)]
        answers = [heard(client) for client in crowd[8:]]
        assert {answer["code"] for answer in answers} == {"busy"}
    assert served.ask(do="echo", text="d")["echo"] == "d"


def test_what_is_left_over_is_replaced_and_what_lives_is_not(
    served: ServedControl, capfd: pytest.CaptureFixture[str]
) -> None:
    other = ServedControl(served.path)
    assert "another gateway, or something else, is there" in capfd.readouterr().err
    other.close()
    assert served.ask(do="echo", text="e")["echo"] == "e"
    left_over = served.path.with_name("left")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(left_over))
    other = ServedControl(left_over)
    assert other.ask(do="echo", text="f")["echo"] == "f"
    other.close()
    assert not left_over.exists()


@pytest.mark.parametrize("path", ["file", "missing/deep/control", "x" * 120])
def test_a_socket_that_cannot_be_made_is_told_and_nothing_harmed(
    served: ServedControl, path: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (served.path.parent / "file").write_text("precious")
    ServedControl(served.path.parent / path).close()
    assert "appliance-ctl will not reach this gateway" in capfd.readouterr().err
    assert sorted(entry.name for entry in served.path.parent.iterdir()) == ["control", "file"]
    assert (served.path.parent / "file").read_text() == "precious"
