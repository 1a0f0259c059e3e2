"""The log against a real datagram socket."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.log import Log, plain


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "log")


def listen(path: str) -> socket.socket:
    syslog = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    syslog.bind(path)
    syslog.setblocking(False)
    return syslog


def lines(syslog: socket.socket) -> Iterator[str]:
    while True:
        try:
            yield syslog.recv(65536).decode()
        except BlockingIOError:
            return


def test_a_line_has_priority_time_ident_and_fields(path: str) -> None:
    syslog = listen(path)
    Log("info", "mail", stderr=False, path=path).info("CLOSE", by="client", trns=2, ident=None)
    (line,) = lines(syslog)
    priority, _, rest = line.partition(">")
    assert priority == f"<{2 * 8 + 6}"
    assert rest[3] == " "
    assert rest[6] == " "
    assert rest[15:] == f" smtp-gated[{os.getpid()}]: CLOSE by=client, trns=2, ident="


def test_the_level_decides(path: str) -> None:
    syslog = listen(path)
    log = Log("warning", "daemon", stderr=False, path=path)
    log.debug("a")
    log.info("b")
    log.notice("c")
    assert list(lines(syslog)) == []
    log.warning("d")
    log.err("e")
    log.crit("f")
    assert [line[-1] for line in lines(syslog)] == ["d", "e", "f"]
    assert log.enabled("err")
    assert not log.enabled("notice")


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("10.0.0.5:1025", "10.0.0.5:1025"),
        ("a, src=10.0.0.9", "a%2C src%3D10.0.0.9"),
        ("a\r\nNEW src", "a%0D%0ANEW src"),
        ("rL0Y20zC+Fzt72VPzMSk2A==", "rL0Y20zC+Fzt72VPzMSk2A=="),
        ("==x", "%3D%3Dx"),
        ("100%", "100%25"),
        ("zażółć", "zażółć"),
        ("\u202eabc\x7f", "%E2%80%AEabc%7F"),
        (b"\xff\x00a", "%FF%00a"),
        ("\ud800", "%ED%A0%80"),
        (7, "7"),
        (None, ""),
        ("x" * 600, "x" * 512),
    ],
)
def test_a_value_cannot_forge(value: object, written: str) -> None:
    assert plain(value) == written


def test_words_cannot_forge_a_line(path: str) -> None:
    syslog = listen(path)
    log = Log("info", "daemon", stderr=False, path=path)
    log.info("one\ntwo")
    log.info("x" * 9000)
    first, second = lines(syslog)
    assert first.endswith("one%0Atwo")
    assert len(second) < 2100


def test_a_full_syslog_costs_lines_and_they_are_told(path: str) -> None:
    syslog = listen(path)
    log = Log("info", "daemon", stderr=False, path=path)
    while not log.lost:
        log.info("fill")
    log.info("lost as well")
    assert log.lost == 2
    for _ in lines(syslog):
        pass
    log.info("again")
    told, again = lines(syslog)
    assert told.startswith("<28>")
    assert told.endswith(": 2 log lines lost")
    assert again.endswith(": again")
    assert log.lost == 0


def test_syslog_restarts(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.log._RETRY", 0.0)
    log = Log("info", "daemon", stderr=False, path=path)
    log.info("nobody there")
    first = listen(path)
    log.info("here")
    assert [line.partition(": ")[2] for line in lines(first)] == ["1 log lines lost", "here"]
    first.close()
    Path(path).unlink()
    log.info("gone")
    second = listen(path)
    log.info("back")
    assert [line.partition(": ")[2] for line in lines(second)] == ["1 log lines lost", "back"]


def test_stderr_too(path: str, capfd: pytest.CaptureFixture[str]) -> None:
    Log("info", "daemon", stderr=True, path=path).err("SCAN:FAILED", why="gone")
    assert capfd.readouterr().err == f"smtp-gated[{os.getpid()}]: err: SCAN:FAILED why=gone\n"


def test_an_unread_stderr_does_not_stall(path: str) -> None:
    reading, writing = os.pipe()
    kept = os.dup(2)
    try:
        os.dup2(writing, 2)
        log = Log("info", "daemon", stderr=True, path=path)
        for _ in range(1000):
            log.info("x" * 1000)
    finally:
        os.dup2(kept, 2)
        for descriptor in (kept, reading, writing):
            os.close(descriptor)
