"""One worker process as the supervisor sees it: how it starts, is told things, is asked things, and ends.

`workers.py` keeps one of these alive for each listener. The two talk over a stream socket, one JSON object a
line. The worker faces the network without privileges, so nothing it says is trusted: lines and times are
bounded, and whoever does not keep to the protocol is killed.
"""

import asyncio
import contextlib
import itertools
import json
import re
import signal
import socket
import time
from collections.abc import Callable, Sequence

from appliance import process
from appliance.supervisor import child

READY_WITHIN = 30.0  # seconds from exec to the first word; the machine may be busy with scanners
ANSWER_WITHIN = 2.0  # seconds
_PULSE = 10.0  # seconds from one sign of life to the next question, and for the answer
_MISSED = 3  # answers in a row
_LONGEST_LINE = 16 << 20  # bytes; a session's row has some 150
_LONGEST_REASON = 512
_UNPRINTABLE = re.compile(r"[^ -~]")

# For glibc, see mallopt(3); bytes. A worker reads pieces of up to 256 KiB: by default it would give each back
# to the kernel, and get it again page by page, at a third of the price of passing a large mail on.
_ALLOCATION = {
    "MALLOC_MMAP_THRESHOLD_": "1048576",
    "MALLOC_TOP_PAD_": "1048576",
    "MALLOC_TRIM_THRESHOLD_": "4194304",
}

Rows = Sequence[Sequence[object]]


def rows(answer: object) -> Rows | None:
    """Take an answer for rows; None if it is anything else."""
    if isinstance(answer, list) and all(isinstance(row, list) for row in answer):
        return answer
    return None


class Worker:
    """A worker process, started as soon as this is made.

    `on_ready` is called when it serves, `on_stuck` when it was killed and does not end, as one that waits for
    a disk. `why` says in the end what became of it; empty when it did as it was told.
    """

    def __init__(
        self,
        index: int,
        listener: socket.socket,
        scoreboard: int,
        on_ready: Callable[[], None],
        on_stuck: Callable[[], None],
    ) -> None:
        self._on_ready = on_ready
        self._on_stuck = on_stuck
        self._ready_since: float | None = None
        self.why = ""
        self.misbehaved = False  # it had to be killed
        self._told_to_end = False
        self._questions: dict[int, asyncio.Future[object]] = {}
        self._numbers = itertools.count()
        self._waiting: list[bytes] = []  # orders given before the conversation began
        self._writer: asyncio.StreamWriter | None = None
        self._ours, theirs = socket.socketpair()
        with theirs:
            self._process = child.start(
                *("appliance.proxy.worker", "--index", str(index)),
                environment=_ALLOCATION,
                control=theirs.fileno(),
                listener=listener.fileno(),
                scoreboard=scoreboard,
            )
        self.pid = self._process.pid

    def tell(self, do: str, **more: object) -> None:
        """Give an order."""
        self._told_to_end |= do in ("drain", "stop")
        order = json.dumps({"do": do, **more}).encode() + b"\n"
        if self._writer is None:
            self._waiting.append(order)
        elif not self._writer.is_closing():
            self._writer.write(order)

    def kill(self) -> None:
        """End the process at once."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def served(self) -> float:
        """Seconds since it became ready, 0 when it never did."""
        return 0.0 if self._ready_since is None else time.monotonic() - self._ready_since

    async def ask(self, do: str, within: float = ANSWER_WITHIN, **more: object) -> object:
        """Ask one of the questions in `proxy/questions.py`; None when there is no answer in time."""
        number = next(self._numbers)
        answer = self._questions[number] = asyncio.get_running_loop().create_future()
        self.tell(do, question=number, **more)
        try:
            return await asyncio.wait_for(answer, within)
        except TimeoutError:
            return None
        finally:
            del self._questions[number]

    async def attend(self) -> None:
        """Converse with the process until it has ended, and see to it that it has."""
        reader, self._writer = await asyncio.open_connection(sock=self._ours, limit=_LONGEST_LINE)
        self._writer.writelines(self._waiting)
        pulse = asyncio.create_task(self._feel_pulse())
        try:
            async with asyncio.timeout(READY_WITHIN) as patience:
                while line := await reader.readline():
                    self._hear(line)
                    if self._ready_since is not None:
                        patience.reschedule(None)
        except TimeoutError:
            self._accuse(f"not ready within {READY_WITHIN:.0f} s")
        except (ValueError, KeyError, TypeError, RecursionError):
            self._accuse("it sent what no worker sends")
        except ConnectionError:
            pass  # it ended with orders unread
        finally:
            pulse.cancel()
            self._writer.close()
            await self._end()

    async def _feel_pulse(self) -> None:
        """Kill the process when it hangs: its clients, and its share of all new ones, would wait for ever.

        A machine that has stood still makes it miss one answer, not several.
        """
        missed = 0
        while missed < _MISSED:
            await asyncio.sleep(_PULSE)
            if self._ready_since is not None:
                missed = missed + 1 if await self.ask("pulse", _PULSE) is None else 0
        self._accuse(f"it did not answer for {2 * _MISSED * _PULSE:.0f} s")

    def _hear(self, line: bytes) -> None:
        message = json.loads(line)
        match message["is"]:
            case "ready":
                self._ready_since = self._ready_since or time.monotonic()
                self._on_ready()
            case "failed":
                self.why = _UNPRINTABLE.sub("?", str(message["why"])[:_LONGEST_REASON])
            case "answer":
                answer = self._questions.get(message["to"])
                if answer and not answer.done():
                    answer.set_result(message["found"])
            case _:
                raise ValueError

    def _accuse(self, why: str) -> None:
        self.misbehaved = True
        self.why = self.why or why
        self.kill()
        if self._writer:
            self._writer.transport.abort()  # one that does not end would not close its side either

    async def _end(self) -> None:
        try:
            async with asyncio.timeout(child.GONE_WITHIN):
                code = await process.ended(self._process)
        except TimeoutError:
            self._accuse("it left without ending")
            code = await self._killed()
        if not self.why and (code or not self._told_to_end):
            self.why = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"

    async def _killed(self) -> int:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(child.GONE_WITHIN):
                return await process.ended(self._process)
        self._on_stuck()
        return await process.ended(self._process)
