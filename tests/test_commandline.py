"""The help of every command is plain text, and what cannot be written is told in a line."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

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


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["smtp-gated -V", "appliance-ctl --help"])
def test_output_that_cannot_be_written_is_told(command: str, unbuffered: str) -> None:
    name, option = command.split()
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [Path(sys.executable).with_name(name), option],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={"PYTHONUNBUFFERED": unbuffered},
            timeout=30,
        )
    assert (done.returncode, done.stderr) == (1, f"{name}: [Errno 28] No space left on device\n")


def test_help_has_defaults() -> None:
    (text,) = helps(typer.main.get_command(appliance_helper), "name")
    assert "[default: 500; 1<=x<=1000000]" in text
