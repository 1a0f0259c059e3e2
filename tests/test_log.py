"""The log against a real datagram socket."""

import asyncio
import datetime
import json
import os
import re
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.config.options import LOG_LEVELS
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


def test_a_syslog_that_is_away_while_no_more_files_may_be_opened_costs_lines(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.log._RETRY", 0.0)
    log = Log("info", "daemon", stderr=False, path=path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        log.info("no file for a socket")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    syslog = listen(path)
    log.info("here")
    assert [line.partition(": ")[2] for line in lines(syslog)] == ["1 log lines lost", "here"]


def test_stderr_too(path: str, capfd: pytest.CaptureFixture[str]) -> None:
    Log("info", "daemon", stderr=True, path=path).err("SCAN:FAILED", why="gone")
    assert capfd.readouterr().err == f"smtp-gated[{os.getpid()}]: err: SCAN:FAILED why=gone\n"


def test_a_defect_is_told_with_its_place(path: str, capfd: pytest.CaptureFixture[str]) -> None:
    log = Log("crit", "daemon", stderr=True, path=path)

    async def fail() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(log.unhandled)
        loop.call_soon(int, "x")
        await asyncio.sleep(0)
        loop.call_exception_handler({"message": "no exception"})

    asyncio.run(fail())
    first, second = capfd.readouterr().err.splitlines()
    assert re.search(r"crit: BUG what=Exception in callback int\(.*, where=.*\| ValueError: invalid", first)
    assert second.endswith("crit: BUG what=no exception, where=")


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


@pytest.mark.option("log_target")
@pytest.mark.parametrize("form", ["text", "json"])
def test_a_full_stderr_that_is_the_target_costs_lines_and_they_are_told(form: str) -> None:
    reading, writing = os.pipe()
    kept = os.dup(2)
    try:
        os.dup2(writing, 2)
        log = Log("info", "daemon", stderr=False, target="stderr", form=form)
        while not log.lost:
            log.info("x" * 1000)
        log.info("lost as well")
        assert log.lost == 2
        while len(os.read(reading, 65536)) == 65536:
            pass
        log.info("again")
        told, again = os.read(reading, 65536).decode().splitlines()
    finally:
        os.dup2(kept, 2)
        for descriptor in (kept, reading, writing):
            os.close(descriptor)
    if form == "json":
        told, again = json.loads(told)["event"], json.loads(again)["event"]
    assert told.endswith("2 log lines lost")
    assert again.endswith("again")
    assert log.lost == 0


def test_a_full_disk_under_stderr_costs_lines_and_they_are_told(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        kept, limits = os.dup(2), resource.getrlimit(resource.RLIMIT_FSIZE)
        try:
            os.dup2(file.fileno(), 2)
            log = Log("info", "daemon", stderr=False, target="stderr")
            log.info("before")
            resource.setrlimit(resource.RLIMIT_FSIZE, (file.tell(), limits[1]))
            log.info("lost")
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            log.info("again")
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = [line.partition("]: ")[2] for line in (tmp_path / "log").read_text().splitlines()]
    assert said == ["info: before", "warning: 1 log lines lost", "info: again"]


def entry(datagram: bytes) -> dict[str, str]:
    """Read one datagram of the journal's protocol, in its form without binary values."""
    assert datagram.endswith(b"\n")
    return dict(line.split("=", 1) for line in datagram.decode()[:-1].split("\n"))


@pytest.mark.option("log_target", "log_facility")
def test_the_journal_gets_every_field_apart(path: str) -> None:
    journal = listen(path)
    log = Log("info", "mail", stderr=False, target="journal", path=path)
    log.notice("SCAN:VIRUS", src="10.0.0.5:1025", ident=None, virus="a, b=c\nPRIORITY=0", size=7)
    assert entry(journal.recv(65536)) == {
        "MESSAGE": "SCAN:VIRUS src=10.0.0.5:1025, ident=, virus=a%2C b%3Dc%0APRIORITY%3D0, size=7",
        "PRIORITY": "5",
        "SYSLOG_FACILITY": "2",
        "SYSLOG_IDENTIFIER": "smtp-gated",
        "SYSLOG_PID": str(os.getpid()),
        "SMTP_EVENT": "SCAN:VIRUS",
        "SMTP_SRC": "10.0.0.5:1025",
        "SMTP_IDENT": "",
        "SMTP_VIRUS": "a, b=c%0APRIORITY=0",
        "SMTP_SIZE": "7",
    }
    log.info("one\ntwo " + "x" * 5000, why="y" * 5000)
    found = entry(journal.recv(65536))
    assert len(found["MESSAGE"]) <= 2048
    assert len(found["SMTP_WHY"]) == 512


def test_a_full_journal_costs_lines_and_they_are_told(path: str) -> None:
    journal = listen(path)
    log = Log("info", "daemon", stderr=False, target="journal", path=path)
    while not log.lost:
        log.info("fill")
    for _ in lines(journal):
        pass
    log.info("again")
    told, again = lines(journal)
    assert entry(told.encode())["MESSAGE"] == "1 log lines lost"
    assert entry(again.encode())["MESSAGE"] == "again"


@pytest.mark.option("log_target")
def test_stderr_alone(capfd: pytest.CaptureFixture[str]) -> None:
    log = Log("info", "daemon", stderr=False, target="stderr")
    log.err("SCAN:FAILED", why="gone")
    assert capfd.readouterr().err == f"smtp-gated[{os.getpid()}]: err: SCAN:FAILED why=gone\n"
    assert log.lost == 0


def test_stderr_twice_is_stderr_once(capfd: pytest.CaptureFixture[str]) -> None:
    Log("info", "daemon", stderr=True, target="stderr").err("x")
    assert capfd.readouterr().err.count("\n") == 1


@pytest.mark.option("log_format")
def test_json_is_one_object_a_line(path: str, capfd: pytest.CaptureFixture[str]) -> None:
    syslog = listen(path)
    log = Log("info", "mail", stderr=True, form="json", path=path)
    before = datetime.datetime.now().astimezone()
    log.notice("SCAN:VIRUS", src="[::1]:25", time="0.012", ident=None, virus='a"b, c=d\n\x1b\ud800', size=7)
    (line,) = lines(syslog)
    priority, _, written = line.partition(f" smtp-gated[{os.getpid()}]: ")
    assert priority.startswith("<21>")
    assert written.isascii()
    assert written.isprintable()
    assert capfd.readouterr().err == written + "\n"
    told = json.loads(written)
    assert list(told) == ["time", "level", "pid", "event", "fields"]
    assert abs(datetime.datetime.fromisoformat(told.pop("time")) - before).total_seconds() < 5
    assert told == {
        "level": "notice",
        "pid": os.getpid(),
        "event": "SCAN:VIRUS",
        "fields": {
            "src": "[::1]:25",
            "time": "0.012",
            "ident": "",
            "virus": 'a"b, c=d%0A%1B%ED%A0%80',
            "size": 7,
        },
    }


def test_json_of_any_size_is_whole_and_short(path: str) -> None:
    syslog = listen(path)
    log = Log("info", "daemon", stderr=False, form="json", path=path)
    log.info("\u4e16" * 9000, **{f"field{number}": "\u4e16" * 9000 for number in range(12)})
    (line,) = lines(syslog)
    told = json.loads(line.partition("]: ")[2])
    assert len(line) < 2100
    assert len(told["fields"]) == 12
    assert set(told["fields"].values()) == {"\u4e16" * 16}


@pytest.mark.option("log_facility")
@pytest.mark.parametrize(
    ("facility", "number"),
    [
        *(("user", 1), ("mail", 2), ("daemon", 3), ("auth", 4), ("news", 7), ("authpriv", 10)),
        *((f"local{number}", 16 + number) for number in range(8)),
    ],
)
def test_facilities(path: str, facility: str, number: int) -> None:
    syslog = listen(path)
    Log("debug", facility, stderr=False, path=path).debug("x")
    (line,) = lines(syslog)
    assert line.startswith(f"<{number * 8 + 7}>")


@pytest.mark.option("log_level")
@pytest.mark.parametrize(("level", "written"), [*zip(LOG_LEVELS, (6, 5, 4, 3, 2, 0, 1, 0), strict=True)])
def test_every_level(path: str, level: str, written: int) -> None:
    syslog = listen(path)
    log = Log(level, "daemon", stderr=False, path=path)
    for write in (log.debug, log.info, log.notice, log.warning, log.err, log.crit):
        write("x")
    assert len(list(lines(syslog))) == written
