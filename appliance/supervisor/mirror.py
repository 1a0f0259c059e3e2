"""The lock mirror: a process that keeps the kernel's sets of locked clients in step with the lock directory.

The supervisor starts it (`mirroring.py`) and hands it the configuration on a socket, one JSON object a line;
it ends when that is closed. The files are the truth: an event of inotify leads to a look at the file, and
what the look finds goes to the kernel. The whole directory is compared at the start, when events were missed
and now and then; the sets are, whenever somebody else has changed the kernel's rules. It has the gateway's
user, and of all privileges only those that change rules. No lock is made or removed here, and no client is
heard.
"""

import argparse
import itertools
import json
import os
import select
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from appliance import privileges, process
from appliance.bpf.locks import GateLocks
from appliance.config import Address, Config, parse
from appliance.log import Log
from appliance.nft.locks import BATCH, Lock, LockSets, NftError, NoTable
from appliance.nft.names import FAMILY, TABLE
from appliance.proxy.locks import LockDirectory, locked_address, read_lock
from appliance.supervisor.inotify import Watch

_TICK = 0.5  # seconds until a flushed table or a directory made anew is noticed
_RESCAN = 60.0  # seconds between two looks at the whole directory
_SHARE = 0.1  # of a processor's time, at most, for looking at everything again and again
_CLOCK_TOLERANCE = 1.0  # seconds
_RETRY = 5.0  # seconds after the kernel has refused something


class Gate(Protocol):
    """Another place in the kernel that knows the locked clients. It must not raise: what it cannot do, it
    tells in the log.
    """

    def add(self, address: Address, deadline: float | None, cause: str, /) -> None:
        """Lock a client until a unix time (None: without end), or give it another end."""

    def remove(self, address: Address, /) -> None:
        """Unlock a client."""

    def replace(self, locks: Mapping[Address, Lock], /) -> None:
        """Make these, pairs of deadline and cause, all the locks there are."""


class Mirror:
    """Brings what is in the lock directory into the kernel's `sets` and other `gates`, step by step.

    `configure` comes first; then `step` whenever `due` says so, or `fileno` (-1: nothing to wait on) is
    readable.
    """

    def __init__(self, log: Log, sets: LockSets, gates: Sequence[Gate] = ()) -> None:
        self._log = log
        self._sets = sets
        self._gates = gates
        self._locks: dict[Address, Lock] = {}  # as the files were when they were last looked at
        self._events: dict[str, None] = {}  # names to look at first
        self._scan: Iterator[str] | None = None  # names of the look at the whole directory under way
        self._scan_begun = 0.0
        self._next_scan = 0.0
        self._complete = False  # the whole directory was looked at once
        self._watch: Watch | None = None
        self._unseen = ""  # why the directory cannot be looked at
        self._refused = False
        self._absent = False
        self._next_comparison = 0.0
        self._clock = _clock()

    def configure(self, config: Config) -> None:
        """Mirror the directory that a configuration names, as it says."""
        self._path = config.lock_path
        self._locking = bool(config.lock_on and config.lock_duration)  # else nobody makes the directory
        self._directory = LockDirectory.of(config, config.lock_path, os.geteuid())
        self._leave()

    def _leave(self) -> None:
        if self._watch:
            self._watch.close()
            self._watch = None
        self._scan = None
        self._events.clear()

    def fileno(self) -> int:
        """Give the descriptor that becomes readable when something happens in the directory, or -1."""
        return self._watch.fileno() if self._watch else -1

    def due(self) -> float:
        """Give the seconds until the next step is needed."""
        return 0.0 if self._events or self._scan else _TICK

    def step(self) -> None:
        """Do what can be done in some milliseconds; more only when the sets are compared as a whole."""
        self._attend()
        names = [*itertools.islice(self._events, BATCH)]
        for name in names:
            del self._events[name]
        if self._scan and not names:
            names = [*itertools.islice(self._scan, BATCH)]
            if not names:
                self._end_scan()
        self._look(names)
        if self._complete and not self._events:
            self._compare()

    def _attend(self) -> None:
        """See what has happened in the directory; begin anew when it is another one."""
        now = time.monotonic()
        if self._watch and not self._watch.holds():
            self._leave()
        try:
            if self._watch is None:
                self._watch = Watch(self._path)
                self._next_scan = 0.0
            names, missed = self._watch.names()
            self._events.update(dict.fromkeys(names))
            if missed or (now >= self._next_scan and self._scan is None):
                self._begin_scan(path.name for path in self._path.iterdir())
            self._unseen = ""
        except FileNotFoundError as error:  # it has gone, and the locks with it; tried again at each tick
            if self._scan is None and (self._locks or not self._complete):
                if self._locking:
                    self._log.warning("LOCK:KERNEL", why=f"{self._path}: {error.strerror}, and so no locks")
                self._begin_scan([])
        except OSError as error:  # the locks that the kernel has stay; tried again, too
            if self._unseen != (why := f"{error}; locks stay as they are in the kernel"):
                self._log.err("LOCK:KERNEL", why=why)
            self._unseen = why

    def _begin_scan(self, names: Iterable[str]) -> None:
        known = [str(address) for address in self._locks]
        self._scan = iter(dict.fromkeys([*known, *names]))
        self._scan_begun = time.monotonic()
        self._next_scan = self._scan_begun + _RESCAN

    def _end_scan(self) -> None:
        now = time.monotonic()
        self._scan = None
        self._complete = True
        self._next_scan = now + max(_RESCAN, (now - self._scan_begun) / _SHARE)
        for gate in self._gates:
            gate.replace(self._locks)

    def _look(self, names: Iterable[str]) -> None:
        """Look at files, and pass on what is new."""
        added: dict[Address, Lock] = {}
        renewed: dict[Address, Lock] = {}
        gone: list[Address] = []
        for name in names:
            address = locked_address(name)
            if address is None:
                continue
            known, lock = self._locks.get(address), self._lock(name)
            if lock == known:
                continue
            if lock is None:
                del self._locks[address]
                gone.append(address)
            else:
                self._locks[address] = lock
                (renewed if known else added)[address] = lock
        if self._complete:  # else all of them are passed on together
            self._pass_on(added, renewed, gone)

    def _lock(self, name: str) -> Lock | None:
        """Read a lock file; None when there is no lock in force."""
        lock = self._directory.look(name)
        if lock is None:
            return None
        until = lock.until
        if until is not None:
            now = time.time()
            until = min(until, now + until - lock.since)  # the clock may have been set back
            if until <= now:
                return None
        return Lock(until, read_lock(lock.path)[0])

    def _pass_on(
        self, added: Mapping[Address, Lock], renewed: Mapping[Address, Lock], gone: Sequence[Address]
    ) -> None:
        if not self._absent:
            try:
                self._sets.remove(gone)
                self._sets.add(added)
                self._sets.renew(renewed)
            except (NoTable, NftError, OSError) as error:
                self._not_done(error)
        for gate in self._gates:
            for address in gone:
                gate.remove(address)
            for address, lock in itertools.chain(added.items(), renewed.items()):
                gate.add(address, lock.until, lock.cause)

    def _compare(self) -> None:
        """Put the sets right if somebody else has changed the kernel's rules, or something was refused."""
        begun = time.monotonic()
        clock_was_set = abs(_clock() - self._clock) > _CLOCK_TOLERANCE  # files go by it, elements do not
        if begun < self._next_comparison:
            return
        try:
            if not (self._refused or clock_was_set or self._sets.changed_by_others()):
                return
            self._clock = _clock()
            added, removed = self._sets.replace(self._locks)
        except (NoTable, NftError, OSError) as error:
            self._not_done(error)
            return
        if added or removed or self._absent or self._refused:
            self._log.notice("LOCK:KERNEL", locks=len(self._locks), added=added, removed=removed)
        self._refused = self._absent = False
        now = time.monotonic()
        self._next_comparison = now + (now - begun) / _SHARE

    def _not_done(self, error: Exception) -> None:
        if isinstance(error, NoTable):
            if not self._absent:
                why = (
                    f"there is no table {FAMILY} {TABLE}, so that only the gateway turns locked clients away"
                )
                self._log.notice("LOCK:KERNEL", why=why)
            self._absent = True
            self._refused = False
            return
        if not self._refused:
            self._log.err("LOCK:KERNEL", why=error)
        self._refused = True
        self._next_comparison = time.monotonic() + _RETRY


