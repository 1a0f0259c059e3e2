"""The help of every command is plain text."""

from collections.abc import Iterator

import click
import pytest
import typer

from appliance.ctl.app import app as appliance_ctl
from appliance.helper.cli import app as appliance_helper
from appliance.supervisor.cli import app as smtp_gated


def helps(command: click.Command, name: str) -> Iterator[str]:
    with click.Context(command, info_name=name) as context:
        yield command.get_help(context)
    for below, each in getattr(command, "commands", {}).items():
        yield from helps(each, f"{name} {below}")


@pytest.mark.parametrize("app", [appliance_ctl, appliance_helper, smtp_gated])
def test_help_is_plain_text(app: typer.Typer) -> None:
    texts = list(helps(typer.main.get_command(app), "name"))
    assert all(text.startswith("Usage: name") and "\\" not in text for text in texts)


def test_help_has_defaults() -> None:
    (text,) = helps(typer.main.get_command(appliance_helper), "name")
    assert "[default: 500; 1<=x<=1000000]" in text
