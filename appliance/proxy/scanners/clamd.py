"""ClamAV's clamd, spoken to through pyclamd.

Selected by `antivirus_type clamd`; used through `appliance.proxy.scanners` alone.

pyclamd knows clamd's commands and blocks, so each scan has a thread of a small pool, and a deadline. Its
handling of the connection is replaced: left alone it takes a connection closed without an answer for a
clean message, believes each recv to be one whole answer, tries five times after a timeout, ignores short
sends, cannot reach IPv6, and leaves sockets open.
"""

import asyncio
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial

import pyclamd

from appliance.config.network import SocketAddress
from appliance.proxy import scanners
from appliance.proxy.scanners import CONCURRENT, RETRY, Finding, ScanError, State, printable
from appliance.proxy.spool import Spool

_ANSWER = 4096
_PIECE = 131072
_NO_LIMIT = 86400.0
_CLEAN = re.compile(r".+: OK")
_FOUND = re.compile(r".+: (.+) FOUND")
_HINTS = (
    (re.compile("size limit exceeded"), "raise StreamMaxLength in clamd.conf, or lower scan_max_size"),
    (
        re.compile(r"lstat\(\)|can't open|denied|path check", re.IGNORECASE),
        "let clamd's user read spool_path (its group, spool_perm), or set antivirus_transfer to fd or stream",
    ),
)


_Found = dict[str, tuple[str, str]] | None  # pyclamd's result: nothing, or what was found where


class _OverdueError(Exception):
    """The deadline is over. Not a TimeoutError, which pyclamd would take for a lost connection."""


class _LostError(ScanError):
    """The connection failed."""


class _Socket(socket.socket):
    """A socket whose every operation ends by `deadline` (time.monotonic), and whose send sends everything."""

    deadline = 0.0

    @contextmanager
    def _in_time(self) -> Iterator[None]:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise _OverdueError
        try:
            self.settimeout(left)
            yield
        except TimeoutError:
            raise _OverdueError from None
        except BlockingIOError:
            raise
        except OSError as error:
            raise _LostError(error.strerror or str(error)) from error

    def connect(self, address: str | tuple[str, int]) -> None:  # type: ignore[override]
        """Connect, however long clamd's queue of connections is full."""
        while True:
            try:
                with self._in_time():
                    return super().connect(address)
            except BlockingIOError:
                time.sleep(RETRY)

    def send(self, data: bytes) -> int:  # type: ignore[override]
        """Send all of the data."""
        with self._in_time():
            self.sendall(data)
        return len(data)

    def send_descriptor(self, fd: int) -> None:
        """Hand over an open file."""
        with self._in_time():
            socket.send_fds(self, [b"\0"], [fd])

    def recv(self, size: int) -> bytes:  # type: ignore[override]
        """Receive what there is, at most `size` bytes."""
        with self._in_time():
            return super().recv(size)


