"""What the supervisor answers to requests on the control socket, and for metrics.

`control.py` calls `answer` for each of appliance-ctl's requests, `http.py` calls `metrics`. Facts come from
the supervisor itself and, for sessions, clients and scanners, from the workers, whose answers are handed on
as they are: text in them was chosen by clients, and whoever prints it has to make it harmless. A worker that
does not answer is named.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Protocol

from appliance.bpf.steering import worker_of
from appliance.config import Config
from appliance.log import Log
from appliance.proxy.scoreboard import Counter, Scoreboard
from appliance.supervisor.control import Refused, Request
from appliance.supervisor.features import version
from appliance.supervisor.status import COLUMNS
from appliance.supervisor.worker import Rows, rows
from appliance.supervisor.workers import Workers

TALLIES = ("connections", "mails", "refusals", "destinations")
_MOST_SESSIONS = 10_000  # rows of an answer
_MOST_CLIENTS = 1000
_SCANNERS_WITHIN = 7.0  # seconds; a worker waits five for them
_HEALTH_AGE = 5.0  # seconds for which what the scanners said holds
_RELOADED_WITHIN = 20.0

Answer = Mapping[str, object]


class Gateway(Protocol):
    """What is asked of the supervisor."""

    path: Path
    config: Config
    workers: Workers
    board: Scoreboard
    started: float
    reloaded: float
    ending: bool

    def reload(self) -> tuple[list[str], list[str]]:
        """Read the file again; give problems and warnings."""

    def end(self, *, for_good: bool) -> None:
        """Accept no more connections, and end with the last session; no other process will go on."""


class Requests:
    """Answers for `gateway`."""

    def __init__(self, gateway: Gateway, log: Log) -> None:
        self._gateway = gateway
        self._log = log
        self._asking: asyncio.Task[Rows | None] | None = None
        self._asked = 0.0
        self._known: dict[str, Callable[[Request], Awaitable[Answer]]] = {
            "status": self._status,
            "sessions": self._sessions,
            "clients": self._clients,
            "client": self._client,
            "scanners": self._scanners,
            "config": self._config,
            "reload": self._reload,
            "drain": self._drain,
        }

    async def answer(self, request: Request) -> Answer:
        """Answer a request. Raises Refused."""
        known = self._known.get(str(request["do"]))
        if known is None:
            raise Refused(f"known requests are {' '.join(self._known)}", "usage")
        return await known(request)

    async def _status(self, _: Request) -> Answer:
        gateway = self._gateway
        board, config = gateway.board, gateway.config
        return {
            "version": version(),
            "pid": os.getpid(),
            "file": str(gateway.path),
            "mode": config.mode,
            "listening": f"{config.bind_address} port {config.port}",
            "started": gateway.started,
            "reloaded": gateway.reloaded,
            "now": time.time(),
            "ending": gateway.ending,
            "crashed": gateway.workers.crashed,
            "most_sessions": board.peak(),
            "counters": {
                counter.name.lower(): board.total(counter)
                for counter in Counter
                if counter is not Counter.MAX_SESSIONS
            },
            "workers": [
                {
                    "index": index,
                    "pid": worker.pid,
                    "serving": worker.served(),
                    "sessions": board.of(index, Counter.SESSIONS),
                }
                for index, worker in gateway.workers.all()
            ],
            "scanners": await self._scanner_rows(),
        }

    async def _sessions(self, _: Request) -> Answer:
        found: list[list[object]] = []
        silent = []
        for pid, answer in await self._gateway.workers.sessions():
            if answer is None:
                silent.append(pid)
            else:
                found += [[pid, *row] for row in answer]
        return {
            "columns": [COLUMNS[1], COLUMNS[0], *COLUMNS[2:]],
            "rows": found[:_MOST_SESSIONS],
            "total": len(found),
            "silent": silent,
        }

    async def _clients(self, request: Request) -> Answer:
        by, most = request.get("by", TALLIES[0]), request.get("most", 20)
        if by not in TALLIES or type(most) is not int or not 0 < most <= _MOST_CLIENTS:
            raise Refused(f"by is one of {' '.join(TALLIES)}, most at most {_MOST_CLIENTS}", "usage")
        found: list[Sequence[object]] = []
        silent = []
        for pid, answer in await self._gateway.workers.ask("clients", by=TALLIES.index(by), most=most):
            told = rows(answer)
            if told is None:
                silent.append(pid)
            else:
                found += told
        return {"columns": ["client", "open", *TALLIES], "rows": found, "silent": silent}

    async def _client(self, request: Request) -> Answer:
        try:
            address = ip_address(str(request.get("address")))
        except ValueError:
            raise Refused("address is an IPv4 or IPv6 address", "usage") from None
        worker = self._gateway.workers.owner(address)
        known = await worker.ask("client", address=str(address)) if worker else None
        if not isinstance(known, dict):
            raise Refused("the worker that the client belongs to does not answer")
        index = worker_of(address, self._gateway.board.rows)
        return {**known, "worker": index, "ending": self._gateway.ending}

    async def _scanners(self, _: Request) -> Answer:
        return {"scanners": await self._scanner_rows()}

    async def _scanner_rows(self) -> Rows | None:
        """Tell how the scanners are, as a worker sees them: its rights to reach them are what counts."""
        if self._asking is None or (self._asking.done() and time.monotonic() > self._asked + _HEALTH_AGE):
            self._asked = time.monotonic()
            self._asking = asyncio.create_task(self._ask_scanners())
        return await asyncio.shield(self._asking)

    async def _ask_scanners(self) -> Rows | None:
        workers = self._gateway.workers.all()
        return rows(await workers[0][1].ask("scanners", _SCANNERS_WITHIN)) if workers else None

    async def metrics(self) -> bytes:
        """Give the page for Prometheus."""
        from appliance.supervisor import metrics  # a library that is not needed where nobody measures

        gateway = self._gateway
        facts = metrics.Facts(
            config=gateway.config,
            board=gateway.board,
            workers=len(gateway.workers.all()),
            crashed=gateway.workers.crashed,
            started=gateway.started,
            reloaded=gateway.reloaded,
            ending=gateway.ending,
            scanners=await self._scanner_rows(),
        )
        return metrics.page(facts)

    async def _config(self, _: Request) -> Answer:
        return {"file": str(self._gateway.path), "text": self._gateway.config.text()}

    async def _reload(self, request: Request) -> Answer:
        self._log.notice("CONTROL:RELOAD", uid=request["uid"], pid=request["pid"])
        problems, warnings = self._gateway.reload()
        silent = []
        if not problems:  # a worker answers questions after what it was told before
            answers = await self._gateway.workers.ask("sessions", _RELOADED_WITHIN)
            silent = [pid for pid, answer in answers if answer is None]
            warnings += [str(row[2]) for row in await self._ask_scanners() or () if any(row[2:])]
        return {"problems": problems, "warnings": warnings, "silent": silent}

    async def _drain(self, request: Request) -> Answer:
        if self._gateway.ending:
            raise Refused("it is draining already; smtp-gated -K ends its sessions, too")
        self._log.notice("CONTROL:DRAIN", uid=request["uid"], pid=request["pid"])
        self._gateway.end(for_good=True)
        return {"sessions": self._gateway.board.total(Counter.SESSIONS)}
