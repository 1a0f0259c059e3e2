"""8: a worker's records in memory: one of each client, bounded, written behind, edited from outside."""

import asyncio
import gc
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import pytest

from appliance.config import Config
from appliance.log import Log
from appliance.proxy import ledger as module
from appliance.proxy.ledger import Ledger
from appliance.proxy.quota import Limits, Record, Use
from appliance.proxy.records import FILE, Records, RecordsError

CLIENT = "192.0.2.7"


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A ledger on a real database, its clock, and what it logs."""

    def __init__(self, directory: Path, room: int = 100) -> None:
        self.directory = directory
        self.clock = Clock()
        self.ledger = Ledger(self.clock, room)
        self.config = Config({"ratelimit_path": directory, "ratelimit_period": 60, "ratelimit_bytes": 10})
        self.limits = Limits.of(self.config)
        self.serve(self.config)

    def serve(self, config: Config) -> None:
        self.ledger.serve(config, Log("debug", "user", stderr=True))

    async def fetch(self, client: str = CLIENT, *, makeshift: bool = False) -> Record:
        return await self.ledger.fetch(client, self.limits, makeshift=makeshift)

    def spend(self, record: Record, amount: int = 1) -> None:
        record.refresh(self.limits, self.clock.now)
        record.spend(Use.BYTES, amount)
        self.ledger.changed(record)

    def stored(self, client: str = CLIENT) -> int | None:
        with Records(self.directory) as records:
            try:
                found = records.get(client)
            except RecordsError:  # it is not there yet
                return None
        return found.used[Use.BYTES] if found else None


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(module, "WRITE_EVERY", 0.02)
    return Bench(tmp_path)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what changes is a file
            await asyncio.sleep(0.01)


def run(bench: Bench, scene: Callable[[], Awaitable[None]]) -> None:
    async def play() -> None:
        try:
            await scene()
        finally:
            await bench.ledger.close()

    asyncio.run(play())


def test_a_client_is_read_once_and_written_behind(bench: Bench) -> None:
    async def scene() -> None:
        assert bench.ledger.known(CLIENT) is None
        first, second = await asyncio.gather(bench.fetch(), bench.fetch())
        assert first is second is bench.ledger.known(CLIENT)
        bench.spend(first, 3)
        await until(lambda: bench.stored() == 3)

    run(bench, scene)


def test_the_end_writes_what_is_left_and_a_new_worker_finds_it(bench: Bench, tmp_path: Path) -> None:
    async def first() -> None:
        for number in range(2500):  # more than one batch
            bench.spend(
                await bench.fetch(f"c{number}") if number < 3 else Record(f"c{number}", bench.limits, 0)
            )

    run(bench, first)
    assert [bench.stored(f"c{number}") for number in (0, 1200, 2499)] == [1, 1, 1]
    again = Bench(tmp_path)

    async def second() -> None:
        assert (await again.fetch("c2")).used[Use.BYTES] == 1

    run(again, second)


def test_memory_is_bounded_and_nothing_is_lost_by_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WRITE_EVERY", 0.02)
    bench = Bench(tmp_path, room=5)

    def in_memory() -> set[str]:
        """Name this test's records; others may have left some."""
        clients = (each.client for each in gc.get_objects() if isinstance(each, Record))
        return {client for client in clients if client.startswith(("held", "many"))}

    async def scene() -> None:
        held = await bench.fetch("held")
        held.sessions += 1
        for number in range(50):
            bench.spend(await bench.fetch(f"many{number}"))
        bench.spend(held)
        await until(lambda: bench.stored("held") == 1)
        assert bench.ledger.known("many0") is None
        await until(lambda: in_memory() == {"held", *(f"many{number}" for number in range(46, 50))})
        assert bench.ledger.known("held") is held
        assert (await bench.fetch("many0")).used[Use.BYTES] == 1

    run(bench, scene)


def test_records_are_forgotten_when_their_period_is_over(bench: Bench) -> None:
    async def scene() -> None:
        bench.spend(await bench.fetch())
        await until(lambda: bench.stored() == 1)
        bench.clock.now += 61
        await until(lambda: bench.ledger.known(CLIENT) is None)
        assert bench.stored() == 1  # it still has its quotas there
        bench.clock.now += 120
        await bench.fetch("another")
        await until(lambda: bench.stored() is None)

    run(bench, scene)


def test_edits_are_taken_over_without_a_use(bench: Bench) -> None:
    async def scene() -> None:
        record = await bench.fetch()
        bench.spend(record, 4)
        await until(lambda: bench.stored() == 4)
        with Records(bench.directory) as outside:
            outside.set_quotas(CLIENT, {Use.BYTES: 99}, bench.limits)
            await until(lambda: record.quotas[Use.BYTES] == 99)
            bench.spend(record, 50)
            await until(lambda: bench.stored() == 54)
            outside.clear(CLIENT)
            await until(lambda: not record.used[Use.BYTES])
        bench.spend(record, 2)
        await until(lambda: bench.stored() == 2)

    # the clearing was made by the real clock, which is far ahead
    bench.clock.now = time.time()
    run(bench, scene)


def logged(capfd: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capfd.readouterr().err.splitlines() if "RATELIMIT" in line]


