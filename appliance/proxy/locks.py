"""The lock directory: who is shut out, since when, and why.

A lock is a file named after a client, `<ip>` or `<ip>-<ident>`, whose age is its mtime and whose first line
is the cause. It lasts as long as the configuration says, unless its second line is `lasts SECONDS` (or
`lasts forever`) and its sticky bit is set, which lets everybody else do without reading it. Administrators
work on the directory with ls, rm and touch, so the files are the truth and nothing is remembered here. A file
that belongs to another user than the gateway's exempts its client: it never locks and is never removed.

Workers ask for every connection and create locks, and one of them looks through the directory for those whose
time is over; appliance-ctl lists, makes and removes them; names that begin with a dot are files in the making
and no locks. The kernel's mirror of the locks, and what is logged or run when one is made, live elsewhere.
"""

import contextlib
import functools
import itertools
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Final, Self

from appliance.config import Config
from appliance.config.network import Address, Network, Networks

_NOT_IN_ADDRESS: Final = re.compile(r"[^0-9A-Fa-f.:]")
_NOT_IN_IDENT: Final = re.compile(r"[^A-Za-z0-9=+:-]")
_NOT_IN_CAUSE: Final = re.compile(r"[^ -~]")
_IDENT_LENGTH: Final = 64
_CAUSE_LENGTH: Final = 500
_SKEW: Final = 60.0  # seconds a file may come from the future before its date is put right
_OWN_DURATION: Final = re.compile(r"lasts (forever|[1-9][0-9]{0,9})", re.ASCII)
_SETTLED: Final = 60.0  # seconds; a file that is in the making for longer is left over from a crash

_RECENT: Final = 4096  # clients whose lock's name is at hand

FOREVER: Final = -1


@functools.lru_cache(_RECENT)
def lock_name(ip: str, ident: str = "") -> str:
    """Return the name of the lock file of a client (address as text), or of one ident of it; never a path."""
    if ip.startswith("::ffff:") and "." in ip:
        ip = ip[7:]  # an IPv4 client of a listener for both families
    name = _NOT_IN_ADDRESS.sub("_", ip)
    return f"{name}-{_NOT_IN_IDENT.sub('_', ident[:_IDENT_LENGTH])}" if ident else name


def is_lock_name(name: str) -> bool:
    """Tell whether a lock could have this name; administrators may keep notes among the locks."""
    try:
        ip_address(re.split("[-_]", name, maxsplit=1)[0])
    except ValueError:
        return False
    return True


def locked_address(name: str) -> Address | None:
    """Give the address that a lock file of this name locks out; None when it is no lock of a whole client.

    It is one only under the very name that the gateway looks for.
    """
    try:
        address = ip_address(name)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        return None
    return address if lock_name(str(address)) == name else None


