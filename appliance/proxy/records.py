"""The database of rate limits: one SQLite file in ratelimit_path, a row for each client.

All workers write to it from a thread of their own (`ledger.py`), each the rows of its own clients;
`smtp-gated -L` and tools read and edit it from outside, which is safe while the gateway runs:

- An edit gives the row a new number in the column `edited`, higher than all before it.
- A worker writes a row only if it has the number that the worker knows; a row that was edited meanwhile
  stays as it is. Each time it writes, it also reads the rows edited since it last looked (every half second
  while it knows any client), takes the edit over (`Record.adopt`) and writes the row again.

So an edit holds within a second, and no count is lost to it. Nothing here may run on an event loop.
"""

import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from appliance.config.network import unmapped
from appliance.proxy.locks import lock_name
from appliance.proxy.quota import NAMED, Limits, Record, Use

FILE = "records.sqlite"
PERSONAL = 10**15  # a generation that no date reaches: the quotas of such a record are its own
VERSION = 1  # of the tables; a file of another version is left alone

_PATIENCE = 3.0  # seconds to wait for another writer
_EDITS = 1000  # rows taken over at a time
_PAGES = 262144  # of 4 KiB: what clients with ever new addresses can make of the file at most
_USES = len(Use)
_APPLICATION = 0x736D7267  # tells the file from other SQLite files

_COUNTED = [f"{use.word}{what}" for what in ("_quota", "", "_tries") for use in Use]
_DIGESTS = [f"{use.word}_seen" for use in NAMED] + ["remembered"]
_COLUMNS = ["client", "generation", "cleared", "edited", *_COUNTED, *_DIGESTS]
_SCHEMA = (
    "CREATE TABLE records (client TEXT PRIMARY KEY, generation INTEGER NOT NULL, cleared REAL NOT NULL,"
    " edited INTEGER NOT NULL,"
    + "".join(f" {name} INTEGER NOT NULL," for name in _COUNTED)
    + ",".join(f" {name} BLOB NOT NULL" for name in _DIGESTS)
    + ", CHECK (length(remembered) % 12 = 0)) STRICT, WITHOUT ROWID",
    "CREATE INDEX records_cleared ON records (cleared)",
    "CREATE INDEX records_edited ON records (edited) WHERE edited > 0",
    f"PRAGMA user_version = {VERSION}",
    f"PRAGMA application_id = {_APPLICATION}",
)
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM records"  # noqa: S608 - names of our own
_INSERT = f"INSERT INTO records ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"  # noqa: S608
_UPDATE = ", ".join(f"{name} = excluded.{name}" for name in _COLUMNS[1:])
_UPSERT = f"{_INSERT} ON CONFLICT (client) DO UPDATE SET {_UPDATE}"
_SAVE = f"{_UPSERT} WHERE edited = excluded.edited"
_PURGE = (
    "DELETE FROM records WHERE client IN"
    " (SELECT client FROM records WHERE cleared < ? AND generation <= ? LIMIT ?)"
)

Row = tuple[str | int | float | bytes, ...]


class RecordsError(Exception):
    """The database cannot be used; the text says why, and what to do."""


