"""The directory of one lab run: configuration files, sockets, mailboxes and logs, at one path for all hosts.

Called by `lab.network`. A run that was killed leaves its directory behind; the next run removes it, which it
can tell by the lock that a living run holds.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

BASE = Path("/run/appliance-lab")


class RunDirectory:
    """A new directory under /run/appliance-lab, readable by every user; removed by `close`."""

    def __init__(self, name: str):
        with _alone():  # between mkdtemp and flock nobody may sweep
            _sweep()
            self.path = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=BASE))
            self.path.chmod(0o755)
            self._alive = _lock(self.path)

    def close(self) -> None:
        """Remove the directory with all that is in it. May be called twice."""
        with _alone():
            shutil.rmtree(self.path, ignore_errors=True)
            if self._alive:
                self._alive.close()
            with contextlib.suppress(OSError):  # other runs have theirs there
                BASE.rmdir()


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Let one run at a time make and remove directories. The last one takes BASE along."""
    while True:
        with contextlib.suppress(FileExistsError):  # exist_ok would mind if it were gone again
            BASE.mkdir(mode=0o755)
        with contextlib.suppress(FileNotFoundError):
            base = os.open(BASE, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(base, fcntl.LOCK_EX)
            if _is(base):
                break
            os.close(base)
    try:
        yield
    finally:
        os.close(base)


def _is(base: int) -> bool:
    try:
        return os.path.samestat(os.fstat(base), BASE.stat())
    except FileNotFoundError:
        return False


def _lock(directory: Path) -> TextIO | None:
    file = (directory / ".alive").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _sweep() -> None:
    for directory in BASE.iterdir():
        if directory.is_dir() and (lock := _lock(directory)):
            shutil.rmtree(directory, ignore_errors=True)
            lock.close()
