"""Regular expressions of the configuration: the value type, and how an expression is compiled.

The parser compiles them to find mistakes, the checks to use them. The engine is RE2, whose time to search
grows with the text alone: no expression lets a client keep a worker busy. For the same reason it has no
back-references and no look-around. Nothing is matched here.
"""

from bisect import bisect_left
from typing import Any, Protocol

import re2

from appliance.config.option import Kind, shown

_LONGEST = 1 << 18  # characters, of which RE2 says within seconds that they are too many
_MEMORY = 1 << 20  # bytes for one expression, what it learns while searching included


class Pattern(Protocol):
    """A compiled expression."""

    def search(self, text: str, /) -> Any:
        """Look for a match anywhere in the text; None when there is none."""


def compiled(expression: str) -> Pattern:
    """Compile an expression; the Python error of a bad one is re2.error."""
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MEMORY
    pattern: Pattern = re2.compile(expression, options)
    return pattern


class Regex(Kind[str]):
    """A regular expression, empty when unset."""

    word = "REGEX"
    allowed = "a regular expression as RE2 knows them, without back-references and look-around"
    empty = True

    def read(self, text: str) -> str:
        """Take an expression that compiles."""
        if len(text) > _LONGEST:
            raise ValueError(f"{shown(text)} is longer than {_LONGEST} characters")
        kind, part = _fault(text)
        if kind:
            where = _position(text, kind, part) + 1
            raise ValueError(f"{shown(text)} is no regular expression: {kind} at position {where}")
        return text


def _fault(expression: str) -> tuple[str, str]:
    """Give what is wrong with an expression and the part that is to blame; both empty for a good one."""
    try:
        compiled(expression)
    except re2.error as error:
        kind, _, part = error.args[0].decode("utf-8", "replace").partition(": ")
        return kind, part
    return "", ""


def _position(text: str, kind: str, part: str) -> int:
    """Find the place of a fault, which RE2 does not tell; what is missing, or too much, is so at the end."""
    if part == text and kind.startswith("missing"):
        return len(text)
    # An expression is read from its begin: all that go on behind the fault have it, all before do not.
    end = bisect_left(range(len(text)), True, key=lambda length: _fault(text[:length])[0] == kind)
    return end - 1 if part in ("", text) else max(text.rfind(part, 0, end), text.find(part))
