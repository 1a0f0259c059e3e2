"""The command line of appliance-ctl, the console script: its shared options, its commands, its exit codes.

Each module of commands has a typer app `commands`. How a command fails is told here, in one place; no
command lives here.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import click
import typer

from appliance.commandline import bear_all_letters, delivered, plain
from appliance.config import DEFAULT_FILE, ConfigError
from appliance.ctl import configuration, explain, gateway, kernel, limits, locking, top
from appliance.ctl.base import Code, Context, CtlError, clean

_CODES = """Exit codes: 0 done; 1 it failed, or check found a difference; 2 the configuration file is wrong; \
3 wrong usage; 4 no gateway runs, and the command needs one; 5 the right to ask it is missing."""

app = plain("-h", "--help", no_args_is_help=True, epilog=_CODES)


@app.callback()
def appliance_ctl(
    context: typer.Context,
    config: Annotated[
        Path,
        typer.Option(
            "--config",
            metavar="FILE",
            help=f"Instead of {DEFAULT_FILE}.",
            show_default=False,
            readable=False,  # who reads it tells, with the exit code of a bad file
        ),
    ] = DEFAULT_FILE,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, no tables.", show_default=False)
    ] = False,
) -> None:
    """Look after the SMTP gateway of this machine: processes, locks, limits, the kernel's rules."""
    context.obj = Context(config, as_json)


def command() -> click.Command:
    """Give the whole command with its subcommands, each of which takes the shared options, too."""
    whole = typer.main.get_command(app)
    _share_options(whole)
    return whole


def _share_options(command: click.Command) -> None:
    for each in command.commands.values() if isinstance(command, click.Group) else ():
        each.params += [
            click.Option(
                ["--config"],
                metavar="FILE",
                type=click.Path(path_type=Path, readable=False),
                expose_value=False,
                hidden=True,
                callback=_set_config,
            ),
            click.Option(["--json"], is_flag=True, expose_value=False, hidden=True, callback=_set_json),
        ]
        _share_options(each)


def _set_config(context: click.Context, _: click.Parameter, value: Path | None) -> None:
    if value is not None:
        context.ensure_object(Context).config_path = value


def _set_json(context: click.Context, _: click.Parameter, value: bool) -> None:
    context.ensure_object(Context).as_json |= value


def main(arguments: Sequence[str] | None = None) -> int:
    """Run appliance-ctl with the arguments, those of the process by default, and give its exit code."""
    bear_all_letters()
    whole = command()
    try:
        with delivered():
            return int(whole.main(arguments, prog_name="appliance-ctl", standalone_mode=False) or Code.DONE)
    except ConfigError as error:
        for problem in error.problems:
            _tell(str(problem))
        return Code.BAD_CONFIGURATION
    except CtlError as error:
        _tell(str(error))
        return error.code
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return Code.BAD_USAGE
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "appliance-ctl"
        _tell(f"{error.format_message()} (see {where} --help)")
        return Code.BAD_USAGE
    except OSError as error:
        _tell(str(error))
        return Code.FAILED
    except click.exceptions.Abort:
        return Code.FAILED


def _tell(words: str) -> None:
    for line in words.splitlines():
        print(f"appliance-ctl: {clean(line)}", file=sys.stderr)


for _module in (gateway, locking, limits, explain, configuration, top, kernel):
    app.add_typer(_module.commands)
