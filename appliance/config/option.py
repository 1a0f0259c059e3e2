"""Value types of the configuration language, and the descriptor that makes one option of a table.

Used by the option tables of this package alone; everybody else sees plain Python values. Nothing here knows
an option's name, opens a file or looks anything up: a value is judged by its text only, so that checking a
file gives the same answer everywhere.
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Self, TypeVar, overload

T = TypeVar("T")

_NUMBER = re.compile(r"([+-]?)(?:(0[xX][0-9a-fA-F]{1,16})|(0[0-7]{0,22})|([1-9][0-9]{0,19}))", re.ASCII)
_FLOAT = re.compile(r"[+-]?(?:[0-9]{1,20}(?:\.[0-9]{0,20})?|\.[0-9]{1,20})(?:[eE][+-]?[0-9]{1,3})?", re.ASCII)
_TRUE = frozenset({"yes", "on", "1", "true"})
_FALSE = frozenset({"no", "off", "0", "false"})
_INT_MAX = 2**63 - 1


def shown(text: str) -> str:
    """Quote text of a configuration file for an error: short, with nothing that could upset a terminal."""
    short = text if len(text) <= 60 else text[:60] + "..."
    return '"' + "".join(char if char.isprintable() else "?" for char in short) + '"'


class Kind(ABC, Generic[T]):
    """A value type: how a value of T is written in the file, and which are allowed.

    `word` is the type's name in the documentation, `allowed` says in words what a value may be, `empty`
    whether the value may be left out. The reader of an option is never handed blanks at either end of the
    text.
    """

    word: str
    allowed: str
    empty = False

    @abstractmethod
    def read(self, text: str) -> T:
        """Turn the text of a file into the value; ValueError says what is wrong, not what is allowed."""

    def write(self, value: T) -> str:
        """Give the text that `read` turns into an equal value."""
        return str(value)


class Int(Kind[int]):
    """A whole number: decimal, octal behind a 0, hexadecimal behind 0x."""

    def __init__(self, minimum: int = -_INT_MAX, maximum: int = _INT_MAX, word: str = "INT") -> None:
        self.word, self.minimum, self.maximum = word, minimum, maximum
        lowest = (
            ""
            if minimum == -_INT_MAX
            else f" from {minimum}"
            if maximum != _INT_MAX
            else f", at least {minimum}"
        )
        highest = "" if maximum == _INT_MAX else f" to {maximum}"
        self.allowed = f"a whole number{lowest}{highest}"

    def read(self, text: str) -> int:
        """Read a number within the limits."""
        match = _NUMBER.fullmatch(text)
        if match is None:
            raise ValueError(f"{shown(text)} is not a number")
        sign, hexadecimal, octal, decimal = match.groups()
        value = int(hexadecimal, 16) if hexadecimal else int(octal, 8) if octal else int(decimal)
        value = -value if sign == "-" else value
        if not self.minimum <= value <= self.maximum:
            raise ValueError(f"{shown(text)} is too {'small' if value < self.minimum else 'large'}")
        return value


def UInt(minimum: int = 0, maximum: int = _INT_MAX) -> Int:  # noqa: N802 - stands beside Int in the tables
    """Make the type of a number that cannot be negative."""
    return Int(minimum, maximum, "UINT")


class Workers(Int):
    """How many worker processes; the word auto is 0."""

    def __init__(self) -> None:
        super().__init__(0, 256, "UINT")
        self.allowed = "auto, or a whole number from 1 to 256"

    def read(self, text: str) -> int:
        """Read auto or a number."""
        return 0 if text.lower() == "auto" else super().read(text)

    def write(self, value: int) -> str:
        """Write auto or the number."""
        return str(value) if value else "auto"


class Octal(Int):
    """Permission bits; the leading zero is demanded, because 660 without it would grant something else."""

    def __init__(self) -> None:
        super().__init__(0, 0o7777, "OCT")
        self.allowed = "permission bits in octal with a leading zero, such as 0660"

    def read(self, text: str) -> int:
        """Read permission bits."""
        if not text.startswith("0"):
            raise ValueError(f"{shown(text)} does not begin with 0")
        return super().read(text)

    def write(self, value: int) -> str:
        """Write with a leading zero and at least three digits."""
        return f"0{value:03o}"


class Float(Kind[float]):
    """A number with or without a fraction."""

    word = "FLOAT"
    allowed = "a number such as 2 or 0.5"

    def read(self, text: str) -> float:
        """Read a finite number."""
        if _FLOAT.fullmatch(text) is None or math.isinf(float(text)):
            raise ValueError(f"{shown(text)} is not a number")
        return float(text)

    def write(self, value: float) -> str:
        """Write the shortest text that reads back the same, without a useless .0."""
        return repr(value).removesuffix(".0")


class Bool(Kind[bool]):
    """Yes or no."""

    word = "BOOL"
    allowed = "yes or no (also on, off, true, false, 1, 0)"

    def read(self, text: str) -> bool:
        """Read one of the words for yes and no."""
        word = text.lower()
        if word not in _TRUE | _FALSE:
            raise ValueError(f"{shown(text)} is neither yes nor no")
        return word in _TRUE

    def write(self, value: bool) -> str:
        """Write yes or no."""
        return "yes" if value else "no"


class Text(Kind[str]):
    """Text to the end of the line, where a pattern may say what it has to look like."""

    def __init__(
        self, word: str = "STRING", pattern: str = r".+", allowed: str = "text", *, empty: bool = False
    ) -> None:
        self.word, self.allowed, self.empty = word, allowed, empty
        self.pattern = re.compile(pattern)

    def read(self, text: str) -> str:
        """Take the text as it is when it fits the pattern."""
        if not (text or self.empty) or (text and self.pattern.fullmatch(text) is None):
            raise ValueError(f"{shown(text)} does not fit")
        return text


class Message(Kind[str]):
    """Text for mail users; a backslash and an n in the file stand for a new line, nothing else is special."""

    word = "MESSAGE"
    allowed = "text; \\n begins a new line"

    def read(self, text: str) -> str:
        """Read the text, new lines unfolded."""
        return text.replace("\\n", "\n")

    def write(self, value: str) -> str:
        """Write the text in one line."""
        return value.replace("\n", "\\n")


class File(Kind[Path]):
    """An absolute path, because a daemon has no directory of its own that a relative one could begin in."""

    allowed = "an absolute path, beginning with /"

    def __init__(self, word: str = "FILE") -> None:
        self.word = word

    def read(self, text: str) -> Path:
        """Read a path; whether it exists is not asked."""
        if not text.startswith("/"):
            raise ValueError(f"{shown(text)} does not begin with /")
        return Path(text)


class Enum(Kind[str]):
    """One word of a few; `aliases` maps other ways to write a word, such as old numbers, to that word."""

    word = "ENUM"

    def __init__(self, *words: str, aliases: Mapping[str, str] | None = None, empty: bool = False) -> None:
        self.words, self.aliases, self.empty = words, dict(aliases or {}), empty
        self.allowed = "one of " + " ".join(words)

    def read(self, text: str) -> str:
        """Read one of the words, in any case."""
        word = self.aliases.get(text.lower(), text.lower())
        if word not in self.words and not (self.empty and not word):
            raise ValueError(f"{shown(text)} is not known")
        return word


class Flags(Kind[frozenset[str]]):
    """Several words of a few, comma separated.

    `nothing` are the words for the empty set, the first of them to be written; they exclude all others. With
    `mask` a number is understood as well: the sum of 1 for the first word, 2 for the second, 4 for the third
    and so on.
    """

    word = "MULTI"

    def __init__(
        self,
        *words: str,
        nothing: Sequence[str] = (),
        aliases: Mapping[str, str] | None = None,
        mask: bool = False,
    ) -> None:
        self.words, self.nothing, self.aliases, self.mask = words, tuple(nothing), dict(aliases or {}), mask
        alone = f", or {self.nothing[0]} alone" if self.nothing else ""
        self.allowed = f"one or more of {' '.join(words)}, comma separated{alone}"

    def read(self, text: str) -> frozenset[str]:
        """Read the words, in any case and order."""
        if self.mask and re.fullmatch(r"[0-9]{1,3}", text, re.ASCII):
            return self._from_mask(int(text), text)
        given = [word.strip(" \t").lower() for word in text.split(",")]
        chosen = {self.aliases.get(word, word) for word in given if word}
        if chosen & set(self.nothing):
            if not chosen <= set(self.nothing):
                raise ValueError(f"{shown(text)} says {self.nothing[0]} and something else")
            return frozenset()
        unknown = sorted(chosen - set(self.words))
        if unknown or not chosen:
            raise ValueError(f"{shown(unknown[0] if unknown else text)} is not known")
        return frozenset(chosen)

    def _from_mask(self, number: int, text: str) -> frozenset[str]:
        if number >= 1 << len(self.words):
            raise ValueError(f"{shown(text)} is too large")
        return frozenset(word for bit, word in enumerate(self.words) if number >> bit & 1)

    def write(self, value: frozenset[str]) -> str:
        """Write the words in the table's order."""
        return ",".join(word for word in self.words if word in value) or self.nothing[0]


