"""The command line of the daemon: the console script smtp-gated.

Reads the arguments, the configuration file, and hands over: starting to `daemon.py`, talking to a daemon that
runs to `remote.py`. What it prints and the codes it exits with are an interface that init scripts rely on. No
work is done here.
"""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import click
import typer

from appliance import config as configuration
from appliance.commandline import bear_all_letters, delivered, plain
from appliance.config import DEFAULT_FILE, ConfigError
from appliance.proxy import lookup
from appliance.supervisor import features, remote

DONE, FAILED, BAD_CONFIGURATION, BAD_USAGE, HELPED = 0, 1, 2, 3, 10

app = plain(add_completion=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run smtp-gated with the arguments, those of the process by default, and give its exit code."""
    command = typer.main.get_command(app)
    _fill_standard_files()
    bear_all_letters("utf-8")  # as the file has them, so that what is printed can be read again
    try:
        with delivered():
            return int(command.main(arguments, prog_name="smtp-gated", standalone_mode=False) or DONE)
    except ConfigError as error:
        for problem in error.problems:
            _tell(str(problem))
        return BAD_CONFIGURATION
    except click.UsageError as error:
        _tell(f"{error.format_message()} (smtp-gated -h lists the options)")
        return BAD_USAGE
    except OSError as error:
        _tell(str(error))
        return FAILED


def _fill_standard_files() -> None:
    """Open what init scripts have closed of 0 to 2, or other files would get these numbers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number is this one


def _help(context: typer.Context, wanted: bool) -> None:
    if wanted:
        print(context.get_help())
        raise typer.Exit(HELPED)


@app.command()
def smtp_gated(
    name: Annotated[
        str | None, typer.Option("-C", metavar="NAME", help="Print the value of one option.")
    ] = None,
    foreground: Annotated[bool, typer.Option("-f", help="Stay in the foreground.")] = False,
    _: Annotated[bool, typer.Option("-h", help="Print this help.", is_eager=True, callback=_help)] = False,
    terminate: Annotated[bool, typer.Option("-K", help="End the running daemon.")] = False,
    record: Annotated[
        str | None, typer.Option("-L", metavar="CLIENT", help="Print what a client has used of its limits.")
    ] = None,
    reload: Annotated[bool, typer.Option("-r", help="Make the running daemon read its file anew.")] = False,
    status: Annotated[bool, typer.Option("-s", help="Print the status of the running daemon.")] = False,
    status_file: Annotated[bool, typer.Option("-S", help="Have the status written; print where.")] = False,
    test: Annotated[bool, typer.Option("-t", help="Check the file and print what it sets.")] = False,
    test_all: Annotated[
        bool, typer.Option("-T", help="The same, with all texts and allowed values.")
    ] = False,
    version: Annotated[bool, typer.Option("-v", help="Print the version.")] = False,
    with_features: Annotated[
        bool, typer.Option("-V", help="Print the version, the features and the name of FILE.")
    ] = False,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="[FILE]",
            help=f"Instead of {DEFAULT_FILE}.",
            show_default=False,
            readable=False,  # a file that is not ours to read is as bad as one with errors, not wrong usage
        ),
    ] = DEFAULT_FILE,
) -> int:
    """Start the SMTP gateway, or do one of these things instead."""
    actions: dict[str, tuple[bool, Callable[[], int]]] = {
        "-C": (name is not None, lambda: _print_value(file, name or "")),
        "-K": (terminate, lambda: remote.terminate(configuration.load(file))),
        "-L": (record is not None, lambda: _print_record(file, record or "")),
        "-r": (reload, lambda: remote.reload(configuration.load(file))),
        "-s": (status, lambda: remote.status(configuration.load(file))),
        "-S": (status_file, lambda: remote.status_file(configuration.load(file))),
        "-t": (test, lambda: _print_config(file, messages=False)),
        "-T": (test_all, lambda: _print_config(file, messages=True)),
        "-v": (version, _print_version),
        "-V": (with_features, lambda: _print_features(file)),
    }
    chosen = [letter for letter, (given, _) in actions.items() if given]
    if len(chosen) > 1:
        raise click.UsageError(f"Only one of {' and '.join(chosen)} can be done at a time.")
    return actions[chosen[0]][1]() if chosen else _run(file, foreground)


def _run(file: Path, foreground: bool) -> int:
    # It brings the event loop and the proxy, which init scripts that ask for a value need not wait for.
    from appliance.supervisor import daemon

    return daemon.run(file, foreground)


def _print_value(file: Path, name: str) -> int:
    known = configuration.NAMES.get(name.lower())
    if known is None:
        raise click.UsageError(f"There is no option {name}{configuration.nearest(name)}")
    print(configuration.load(file).written(known))
    return DONE


def _print_record(file: Path, client: str) -> int:
    from appliance.proxy import records  # the others need no database

    config, name = configuration.load(file), records.name_of(client)
    with records.Records(config.outside(config.ratelimit_path), read_only=True) as database:
        try:
            record = database.get(name)
        except records.RecordsError as error:
            unused = config.ratelimit_period <= 0
            _tell(f"{file}: ratelimit_period is not set" if unused else f"{database.path}: {error}")
            return FAILED
    if record is None:
        _tell(f"{database.path} has no record of {name}")
        return FAILED
    for key, value in records.described(record):
        print(f"{key}: {value}")
    return DONE


def _print_config(file: Path, *, messages: bool) -> int:
    modes = lookup.modes()
    try:
        config = configuration.load(file, modes=modes)
    except ConfigError:
        if messages:  # whoever got an option wrong asks which there are
            print("# The file cannot be used. These are the defaults.")
            print(configuration.dump(configuration.Config(), messages=True, modes=modes), end="", flush=True)
        raise
    for warning in config.warnings:
        _tell(f"warning: {warning}")
    print(configuration.dump(config, messages=messages, modes=modes), end="")
    return DONE


def _print_version() -> int:
    print(f"smtp-gated {features.version()}")
    return DONE


def _print_features(file: Path) -> int:
    _print_version()
    for name, value in features.features():
        print(f"  {name:<16} : {value}")
    print(f"  {'CONFIG_FILE':<16} : {file.absolute()}")
    return DONE


def _tell(words: str) -> None:
    print(f"smtp-gated: {words}", file=sys.stderr)
