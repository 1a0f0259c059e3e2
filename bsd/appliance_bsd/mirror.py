"""The program appliance-pf-mirror: keeps a table of pf in step with the lock directory, until it is ended.

A process of its own beside the gateway, started by the system with the gateway's configuration file. It opens
pf, becomes the gateway's user, and looks at the directory every second. It makes and removes no locks.
"""

import argparse
import contextlib
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from appliance import privileges
from appliance.config import Address, Config, ConfigError, load
from appliance.log import Log
from appliance.proxy.locks import LockDirectory, locked_address
from appliance_bsd.pf_layout import system
from appliance_bsd.pf_table import TABLE, PfTable, open_table

_PAUSE = 1.0  # seconds from one look at the directory to the next,
_SHARE = 20  # or more, so that looking takes no more than a twentieth of the time
_COMPARE = 60.0  # seconds after which the whole table is written again, whoever changed it


class Mirror:
    """Keeps `table` in step with the locks of a configuration that are in force."""

    def __init__(self, config: Config, table: PfTable, log: Log) -> None:
        uid = privileges.identity(config.set_user, config.set_group).uid
        self._locks = LockDirectory.of(config, config.outside(config.lock_path), uid)
        self._locking = config.lock_duration != 0
        self._table = table
        self._log = log
        self._known: set[Address] = set()
        self._compared = float("-inf")
        self._trouble = ""

    def look(self, now: float) -> None:
        """Take over what has changed; `now` is monotonic. What fails is told once and tried again."""
        try:
            self._take_over(self._locked() if self._locking else set(), now)
        except OSError as error:
            self._compared = float("-inf")
            if str(error) != self._trouble:
                self._trouble = str(error)
                self._log.err("MIRROR:FAILED", why=error.strerror or error)
        else:
            self._trouble = ""

    def clear(self) -> None:
        """Lock nobody any more: without us, nobody would be let in again."""
        self._table.replace(())

    def _locked(self) -> set[Address]:
        now = time.time()
        found: set[Address] = set()
        with contextlib.suppress(FileNotFoundError):  # it is made with the first lock
            for lock in self._locks.all():
                address = locked_address(lock.path.name)  # pf cannot tell who is behind one
                if address and (lock.until is None or now < lock.until):
                    found.add(address)
        return found

    def _take_over(self, locked: set[Address], now: float) -> None:
        if now - self._compared >= _COMPARE:
            self._table.replace(locked)
            self._compared = now
        else:
            for address in locked - self._known:
                self._table.add(address)
            for address in self._known - locked:
                self._table.remove(address)
        self._known = locked


def main(arguments: Sequence[str] | None = None) -> int:
    """Mirror the locks until SIGTERM, SIGHUP or SIGINT; 0, 1 when pf cannot be used, 2 with a bad file."""
    parser = argparse.ArgumentParser(prog="appliance-pf-mirror", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path, help="the gateway's configuration file")
    parser.add_argument("--table", default=TABLE, help="the name of the table (%(default)s)")
    given = parser.parse_args(arguments)
    try:
        config = load(given.file)
        mirror = _open(config, given.table)
    except (ConfigError, ValueError, privileges.PrivilegeError) as error:
        print(f"appliance-pf-mirror: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    _run(mirror)
    return 0


def _open(config: Config, table: str) -> Mirror:
    log = Log.of(config, stderr=True, program="appliance-pf-mirror")
    opened = open_table(system(sys.platform), table)
    privileges.drop(config.set_user, config.set_group)
    return Mirror(config, opened, log)


def _run(mirror: Mirror, pause: Callable[[float], object] = time.sleep) -> None:
    def end(*_: object) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):  # a terminal is closed, or a reload wished for
        signal.signal(number, end)
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            began = time.monotonic()
            mirror.look(began)
            pause(max(_PAUSE, _SHARE * (time.monotonic() - began)))
    with contextlib.suppress(OSError):
        mirror.clear()


if __name__ == "__main__":
    sys.exit(main())
