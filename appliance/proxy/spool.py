"""One message's copy for the scanners, made while the message flows to the server.

The worker opens a `Spool` when a client is about to send a message, writes every piece of it, hands it to the
scanners at its end and closes it. `sweep` is called once when a worker starts. What a message means, and
whether its copy is kept, is decided elsewhere.

A copy is in memory as long as there is room, and then costs no disk anything. It is a file in `spool_path`
when a scanner is told its path, when `spool_leave_on` keeps it, and when the copies of all messages under
way are large. A file has no name wherever that is possible: the kernel forgets it with the process. A
scanner that is told a path needs a name, and so does a file system without O_TMPFILE. A named copy that is
still in use has a second name beside it, `.live.<name>`, and is locked (flock) as long as its process lives.
Only a copy with that second name whose lock is free is a leftover: what `spool_leave_on` kept has one name,
and is never touched.
"""

import contextlib
import errno
import fcntl
import functools
import os
import stat
from pathlib import Path
from typing import Final

_LIVE = ".live."
# open(2): kernel or file system without it
_NO_TMPFILE = {errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL}


class Memory:
    """What the copies of this process may take of its memory, and take now; bytes."""

    def __init__(self) -> None:
        self.room = 32 << 20
        self.held = 0


MEMORY: Final = Memory()


