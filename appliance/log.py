"""The log: a line for each thing worth telling, as `key=value` text or JSON, to syslog, journal or stderr.

Everybody may write here, except the session core, whose caller writes for it. Nothing here may ever wait: a
log that is full or missing costs lines, which are counted and told about later, never mail. What a client
sent goes into a field, or through `plain()` when it has to stand among the words; that keeps it from forging
any.
"""

import contextlib
import datetime
import json
import os
import re
import select
import socket
import syslog
import time
import traceback
from typing import Any

from appliance.config import Config

LEVELS = {
    "emerg": syslog.LOG_EMERG,
    "alert": syslog.LOG_ALERT,
    "crit": syslog.LOG_CRIT,
    "err": syslog.LOG_ERR,
    "warning": syslog.LOG_WARNING,
    "notice": syslog.LOG_NOTICE,
    "info": syslog.LOG_INFO,
    "debug": syslog.LOG_DEBUG,
}
FACILITIES = {
    "user": syslog.LOG_USER,
    "mail": syslog.LOG_MAIL,
    "daemon": syslog.LOG_DAEMON,
    "auth": syslog.LOG_AUTH,
    "news": syslog.LOG_NEWS,
    "authpriv": 10 << 3,  # not in every Python's syslog module
    **{f"local{n}": (16 + n) << 3 for n in range(8)},
}

SOCKETS = {"syslog": "/dev/log", "journal": "/run/systemd/journal/socket"}
"""Where the targets listen that are no descriptor of our own."""

_LONGEST_VALUE = 512
_LONGEST_LINE = 2048  # bytes; below PIPE_BUF, so that a writable pipe takes a line whole
_RETRY = 1.0  # seconds between attempts to reach a syslog that is away
_NAMES = tuple(LEVELS)

_UNREADABLE = re.compile(r"[^ -~]")
# A comma ends a field, "=" ends a name; at the very end, where base64 has it, "=" names nothing.
_FORGES = re.compile(r"[^ -~]|[,%]|=(?!=*\Z)")


def _escaped(found: re.Match[str]) -> str:
    character = found[0]
    if character > "~" and character.isprintable():
        return character
    undecodable = "surrogateescape" if 0xDC80 <= ord(character) <= 0xDCFF else "surrogatepass"
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", undecodable))


def plain(value: object) -> str:
    """Text of a value, cut to 512 characters; what could end its line or field becomes %XX."""
    return _FORGES.sub(_escaped, _text(value))


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bytes | bytearray | memoryview):
        value = bytes(value[:_LONGEST_VALUE]).decode("utf-8", "surrogateescape")
    return str(value)[:_LONGEST_VALUE]


def _readable(value: object) -> str:
    """Text of a value for forms in which only unprintable characters do harm."""
    return _UNREADABLE.sub(_escaped, _text(value))


def _as_text(words: str, fields: dict[str, object]) -> bytes:
    if fields:
        words = words + " " + ", ".join([f"{name}={plain(value)}" for name, value in fields.items()])
    return words.encode("utf-8", "backslashreplace")[:_LONGEST_LINE]


def _as_json(level: int, words: str, fields: dict[str, object]) -> bytes:
    """Write an object, with shorter texts rather than cut off where it would be too long."""
    told = {name: value if isinstance(value, int) else _readable(value) for name, value in fields.items()}
    for longest in (1024, 128, 16):
        line = json.dumps(
            {
                "time": datetime.datetime.now().astimezone().isoformat(timespec="milliseconds"),
                "level": _NAMES[level],
                "pid": os.getpid(),
                "event": words[:longest],
                "fields": {
                    name: value[:longest] if isinstance(value, str) else value for name, value in told.items()
                },
            }
        ).encode()
        if len(line) <= _LONGEST_LINE:
            break
    return line


