"""8: the database of rate limits: many writers, edits from outside, files that are no database."""

import multiprocessing
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from appliance.proxy.quota import Limits, Record, Use
from appliance.proxy.records import FILE, PERSONAL, Records, RecordsError, name_of, row_of

LIMITS = Limits(60, 3, 100, tuple(range(10, 10 + len(Use))))
CLIENT = "192.0.2.7"
NOW = 1_000_000.5


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    with Records(tmp_path, create=True) as opened:
        yield opened


def used(client: str = CLIENT) -> Record:
    record = Record(client, LIMITS, NOW)
    record.spend(Use.BYTES, 5)
    record.spend_name(Use.HELOS, b"one.test")
    record.remember(b"198.51.100.1", NOW, 100)
    return record


def test_what_is_written_is_read(records: Records, tmp_path: Path) -> None:
    record = used()
    assert records.get(CLIENT) is None
    assert records.save([row_of(record)]) == []
    for reader in (records, Records(tmp_path), Records(tmp_path, read_only=True)):
        found = reader.get(CLIENT)
        assert found
        assert row_of(found) == row_of(record)
        assert found.stored
        if reader is not records:
            reader.close()


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("/var/spool/smtp-gated/ratelimit/192.0.2.7", "192.0.2.7"),
        ("192.0.2.7-bob-x", "192.0.2.7-bob-x"),
        ("/a/2001:DB8:0::1-bob", "2001:db8::1-bob"),
        ("198.51.100.1-10.77.1.5", "198.51.100.1-10_77_1_5"),
        ("nobody", "nobody"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
    ],
)
def test_names(given: str, name: str) -> None:
    assert name_of(given) == name


def save_many(directory: Path, number: int) -> int:
    """Write as one of several processes that all begin with no file."""
    with Records(directory, create=True) as records:
        for _ in range(5):
            records.save([row_of(used(f"10.0.{number}.{host}")) for host in range(50)])
    return number


def test_several_processes_make_and_write_one_file(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4) as pool:
        list(pool.map(save_many, [tmp_path] * 4, range(4)))
    with closing(sqlite3.connect(tmp_path / FILE)) as database:
        assert database.execute("SELECT count(*), sum(bytes) FROM records").fetchone() == (200, 1000)


def test_an_edited_row_is_not_written_over(records: Records, tmp_path: Path) -> None:
    record = used()
    records.save([row_of(record)])
    with Records(tmp_path) as outside:
        outside.set_quotas(CLIENT, {Use.BYTES: 7}, LIMITS)
    record.spend(Use.BYTES, 1)
    edits = records.save([row_of(record)])
    assert [edit.client for edit in edits] == [CLIENT]
    assert (edits[0].quotas[Use.BYTES], edits[0].used[Use.BYTES], edits[0].generation) == (7, 5, PERSONAL)
    record.adopt(edits[0])
    assert records.save([row_of(record)]) == []  # each edit is handed out once
    found = records.get(CLIENT)
    assert found
    assert (found.quotas[Use.BYTES], found.quotas[Use.RECIPIENTS], found.used[Use.BYTES]) == (7, 12, 6)


def test_an_edit_of_a_client_not_written_yet_takes_no_count_away(records: Records, tmp_path: Path) -> None:
    record = used()
    records.save([])
    with Records(tmp_path) as outside:
        outside.set_quotas(CLIENT, {Use.BYTES: 7}, LIMITS)
    record.adopt(*records.save([row_of(record)]))
    assert (record.quotas[Use.BYTES], record.used[Use.BYTES], record.cleared) == (7, 5, NOW)


def test_edits_have_numbers_of_their_own(records: Records) -> None:
    numbers = [records.set_quotas(CLIENT, {}, LIMITS).edited for _ in range(3)]
    numbers += [records.clear(CLIENT).edited, records.drop_quotas(CLIENT).edited]
    assert numbers == sorted(set(numbers))


def test_clearing_and_dropping(records: Records) -> None:
    records.save([row_of(used())])
    records.set_quotas(CLIENT, {Use.BYTES: 7}, LIMITS)
    cleared = records.clear(CLIENT)
    assert cleared.cleared == pytest.approx(time.time(), abs=5)
    assert (sum(cleared.used), sum(cleared.tries), cleared.destinations) == (0, 0, 0)
    assert cleared.quotas[Use.BYTES] == 7
    dropped = records.drop_quotas(CLIENT)
    dropped.refresh(LIMITS, time.time())
    assert dropped.quotas == LIMITS.quotas
    with pytest.raises(RecordsError, match=r"no record of 192\.0\.2\.8"):
        records.clear("192.0.2.8")