def test_a_broken_database_is_told_once_and_records_in_memory_go_on(
    bench: Bench, capfd: pytest.CaptureFixture[str]
) -> None:
    path = bench.directory / FILE

    async def scene() -> None:
        record = await bench.fetch()
        bench.spend(record, 1)
        await until(lambda: bench.stored() == 1)
        for file in bench.directory.iterdir():
            file.unlink()
        path.write_bytes(b"no database\n" * 500)
        bench.spend(record, 1)
        await asyncio.sleep(0.2)
        assert bench.ledger.known(CLIENT) is record
        with pytest.raises(RecordsError):
            await bench.fetch("new")
        makeshift = await bench.fetch("new", makeshift=True)
        assert await bench.fetch("new", makeshift=True) is makeshift
        assert bench.ledger.known("new") is None  # read again with each connection
        bench.spend(makeshift, 5)
        path.unlink()
        await until(lambda: bench.stored() == 2)
        assert await bench.fetch("new") is makeshift  # nothing was known of it
        bench.spend(makeshift, 1)
        await until(lambda: bench.stored("new") == 6)

    run(bench, scene)
    lines = logged(capfd)
    told = [line.split("RATELIMIT:")[1].split(" file=")[0] for line in lines]
    assert told[:2] == ["FAILED writing", "FAILED reading"]
    assert sorted(told[2:]) == ["RESTORED reading", "RESTORED writing"]
    assert "; move " in lines[0].replace("%3B", ";")


def test_a_limit_of_threads_is_told_as_a_database_that_fails(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    async def scene() -> None:
        with monkeypatch.context() as limited:
            limited.setattr(threading.Thread, "start", no_thread)
            with pytest.raises(RecordsError):
                await bench.fetch()
            assert not (await bench.fetch(makeshift=True)).stored
            bench.serve(Config({"ratelimit_path": tmp_path / "other", "ratelimit_period": 60}))
            bench.serve(bench.config)
        assert (await bench.fetch()).stored

    run(bench, scene)
    lines = logged(capfd)
    assert "FAILED reading" in lines[0]
    assert "why=can't start new thread; look after the limit of tasks" in lines[0].replace("%3B", ";")
    assert sum("RESTORED reading" in line for line in lines) == 1


def test_a_disk_that_hangs_keeps_only_so_many_waiting(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_WAITING", 5)
    hangs = threading.Event()

    def get(_records: Records, _client: str) -> None:
        hangs.wait(10)

    async def scene() -> None:
        await bench.fetch()
        with monkeypatch.context() as hanging:
            hanging.setattr(Records, "get", get)
            hanging.setattr(module, "_READ_WITHIN", 0.05)
            for number in range(20):
                with pytest.raises(RecordsError):
                    await bench.fetch(f"client {number}")
            assert bench.ledger._disk._work_queue.qsize() <= 5
            with pytest.raises(RecordsError, match="too many questions wait for the disk"):
                await bench.fetch("one more")
            hangs.set()
            await until(bench.ledger._disk._work_queue.empty)
        assert (await bench.fetch("after it")).stored

    run(bench, scene)
    assert sum("RESTORED reading" in line for line in logged(capfd)) == 1


def no_thread(_: object) -> None:
    raise RuntimeError("can't start new thread")


def test_the_end_does_not_wait_for_a_locked_database_and_says_so(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_CLOSE_WITHIN", 0.2)
    monkeypatch.setattr(module, "WRITE_EVERY", 60)

    async def scene() -> None:
        bench.spend(await bench.fetch())
        other.execute("BEGIN EXCLUSIVE")

    with closing(sqlite3.connect(bench.directory / FILE, isolation_level=None)) as other:
        run(bench, scene)
    (line,) = logged(capfd)
    assert "RATELIMIT:FAILED writing" in line
    assert "why=not done within 0.2 seconds; look after the disk" in line


def test_a_makeshift_record_gives_way_to_the_stored_one(bench: Bench) -> None:
    path, aside = bench.directory / FILE, bench.directory / "aside"

    async def scene() -> None:
        with Records(bench.directory, create=True) as outside:
            outside.set_quotas(CLIENT, {Use.BYTES: 99}, bench.limits)
        path.rename(aside)
        path.write_bytes(b"no database\n" * 500)
        makeshift = await bench.fetch(makeshift=True)
        bench.spend(makeshift, 5)
        path.unlink()
        aside.rename(path)
        assert (await bench.fetch()).quotas[Use.BYTES] == 99
        bench.spend(makeshift, 1)  # by the session that began with it
        await asyncio.sleep(0.1)
        assert bench.stored() == 0

    run(bench, scene)


def test_another_directory(bench: Bench, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()

    async def scene() -> None:
        bench.spend(held := await bench.fetch(), 3)
        bench.serve(Config({"ratelimit_path": other, "ratelimit_period": 60}))
        assert bench.ledger.known(CLIENT) is None
        fresh = await bench.fetch()
        assert fresh.used[Use.BYTES] == 0
        assert bench.stored() == 3
        bench.spend(fresh)
        bench.spend(held)  # by a session that goes on

    run(bench, scene)
    assert bench.stored() == 3
    with Records(other) as records:
        found = records.get(CLIENT)
    assert found
    assert found.used[Use.BYTES] == 1


def test_nothing_runs_where_nobody_is_known(bench: Bench) -> None:
    async def scene() -> None:
        assert len(asyncio.all_tasks()) == 1
        await bench.fetch()
        assert len(asyncio.all_tasks()) == 2
        bench.clock.now += 61
        await until(lambda: len(asyncio.all_tasks()) == 1)

    run(bench, scene)
    assert [path.name for path in bench.directory.iterdir()] == [FILE]
