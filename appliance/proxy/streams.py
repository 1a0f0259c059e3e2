"""The sockets of a worker's sessions, and the turns in which they are served: all is read, judged, written.

One after the other, reading, thinking and writing for each session by itself, the same bytes cost half as
much again: each step finds the processor's caches full of the one before, and each write wakes its reader, on
a busy machine in the writer's place. What goes to one peer in a turn is also sent as one. So all sockets are
in one set (`readiness.py`), which the event loop watches as a single file; for whatever takes time, sessions
use the event loop itself.

`Relay` owns two streams and decides what is said; here nobody knows SMTP.
"""

import asyncio
import socket
from abc import ABC, abstractmethod
from contextlib import suppress
from os import read, write, writev
from typing import Final

from mypy_extensions import trait

from appliance.proxy import splice
from appliance.proxy.readiness import EDGE, LAST, READ, WRITE, Poll

BACKLOG: Final = 65536  # bytes that may wait for a peer before it is called full; or buffer_size
_LITTLE: Final = 479  # bytes that there is always room for: the longest that Python has a pool for
_SOME: Final = 4096  # bytes that there is room for when that was not enough
_PIECE: Final = 262144  # bytes that are read from one socket at a time
_PORTION: Final = 262144  # bytes read that are judged and sent before more is
_PIECES: Final = 64  # that are sent by one system call; more are made one first
_SERVED: Final = 256  # sockets that are served in a turn
_MORE: Final = int(getattr(socket, "MSG_MORE", 0))  # with the last words: the end goes in the same packet


def current_turn() -> "Turn":
    """Give the turn of the running event loop."""
    loop = asyncio.get_running_loop()
    turn = _TURNS.get(loop)
    if turn is None:
        for other in [other for other in _TURNS if other.is_closed()]:
            del _TURNS[other]
        turn = _TURNS[loop] = Turn(loop)
    return turn


@trait
class Owner(ABC):
    """Whom a stream tells what happens to it."""

    @abstractmethod
    def heard(self, stream: "Stream", data: bytes) -> None:
        """Take bytes that the peer sent; none: it has said all it will."""

    @abstractmethod
    def carried(self, stream: "Stream", count: int) -> None:
        """So many bytes of the peer have gone to the stream's target."""

    @abstractmethod
    def filled(self, stream: "Stream", full: bool) -> None:
        """The peer does not take what it is sent, or does so again."""

    @abstractmethod
    def lingers(self, stream: "Stream") -> None:
        """The peer is parted from, but has yet to take its last words; told once."""

    @abstractmethod
    def parted(self, stream: "Stream", error: OSError | None) -> None:
        """The socket is closed, for good; `error` is why, if that was not asked for."""

    @abstractmethod
    def broken(self, error: Exception) -> None:
        """A defect: what an owner's own method has raised."""


class Watched(ABC):
    """Something with a file that a turn watches."""

    @abstractmethod
    def ready(self, mask: int) -> None:
        """It can be read, or written, or something is wrong with it."""

    @abstractmethod
    def broken(self, error: Exception) -> None:
        """A defect: what a method of this, or of whom it told, has raised."""


