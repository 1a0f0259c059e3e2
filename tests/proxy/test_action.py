"""The action script: what it is told, what it cannot reach, how many run, what becomes of one that hangs."""

import asyncio
import os
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from appliance.log import Log
from appliance.proxy import action
from appliance.proxy.action import ActionScripts, Event

EVENT = Event(
    proxy_name="gate.example.test",
    found="VIRUS",
    virus_name="Eicar",
    source_ip="192.0.2.7",
    source_port=40000,
    target_ip="198.51.100.25",
    target_port=25,
    local_ip="192.0.2.1",
    local_port=9199,
    ident_count=2,
    helo="pc",
    mail_from="a@example.test",
    rcpts_total=3,
    size=12345,
    transaction=1,
    auth=3,
    spool_name="/spool/1700000000.7",
    lock_file="/lock/192.0.2.7",
    lock_duration=3600,
    unixtime=1700000000,
)


def run(work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)


@pytest.fixture
def log() -> Log:
    return Log("debug", "daemon", stderr=True, path="/nonexistent")


def script(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "script"
    path.write_text(f"#!/bin/sh\ncd {tmp_path}\n{text}\n")
    path.chmod(0o755)
    return path


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - scripts tell through files
            await asyncio.sleep(0.02)


@pytest.mark.option("action_script")
def test_the_script_gets_the_arguments_and_the_whole_environment(tmp_path: Path, log: Log) -> None:
    async def work() -> None:
        program = script(tmp_path, 'env >new; printf "<%s>" "$@" >arguments; mv new environment')
        ActionScripts(log).run(program, EVENT)
        await until((tmp_path / "environment").exists)
        lines = (tmp_path / "environment").read_text().splitlines()
        assert set(lines) - {
            line for line in lines if line.startswith(("PWD=", "OLDPWD=", "_=", "SHLVL="))
        } == {
            "PROXY_NAME=gate.example.test",
            "FOUND=VIRUS",
            "VIRUS_NAME=Eicar",
            "SPAM_SCORE=0.000",
            "SOURCE_IP=192.0.2.7",
            "SOURCE_PORT=40000",
            "TARGET_IP=198.51.100.25",
            "TARGET_PORT=25",
            "LOCAL_IP=192.0.2.1",
            "LOCAL_PORT=9199",
            "IDENT=",
            "IDENT_COUNT=2",
            "HELO=pc",
            "MAIL_FROM=a@example.test",
            "RCPTS_TOTAL=3",
            "SIZE=12345",
            "TRANSACTION=1",
            "AUTH=3",
            "SPOOL_NAME=/spool/1700000000.7",
            "LOCK_FILE=/lock/192.0.2.7",
            "LOCK_DURATION=3600",
            f"TIME={time.ctime(1700000000)}",
            "UNIXTIME=1700000000",
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        }
        assert (tmp_path / "arguments").read_text() == "<VIRUS><192.0.2.7><-><198.51.100.25>"

    run(work())


def test_values_are_harmless() -> None:
    event = Event(
        proxy_name="p", found="SPAM", spam_score=7.25, source_ip="::1", source_port=1, local_ip="::1",
        local_port=1, unixtime=0, helo="a\r\nFOUND=x\0\x1b[2J\udcff", mail_from="\u4e16" * 9000,
    )  # fmt: skip
    environment = event.environment()
    assert environment["HELO"] == "a??FOUND=x??[2J?"
    assert environment["MAIL_FROM"] == "\u4e16" * 512
    assert environment["SPAM_SCORE"] == "7.250"


@pytest.mark.option("action_script")
def test_the_script_is_alone_in_its_session_and_inherits_nothing(tmp_path: Path, log: Log) -> None:
    async def work() -> None:
        program = script(
            tmp_path,
            "cp -RP /proc/$$/fd new\n"  # no pipe and no redirection: the shell would hold their ends
            "cut -d' ' -f1,6 /proc/$$/stat >session\nmv new files",
        )
        kept = os.open("/etc/hostname", os.O_RDONLY)
        os.set_inheritable(kept, True)
        ActionScripts(log).run(program, EVENT)
        await until((tmp_path / "files").exists)
        os.close(kept)
        files = {link.name: link.readlink() for link in (tmp_path / "files").iterdir()}
        assert {name: file for name, file in files.items() if file != program} == dict.fromkeys(
            "012", Path("/dev/null")
        )
        pid, session = (tmp_path / "session").read_text().split()
        assert pid == session

    run(work())


def children() -> list[str]:
    """The processes this one has, zombies among them."""
    threads = Path("/proc/self/task").glob("*/children")
    return " ".join(thread.read_text() for thread in threads).split()


@pytest.mark.option("action_script")
def test_scripts_leave_no_zombies_and_may_fail(tmp_path: Path, log: Log) -> None:
    async def work() -> None:
        actions, program = ActionScripts(log), script(tmp_path, "echo x >>ran; exit 3")
        for _ in range(50):
            actions.run(program, EVENT)
        await until(lambda: len((tmp_path / "ran").read_text()) == 100 and not children())

    (tmp_path / "ran").touch()
    run(work())


@pytest.mark.option("action_script")
def test_a_script_that_hangs_is_killed_with_its_children(tmp_path: Path, log: Log) -> None:
    async def work() -> None:
        program = script(tmp_path, "trap '' TERM\nsleep 60 & echo $! >new; mv new child; sleep 60")
        actions = ActionScripts(log, timeout=0.5)
        actions.run(program, EVENT)
        await until((tmp_path / "child").exists)
        child = int((tmp_path / "child").read_text())
        assert not _gone(child)
        await until(lambda: _gone(child) and not children())

    begun = time.monotonic()
    run(work())
    assert time.monotonic() - begun < 10


def _gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except OSError:
        return True


def test_only_so_many_run_and_wait_and_the_rest_is_dropped_with_a_line(
    tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(action, "_RUNNING", 3)
    monkeypatch.setattr(action, "_WAITING", 4)

    async def work() -> None:
        actions = ActionScripts(log)
        program = script(tmp_path, "echo x >>ran; while [ ! -e go ]; do sleep 0.05; done")
        for _ in range(9):
            actions.run(program, EVENT)
        await asyncio.sleep(1)
        running, ran = len(children()), (tmp_path / "ran").read_text()
        (tmp_path / "go").touch()
        assert (running, ran) == (3, "x\n" * 3)
        await until(lambda: len((tmp_path / "ran").read_text()) >= 14 and not children())

    run(work())
    assert (tmp_path / "ran").read_text() == "x\n" * 7
    assert capfd.readouterr().err.count("ACTION:DROPPED") == 2


@pytest.mark.parametrize("kind", ["missing", "not executable", "no program"])
def test_a_script_that_cannot_run_is_logged(
    tmp_path: Path, log: Log, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "program"
    if kind != "missing":
        program.write_bytes(b"\x7fELF nonsense")
        program.chmod(0o755 if kind == "no program" else 0o644)

    async def work() -> None:
        ActionScripts(log).run(program, EVENT)
        await asyncio.sleep(0.3)

    run(work())
    assert f"ACTION:FAILED script={program}" in capfd.readouterr().err
    assert children() == []


def test_a_limit_of_threads_costs_the_script_and_is_logged(
    tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    async def work() -> None:
        actions, program = ActionScripts(log), script(tmp_path, "echo x >>ran")
        actions.run(program, EVENT)
        await until((tmp_path / "ran").exists)
        with monkeypatch.context() as limited:
            limited.setattr(threading.Thread, "start", no_thread)
            actions.run(program, EVENT)
            await asyncio.sleep(0.1)
        actions.run(program, EVENT)
        await actions.finish(10)

    run(work())
    assert f"ACTION:FAILED script={tmp_path}/script, why=can't start new thread" in capfd.readouterr().err
    assert (tmp_path / "ran").read_text() == "x\n" * 2  # what failed is not begun later


def no_thread(_: object) -> None:
    raise RuntimeError("can't start new thread")


def test_scripts_that_wait_get_a_chance_when_the_worker_ends(
    tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(action, "_RUNNING", 1)

    async def work() -> None:
        actions, program = ActionScripts(log), script(tmp_path, "sleep 0.1; echo x >>ran")
        for _ in range(3):
            actions.run(program, EVENT)
        await actions.finish(10)
        assert (tmp_path / "ran").read_text() == "x\n" * 3

    run(work())


def test_the_end_does_not_wait_for_scripts_that_hang(
    tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(action, "_RUNNING", 1)
    program = script(tmp_path, "echo x >>ran; while [ ! -e go ]; do sleep 0.05; done; echo y >>ran")

    async def work() -> None:
        actions = ActionScripts(log)
        for _ in range(3):
            actions.run(program, EVENT)
        await until((tmp_path / "ran").exists)
        await actions.finish(0.2)
        await ActionScripts(log).finish(10)  # none: at once

    begun = time.monotonic()
    run(work())
    assert time.monotonic() - begun < 5
    assert (
        capfd.readouterr().err.count("ACTION:DROPPED found=VIRUS, src=192.0.2.7, why=the gateway ends") == 2
    )
    (tmp_path / "go").touch()
    run(until(lambda: (tmp_path / "ran").read_text() == "x\ny\n"))  # it went on by itself
