"""The rate limit records of one worker's clients: in memory, and written to the database behind their back.

A client's record is read once, when the client is first seen, and kept while its period lasts, or a session
holds it: there are never two of a client. What changed is written twice a second, in a thread of its own, so
no command ever waits for the disk and a crash costs less than a second of counting. The checks of rate limits
call this; what a record says is `quota.py`'s business.
"""

import asyncio
import itertools
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

from appliance.config import Config
from appliance.log import Log
from appliance.proxy.quota import Limits, Record
from appliance.proxy.records import Records, RecordsError, row_of

RECORDS: Final = 100_000  # that are kept in memory; of more clients the latest
WRITE_EVERY: Final = 0.5  # seconds
_WAITING: Final = 4096  # questions to the database since it last answered one; more fail at once
_READ_WITHIN: Final = 5.0  # seconds, or the record counts as unusable
_CLOSE_WITHIN: Final = 3.0  # seconds for the last writing
_BATCH: Final = 1000  # records written, or deleted, in one transaction, and looked at for being over
_LETTING_GO: Final = 16  # records looked at to make room for one: most are held by no session
_PURGE_EVERY: Final = 60.0  # seconds

T = TypeVar("T")


class Ledger:
    """The records of one worker; `clock` gives unix time. Used from the event loop alone."""

    def __init__(self, clock: Callable[[], float] = time.time, room: int = RECORDS) -> None:
        self.clock = clock
        self._room = room
        self._recent: OrderedDict[str, Record] = OrderedDict()
        self._dirty: dict[str, Record] = {}
        self._disk = ThreadPoolExecutor(1, "ratelimit")
        self._unanswered = 0
        self._writer: asyncio.Task[None] | None = None
        self._purged = 0.0
        self._broken: set[str] = set()
        self._records: Records
        self._limits: Limits
        self._log: Log

    def serve(self, config: Config, log: Log) -> None:
        """Work by a configuration from now on; records of another directory are forgotten."""
        self._limits, self._log = Limits.of(config), log
        records = Records(config.ratelimit_path, create=True)
        before = getattr(self, "_records", None)
        if before and before.path == records.path:
            return
        if before:
            rows = [row_of(record) for record in self._dirty.values()]
            try:
                self._submit(before.save, rows)
                self._submit(before.close)
            except RecordsError as error:
                self._failed("writing", error)
            for record in self._recent.values():
                record.stored = False  # sessions that hold it go on, but it is none of the new database
            self._recent.clear()
            self._dirty.clear()
        self._records = records

    def known(self, client: str) -> Record | None:
        """Give a client's record if it is in memory, and is more than a makeshift."""
        record = self._in_memory(client)
        if record is None or not record.stored:
            return None
        self._keep(record)
        return record

    def _in_memory(self, client: str) -> Record | None:
        return self._recent.get(client) or self._dirty.get(client)

    async def fetch(self, client: str, limits: Limits, *, makeshift: bool) -> Record:
        """Give a client's record from the database, or a new one; raises RecordsError within seconds.

        With `makeshift`, a record that cannot be read is begun in memory alone, until it can be.
        """
        try:
            stored = await self._read(client)
        except RecordsError as error:
            self._failed("reading", error)
            if not makeshift:
                raise
            record = self._in_memory(client)
            if record is None:
                record = Record(client, limits, self.clock())
                record.stored = False
        else:
            self._worked("reading")
            record = self._in_memory(client)
            if record is None or (stored and not record.stored):
                record = stored or Record(client, limits, self.clock())
            record.stored = True
        self._keep(record)
        return record

    def changed(self, record: Record) -> None:
        """Have a record written soon."""
        if record.stored:
            self._dirty[record.client] = record
            self._write_soon()

    async def close(self) -> None:
        """Write what is not written yet, within a few seconds; the worker ends."""
        if self._writer:
            self._writer.cancel()
            await asyncio.wait([self._writer])
        if hasattr(self, "_records"):
            try:
                async with asyncio.timeout(_CLOSE_WITHIN):
                    await self._write()
                    await self._in_thread(self._records.close)
            except RecordsError as error:
                self._failed("writing", error)
            except TimeoutError:
                why = f"not done within {_CLOSE_WITHIN:g} seconds; look after the disk, or who locks it"
                self._failed("writing", RecordsError(why))
        self._disk.shutdown(wait=False, cancel_futures=True)

    async def _read(self, client: str) -> Record | None:
        try:
            async with asyncio.timeout(_READ_WITHIN):
                return await self._in_thread(self._records.get, client)
        except TimeoutError:
            raise RecordsError(f"no answer within {_READ_WITHIN:g} seconds; look after the disk") from None

    def _in_thread(self, call: Callable[..., T], *arguments: object) -> asyncio.Future[T]:
        return asyncio.wrap_future(self._submit(call, *arguments))

    def _submit(self, call: Callable[..., T], *arguments: object) -> Future[T]:
        if self._unanswered >= _WAITING:
            raise RecordsError("too many questions wait for the disk; look after it")
        try:
            asked = self._disk.submit(call, *arguments)
        except RuntimeError as error:  # there can be no more threads, and what waits for one goes
            self._disk = ThreadPoolExecutor(1, "ratelimit")
            raise RecordsError(f"{error}; look after the limit of tasks (TasksMax=)") from None
        self._unanswered += 1
        asked.add_done_callback(self._answered)
        return asked

    def _answered(self, asked: Future[T]) -> None:
        """Go by what the thread has done: what was given up stays in its queue until it comes there."""
        if not asked.cancelled():
            self._unanswered = 0

    def _keep(self, record: Record) -> None:
        """Keep a record as the latest one, at the cost of the one seen the longest time ago."""
        self._recent[record.client] = record
        self._recent.move_to_end(record.client)
        for _ in range(_LETTING_GO):
            if len(self._recent) <= self._room:
                break
            self._let_go(next(iter(self._recent.values())))
        self._write_soon()

    def _let_go(self, record: Record) -> None:
        """Forget a record, unless a session holds it; then it comes last."""
        if record.sessions:
            self._recent.move_to_end(record.client)
        else:
            del self._recent[record.client]

    def _write_soon(self) -> None:
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(self._write_behind())

    async def _write_behind(self) -> None:
        """Write, look for edits, forget and purge, as long as there is anything to look after."""
        while self._recent or self._dirty:
            await asyncio.sleep(WRITE_EVERY)
            try:
                await self._write()
                await self._purge()
                self._worked("writing")
            except RecordsError as error:
                self._failed("writing", error)
            except Exception as error:
                told = {"message": "rate limits were not written", "exception": error}
                asyncio.get_running_loop().call_exception_handler(told)
            self._forget()
        self._writer = None

    async def _write(self) -> None:
        while True:
            batch = dict(itertools.islice(self._dirty.items(), _BATCH))
            for client in batch:
                del self._dirty[client]
            try:
                edits = await self._in_thread(self._records.save, [row_of(each) for each in batch.values()])
            except BaseException:
                self._dirty = {**batch, **self._dirty}
                while len(self._dirty) > self._room:  # the disk has failed for long: the oldest counts go
                    del self._dirty[next(iter(self._dirty))]
                raise
            for edited in edits:
                record = self._in_memory(edited.client) or batch.get(edited.client)
                if record and record.edited != edited.edited:
                    record.adopt(edited)
                    self.changed(record)
            if len(batch) < _BATCH:
                return

    def _forget(self) -> None:
        """Let go of those whose period is over; the database has them as long as they matter."""
        over = self.clock() - self._limits.period
        for _ in range(_BATCH):
            record = next(iter(self._recent.values()), None)
            if record is None or record.cleared > over:
                return
            self._let_go(record)

    async def _purge(self) -> None:
        if 0 <= self.clock() - self._purged < _PURGE_EVERY:
            return
        limits = self._limits
        before = self.clock() - limits.memory
        while await self._in_thread(self._records.purge, before, limits.generation, _BATCH) >= _BATCH:
            pass
        self._purged = self.clock()

    def _failed(self, what: str, error: Exception) -> None:
        """Tell once that the database does not work."""
        if what not in self._broken:
            self._broken.add(what)
            self._log.err(f"RATELIMIT:FAILED {what}", file=self._records.path, why=error)

    def _worked(self, what: str) -> None:
        if what in self._broken:
            self._broken.discard(what)
            self._log.notice(f"RATELIMIT:RESTORED {what}", file=self._records.path)