class Log:
    """A log at a level (`LEVELS`) to a facility (`FACILITIES`); a line below it costs one comparison.

    `target` is syslog, journal or stderr, `form` is text or json; `stderr` asks for a copy on stderr beside
    the target. `path` is the target's datagram socket if it is not the usual one. It is opened at once, so
    that a later chroot does not shut it out. `program` is the name that lines bear.
    """

    def __init__(
        self,
        level: str,
        facility: str,
        *,
        stderr: bool,
        target: str = "syslog",
        form: str = "text",
        path: str | None = None,
        program: str = "smtp-gated",
    ) -> None:
        self._program = program
        self._level = LEVELS[level]
        self._facility = FACILITIES[facility]
        self._json = form == "json"
        self._journal = target == "journal"
        self._stderr = select.poll() if stderr or target == "stderr" else None
        if self._stderr:
            self._stderr.register(2, select.POLLOUT)
        self._path = SOCKETS.get(target) if path is None else path
        self._socket: socket.socket | None = None
        self._next_attempt = 0.0
        self._second = 0
        self._stamp = ""
        self.lost = 0  # lines the target did not take since it last took one
        self._connect()

    @classmethod
    def of(cls, config: Config, *, stderr: bool, program: str = "smtp-gated") -> "Log":
        """Make the log that a configuration asks for."""
        target, form = config.log_target, config.log_format
        return cls(
            config.log_level, config.log_facility, stderr=stderr, target=target, form=form, program=program
        )

    def enabled(self, level: str) -> bool:
        """Whether lines of this level are written; asks before an expensive line is put together."""
        return LEVELS[level] <= self._level

    def debug(self, words: str, /, **fields: object) -> None:
        """Write a line only a developer wants."""
        if self._level >= syslog.LOG_DEBUG:
            self._write(syslog.LOG_DEBUG, words, fields)

    def info(self, words: str, /, **fields: object) -> None:
        """Write a line about the ordinary course of things."""
        if self._level >= syslog.LOG_INFO:
            self._write(syslog.LOG_INFO, words, fields)

    def notice(self, words: str, /, **fields: object) -> None:
        """Write a line an administrator wants to find again."""
        if self._level >= syslog.LOG_NOTICE:
            self._write(syslog.LOG_NOTICE, words, fields)

    def warning(self, words: str, /, **fields: object) -> None:
        """Write a line about something that works less well than it should."""
        if self._level >= syslog.LOG_WARNING:
            self._write(syslog.LOG_WARNING, words, fields)

    def err(self, words: str, /, **fields: object) -> None:
        """Write a line about something that failed."""
        if self._level >= syslog.LOG_ERR:
            self._write(syslog.LOG_ERR, words, fields)

    def crit(self, words: str, /, **fields: object) -> None:
        """Write a line about a failure that needs a person."""
        if self._level >= syslog.LOG_CRIT:
            self._write(syslog.LOG_CRIT, words, fields)

    def bug(self, what: object, error: object) -> None:
        """Tell of a defect; of an exception, with the last calls that led to it."""
        where = traceback.format_exception(error)[-4:] if isinstance(error, BaseException) else []
        self.crit("BUG", what=what, where=" | ".join(line.strip() for line in where))

    def unhandled(self, _loop: object, context: dict[str, Any]) -> None:
        """Tell of what nobody has caught: the handler for an event loop's exceptions."""
        self.bug(context.get("message"), context.get("exception"))

    def _write(self, level: int, words: str, fields: dict[str, object]) -> None:
        if not words.isprintable():
            words = plain(words)
        line = _as_json(level, words, fields) if self._json else _as_text(words, fields)
        if self._path is not None:
            self._to_stderr(level, line)  # a copy
        if self.lost:
            told = f"{self.lost} log lines lost"
            line_lost = _as_json(syslog.LOG_WARNING, told, {}) if self._json else told.encode()
            if self._take(syslog.LOG_WARNING, line_lost, told, {}):
                self.lost = 0
        if self.lost or not self._take(level, line, words, fields):
            self.lost += 1

    def _take(self, level: int, line: bytes, words: str, fields: dict[str, object]) -> bool:
        """Hand a line to the target; False when it does not take it."""
        if self._path is None:
            return self._to_stderr(level, line)
        return self._send(self._datagram(level, line, words, fields))

    def _datagram(self, level: int, line: bytes, words: str, fields: dict[str, object]) -> bytes:
        """Give what the target wants to receive for a line."""
        if not self._journal:
            return self._prefix(level) + line
        told = {
            "PRIORITY": level,
            "SYSLOG_FACILITY": self._facility >> 3,
            "SYSLOG_IDENTIFIER": self._program,
            "SYSLOG_PID": os.getpid(),
            "SMTP_EVENT": _readable(words),
            **{f"SMTP_{name.upper()}": _readable(value) for name, value in fields.items()},
        }
        more = "".join(f"{name}={value}\n" for name, value in told.items())
        return b"MESSAGE=" + line + b"\n" + more.encode()

    def _to_stderr(self, level: int, line: bytes) -> bool:
        if self._stderr is None:
            return False
        prefix = "" if self._json else f"{self._program}[{os.getpid()}]: {_NAMES[level]}: "
        try:
            if not self._stderr.poll(0):  # a terminal stopped with ^S or a pipe nobody reads
                return False
            os.write(2, prefix.encode() + line + b"\n")
        except OSError:  # a pipe or a disk that is full, or nobody reads any more
            return False
        return True

    def _connect(self) -> None:
        if self._path is None:
            return
        self._next_attempt = time.monotonic() + _RETRY
        with contextlib.suppress(OSError):  # nobody is there, or no more files may be opened
            fresh = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            try:
                fresh.connect(self._path)
            except OSError:
                fresh.close()
                raise
            self._socket = fresh

    def _send(self, datagram: bytes) -> bool:
        if self._socket is None:
            if time.monotonic() < self._next_attempt:
                return False
            self._connect()
        if self._socket is None:
            return False
        try:
            self._socket.send(datagram)
        except BlockingIOError:
            return False
        except OSError:  # it went away: a socket of the same name may be another one already
            self._socket.close()
            self._socket = None
            return self._send(datagram) if time.monotonic() >= self._next_attempt else False
        return True

    def _prefix(self, level: int) -> bytes:
        now = int(time.time())
        if now != self._second:
            self._second = now
            self._stamp = time.strftime("%b %e %H:%M:%S", time.localtime(now))
        return f"<{self._facility | level}>{self._stamp} {self._program}[{os.getpid()}]: ".encode()
