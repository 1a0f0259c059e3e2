"""One worker process, as the supervisor sees it."""

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.proxy.scoreboard import Scoreboard
from appliance.supervisor import child, worker
from appliance.supervisor.worker import Worker
from tests.ports import free_port


def begun(directory: Path, on_ready: Callable[[], None], on_stuck: Callable[[], None]) -> Worker:
    with socket.create_server(("127.0.0.1", free_port())) as listener:
        made = Worker(0, listener, Scoreboard.create(1).fd, on_ready, on_stuck)
    config = f"mode fixed\nfixed_server 127.0.0.1\nspool_path {directory}\nlock_path {directory}\n"
    made.tell("start", config=config, stderr=False)
    return made


@pytest.mark.parametrize("hangs", [False, True])
def test_one_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, hangs: bool) -> None:
    monkeypatch.setattr(worker, "_PULSE", 0.5)

    async def live() -> Worker:
        ready = asyncio.Event()
        made = begun(tmp_path, ready.set, pytest.fail)
        attending = asyncio.create_task(made.attend())
        await asyncio.wait_for(ready.wait(), 10)
        if hangs:
            os.kill(made.pid, signal.SIGSTOP)
        else:
            await asyncio.sleep(6 * 0.5)  # as long as the other has at most
            assert made.why == ""
            made.tell("stop")
        await asyncio.wait_for(attending, 10)
        return made

    ended = asyncio.run(live())
    assert ended.misbehaved == hangs
    assert ended.why == ("it did not answer for 3 s" if hangs else "")


def test_one_that_does_not_end_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that waits for a disk cannot even be killed, and its clients wait in vain."""
    monkeypatch.setattr(worker, "_PULSE", 0.2)
    monkeypatch.setattr(child, "GONE_WITHIN", 0.2)
    monkeypatch.setattr(Worker, "kill", lambda _: None)

    async def live() -> str:
        ready, stuck = asyncio.Event(), asyncio.Event()
        made = begun(tmp_path, ready.set, stuck.set)
        attending = asyncio.create_task(made.attend())
        await asyncio.wait_for(ready.wait(), 10)
        os.kill(made.pid, signal.SIGSTOP)
        await asyncio.wait_for(stuck.wait(), 10)
        why = made.why
        os.kill(made.pid, signal.SIGKILL)
        await asyncio.wait_for(attending, 10)
        return why

    assert asyncio.run(live()) == "it did not answer for 1 s"


@pytest.mark.parametrize("size", [0, 1 << 20])
def test_no_worker_can_cut_the_counters_off(size: int) -> None:
    """Whoever reads memory that its file has no longer is killed: that would be the supervisor."""
    board = Scoreboard.create(2)
    with pytest.raises(PermissionError):
        os.ftruncate(board.fd, size)