class Spool:
    """The copy of one message.

    Where it needs a file, that is `directory/name` (an absolute path), with exactly the permissions `perm`,
    for at most `limit` bytes of message. `named` makes it a file with its name at once, for scanners that
    open it by path. Raises OSError when it cannot be made.

    `size` counts the bytes of message seen, whether they are still copied or not, `length` those of the
    copy, our own lines with them. `dropped` tells that there is no copy any more: the message passed the
    limit, writing failed, or it was closed. `path` is the name, None as long as there is none.
    """

    def __init__(self, directory: Path, name: str, perm: int, limit: int, named: bool) -> None:
        self.size = 0
        self.length = 0
        self.dropped = False
        self.path: Path | None = None
        self._text = bytearray()  # the copy, unless it is a file
        self._file = -1
        self._lent = -1  # a file in memory, for a scanner
        self._directory, self._filename, self._perm = directory, name, perm
        self._limit = limit
        self._kept = False
        if named:
            self._open(named=True)

    @property
    def _name(self) -> Path:
        return self._directory / self._filename

    @property
    def _live(self) -> Path:
        return self._directory / f"{_LIVE}{self._filename}"

    def _open(self, *, named: bool) -> None:
        if not named:
            self._file = _open_unnamed(self._directory)
        if self._file < 0:
            self._open_named()
        try:
            os.fchmod(self._file, self._perm & 0o777)  # open(2) would have taken the umask off
        except OSError:
            self._close_file()
            raise

    def _open_named(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        while self.path is None:
            self._file = os.open(self._live, flags, 0o600)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX)  # a sweep has it for a moment, and then it is gone
                if os.fstat(self._file).st_nlink:
                    self._give_name(str(self._live))
                    self.path = self._name
                else:
                    self._close_file()
            except OSError:
                self._close_file()
                self._live.unlink(missing_ok=True)
                raise

    def _give_name(self, source: str) -> None:
        """Link `source` to the final name; an earlier message kept by the same session makes room."""
        for _ in range(2):
            try:
                # follow_symlinks is heeded only beside a src_dir_fd, which an absolute source makes
                # meaningless otherwise
                return os.link(source, self._name, src_dir_fd=self._file, follow_symlinks=True)
            except FileExistsError:
                self._name.unlink(missing_ok=True)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self._name))

    def write(self, data: bytes | memoryview) -> None:
        """Append a piece of the message.

        Past the limit the copy is dropped. A failure, as a full disk, drops it too and raises OSError, once.
        """
        self.size += len(data)
        if self.dropped:
            return
        if self.size > self._limit:
            self.close()
            return
        self._append(data)

    def header(self, data: bytes) -> None:
        """Append lines of our own, which are no part of the message's size. Fails as `write` does."""
        if not self.dropped:
            self._append(data)

    def _append(self, data: bytes | memoryview) -> None:
        size = len(data)
        if self._file < 0 and MEMORY.held + size <= MEMORY.room:
            self._text += data
            MEMORY.held += size
        else:
            try:
                self._to_file()
                _write(self._file, data)
            except OSError:
                self.close()
                raise
        self.length += size

    def _to_file(self) -> None:
        """Let the copy be a file from now on; raises OSError, and then it is where it was."""
        if self._file >= 0:
            return
        try:
            self._open(named=False)
            _write(self._file, self._text)
        except OSError:
            self._close_file()
            raise
        self._free()

    def _free(self) -> None:
        MEMORY.held -= len(self._text)
        self._text = bytearray()

    def read(self, at: int, size: int) -> bytes:
        """Give a part of the copy; raises OSError, EOFError when it ends before."""
        self._see_it_is_there()
        if self._file < 0:
            part = bytes(memoryview(self._text)[at : at + size])
        else:
            part = os.pread(self._file, size, at)
        if len(part) < size:
            raise EOFError("the message's copy ends too early")
        return part

    def descriptor(self) -> int:
        """Give an open file that holds the copy, until it is closed. Raises OSError."""
        self._see_it_is_there()
        if self._file < 0 and not hasattr(os, "memfd_create"):
            self._to_file()
        if self._file >= 0:
            return self._file
        if self._lent < 0:
            lent = os.memfd_create("message")
            try:
                _write(lent, self._text)
            except OSError:
                os.close(lent)
                raise
            self._lent = lent
        return self._lent

    def keep(self) -> Path:
        """Leave the copy under its name for good and return that name; raises OSError when that cannot be.

        Until it is closed, scanners may go on reading it.
        """
        if self._kept:
            return self._name
        self._see_it_is_there()
        self._to_file()
        if self.path is None:
            self._give_name(f"/proc/self/fd/{self._file}")
        else:
            self._live.unlink()
        self.path = self._name
        self._kept = True
        return self._name

    def close(self) -> None:
        """Remove the copy, unless it is kept. May be called again."""
        self.dropped = True
        self._free()
        self._close_file()
        if self._lent >= 0:
            os.close(self._lent)
            self._lent = -1

    def _see_it_is_there(self) -> None:
        if self.dropped:
            raise FileNotFoundError(errno.ENOENT, "the copy was dropped", str(self._name))

    def _close_file(self) -> None:
        if self.path is not None and not self._kept:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)
                self._live.unlink(missing_ok=True)
        self.path = None
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _write(file: int, data: bytes | bytearray | memoryview) -> None:
    with memoryview(data) as left:
        written = 0
        while written < len(left):
            # A disk that is nearly full takes part of it, and says so on the next call.
            written += os.write(file, left[written:])


@functools.cache
def _can_be_named() -> bool:
    """Whether a file without a name can be given one later, which is done through /proc."""
    return hasattr(os, "O_TMPFILE") and Path("/proc/self/fd").is_dir()


def _open_unnamed(directory: Path) -> int:
    """Return a file without a name that can be given one later, or -1 where there is no such thing."""
    if not _can_be_named():
        return -1
    try:
        return os.open(directory, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno in _NO_TMPFILE:
            # A directory that is missing fails again, and then for good, when the named file is made.
            return -1
        raise


def sweep(directory: Path) -> int:
    """Remove what dead processes of this user left in `directory`; return how many copies. Never fails."""
    removed = 0
    try:
        names = [entry.name for entry in os.scandir(directory) if entry.name.startswith(_LIVE)]
    except OSError:
        return 0
    for name in names:
        with contextlib.suppress(OSError):
            removed += _sweep_one(directory / name, directory / name.removeprefix(_LIVE))
    return removed


def _sweep_one(live: Path, name: Path) -> bool:
    fd = os.open(live, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if not (stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()):
            return False
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its process lives
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(found, name.lstat()):
                name.unlink()
        live.unlink()
        return True
    finally:
        os.close(fd)