class List(Kind[tuple[T, ...]]):
    """Values of one type in their order, comma separated; none at all when empty."""

    word = "LIST"
    empty = True

    def __init__(self, kind: Kind[T], maximum: int) -> None:
        self.kind, self.maximum = kind, maximum
        self.allowed = f"at most {maximum} values, comma separated, each {kind.allowed}"

    def read(self, text: str) -> tuple[T, ...]:
        """Read the values; one given twice counts once."""
        parts = [part.strip(" \t") for part in text.split(",")]
        values = dict.fromkeys(self.kind.read(part) for part in parts if part)
        if len(values) > self.maximum:
            raise ValueError(f"{len(values)} values are too many")
        return tuple(values)

    def write(self, value: tuple[T, ...]) -> str:
        """Write the values with commas between."""
        return ",".join(self.kind.write(item) for item in value)


class Maybe(Kind[T | None]):
    """Another type, or nothing."""

    empty = True

    def __init__(self, kind: Kind[T]) -> None:
        self.kind, self.word, self.allowed = kind, kind.word, kind.allowed

    def read(self, text: str) -> T | None:
        """Read the other type's value, or None from an empty text."""
        return self.kind.read(text) if text else None

    def write(self, value: T | None) -> str:
        """Write the other type's text, or nothing."""
        return "" if value is None else self.kind.write(value)


class Option(Generic[T]):
    """One option: its type, default and description; on a configuration, its value of type T.

    `aliases` are other names it has in old files. `restart` means that a reload cannot change it. An
    `obsolete` one is accepted for the sake of old files, without effect. `example` is a value for the manual,
    where one says more than words. Its `name` and `section` come from the table it stands in.
    """

    name: str
    section: str

    def __init__(
        self,
        kind: Kind[T],
        default: T,
        help: str,  # noqa: A002 - the word every table of options uses
        *,
        aliases: tuple[str, ...] = (),
        restart: bool = False,
        obsolete: bool = False,
        example: str = "",
    ) -> None:
        self.kind, self.default, self.help, self.aliases = kind, default, help, aliases
        self.restart, self.obsolete, self.example = restart, obsolete, example

    def __set_name__(self, owner: type, name: str) -> None:
        self.name, self.section = name, owner.__name__.removesuffix("Options").lower()

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type) -> T: ...
    def __get__(self, instance: Any, owner: type) -> Self | T:
        # Only classes come here: an instance has its values in its __dict__, found first and at no cost.
        return self
