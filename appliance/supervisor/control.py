"""The control socket: who may talk to the supervisor, and how little of it anybody can take.

A connection carries one request and one answer, each a JSON object on a line; `requests.py` knows what they
mean. The kernel tells who is at the other end: root, the supervisor's own user, and members of the group
`appliance` are heard, the gateway's workers are not. Requests are bounded in size and time, answers in time,
clients in number, in all and for each user; the event loop never waits for any of them.
"""

import asyncio
import contextlib
import errno
import grp
import json
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from appliance import process
from appliance.log import Log

GROUP = "appliance"
MODE = 0o660
_LONGEST_REQUEST = 4096  # bytes
_ASKED_WITHIN = 5.0  # seconds from the connection to the end of the request
_ANSWERED_WITHIN = 30.0  # seconds for what the request demands
_TAKEN_WITHIN = 10.0  # seconds for the client to read the answer
_CLIENTS, _CLIENTS_OF_USER = 32, 8

_SO_PEERGROUPS = 59
_MOST_GROUPS = 256  # that Python asks for
_CREDENTIALS = struct.Struct("iII")

Request = Mapping[str, object]
Answerer = Callable[[Request], Awaitable[Mapping[str, object]]]


class Refused(Exception):
    """A request cannot be met; the text says why, and `code` in one word."""

    def __init__(self, why: str, code: str = "failed") -> None:
        super().__init__(why)
        self.code = code


@dataclass(frozen=True, slots=True)
class _Peer:
    pid: int
    uid: int
    groups: frozenset[int]


class ControlSocket:
    """The socket at `path`; every request of somebody who may ask goes to `answer`."""

    def __init__(self, path: Path, answer: Answerer, log: Log) -> None:
        self._path = path
        self._answer = answer
        self._log = log
        self._group = _group()
        self._clients: list[int] = []  # the user of each
        self._server: asyncio.Server | None = None
        self._inode = 0

    async def open(self) -> None:
        """Listen. A socket that cannot be made costs the tool, not the mail: it is logged."""
        try:
            listening = self._listen()
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            self._log.warning(
                f"control_socket {self._path}: {why}; appliance-ctl will not reach this gateway: "
                "correct the path or what is in its place, and restart"
            )
            return
        self._server = await asyncio.start_unix_server(self._serve, sock=listening, limit=_LONGEST_REQUEST)

    def close(self) -> None:
        """Listen no more, and remove the socket if it is still ours."""
        if self._server:
            self._server.close()
            with contextlib.suppress(OSError):
                if self._path.lstat().st_ino == self._inode:
                    self._path.unlink()

    def _listen(self) -> socket.socket:
        """Make the socket under another name: under its own it has its group and mode from the start."""
        with contextlib.suppress(FileExistsError):
            self._path.parent.mkdir(mode=0o755)
        _refuse_living(self._path)
        aside = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            with contextlib.suppress(FileNotFoundError):
                aside.unlink()
            listening.bind(str(aside))
            if self._group is not None:
                os.chown(aside, -1, self._group)
            aside.chmod(MODE)
            listening.listen()
            self._inode = aside.lstat().st_ino
            aside.rename(self._path)
        except BaseException:
            listening.close()
            with contextlib.suppress(OSError):
                aside.unlink()
            raise
        return listening

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = _peer(writer.get_extra_info("socket"))
        self._clients.append(peer.uid)
        writer.transport.set_write_buffer_limits(0)  # so that drain() waits until all is taken
        try:
            answer = await self._ask(peer, reader)
            writer.write(json.dumps(answer).encode() + b"\n")
            async with asyncio.timeout(_TAKEN_WITHIN):
                await writer.drain()
        except (OSError, TimeoutError):
            pass  # it left, or does not read
        finally:
            self._clients.remove(peer.uid)
            writer.transport.abort()

    async def _ask(self, peer: _Peer, reader: asyncio.StreamReader) -> Mapping[str, object]:
        try:
            self._admit(peer)
            async with asyncio.timeout(_ASKED_WITHIN):
                request = _parsed(await reader.readline())
            async with asyncio.timeout(_ANSWERED_WITHIN):
                return await self._answer({**request, "uid": peer.uid, "pid": peer.pid})
        except Refused as refused:
            return {"error": str(refused), "code": refused.code}
        except TimeoutError:
            return {"error": "it took too long", "code": "failed"}
        except ValueError:  # the line is longer than the reader's limit
            return {"error": f"a request is a line of at most {_LONGEST_REQUEST} bytes", "code": "usage"}

    def _admit(self, peer: _Peer) -> None:
        if peer.uid not in (0, os.geteuid()) and self._group not in peer.groups:
            self._log.warning("CONTROL:REFUSED", uid=peer.uid, pid=peer.pid)
            raise Refused(f"only root and members of the group {GROUP} may ask the gateway", "forbidden")
        if len(self._clients) > _CLIENTS or self._clients.count(peer.uid) > _CLIENTS_OF_USER:
            raise Refused("too many ask the gateway at once; try again", "busy")


def _parsed(line: bytes) -> dict[str, object]:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        request = None
    if not isinstance(request, dict) or not isinstance(request.get("do"), str):
        raise Refused("a request is a JSON object with the key do", "usage")
    return request


def _group() -> int | None:
    try:
        return grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return None


def _refuse_living(path: Path) -> None:
    """Raise OSError if a program listens at a socket already; one that is left over is in nobody's way."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(errno.EEXIST, "something that is no socket is there")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        if probe.connect_ex(str(path)) not in (errno.ENOENT, errno.ECONNREFUSED):
            raise OSError(errno.EADDRINUSE, "another gateway, or something else, is there")


def _peer(accepted: socket.socket) -> _Peer:
    """Ask the kernel who connected. The groups are those of that moment; nobody is looked up by name."""
    if not process.LINUX:
        uid, gid = process.peer(accepted.fileno())
        return _Peer(0, uid, frozenset({gid}))
    pid, uid, gid = _CREDENTIALS.unpack(
        accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    try:
        found = accepted.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _MOST_GROUPS)
    except OSError:  # they are more
        found = b""
    return _Peer(pid, uid, frozenset({gid, *(group for (group,) in struct.iter_unpack("I", found))}))
