"""The worker process: one event loop that serves the clients the kernel gives it.

Started by the supervisor, which hands it its listener, the scoreboard and a socket for orders (one JSON
object a line): start, reload, drain, stop, fanout for a client that the gate has reported, and the questions
of `questions.py`. It gives up every right it does not need before it reads a byte from the network. When the
supervisor is gone, so is the worker.
"""

import argparse
import asyncio
import functools
import gc
import importlib
import json
import os
import pkgutil
import socket
import sys
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import uvloop

from appliance import language, privileges, process
from appliance.config import Config, parse
from appliance.log import Log
from appliance.proxy import events, lookup, questions, scanners
from appliance.proxy.action import ActionScripts
from appliance.proxy.checks import Checks
from appliance.proxy.clients import Clients
from appliance.proxy.connection import Connection, Connections
from appliance.proxy.doorway import Doorway, queue_length
from appliance.proxy.scoreboard import Scoreboard
from appliance.proxy.service import Service
from appliance.proxy.spool import sweep

_ORDER_MAX = 8 << 20  # bytes; a configuration file has 1 MiB at most, JSON makes it longer
_SCRIPTS_WITHIN = 3.0  # seconds for action scripts to end when the worker does; it is killed after five
_SWEEP_PAUSE = 5.0  # seconds from one look through the lock directory to the next
_SWEEP_RATE = 1000  # files a second at most, a fiftieth of the processor
_SWEEP_STEP = 50  # files that are looked at in one go, for a millisecond