def read_lock(path: Path) -> tuple[str, str]:
    """Give the cause in a lock file and its second line, as printable text; empty where there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(fd, "rb") as file:  # noqa: PTH123 - a descriptor, not a path
            lines = file.read(_CAUSE_LENGTH + 100).splitlines()
    except OSError:
        return "", ""
    cause, lasts = (line.decode("latin-1")[:_CAUSE_LENGTH] for line in [*lines, b"", b""][:2])
    return _NOT_IN_CAUSE.sub("?", cause), _NOT_IN_CAUSE.sub("?", lasts)


@dataclass(frozen=True, slots=True)
class Lock:
    """A lock: its file, and the unix times of its making and its end (None: none is set)."""

    path: Path
    since: float
    until: float | None


class LockDirectory:
    """The locks in `path`.

    Each is made with exactly the permissions `perm` and lasts `duration` seconds (0: no locking, -1:
    forever). `uid` is the gateway's user. `expired` is called with the path of each lock that has just been
    removed because its time was over. Clients in the networks `trusted` are never locked, whatever files
    they have.
    """

    def __init__(
        self,
        path: Path,
        perm: int,
        duration: int,
        uid: int,
        expired: Callable[[Path], None],
        trusted: Iterable[Network] = (),
    ) -> None:
        self._path = path
        self._prefix = f"{path}/"
        self._perm = perm & 0o777
        self._duration = duration
        self._uid = uid
        self._expired = expired
        self._trusted = Networks(trusted)
        self._serial = itertools.count()

    @classmethod
    def of(
        cls,
        config: Config,
        path: Path,
        uid: int,
        expired: Callable[[Path], None] = lambda _: None,
        *,
        trusting: bool = True,
    ) -> Self:
        """Give the locks of a configuration in `path`, its lock_path as this process sees it.

        Unless it is `trusting`, those of trusted clients are locks like others.
        """
        trusted = config.trusted_clients if trusting else ()
        return cls(path, config.lock_perm, config.lock_duration, uid, expired, trusted)

    def find(self, ip: str, ident: str = "") -> Lock | None:
        """Return the lock in force on a client (with an ident: on that ident of it), or None; never fails.

        One access(2) when there is none: lstat would cost thrice as much, as it raises then. A lock whose
        time is over is removed and reported.
        """
        if self._duration == 0:
            return None
        name = lock_name(ip, ident)
        if not os.access(self._prefix + name, os.F_OK):
            return None
        lock = self.look(name)
        return lock and self._in_force(lock)

    def look(self, name: str) -> Lock | None:
        """Return the lock whose file has this name, be its time over or not; None if there is none."""
        path = self._prefix + name
        try:
            found = os.lstat(path)
        except OSError:
            return None
        return None if self._is_trusted(name) else self._dated(Path(path), found)

    def _is_trusted(self, name: str) -> bool:
        """Tell whether this is the name of a trusted client's lock."""
        try:
            return ip_address(name.partition("-")[0]) in self._trusted
        except ValueError:
            return False

    def all(self) -> Iterator[Lock]:
        """Return every lock, be its time over or not. Raises OSError."""
        with os.scandir(self._path) as entries:
            for entry in entries:
                if is_lock_name(entry.name) and (lock := self.look(entry.name)):
                    yield lock

    def _dated(self, path: Path, found: os.stat_result) -> Lock | None:
        if found.st_uid != self._uid or not stat.S_ISREG(found.st_mode):
            return None
        duration = self._duration  # if it is 0 no lock has any other
        has_own = duration and found.st_mode & stat.S_ISVTX
        if has_own and (own := _OWN_DURATION.fullmatch(read_lock(path)[1])):
            duration = FOREVER if own[1] == "forever" else int(own[1])
        return Lock(path, found.st_mtime, None if duration == FOREVER else found.st_mtime + duration)

    def _in_force(self, lock: Lock) -> Lock | None:
        if lock.until is None:
            return lock
        now = time.time()
        if lock.since > now + _SKEW:
            # The clock was set back. Left alone the lock would last until the clock has caught up, perhaps
            # for years.
            with contextlib.suppress(OSError):
                os.utime(lock.path, follow_symlinks=False)
            return Lock(lock.path, now, now + lock.until - lock.since)
        if now < lock.until:
            return lock
        if self._remove(lock.path, lock.since):
            self._expired(lock.path)
        return None

    def _remove(self, path: Path, since: float) -> bool:
        """Remove a lock dated `since`, and tell whether it was this call that did.

        Between a look at it and its removal somebody may have touched or replaced it: it is looked at once
        more under a name that nobody else knows.
        """
        aside = self._private_name(path.name)
        try:
            path.rename(aside)
        except OSError:
            return False  # removed by somebody else, or not ours to remove: over in any case
        same = aside.lstat().st_mtime == since
        if not same:
            with contextlib.suppress(FileExistsError):
                os.link(aside, path)
        aside.unlink()
        return same

    def _private_name(self, name: str) -> Path:
        return self._path / f".{name}.{os.getpid()}.{next(self._serial)}.{time.time_ns()}"

    def sweep(self) -> Iterator[None]:
        """Remove every lock whose time is over; one file is looked at with each step of the iterator.

        What a crash left half made goes, too. Files with other names than a lock's stay. Never fails.
        """
        with contextlib.suppress(OSError), os.scandir(self._path) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    self._sweep_one(entry)
                yield

    def _sweep_one(self, entry: os.DirEntry[str]) -> None:
        found = entry.stat(follow_symlinks=False)
        if found.st_uid != self._uid or not stat.S_ISREG(found.st_mode):
            return
        if entry.name.startswith("."):
            left_over = is_lock_name(entry.name[1:].rsplit(".", 3)[0])
            if left_over and found.st_ctime < time.time() - _SETTLED:
                Path(entry.path).unlink()
        elif self._duration and is_lock_name(entry.name) and (lock := self._dated(Path(entry.path), found)):
            self._in_force(lock)

    def create(self, ip: str, ident: str, cause: str, duration: int | None = None) -> Path | None:
        """Lock a client, with `cause` as the file's first line, and return the file.

        `duration` is one of its own, in seconds or FOREVER. None if it is locked already, is exempt or
        trusted, or locking is off. Raises OSError when the file cannot be made. The file appears under its
        name with its cause and permissions, never half made.
        """
        if self._duration == 0 or self.find(ip, ident) or self._is_trusted(lock_name(ip, ident)):
            return None
        path = self._path / lock_name(ip, ident)
        making = self._private_name(path.name)
        fd = os.open(making, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            text, perm = _NOT_IN_CAUSE.sub("?", cause[:_CAUSE_LENGTH]) + "\n", self._perm
            if duration is not None:
                text += f"lasts {'forever' if duration == FOREVER else duration}\n"
                perm |= stat.S_ISVTX
            os.write(fd, text.encode())
            os.fchmod(fd, perm)  # open(2) would have taken the umask off
            os.link(making, path)
        except FileExistsError:
            return None
        finally:
            os.close(fd)
            making.unlink(missing_ok=True)
        return path

    def remove(self, lock: Lock) -> None:
        """Unlock a client before its time. Raises OSError."""
        lock.path.unlink(missing_ok=True)