class Turn:
    """All streams of a worker. `now` is the event loop's time at the turn's begin."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._poll = Poll()
        self._loop.add_reader(self._poll.fileno(), self._serve)
        # Given back at once, this has malloc keep as much from now on (mallopt(3), M_MMAP_THRESHOLD): to ask
        # the kernel for room at each read would cost as much again as to read.
        bytearray(4 * _PIECE)
        self._watched: dict[int, Watched] = {}
        self._heard: list[tuple[Stream, bytes]] = []
        self._size = 0  # of what was heard
        self._said: list[Stream] = []
        self._left: list[tuple[Stream, OSError | None]] = []
        self._due = False  # whether `_finish` will be called
        self.now = self._loop.time()

    def watch(self, fd: int, mask: int, before: int, who: "Watched") -> None:
        """Let somebody know when a file can be read or written; a mask of 0 ends that."""
        if not mask:
            self._poll.unregister(fd)
            self.forget(fd)
        elif before:
            self._poll.modify(fd, mask)
        else:
            self._poll.register(fd, mask)
            self._watched[fd] = who

    def forget(self, fd: int) -> None:
        """Nobody wants to know any more; closing the file takes it off the set."""
        del self._watched[fd]

    def hear(self, stream: "Stream", data: bytes) -> None:
        """Keep what was read until all who spoke have been read."""
        self._heard.append((stream, data))
        self._size += len(data)

    def say(self, stream: "Stream") -> None:
        """Send what this one was told to, before the loop waits again."""
        self._said.append(stream)
        self._call()

    def leave(self, stream: "Stream", error: OSError | None) -> None:
        """Close this one's socket when the turn is over: until then its number is nobody else's."""
        self._left.append((stream, error))
        self._call()

    def _call(self) -> None:
        if not self._due:
            self._due = True
            self._loop.call_soon(self._finish)

    def _serve(self) -> None:
        """Serve all who are ready."""
        self.now = self._loop.time()
        self._due = True
        for fd, mask in self._poll.poll(0, _SERVED):
            if who := self._watched.get(fd):
                try:
                    who.ready(mask)
                except Exception as error:
                    who.broken(error)
                if self._size > _PORTION:
                    self._judge()
                    self._send()
        self._finish()

    def _finish(self) -> None:
        """Do what has to be done before the loop waits again."""
        self._due = True
        self._judge()
        self._send()
        while self._left:
            left, self._left = self._left, []
            for stream, error in left:
                try:
                    stream.part(error)
                except Exception as defect:
                    stream.broken(defect)
            self._send()
        self._due = False

    def _judge(self) -> None:
        if not self._heard:
            return
        heard, self._heard, self._size = self._heard, [], 0
        for stream, data in heard:
            try:
                stream.owner.heard(stream, data)
            except Exception as error:
                stream.broken(error)

    def _send(self) -> None:
        while self._said:
            said, self._said = self._said, []
            for stream in said:
                try:
                    stream.flush()
                except Exception as error:
                    stream.broken(error)


_TURNS: Final[dict[asyncio.AbstractEventLoop, Turn]] = {}


class Stream(Watched):
    """One peer's socket, from accept or connect on; it must not block. Read until `pause`, or the peer's end.

    `limit` bytes may wait for the peer before it is called full.
    """

    __deletable__ = ("owner",)

    def __init__(self, turn: Turn, sock: socket.socket, owner: Owner, limit: int) -> None:
        self.sock = sock
        self.owner = owner
        self._turn = turn
        self._fd = sock.fileno()
        self._limit = limit
        self._mask = 0
        self._words: list[bytes] = []  # said, and not yet taken by the peer
        self._at = 0  # first byte of them that was not
        self.waiting = 0  # bytes from there on, that the peer has yet to take
        self._stuck = False  # the peer took no more when it was last tried
        self._target: Stream | None = None
        self._room = _LITTLE  # bytes that the peer may say at a time, going by what it said last
        self.paused = False
        self._ended = False  # the peer has said all it will
        self._full = False
        self._held = False  # the kernel has last words that wait for the end
        self._shut = False  # nothing more is said once all is sent
        self._mute = False  # nothing can be said any more
        self._lost: OSError | None = None  # why not
        self.closing = False
        self._lingers = False
        self._closed = False
        self._watch()

    # -- what the owner asks for -------------------------------------------------------------------

    def say(self, data: bytes) -> None:
        """Send, at the turn's end."""
        if self._mute or self.closing:
            return
        if self._stuck or not self._words:
            self._turn.say(self)
        self._words.append(data)
        self.waiting += len(data)

    def expect_much(self) -> None:
        """Have room for the greater part of a message when the peer speaks next."""
        self._room = _PIECE

    def pause(self) -> None:
        """Read no more for now."""
        self.paused = True

    def resume(self) -> None:
        """Read again."""
        if self.paused:
            self.paused = False
            self._watch()

    def carry_to(self, target: "Stream") -> None:
        """From now on let the kernel carry what the peer sends to another, past this process."""
        self._target = target
        self._watch()

    def shut(self) -> None:
        """Tell the peer that this is all, once it has taken it."""
        self._shut = True
        self._turn.say(self)

    def close(self) -> None:
        """Part when the peer has taken what it was sent; nothing is heard any more."""
        if not self.closing:
            self.closing = True
            self._turn.say(self)

    def abort(self, error: OSError | None = None) -> None:
        """Part at once."""
        if not self._closed:
            self.closing = self._closed = True
            self._forget()
            self._turn.leave(self, error)

    # -- what the turn asks for --------------------------------------------------------------------

    def ready(self, mask: int) -> None:
        """Go on: there is something to read, or room, or an error, which both find."""
        if self._closed:
            return
        if self._stuck and mask & ~READ:
            self._drain()
            self._settle()
        if mask & ~WRITE:
            if not self._reads():
                self._watch()
                return
            room = self._room
            count = self._read()
            if count == _LITTLE or (count and mask & LAST):
                room = self._room
                count = self._read()  # what is there already, if only an end, is worth no turn of its own
            if count and (count == room or mask & LAST):
                self._turn.watch(self._fd, self._mask, self._mask, self)  # tell again if that was not all

    def flush(self) -> None:
        """Send what was said, behind what still waits."""
        if self._closed:
            return
        if self._words and not self._stuck:
            self._drain()
        self._settle()

    def part(self, error: OSError | None) -> None:
        """Close the socket and tell the owner."""
        if self._mask:
            self._turn.forget(self._fd)
            self._mask = 0
        self.sock.close()
        self.owner.parted(self, error)
        del self.owner  # who knows this stream, as its target may: no knot is left to untie
        self._target = None

    def broken(self, error: Exception) -> None:
        """Tell the owner."""
        self.owner.broken(error)

    # -- how that is done --------------------------------------------------------------------------

    def _reads(self) -> bool:
        return not (self.paused or self._ended or self.closing)

    def _watch(self) -> None:
        """Be told of what can be done about what there is to do.

        That reading is over for now is only said when the set tells of something to read: often it is resumed
        before, or the socket closed. Of what one read takes whole the set tells once, so it need not look at
        each socket again before it waits; of what the kernel carries nobody knows how much is left there.
        """
        mask = WRITE if self._stuck else 0
        if self._reads():
            mask |= READ | LAST if self._target else READ | LAST | EDGE
        if mask != self._mask and not self._closed:
            self._turn.watch(self._fd, mask, self._mask, self)
            self._mask = mask

    def _read(self) -> int:
        """Read or carry what there is; give the number of bytes that will be heard in this turn."""
        try:
            if self._target is None:
                data = read(self._fd, self._room)
                size = len(data)
                self._room = _PIECE if size >= _SOME else _SOME if size >= _LITTLE else _LITTLE
            elif (count := self._carry(self._target)) >= 0:
                self.owner.carried(self, count)
                return 0
            else:
                data = b""
        except BlockingIOError:
            return 0
        except OSError as error:
            self.abort(error)
            return 0
        if self._lost and not data:
            self.abort(self._lost)  # what looks like an end is a reset, which sending has met before
            return 0
        self._ended = not data
        self._turn.hear(self, data)
        return len(data)

    def _carry(self, target: "Stream") -> int:
        """Let the kernel carry what there is; give the number of bytes, -1 for the end. Raises OSError."""
        if target._words or target._mute or target.closing:
            data = read(self._fd, _PIECE)
            target.say(data)
            return len(data) or -1
        count, left, error = splice.carry(self._fd, target._fd)
        if left:
            target.say(left)
        if error:
            target._fail(error)
        return count or -1

    def _drain(self) -> None:
        """Send what was said, as far as the peer takes it."""
        words = self._words
        if len(words) > _PIECES:
            words[:] = [b"".join((memoryview(words[0])[self._at :], *words[1:]))]
            self._at = 0
        first = memoryview(words[0])[self._at :] if self._at else words[0]
        try:
            if self.closing or self._shut:
                count = self.sock.sendmsg((first, *words[1:]), (), _MORE)
                self._held = True
            elif len(words) == 1:
                count = write(self._fd, first)
            else:
                count = writev(self._fd, (first, *words[1:]))
        except BlockingIOError:
            count = 0
        except OSError as error:
            self._fail(error)
            return
        self.waiting -= count
        if self.waiting:
            count += self._at
            while count >= len(words[0]):
                count -= len(words.pop(0))
            self._at = count
        else:
            words.clear()
            self._at = 0
        stuck = self.waiting > 0
        if stuck is not self._stuck:
            self._stuck = stuck
            self._watch()

    def _fail(self, error: OSError) -> None:
        """Nothing can be said to the peer any more; what it said before may still be worth reading."""
        self._mute = True
        self._lost = error
        self._forget()
        if self._reads() and isinstance(error, ConnectionError):
            self._watch()
        else:
            self.abort(error)

    def _forget(self) -> None:
        """Give up what the peer did not take."""
        self._words.clear()
        self._at = self.waiting = 0
        self._stuck = False

    def _settle(self) -> None:
        """See what follows from how much still waits."""
        if self._full and self.waiting <= self._limit // 4:
            self._full = False
            self.owner.filled(self, False)
        elif self.waiting > self._limit and not self._full:
            self._full = True
            self.owner.filled(self, True)
        if self._closed:
            return
        if self.waiting and self.closing and not self._lingers:
            self._lingers = True
            self.owner.lingers(self)
        elif not self.waiting:
            if (self._shut or self._held) and not self._mute:
                # Before a close, too: over bytes that were not read it is a reset, and drops what is held.
                self._mute = True
                with suppress(OSError):
                    self.sock.shutdown(socket.SHUT_WR)
            if self.closing:
                self.abort()
