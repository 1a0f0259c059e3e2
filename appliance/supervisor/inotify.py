"""inotify(7) on one directory: which names in it have changed.

The lock mirror waits on it. What the names mean is not known here.
"""

import ctypes
import os
import struct
from pathlib import Path
from typing import Final

IN_ATTRIB: Final = 0x4
IN_CLOSE_WRITE: Final = 0x8
IN_MOVED_FROM: Final = 0x40
IN_MOVED_TO: Final = 0x80
IN_CREATE: Final = 0x100
IN_DELETE: Final = 0x200
IN_DELETE_SELF: Final = 0x400
IN_MOVE_SELF: Final = 0x800
IN_Q_OVERFLOW: Final = 0x4000
IN_IGNORED: Final = 0x8000
IN_ONLYDIR: Final = 0x1000000

_NAMES: Final = IN_ATTRIB | IN_CLOSE_WRITE | IN_MOVED_FROM | IN_MOVED_TO | IN_CREATE | IN_DELETE
_EVENT = struct.Struct("=iIII")  # watch, mask, cookie, length of the name, which follows
_BUFFER = 1 << 16  # bytes, some 1500 events
_libc = ctypes.CDLL(None, use_errno=True)


class Watch:
    """A watch on the directory at `path`, as it is now.

    Raises OSError when there is none, or one whose files this process may not see.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._identity = self._identify()
        self._descriptor: int = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self._descriptor < 0:
            raise self._error()
        wanted = _NAMES | IN_DELETE_SELF | IN_MOVE_SELF | IN_ONLYDIR
        if _libc.inotify_add_watch(self._descriptor, os.fsencode(path), wanted) < 0:
            error = self._error()
            self.close()
            raise error

    def _error(self) -> OSError:
        number = ctypes.get_errno()
        return OSError(number, os.strerror(number), str(self._path))

    def _identify(self) -> tuple[int, int]:
        found = os.stat(f"{self._path}/.")  # noqa: PTH116 - a Path drops the dot, which asks for search permission
        return found.st_dev, found.st_ino

    def fileno(self) -> int:
        """Give the descriptor to wait on."""
        return self._descriptor

    def names(self) -> tuple[list[str], bool]:
        """Give the names that something has happened to, oldest first, without waiting; once each.

        True with them when something was missed, or the directory has gone: then everything has to be looked
        at anew. At most 64 kB of events are read at a time.
        """
        try:
            data = os.read(self._descriptor, _BUFFER)
        except BlockingIOError:
            return [], False
        names: dict[str, None] = {}
        missed = False
        at = 0
        while at < len(data):
            _, mask, _, length = _EVENT.unpack_from(data, at)
            at += _EVENT.size
            if mask & (IN_Q_OVERFLOW | IN_IGNORED | IN_DELETE_SELF | IN_MOVE_SELF):
                missed = True
            if length:
                names[os.fsdecode(data[at : at + length].rstrip(b"\0"))] = None
            at += length
        return [*names], missed

    def holds(self) -> bool:
        """Tell whether the path still leads to the directory that is watched, and its files can be seen."""
        try:
            return self._identify() == self._identity
        except OSError:
            return False

    def close(self) -> None:
        """Watch no more."""
        os.close(self._descriptor)