class _Reader:
    """The file object pyclamd streams from: its own place in a file whose descriptor others use too."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._place = 0

    def read(self, size: int) -> bytes:
        data = os.pread(self._fd, size, self._place)
        self._place += len(data)
        return data


class _Clamd(pyclamd.ClamdUnixSocket):  # type: ignore[misc]
    """One command to clamd, over by `deadline` (time.monotonic)."""

    def __init__(self, address: SocketAddress, deadline: float) -> None:
        # Without super().__init__(), which connects once only to see whether it can.
        self._address = address
        self._deadline = deadline
        self._heard = False
        self._aborted = False
        self._guard = threading.Lock()  # the descriptor of a closed socket may be another file's already
        self.clamd_socket: _Socket | None = None

    def scan_descriptor(self, fd: int) -> _Found:
        """Let clamd read the open file itself: the command pyclamd lacks."""
        self._init_socket()
        assert self.clamd_socket
        self._send_command("FILDES")
        self.clamd_socket.send_descriptor(fd)
        _, name, status = self._parse_response(self._recv_response())
        return {"": (status, name)} if name else None

    def scan_content(self, fd: int) -> _Found:
        """Send clamd the file's content."""
        try:
            found: _Found = self.scan_stream(_Reader(fd), _PIECE)
        except pyclamd.BufferTooLongError as error:
            raise _refusal(str(error)) from error
        except _LostError:
            if not self._heard:  # clamd hangs up on a message too long for it, but says so first
                self._parse_response(self._recv_response())
            raise
        return found

    def abort(self) -> None:
        """Make the thread that is busy here stop; called from another thread."""
        with self._guard:
            self._aborted = True
            if self.clamd_socket:
                self.clamd_socket.deadline = 0.0  # for a thread that waits in clamd's queue
                with suppress(OSError):
                    self.clamd_socket.shutdown(socket.SHUT_RDWR)

    def _init_socket(self) -> None:
        address = self._address
        family = (
            socket.AF_UNIX if address.path else socket.AF_INET6 if ":" in address.host else socket.AF_INET
        )
        with self._guard:
            if self._aborted:
                raise _OverdueError
            self.clamd_socket = _Socket(family, socket.SOCK_STREAM)
            self.clamd_socket.deadline = self._deadline
        if address.path:
            self.clamd_socket.connect(str(address.path))
        else:
            self.clamd_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.clamd_socket.connect((address.host, address.port))

    def _close_socket(self) -> None:
        with self._guard:
            if self.clamd_socket:
                self.clamd_socket.close()
                self.clamd_socket = None

    def _recv_response(self) -> str:
        """Return clamd's answer, which is one line; then nothing, which is what pyclamd waits for."""
        if self._heard:
            return ""
        assert self.clamd_socket
        self._heard = True
        answer = b""
        while not answer.endswith(b"\n"):
            piece = self.clamd_socket.recv(_ANSWER)
            answer += piece
            if not piece:
                raise _LostError("clamd closed the connection before its answer was whole")
            if len(answer) > _ANSWER:
                raise ScanError("clamd's answer does not end")
        if not answer.strip():  # pyclamd would take that for clean
            raise ScanError("clamd answered with an empty line")
        return answer[:-1].decode("ascii", "replace")

    def _parse_response(self, msg: str) -> tuple[str, str, str]:
        if _CLEAN.fullmatch(msg):
            return "", "", "OK"
        if found := _FOUND.fullmatch(msg):
            return "", found[1], "FOUND"
        raise _refusal(msg)


def _refusal(answer: str) -> ScanError:
    hints = [hint for pattern, hint in _HINTS if pattern.search(answer)]
    return ScanError(": ".join([f"clamd answered {answer}", *hints]))


class Scanner(scanners.Scanner):
    """clamd, which reads a copy by its path, is handed it open (fd), or is sent its content (stream)."""

    option = "antivirus_path"

    def __init__(self, address: SocketAddress, timeout: float, transfer: str) -> None:
        super().__init__(address, timeout)
        self.needs_path = transfer == "path"
        self._by_descriptor = transfer == "fd" and address.path is not None  # TCP carries no descriptors
        self._threads = ThreadPoolExecutor(CONCURRENT, "clamd")

    async def _scan(self, spool: Spool) -> Finding:
        if self.needs_path:
            if spool.path is None or "\n" in str(spool.path):
                raise ScanError("the message's copy has no name that clamd can be told")
            found = await self._run(partial(_Clamd.scan_file, file=str(spool.path)))
        else:
            # The thread may outlive a cancelled scan by a moment, the message's copy need not.
            fd = os.dup(spool.fd)
            scan = _Clamd.scan_descriptor if self._by_descriptor else _Clamd.scan_content
            found = await self._run(partial(scan, fd=fd), lambda: os.close(fd))
        if not found:
            return Finding(State.CLEAN)
        ((_, name),) = found.values()
        return Finding(State.FOUND, name=printable(name))

    async def _ping(self) -> None:
        await self._run(_Clamd.ping)

    async def _run(
        self, command: Callable[[_Clamd], _Found], after: Callable[[], None] | None = None
    ) -> _Found:
        """Run a command in a thread; `after` runs when no thread can be busy with it any more."""
        clamd = _Clamd(self.address, time.monotonic() + (self.timeout or _NO_LIMIT))
        job = self._threads.submit(_finish, clamd, command)
        if after:
            job.add_done_callback(lambda _: after())
        try:
            return await asyncio.wrap_future(job)
        except _OverdueError:
            raise TimeoutError from None
        finally:
            clamd.abort()


def _finish(clamd: _Clamd, command: Callable[[_Clamd], _Found]) -> _Found:
    try:
        return command(clamd)
    finally:
        clamd._close_socket()