def test_old_records_are_purged_but_no_personal_ones(records: Records) -> None:
    records.save([row_of(used(f"192.0.2.{number}")) for number in range(5)])
    records.set_quotas("192.0.2.1", {}, LIMITS)
    assert records.purge(NOW, LIMITS.generation, 9) == 0
    assert records.purge(NOW + 1, LIMITS.generation, 2) == 2
    assert records.purge(NOW + 1, LIMITS.generation, 9) == 2
    assert records.get("192.0.2.1")


def test_a_file_that_was_removed_is_made_anew(records: Records, tmp_path: Path) -> None:
    records.set_quotas(CLIENT, {}, LIMITS)
    for path in tmp_path.iterdir():
        path.unlink()
    assert records.get(CLIENT) is None
    records.save([row_of(used())])
    edited = records.set_quotas(CLIENT, {}, LIMITS)
    assert [edit.edited for edit in records.save([])] == [edited.edited]


def test_edits_of_a_new_file_are_seen_though_the_clock_was_set_back(
    records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records.save([row_of(used())])
    with Records(tmp_path) as outside:
        outside.set_quotas(CLIENT, {Use.BYTES: 8}, LIMITS)
        (seen,) = records.save([])
        for path in tmp_path.iterdir():
            path.unlink()
        records.save([row_of(used())])
        earlier = time.time_ns() - 3600 * 10**9
        monkeypatch.setattr(time, "time_ns", lambda: earlier)
        edited = outside.set_quotas(CLIENT, {Use.BYTES: 9}, LIMITS)
    assert edited.edited < seen.edited
    assert [edit.quotas[Use.BYTES] for edit in records.save([])] == [9]
    assert records.save([]) == []


def hold_open(directory: Path, opened: Event, done: Event) -> None:
    """Be a worker that has met a client once, and knows none now."""
    with Records(directory, create=True) as records:
        records.save([row_of(used("192.0.2.9"))])
        opened.set()
        done.wait()


def test_a_file_that_was_removed_alone_is_made_anew_while_an_idle_worker_has_it_open(
    records: Records, tmp_path: Path
) -> None:
    opened, done = multiprocessing.Event(), multiprocessing.Event()
    idle = multiprocessing.Process(target=hold_open, args=(tmp_path, opened, done))
    idle.start()
    try:
        assert opened.wait(10)
        records.save([row_of(used())])
        (tmp_path / FILE).unlink()
        assert records.get(CLIENT) is None
        records.save([row_of(used())])
    finally:
        done.set()
        idle.join()
    assert records.get(CLIENT)
    with closing(sqlite3.connect(tmp_path / FILE)) as database:
        assert database.execute("SELECT client FROM records").fetchall() == [(CLIENT,)]
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_file_that_is_no_database_is_left_alone(records: Records, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"hello\n" * 1000)
    for call in (lambda: records.get(CLIENT), lambda: records.save([row_of(used())])):
        with pytest.raises(
            RecordsError, match=r"file is not a database; move .*/records\.sqlite and its -wal"
        ):
            call()
    assert (tmp_path / FILE).read_bytes() == b"hello\n" * 1000


@pytest.mark.parametrize("statement", ["PRAGMA user_version = 2", "CREATE TABLE other (a)"])
def test_a_database_of_another_version_is_left_alone(
    records: Records, tmp_path: Path, statement: str
) -> None:
    if "user_version" in statement:
        records.get(CLIENT)
    records.close()
    with closing(sqlite3.connect(tmp_path / FILE)) as database:
        database.execute(statement)
        database.commit()
    with pytest.raises(RecordsError, match="another version of the gateway; move "):
        records.get(CLIENT)


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecordsError, match=r"unable to open database file; see that .*/none is there"):
        Records(tmp_path / "none", create=True).get(CLIENT)
    with pytest.raises(RecordsError, match="unable to open"):
        Records(tmp_path).get(CLIENT)
    assert not list(tmp_path.iterdir())
