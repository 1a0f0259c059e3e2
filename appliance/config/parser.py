"""From the text of a configuration file to a configuration, or to all the errors in it.

Called by the daemon, its command line and its workers. The file is untrusted: its size, its lines and the
number of errors told are bounded. What a value may be is said in the tables, never here.
"""

import difflib
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.config import check
from appliance.config.config import NAMES, OPTIONS, Config
from appliance.config.option import shown

DEFAULT_FILE = Path("/etc/smtp-gated.conf")
MAX_FILE = 1 << 20  # bytes
MAX_LINE = 1 << 20  # characters: the networks of an option fit, one by one though the file has ranges
MAX_PROBLEMS = 100

_FORBIDDEN = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")
_UNDECODED = re.compile(r"[\ud800-\udfff]")
_LINE = re.compile(r"([^ \t]+)[ \t]*(.*)")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in a file; `line` is 0 when no line is to blame, `option` empty when no option is."""

    file: str
    line: int
    option: str
    message: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: option {self.option}: {self.message}" if self.option else f"{where}: {self.message}"


class ConfigError(Exception):
    """A file that cannot be used, with all that is wrong in it."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


def load(path: Path, *, modes: Collection[str] | None = None) -> Config:
    """Read the file of a gateway that is to run; ConfigError if it cannot be read or used.

    `modes` are the modes this system has, None if that is not to be judged.
    """
    try:
        with open(path, "rb", opener=_opened) as file:
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise ConfigError([Problem(str(path), 0, "", f"cannot be read: {error.strerror}")]) from error
    if len(data) > MAX_FILE:
        raise ConfigError([Problem(str(path), 0, "", f"larger than {MAX_FILE} bytes")])
    # Bytes that are no UTF-8 become lone surrogates, which the parser finds, with the number of their line.
    return parse(data.decode("utf-8", "surrogateescape"), str(path), modes=modes, complete=True)


def _opened(path: str, flags: int) -> int:
    """Open a file at once: a FIFO to which nobody writes is empty, and no supervisor waits for it."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    os.set_blocking(descriptor, True)
    return descriptor


def parse(
    text: str, name: str = "<text>", *, modes: Collection[str] | None = None, complete: bool = False
) -> Config:
    """Read the text of a file called `name`; ConfigError with everything wrong in it.

    `modes` as in `load`. `complete` demands what a gateway cannot run without, which is the mode.
    """
    reader = _Reader(name)
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        reader.read(number, line.removesuffix("\r").strip(" \t"))
    reader.finish()
    config = Config(reader.values)
    for option, message in check.errors(config, modes, complete=complete):
        reader.complain(reader.lines.get(option, 0), option, message)
    reader.finish()
    for option, message in check.warnings(config):
        reader.warnings.append(Problem(name, reader.lines.get(option, 0), option, message))
    return Config(reader.values, tuple(map(str, reader.warnings)))


class _Reader:
    """Reads line after line, collecting values, the line each was set at, errors and warnings."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.values: dict[str, object] = {}
        self.lines: dict[str, int] = {}
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []

    def complain(self, line: int, option: str, message: str) -> None:
        """Note an error, and give up on a text that has too many of them."""
        self.problems.append(Problem(self.name, line, option, message))
        if len(self.problems) >= MAX_PROBLEMS:
            self.problems.append(Problem(self.name, line, "", "too many errors; the rest was not read"))
            self.finish()

    def finish(self) -> None:
        """Raise what was found wrong so far, if anything was."""
        if self.problems:
            raise ConfigError(self.problems)

    def read(self, number: int, line: str) -> None:
        """Read one line, without blanks around it."""
        if not line or line[0] in "#;":
            return
        fault = _fault(line)
        if fault:
            self.complain(number, "", fault)
            return
        match = _LINE.fullmatch(line)
        assert match is not None  # a line begins with a character that is no blank, and has no line breaks
        word, text = match.groups()
        name = NAMES.get(word.lower())  # names are lower case, but who writes Port means port
        if name is None:
            self.complain(number, "", f"unknown option {shown(word)}{nearest(word)}")
        else:
            self._set(number, name, text)

    def _set(self, number: int, name: str, text: str) -> None:
        kind = OPTIONS[name].kind
        if name in self.lines:
            # Files grown over the years have such lines, and must go on working: warn, do not refuse.
            message = f"given before on line {self.lines[name]}; this one counts"
            self.warnings.append(Problem(self.name, number, name, message))
        self.lines[name] = number
        try:
            if not text and not kind.empty:
                raise ValueError("the value is missing")
            self.values[name] = kind.read(text)
        except ValueError as error:
            self.complain(number, name, f"{error}; allowed is {kind.allowed}")


def _fault(line: str) -> str:
    """Say what makes a line unreadable, or nothing."""
    if len(line) > MAX_LINE:
        return f"longer than {MAX_LINE} characters"
    if _UNDECODED.search(line):
        return "not UTF-8; write it anew with an editor set to UTF-8"
    if _FORBIDDEN.search(line):
        return "a control character, which no option may contain"
    return ""


_SUCCESSORS = {"use_netfilter": "mode netfilter"}  # of options whose values mean nothing any more


def nearest(word: str) -> str:
    """Suggest the known name that looks most like `word`, if one does."""
    if instead := _SUCCESSORS.get(word.lower()):
        return f"; it is {instead} now"
    near = difflib.get_close_matches(word[:64].lower(), NAMES, n=1)
    return f"; did you mean {near[0]}?" if near else "; smtp-gated -T lists all options"
