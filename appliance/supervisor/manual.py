"""The manual pages: `python -m appliance.supervisor.manual` writes man/ from its templates (`make docs`).

A template is roff, written by hand, with a line `@SECTION@` where the options of a section of the
configuration table go, or `@commands@` for those of the command line. A test holds the pages against what
this would write. Nothing here is used by a gateway that runs.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import typer

from appliance.config import OPTIONS
from appliance.config.option import Option
from appliance.supervisor.cli import app

DIRECTORY = Path(__file__).parents[2] / "man"
PAGES = ("smtp-gated.conf.5", "smtp-gated.8")
SECTIONS = {option.section for option in OPTIONS.values()}

_PLACE = re.compile(r"^@([a-z]+)@$", re.MULTILINE)


def page(template: str) -> str:
    """Give a manual page; KeyError names a place in the template for which there is no section."""
    return _PLACE.sub(lambda place: "\n".join(_entries(place[1])), template)


def _entries(place: str) -> Iterator[str]:
    if place == "commands":
        yield from _commands()
        return
    if place not in SECTIONS:
        raise KeyError(place)
    for option in OPTIONS.values():
        if option.section == place:
            yield from _option(option)


def _option(option: Option[Any]) -> Iterator[str]:
    yield from (".TP", f"{_bold(option.name)} {_italic(option.kind.word)}", _roff(option.help))
    allowed = option.kind.allowed
    if not option.obsolete and not allowed.startswith("text"):
        yield _roff(f"Allowed: {allowed}.")
    default = option.kind.write(option.default)
    yield f"Default: {_bold(default) if default else 'nothing'}."
    if option.aliases:
        yield f"Also known as {', '.join(map(_bold, option.aliases))}."
    if option.restart:
        yield "[RESTART]"
    if option.pending:
        yield "Accepted, but without effect in this version."
    if option.obsolete:
        yield "Accepted for the sake of old files, without effect."
    if option.example:
        yield f"Example: {_bold(f'{option.name} {option.example}')}"


def _commands() -> Iterator[str]:
    command = typer.main.get_command(app)
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            argument = "" if parameter.is_flag else f" {_italic(parameter.metavar or '')}"
            yield from (".TP", _bold(parameter.opts[0]) + argument, _roff(parameter.help or ""))


def _bold(text: str) -> str:
    return rf"\fB{_roff(text)}\fR"


def _italic(text: str) -> str:
    return rf"\fI{_roff(text)}\fR"


def _roff(text: str) -> str:
    """Write text so that roff prints it as it is."""
    text = text.replace("\\", r"\e").replace("-", r"\-")
    return rf"\&{text}" if text.startswith((".", "'")) else text


def main() -> int:
    """Write both pages."""
    for name in PAGES:
        template = (DIRECTORY / f"{name}.in").read_text(encoding="utf-8")
        (DIRECTORY / name).write_text(page(template), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
