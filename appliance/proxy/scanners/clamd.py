"""ClamAV's clamd, spoken to through pyclamd.

Selected by `antivirus_type clamd`; used through `appliance.proxy.scanners` alone.

pyclamd is trusted with the commands: it writes them. The connection is ours, because the library blocks, and
left alone it takes a connection closed without an answer for a clean message, believes each recv to be one
whole answer, tries five times after a timeout, ignores short sends, cannot reach IPv6, and leaves sockets
open. What it makes of an answer is stricter here, too.
"""

import re
from collections.abc import Callable
from contextlib import suppress

import pyclamd

from appliance.config.network import SocketAddress
from appliance.proxy import scanners
from appliance.proxy.dialog import reach
from appliance.proxy.scanners import Finding, ScanError, State, printable
from appliance.proxy.spool import Spool

_ANSWER = 4096
_PIECE = 131072
_CLEAN = re.compile(r".+: OK")
_FOUND = re.compile(r".+: (.+) FOUND")
_HINTS = (
    (re.compile("size limit exceeded"), "raise StreamMaxLength in clamd.conf, or lower scan_max_size"),
    (
        re.compile(r"lstat\(\)|can't open|denied|path check", re.IGNORECASE),
        "let clamd's user read spool_path (its group, spool_perm; AppArmor), "
        "or set antivirus_transfer to fd or stream",
    ),
)

_Piece = bytes | range  # what to send, or where it is in the message's copy


class _Spoken(Exception):
    """pyclamd has said what it has to say, and would listen now."""


class _Command(pyclamd.ClamdUnixSocket):  # type: ignore[misc]
    """pyclamd with nobody at the other end: what it says is kept in `pieces`."""

    def __init__(self) -> None:
        # Without super().__init__(), which connects once only to see whether it can.
        self.pieces: list[_Piece] = []

    @property
    def clamd_socket(self) -> "_Command":
        return self

    def send(self, piece: _Piece) -> None:
        self.pieces.append(piece)

    def _init_socket(self) -> None:
        pass

    def _recv_response(self) -> str:
        raise _Spoken


class _Content:
    """The file object that pyclamd streams from: it reads where each piece is, not what."""

    def __init__(self, size: int) -> None:
        self._left = range(size)

    def read(self, size: int) -> range:
        piece, self._left = self._left[:size], self._left[size:]
        return piece


def _said(command: Callable[..., object], *arguments: object) -> list[_Piece]:
    """Give what a method of _Command says."""
    clamd = _Command()
    with suppress(_Spoken):
        command(clamd, *arguments)
    return clamd.pieces


class Scanner(scanners.Scanner):
    """clamd, which reads a copy by its path, is handed it open (fd), or is sent its content (stream)."""

    option = "antivirus_path"

    def __init__(self, address: SocketAddress, timeout: float, transfer: str) -> None:
        super().__init__(address, timeout)
        self.needs_path = transfer == "path"
        self._by_descriptor = transfer == "fd" and address.path is not None  # TCP carries no descriptors

    async def _scan(self, spool: Spool) -> Finding:
        if self.needs_path:
            if spool.path is None or "\n" in str(spool.path):
                raise ScanError("the message's copy has no name that clamd can be told")
            request = _said(_Command.scan_file, str(spool.path))
        elif self._by_descriptor:
            request = _said(_Command._send_command, "FILDES")  # which pyclamd has no method for
        else:
            request = _said(_Command.scan_stream, _Content(spool.length), _PIECE)
        answer = await self._ask(request, spool)
        if _CLEAN.fullmatch(answer):
            return Finding(State.CLEAN)
        if found := _FOUND.fullmatch(answer):
            return Finding(State.FOUND, name=printable(found[1]))
        hints = [hint for pattern, hint in _HINTS if pattern.search(answer)]
        raise ScanError(": ".join([f"clamd answered {answer}", *hints]))

    async def _ping(self) -> None:
        if (answer := await self._ask(_said(_Command.ping))) != "PONG":
            raise ScanError(f"clamd answered {answer}")

    async def _ask(self, request: list[_Piece], copy: Spool | None = None) -> str:
        """Send a request, with what it needs of the copy, and give the one line that answers it."""
        with await reach(self.address, _ANSWER) as clamd:
            if self._by_descriptor and copy:
                clamd.hand_over(b"".join(map(bytes, request)) + b"\0", copy.descriptor())
            else:
                for piece in request:
                    await clamd.say(piece if isinstance(piece, bytes) else _read(copy, piece))
            answer = await clamd.answer(b"\n")
        if not answer.endswith(b"\n"):
            raise ScanError("clamd closed the connection before its answer was whole")
        return answer[:-1].decode("ascii", "replace")


def _read(copy: Spool | None, where: range) -> bytes:
    assert copy
    return copy.read(where.start, len(where))