def _clock() -> float:
    """Give the unix time at which the monotonic clock began; it changes when the clock is set."""
    return time.time() - time.monotonic()


class _Orders:
    """The supervisor's lines, as they come."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._heard = b""

    def fileno(self) -> int:
        return self._control.fileno()

    def read(self) -> list[dict[str, object]] | None:
        """Wait for some bytes; give the orders that are whole now. None: the supervisor is gone."""
        data = self._control.recv(1 << 20)
        if not data:
            return None
        *lines, self._heard = (self._heard + data).split(b"\n")
        return [json.loads(line) for line in lines]


def _run(orders: _Orders) -> None:
    while not (first := orders.read()):
        if first is None:
            return
    config = parse(str(first[-1]["config"]))
    log = Log.of(config, stderr=bool(first[0]["stderr"]))
    try:
        sets = LockSets()
    except (ImportError, OSError) as error:
        log.warning("LOCK:KERNEL", why=f"install python3-nftables to have locked clients dropped ({error})")
        return
    gates = _gates(log)
    privileges.drop(config.set_user, config.set_group, 1 << process.CAP_NET_ADMIN, config.chroot_path)
    try:
        _mirror(orders, config, Mirror(log, sets, gates))
    except Exception as error:  # told with its place before the supervisor starts another one
        log.bug("the lock mirror", error)
        raise


def _gates(log: Log) -> list[Gate]:
    """Open the gate before XDP, where there is one; when one comes later, the supervisor starts us anew."""
    try:
        return [GateLocks(log)]
    except OSError:
        return []


def _mirror(orders: _Orders, config: Config, mirror: Mirror) -> None:
    mirror.configure(config)
    while True:
        waiting = [source for source in (orders, mirror) if source.fileno() >= 0]
        ready, _, _ = select.select(waiting, [], [], mirror.due())
        if orders in ready:
            told = orders.read()
            if told is None:
                return
            for order in told[-1:]:
                mirror.configure(parse(str(order["config"])))
        mirror.step()


def main() -> int:
    """Run a mirror on the socket whose descriptor the command line names."""
    parser = argparse.ArgumentParser(prog="appliance.supervisor.mirror", description=__doc__)
    parser.add_argument("--control", type=int, required=True)
    process.set_name("smtp-gated-lock")
    process.leave_signals_to_parent()
    _run(_Orders(socket.socket(fileno=parser.parse_args().control)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