class Records:
    """The database in `directory`; opened when it is first needed, and anew after an error.

    Belongs to one thread, that of its first call. Every method may raise RecordsError.
    """

    def __init__(self, directory: Path, *, create: bool = False, read_only: bool = False) -> None:
        """Name a database; it is made only with `create`."""
        self.path = directory / FILE
        self._mode = "rwc" if create else "ro" if read_only else "rw"
        self._connection: sqlite3.Connection | None = None
        self._inode = 0
        self._seen: int | None = None  # the last edit that was handed out

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def get(self, client: str) -> Record | None:
        """Give the record of a client (its name as that of a lock file), None if there is none."""
        with self._open() as connection:
            row = connection.execute(f"{_SELECT} WHERE client = ?", (client,)).fetchone()
        return _record(row) if row else None

    def save(self, rows: Sequence[Row]) -> list[Record]:
        """Write rows (see `row_of`), except those edited since they were read; give the latest edits."""
        with self._open() as connection:
            if rows:
                with _transaction(connection):
                    connection.executemany(_SAVE, rows)
            found = connection.execute(
                f"{_SELECT} WHERE edited > ? ORDER BY edited LIMIT {_EDITS}", (self._seen,)
            ).fetchall()
        edits = [_record(row) for row in found]
        if edits:
            self._seen = edits[-1].edited
        return edits

    def purge(self, before: float, generation: int, most: int) -> int:
        """Delete some records last cleared before a time, but no personal ones; give how many."""
        with self._open() as connection:
            return connection.execute(_PURGE, (before, generation, most)).rowcount

    def set_quotas(self, client: str, quotas: Mapping[Use, int], limits: Limits) -> Record:
        """Give a client quotas of its own; a client not known yet has the others from `limits`.

        They hold until the configuration has a higher generation.
        """

        def change(record: Record) -> None:
            record.quotas = tuple(quotas.get(use, old) for use, old in zip(Use, record.quotas, strict=True))
            record.generation = PERSONAL

        return self._edit(client, change, limits)

    def drop_quotas(self, client: str) -> Record:
        """Take personal quotas away: the configured ones hold from the client's next use on."""

        def change(record: Record) -> None:
            record.generation = -1

        return self._edit(client, change)

    def clear(self, client: str) -> Record:
        """Forget what a client has used: its period begins anew."""

        def change(record: Record) -> None:
            record.clear(max(time.time(), record.cleared + 0.001))
            record.remembered = b""

        return self._edit(client, change)

    def close(self) -> None:
        """Close the file; a later call opens it again."""
        connection, self._connection = self._connection, None
        if connection:
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def _edit(self, client: str, change: Callable[[Record], None], limits: Limits | None = None) -> Record:
        with self._open() as connection, _transaction(connection):
            row = connection.execute(f"{_SELECT} WHERE client = ?", (client,)).fetchone()
            if row:
                record = _record(row)
            elif limits:
                record = Record(client, limits, 0.0)  # as if cleared long ago: what a worker knows is newer
            else:
                raise RecordsError(f"there is no record of {client}")
            change(record)
            highest: int = connection.execute("SELECT coalesce(max(edited), 0) FROM records").fetchone()[0]
            # By the clock, so that a number never comes again when rows, or the whole file, were deleted.
            record.edited = max(highest + 1, time.time_ns() // 1000)
            connection.execute(_UPSERT, row_of(record))
        return record

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """Give the connection, made if there is none or its file was removed."""
        try:
            if self._connection and not (self.path.exists() and self._inode == self.path.stat().st_ino):
                self.close()
            if self._connection is None:
                self._connection = self._connected()
            yield self._connection
        except (sqlite3.Error, OSError, OverflowError) as error:
            self.close()
            raise RecordsError(f"{error}; {self._remedy(error)}") from error

    def _connected(self) -> sqlite3.Connection:
        if self._mode == "rwc":
            self._begin_anew()
        address = f"file:{quote(str(self.path))}?mode={self._mode}"
        connection = sqlite3.connect(address, uri=True, timeout=_PATIENCE, isolation_level=None)
        try:
            if self._mode == "rwc":
                _prepare(connection)
            if connection.execute("PRAGMA user_version").fetchone()[0] != VERSION:
                raise sqlite3.DatabaseError("it was made by another version of the gateway")
            inode = self.path.stat().st_ino
            if self._seen is None:
                query = "SELECT coalesce(max(edited), 0) FROM records"
                self._seen = connection.execute(query).fetchone()[0]
            elif inode != self._inode:  # another file, whose numbers may be lower if the clock was set back
                self._seen = 0
            self._inode = inode
        except BaseException:
            connection.close()
            raise
        return connection

    def _begin_anew(self) -> None:
        """Where the file was removed, remove what SQLite had beside it: it is none of a new file's.

        Another worker may use it still, for as long as it knows no client and does not look. One at a time,
        or a worker would remove what belongs to the new file of another.
        """
        with contextlib.suppress(OSError):  # SQLite says better what is wrong
            directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(directory, fcntl.LOCK_EX)
                if not self.path.exists():
                    for ending in ("-wal", "-shm"):
                        self.path.with_name(f"{FILE}{ending}").unlink(missing_ok=True)
                    self.path.touch(0o644)
            finally:
                os.close(directory)

    def _remedy(self, error: Exception) -> str:
        name = getattr(error, "sqlite_errorname", "")
        if name.startswith(("SQLITE_FULL", "SQLITE_IOERR")):
            return f"make room on the disk of {self.path.parent}; the file may grow to 1 GiB"
        if name.startswith("SQLITE_BUSY"):
            return "end the program that holds it locked"
        if name.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY")) or isinstance(error, OSError):
            return f"see that {self.path.parent} is there, and writable for set_user"
        return f"move {self.path} and its -wal and -shm away: a new one is made, and counting begins anew"


def name_of(client: str) -> str:
    """Give the name of a client's record: for an address, an address and `-ident`, or a path that ends so."""
    last = client.rpartition("/")[2]
    address, _, ident = last.partition("-")
    try:
        return lock_name(str(unmapped(ip_address(address))), ident)
    except ValueError:
        return last


def row_of(record: Record) -> Row:
    """Give a record in the order of the columns."""
    head = (record.client, record.generation, record.cleared, record.edited)
    return (*head, *record.quotas, *record.used, *record.tries, *record.names, record.remembered)


def described(record: Record) -> Iterator[tuple[str, str]]:
    """Give a record as names and values for people."""
    yield "client", record.client
    yield "generation", str(record.generation)
    yield "cleared", f"{record.cleared:.0f}"
    for use in Use:
        yield f"{use.word}.quota", str(record.quotas[use])
        yield f"{use.word}.used", str(record.used[use])
        yield f"{use.word}.tries", str(record.tries[use])
    yield "destinations.remembered", str(record.destinations)


def _record(row: tuple[Any, ...]) -> Record:
    """Make a record of what the database has: the table is STRICT, so each column has its type."""
    client, generation, cleared, edited, *rest = row
    quotas, used, tries = (rest[at : at + _USES] for at in range(0, 3 * _USES, _USES))
    record = Record(client, Limits(0, generation, 0, tuple(quotas)), cleared)
    record.edited, record.used, record.tries = edited, used, tries
    *record.names, record.remembered = rest[3 * _USES :]
    return record


def _prepare(connection: sqlite3.Connection) -> None:
    """Make the tables of a new file; several workers may want to at once."""
    for attempt in range(20):
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as error:  # this one statement does not wait for others by itself
            if getattr(error, "sqlite_errorname", "") != "SQLITE_BUSY" or attempt == 19:
                raise
            time.sleep(0.05)
    # A crash of the machine may cost the last seconds, but never the file.
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA journal_size_limit = 16777216")
    connection.execute(f"PRAGMA max_page_count = {_PAGES}")
    if _empty(connection):
        with _transaction(connection):
            for statement in _SCHEMA if _empty(connection) else ():
                connection.execute(statement)


def _empty(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM sqlite_schema").fetchone() is None


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
