"""The commands config check, show and diff: the file by itself, and beside what the gateway runs with."""

from typing import Annotated

import typer

from appliance import config as language
from appliance.config import OPTIONS, Config, ConfigError
from appliance.ctl.ask import ask
from appliance.ctl.base import Code, CtlError, clean, given, print_json, show_table, table, tell
from appliance.privileges import PrivilegeError
from appliance.proxy import lookup
from appliance.supervisor import checks

config = typer.Typer(
    no_args_is_help=True, help="Look at the configuration file, and what the gateway runs with."
)
commands = typer.Typer()
commands.add_typer(config, name="config")


@config.command("check")
def config_check(context: typer.Context) -> None:
    """Check the file; exit code 2 and every error with its line if it cannot be used."""
    path = given(context).config_path
    found = language.load(path, modes=lookup.modes())
    warnings = [*found.warnings, *_warnings(found)]
    if given(context).as_json:
        print_json({"file": str(path), "warnings": warnings})
        return
    for line in warnings:
        tell(f"warning: {line}")
    tell(f"{path} can be used")


def _warnings(found: Config) -> list[str]:
    try:
        return checks.warnings(found)
    except PrivilegeError as error:
        raise CtlError(str(error), Code.BAD_CONFIGURATION) from None


@config.command("show")
def config_show(
    context: typer.Context,
    texts: Annotated[bool, typer.Option("--texts", help="With the texts for mail users.")] = False,
) -> None:
    """Print every option of the file with the value it has, defaults included."""
    found = given(context).config()
    if given(context).as_json:
        print_json({name: found.written(name) for name in OPTIONS})
        return
    for line in language.dump(found, messages=texts).splitlines():
        print(clean(line))


@config.command("diff")
def config_diff(context: typer.Context) -> None:
    """Show where the file differs from what the gateway runs with, and what a reload would not change."""
    answer = ask(given(context), "config")
    found = given(context).config()
    try:
        running = language.parse(str(answer["text"]), "the running configuration")
    except ConfigError as error:
        raise CtlError(f"the gateway is of another version: {error}; restart it") from None
    rows = [
        {
            "option": name,
            "running": running.written(name),
            "file": found.written(name),
            "restart": option.restart,
        }
        for name, option in OPTIONS.items()
        if getattr(found, name) != getattr(running, name)
    ]
    if given(context).as_json:
        print_json({"differences": rows, "running_file": answer["file"]})
        return
    if str(answer["file"]) != str(given(context).config_path.absolute()):
        tell(f"the gateway reads another file: {answer['file']}")
    if not rows:
        tell("the gateway runs with what the file says")
        return
    columns = ("OPTION", "RUNNING", "FILE", "TAKES EFFECT AT")
    show_table(table(columns, ([*_cells(row)] for row in rows)))


def _cells(row: dict[str, object]) -> list[object]:
    return [
        row["option"],
        row["running"] or '""',
        row["file"] or '""',
        "restart" if row["restart"] else "reload",
    ]