class Worker:
    """What the sessions of this process share."""

    _checks: Checks
    _log: Log
    _scripts: ActionScripts | None = None
    _sweeper: asyncio.Task[None] | None = None

    def __init__(
        self, index: int, listener: socket.socket, board: Scoreboard, control: socket.socket
    ) -> None:
        self._index = index
        self._loop = asyncio.get_running_loop()
        self._connections = Connections(self._end_if_drained)
        self._listener = listener
        self._board = board
        self._control = control
        self._clients = Clients()
        self._doorway: Doorway | None = None
        self._errands: set[asyncio.Task[None]] = set()
        self._done = asyncio.Event()

    async def run(self) -> None:
        """Follow the supervisor's orders until it says so, or is gone."""
        reader, self._answers = await asyncio.open_unix_connection(sock=self._control, limit=_ORDER_MAX)
        orders = self._loop.create_task(self._orders(reader))
        await self._done.wait()
        orders.cancel()
        # Both at a time: together they may take longer than the supervisor waits.
        scripts = [self._scripts.finish(_SCRIPTS_WITHIN)] if self._scripts else []
        await asyncio.gather(self._clients.ledger.close(), *scripts)

    async def _orders(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                await self._obey(json.loads(line))
        except ConnectionError:
            pass  # the supervisor is gone, with words of ours unread
        except Exception as error:  # whatever it was, the supervisor has to hear of it
            self._say({"is": "failed", "why": str(error) or type(error).__name__})
        finally:
            self._done.set()

    async def _obey(self, order: dict[str, object]) -> None:
        match order["do"]:
            case "start":
                await self._start(str(order["config"]), stderr=bool(order.get("stderr")))
            case "reload":
                config = parse(str(order["config"]))
                language.use(config.locale)
                self._checks = self._configured(config)
                if self._index == 0:
                    self._keep_busy(self._miss_scanners(self._checks.service))
            case "drain":
                self._close_listener()
                self._end_if_drained()
            case "stop":
                self._close_listener()
                for connection in self._connections:
                    connection.end("admin")
                self._end_if_drained()
            case "fanout":
                found = int(str(order["servers"]))
                events.report_fanout(self._checks.service, str(order["address"]), found)
            case _:
                self._keep_busy(self._answer(order, self._checks.service))

    def _keep_busy(self, errand: Coroutine[None, None, None]) -> None:
        self._errands.add(task := self._loop.create_task(errand))
        task.add_done_callback(self._errands.discard)

    async def _miss_scanners(self, service: Service) -> None:
        """Tell which scanners of a new configuration are not there: its messages would be refused."""
        for _, _, trouble in await questions.ask_scanners(service):
            if trouble:
                self._log.warning(trouble)

    async def _answer(self, order: dict[str, object], service: Service) -> None:
        found = await questions.answer(order, service, self._connections)
        self._say({"is": "answer", "to": order.get("question"), "found": found})

    async def _start(self, text: str, *, stderr: bool) -> None:
        config = parse(text)
        self._log = Log.of(config, stderr=stderr)
        _import_all()
        lookup.prepare(config.mode)
        language.use(config.locale)  # the supervisor has told if it is unknown
        self._set_priority(config.priority)
        keep = 1 << process.CAP_NET_RAW if config.mode.startswith("tproxy") else 0
        privileges.drop(config.set_user, config.set_group, keep, config.chroot_path)
        self._loop.set_exception_handler(self._log.unhandled)  # a defect costs a session
        gc.collect()
        # What is over is freed without the collector. By default, at 700 new objects, it would set to work
        # for every few sessions that come, and look at the living ones each time.
        gc.set_threshold(10_000, 10, 10)
        gc.freeze()  # modules and the like stay; there is no need to look through them again and again
        self._scripts = ActionScripts(self._log)
        self._checks = self._configured(config)
        sweep(config.spool_path)
        if self._index == 0:  # one of us is enough
            self._sweeper = self._loop.create_task(self._sweep_locks())
        self._doorway = Doorway(self._listener, self._connections.turn, self._welcome, self._crowded)
        self._doorway.open(queue_length(config))
        self._say({"is": "ready"})

    def _welcome(self, client: socket.socket, peer: tuple[Any, ...]) -> None:
        Connection(self._loop, self._checks, self._connections, client, peer)

    def _configured(self, config: Config) -> Checks:
        return Checks(Service(config, self._log, self._board, self._clients, self._scripts))

    async def _sweep_locks(self) -> None:
        """Remove locks whose time is over although their clients do not come back, a few files at a time."""
        while True:
            for number, _ in enumerate(self._checks.service.locks.sweep(), 1):
                if number % _SWEEP_STEP == 0:
                    await asyncio.sleep(_SWEEP_STEP / _SWEEP_RATE)
            await asyncio.sleep(_SWEEP_PAUSE)

    def _end_if_drained(self) -> None:
        """The last connection of a draining worker takes it along."""
        if self._doorway is None and not self._connections:
            self._done.set()

    def _close_listener(self) -> None:
        if self._doorway:
            self._doorway.close()
            self._doorway = None

    def _crowded(self, why: str) -> None:
        """A client is there, but no file for another one."""
        config = self._checks.service.config
        seconds = max(config.enfile_sleep, 1)  # or nothing would be done but to try, and to tell
        if self._doorway and self._doorway.pause(seconds, queue_length(config)):
            self._log.err("ACCEPT:PAUSED", why=why, time=seconds)

    def _set_priority(self, priority: int) -> None:
        """Have the scheduler give this process its turns so.

        Woken by the first of many who speak, it does not interrupt whoever runs, who may be the next: there
        is more to do at once then.
        """
        if process.LINUX:
            with suppress(OSError):
                # What it starts is scheduled as usual again.
                os.sched_setscheduler(0, os.SCHED_BATCH | os.SCHED_RESET_ON_FORK, os.sched_param(0))
        if priority:
            try:
                os.setpriority(os.PRIO_PROCESS, 0, priority)
            except OSError as error:  # mail is worth more than the right pace
                self._log.err("PRIORITY:FAILED", priority=priority, why=error.strerror)

    def _say(self, answer: dict[str, object]) -> None:
        self._answers.write(json.dumps(answer).encode() + b"\n")


class _Listener(socket.socket):
    """A listening socket that makes enums of its family and type once, not for each client it accepts."""

    @functools.cached_property
    def family(self) -> socket.AddressFamily:
        """IPv4 or IPv6."""
        return super().family

    @functools.cached_property
    def type(self) -> socket.SocketKind:
        """A stream."""
        return super().type


def _import_all() -> None:
    """Import what is otherwise loaded on demand: the gateway's user may not be able to read our files."""
    for package in (lookup, scanners):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)


def main() -> int:
    """Run a worker on the descriptors that the command line names."""
    parser = argparse.ArgumentParser(prog="appliance.proxy.worker", description=__doc__)
    for name in ("index", "control", "listener", "scoreboard"):
        parser.add_argument(f"--{name}", type=int, required=True)
    given = parser.parse_args()
    process.set_name(f"smtp-gated-w{given.index}")
    process.leave_signals_to_parent()
    listener = _Listener(fileno=given.listener)
    control = socket.socket(fileno=given.control)

    async def serve() -> None:
        await Worker(given.index, listener, Scoreboard(given.scoreboard, given.index), control).run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())
    return 0


if __name__ == "__main__":
    sys.exit(main())
