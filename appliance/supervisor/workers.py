"""All the workers: one on each listener, kept alive until they are told to end.

The supervisor starts, reloads, drains and stops them through this. A worker that ends unasked is started
again on the same listener; its sessions are lost, no others. What a worker does is not known here.
"""

import asyncio
import contextlib
import socket
import subprocess
from collections.abc import Sequence

from appliance.bpf.steering import worker_of
from appliance.config import Address, Config
from appliance.log import Log
from appliance.proxy.scoreboard import Scoreboard
from appliance.supervisor.errors import StartError
from appliance.supervisor.worker import ANSWER_WITHIN, Rows, Worker, rows

_TOO_SOON = 1.0  # seconds of service; one that ended sooner may do so again
_LONGEST_PAUSE = 30.0  # seconds
_STOP_WITHIN = 5.0  # seconds for a worker to end its sessions before it is killed


class Workers:
    """One worker on each of `listeners`.

    With `stderr` they log there, too. `crashed` counts those that ended unasked, `bugs` those of them that
    had to be killed.
    """

    def __init__(
        self, config: Config, listeners: Sequence[socket.socket], board: Scoreboard, log: Log, *, stderr: bool
    ) -> None:
        self.crashed = 0
        self.bugs = 0
        self._text = config.text()
        self._listeners = listeners
        self._board = board
        self._log = log
        self._stderr = stderr
        self._current: dict[int, Worker] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._ending = asyncio.Event()

    async def start(self) -> None:
        """Start them all and return when all are ready. Raises StartError when one of them cannot be."""
        started: list[asyncio.Future[str]] = [
            asyncio.get_running_loop().create_future() for _ in self._listeners
        ]
        self._keepers = [
            asyncio.create_task(self._keep(index, listener, started[index]))
            for index, listener in enumerate(self._listeners)
        ]
        reasons = [why for why in await asyncio.gather(*started) if why]
        if reasons:
            self.stop()
            await self.ended()
            raise StartError(f"a worker did not start: {reasons[0]} (the log and smtp-gated -f tell more)")

    def reload(self, config: Config) -> None:
        """Give them another configuration."""
        self._text = config.text()
        for worker in self._current.values():
            worker.tell("reload", config=self._text)

    def drain(self) -> None:
        """Have them accept no more, and end with their last session."""
        self._end("drain")

    def stop(self) -> None:
        """Have them end their sessions and themselves, soon."""
        self._end("stop")
        for worker in self._current.values():
            asyncio.get_running_loop().call_later(_STOP_WITHIN, worker.kill)

    def _end(self, how: str) -> None:
        self._ending.set()
        for worker in self._current.values():
            worker.tell(how)

    async def ended(self) -> None:
        """Return when there is no worker any more."""
        await asyncio.gather(*self._keepers)

    async def sessions(self) -> list[tuple[int, Rows | None]]:
        """Process number of each worker and its sessions' rows, None from one that does not answer."""
        return [(pid, rows(answer)) for pid, answer in await self.ask("sessions")]

    async def ask(self, do: str, within: float = ANSWER_WITHIN, **more: object) -> list[tuple[int, object]]:
        """Put a question to each worker; give its process number, and the answer if it comes in time."""
        workers = [worker for _, worker in self.all()]
        answers = await asyncio.gather(*(worker.ask(do, within, **more) for worker in workers))
        return [(worker.pid, answer) for worker, answer in zip(workers, answers, strict=True)]

    def all(self) -> list[tuple[int, Worker]]:
        """Give the workers that live, each with its index."""
        return sorted(self._current.items())

    def owner(self, client: Address) -> Worker | None:
        """Give the worker that a client belongs to, if it lives."""
        return self._current.get(worker_of(client, len(self._listeners)))

    async def _keep(self, index: int, listener: socket.socket, started: asyncio.Future[str]) -> None:
        """Keep a worker on a listener; `started` gets "", or the reason why the very first does not serve."""
        quick = 0
        why = ""
        while not self._ending.is_set():
            why, served = await self._live(index, listener, started)
            if not started.done():
                break
            quick = quick + 1 if served < _TOO_SOON else 0
            await self._pause(min(_LONGEST_PAUSE, 2.0 ** (quick - 2)) if quick > 1 else 0.0)
        _settle(started, "" if self._ending.is_set() else why)

    async def _live(
        self, index: int, listener: socket.socket, started: asyncio.Future[str]
    ) -> tuple[str, float]:
        """See one worker through its life; give why it ended unasked, and the seconds that it served."""

        def stuck() -> None:
            why = f"{worker.why}; killed, it does not end: look after the disk that it waits for"
            self._log.crit("WORKER:STUCK", worker=index, pid=worker.pid, why=why)
            del self._current[index]  # nobody need ask it, nor count it

        try:
            worker = Worker(index, listener, self._board.fd, lambda: _settle(started, ""), stuck)
        except (OSError, subprocess.SubprocessError) as error:  # no memory, too many processes
            self._log.crit("WORKER:CRASHED", worker=index, why=error)
            return str(error), 0.0
        self._current[index] = worker
        worker.tell("start", config=self._text, stderr=self._stderr)
        await worker.attend()
        self._current.pop(index, None)
        self._board.forget_sessions(index)
        if worker.why and started.done():
            self.crashed += 1
            self.bugs += worker.misbehaved
            self._log.crit("WORKER:CRASHED", worker=index, pid=worker.pid, why=worker.why)
        return worker.why, worker.served()

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ending.wait(), seconds)


def _settle(future: asyncio.Future[str], result: str) -> None:
    if not future.done():
        future.set_result(result)
