"""What every command of appliance-ctl shares: the options before it, how it fails, and how it prints.

Command modules of this package use it; `app.py` puts them together. A module with commands has a typer app
`commands`; its functions take the `typer.Context` first and get the shared options from `given`. What is
printed may hold text that a client chose: it goes through `tell`, `table` or JSON. No command lives here.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from appliance import config as configuration
from appliance.config import DEFAULT_FILE, Config

_LONGEST = 64  # characters: the longest word that is never cut, such as an address with its ident


class Code(IntEnum):
    """The exit codes; the same as those of smtp-gated where they mean the same."""

    DONE = 0
    FAILED = 1  # it was tried and did not work, or the kernel differs from the plan
    BAD_CONFIGURATION = 2
    BAD_USAGE = 3
    DOWN = 4  # no gateway runs, and without one this cannot be done
    FORBIDDEN = 5


class CtlError(Exception):
    """A command cannot do its work: the text says what, where, and what to do next."""

    def __init__(self, words: str, code: Code = Code.FAILED) -> None:
        super().__init__(words)
        self.code = code


@dataclass
class Context:
    """The shared options: the configuration file, and whether to print JSON instead of tables."""

    config_path: Path = DEFAULT_FILE
    as_json: bool = False

    def config(self) -> Config:
        """Read the configuration file. Raises ConfigError, for which exit code 2 stands."""
        return configuration.load(self.config_path)


def given(context: typer.Context) -> Context:
    """Give the shared options of the command that runs."""
    found = context.find_object(Context)
    assert found is not None  # the root command has made it
    return found


def clean(value: object) -> str:
    """Write a value so that it can neither upset a terminal nor pass for more than one line."""
    text = "-" if value is None else str(value)
    return "".join(char if char.isprintable() else "?" for char in text)


def print_json(data: object) -> None:
    """Print data for programs: one JSON document, ASCII only."""
    print(json.dumps(data, indent=2))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Make a table of plain text; a column whose name ends with # holds numbers.

    Where there is no room for it, texts are folded between words: an address is to be read, and typed again.
    """
    made = Table(box=None, pad_edge=False)
    cells = [[clean(value) for value in row] for row in rows]
    for index, column in enumerate(columns):
        name = column.removesuffix("#")
        texts = [name, *(row[index] for row in cells)]
        pieces = texts if name != column else [word for text in texts for word in text.split()]
        longest = max(map(len, pieces), default=0)
        made.add_column(
            Text(name),
            justify="left" if name == column else "right",
            no_wrap=max(map(len, texts)) == longest <= _LONGEST,
            min_width=min(longest, _LONGEST),
            overflow="fold",
        )
    for row in cells:
        made.add_row(*map(Text, row))
    return made


def least_width(made: Table) -> int:
    """Give the width that a table takes at least."""
    return sum((column.min_width or 0) + 2 for column in made.columns) - 2


def show_table(made: Table) -> None:
    """Print a table. A terminal that is narrower than its words and numbers folds its lines."""
    out = console()
    out.width = max(out.width, least_width(made))
    out.print(made, crop=False)


def console() -> Console:
    """Make a console; what goes into a file or a pipe is not folded."""
    made = Console(highlight=False, markup=False, emoji=False)
    return made if made.is_terminal else Console(highlight=False, markup=False, emoji=False, width=400)


def tell(line: str, style: str = "") -> None:
    """Print a line for people."""
    console().print(Text(clean(line), style), soft_wrap=True)


def tell_of(label: str, text: object) -> None:
    """Print a line about something, in a column of such lines."""
    tell(f"{label:<10}{clean(text)}")
