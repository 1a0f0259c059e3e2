"""The pid file: which gateway is running, as the kernel knows it.

A record lock on the file is the truth, its text is for administrators: a file left behind by a crash hinders
nobody, and `holder` names the process that has the lock, never another that got its number. The lock belongs
to the process and would be lost if any other part of it closed the file: only this module may open it.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import sys
from pathlib import Path

from appliance.supervisor.errors import StartError

_HOW = [("l_type", ctypes.c_short), ("l_whence", ctypes.c_short)]
_WHERE = [("l_start", ctypes.c_int64), ("l_len", ctypes.c_int64), ("l_pid", ctypes.c_int)]


class _Lock(ctypes.Structure):
    """A struct flock; FreeBSD's ends with the number of another machine."""

    l_type: int
    l_pid: int

    _fields_ = [*_HOW, *_WHERE] if sys.platform == "linux" else [*_WHERE, *_HOW, ("l_sysid", ctypes.c_int)]


def holder(path: Path) -> int | None:
    """Process number of the gateway that runs with this pid file; None = none does. Raises OSError.

    0 or less: one does, but in another PID namespace, where this process cannot see it.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        asked = _Lock(l_type=fcntl.F_WRLCK, l_whence=os.SEEK_SET)
        found = _Lock.from_buffer_copy(fcntl.fcntl(fd, fcntl.F_GETLK, bytes(asked)))
    finally:
        os.close(fd)
    return found.l_pid if found.l_type != fcntl.F_UNLCK else None


class PidFile:
    """The pid file of this process, locked and written as soon as it is made. Raises StartError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._fd = self._lock()
            text = f"{os.getpid()}\n".encode()
            os.fchmod(self._fd, 0o644)
            os.pwrite(self._fd, text, 0)  # in one piece; the number of digits may only shrink afterwards
            os.ftruncate(self._fd, len(text))
        except OSError as error:
            raise StartError(
                f"pidfile {path}: {error.strerror}; make its directory writable or name another"
            ) from None

    def _lock(self) -> int:
        while True:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(fd)
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    raise
                raise StartError(
                    f"pidfile {self._path}: process {holder(self._path)} is running with it; "
                    "end it first, or name another: smtp-gated -K lets its sessions end, -K again ends them"
                ) from None
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), self._path.lstat()):
                    return fd
            os.close(fd)  # its last owner removed it meanwhile

    def remove(self) -> None:
        """Remove the file and give up the lock, in this order, so that no other's file is removed."""
        with contextlib.suppress(OSError):
            self._path.unlink()
        os.close(self._fd)
