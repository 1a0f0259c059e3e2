"""The manual pages: `python -m appliance.supervisor.manual` writes man/ from its templates (`make docs`).

A template is roff, written by hand, with a line `@SECTION@` where the options of a section of the
configuration table go, `@commands@` for those of smtp-gated's command line, or `@ctl@` for the commands of
appliance-ctl. docs/metrics.md is written, too. A test holds the files against what this would write. Nothing
here is used by a gateway that runs.
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
from appliance.ctl import app as ctl
from appliance.supervisor import metrics
from appliance.supervisor.cli import app

DIRECTORY = Path(__file__).parents[2] / "man"
PAGES = ("smtp-gated.conf.5", "smtp-gated.8", "appliance-ctl.8")
METRICS = DIRECTORY.parent / "docs" / "metrics.md"
SECTIONS = {option.section for option in OPTIONS.values()}

_PLACE = re.compile(r"^@([a-z]+)@$", re.MULTILINE)


def page(template: str) -> str:
    """Give a manual page; KeyError names a place in the template for which there is no section."""
    return _PLACE.sub(lambda place: "\n".join(_entries(place[1])), template)


def _entries(place: str) -> Iterator[str]:
    if place == "commands":
        yield from _options(typer.main.get_command(app))
        return
    if place == "ctl":
        yield from _subcommands(ctl.command(), "")
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
    if option.obsolete:
        yield "Accepted for the sake of old files, without effect."
    if option.example:
        yield f"Example: {_bold(f'{option.name} {option.example}')}"


def _options(command: click.Command) -> Iterator[str]:
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            argument = (
                "" if parameter.is_flag else f" {_italic(parameter.metavar or parameter.type.name.upper())}"
            )
            yield from (".TP", _bold(parameter.opts[0]) + argument, _roff(parameter.help or ""))


def _subcommands(group: click.Command, before: str) -> Iterator[str]:
    """Give the entries of a group's commands, each under its full name."""
    assert isinstance(group, click.Group)
    for name, command in group.commands.items():
        full = f"{before}{name}"
        if isinstance(command, click.Group):
            yield from _subcommands(command, f"{full} ")
            continue
        arguments = [
            f" {_italic(parameter.make_metavar(click.Context(command)))}"
            for parameter in command.params
            if isinstance(parameter, click.Argument)
        ]
        yield from (".TP", _bold(full) + "".join(arguments), _roff(" ".join((command.help or "").split())))
        if options := list(_options(command)):
            yield from (".RS", *options, ".RE")


def _bold(text: str) -> str:
    return rf"\fB{_roff(text)}\fR"


def _italic(text: str) -> str:
    return rf"\fI{_roff(text)}\fR"


def _roff(text: str) -> str:
    """Write text so that roff prints it as it is."""
    text = text.replace("\\", r"\e").replace("-", r"\-")
    return rf"\&{text}" if text.startswith((".", "'")) else text


def main() -> int:
    """Write the pages and the list of metrics."""
    for name in PAGES:
        template = (DIRECTORY / f"{name}.in").read_text(encoding="utf-8")
        (DIRECTORY / name).write_text(page(template), encoding="utf-8")
    METRICS.write_text(metrics.documentation(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
