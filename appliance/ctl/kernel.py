"""appliance-ctl plan, up, down, check: the kernel's rules, seen and changed by a person or a unit of systemd.

Registered by `app.py`. `appliance.nft.installer` does the work; here it is shown. None of them needs the
daemon, but one that runs is asked whether it can do with these rules.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import typer

from appliance.bpf import gate
from appliance.config import Config, ConfigError, parse
from appliance.ctl import known
from appliance.ctl.ask import ask
from appliance.ctl.base import Code, CtlError, given, print_json, tell
from appliance.nft.installer import Installer, Plan, Refused
from appliance.nft.kernel import KernelError

commands = typer.Typer(rich_markup_mode=None)
Early = Annotated[
    bool, typer.Option("--early", help="Accept interfaces that are not there yet, as at the system's start.")
]
_MISSING = "missing for the gate: {}"
_COLOURS = {"+": "green", "-": "red", "@": "cyan"}
_SHARED = ("mode", "bind_address", "port")  # what the gateway knows since its start, and the rules go by


@contextmanager
def _told() -> Iterator[None]:
    """Turn what the installer raises into words and an exit code."""
    if not known.may_ask_kernel():
        raise CtlError("the kernel's rules: appliance-ctl needs root: try again with sudo", Code.FORBIDDEN)
    try:
        yield
    except Refused as error:
        raise CtlError("\n".join(f"this cannot work: {reason}" for reason in error.reasons)) from None
    except KernelError as error:
        raise CtlError(f"the kernel's rules: {error}") from None
    except PermissionError as error:
        raise CtlError(f"the kernel's rules: {error}; root is needed", Code.FORBIDDEN) from None
    except OSError as error:
        raise CtlError(f"the kernel's rules: {error}; nothing was changed") from None


def _misunderstood(context: typer.Context, config: Config) -> list[str]:
    """Tell in what a gateway that runs does not go with these rules; nothing if none can be asked."""
    try:
        running = parse(str(ask(given(context), "config")["text"]))
    except (CtlError, ConfigError):
        return []
    return [
        f"the gateway runs with {name} {running.written(name)}, not {config.written(name)}: restart it"
        for name in _SHARED
        if getattr(running, name) != getattr(config, name)
    ]


@commands.command()
def plan(context: typer.Context, early: Early = False) -> None:
    """Show what `up` would change in the kernel, and change nothing."""
    config = given(context).config()
    with _told():
        found = Installer(config, early=early).plan()
    differs, lacking = gate.check(config)
    nothing = "nothing would change: the kernel's rules are up already"
    of_gate = [*differs, *map(_MISSING.format, lacking)]
    _show(context, found, "would change", nothing, of_gate, _misunderstood(context, config))


@commands.command()
def up(context: typer.Context, early: Early = False) -> None:
    """Install or renew the kernel's rules: all of them or, when anything fails, none."""
    config = given(context).config()
    with _told():
        done = Installer(config, early=early).up()
    nothing = "nothing to change: the kernel's rules are up already"
    _show(context, done, "changed", nothing, gate.up(config), _misunderstood(context, config))


@commands.command()
def down(context: typer.Context) -> None:
    """Remove the kernel's rules and leave everything else as it was before; no configuration is needed."""
    with _told():
        done = Installer(parse("")).down()
    _show(context, done, "changed", "nothing to remove: the kernel's rules are not up", gate.down())


@commands.command()
def check(context: typer.Context) -> Code:
    """Tell where the kernel differs from the plan; exit code 1 if it does."""
    config = given(context).config()
    differs, lacking = gate.check(config)
    with _told():
        found = [*Installer(config).check(), *_misunderstood(context, config), *differs]
    if given(context).as_json:
        print_json({"differences": found, "missing": lacking})
    elif found:
        for each in found:
            tell(each)
        tell(f"{len(found)} differences; `appliance-ctl up` mends what is ours", "bold")
    else:
        tell("the kernel is as planned")
    if not given(context).as_json:
        for line in lacking:
            tell(_MISSING.format(line), "yellow")
    return Code.FAILED if found else Code.DONE


def _show(
    context: typer.Context,
    plan: Plan,
    verb: str,
    nothing: str,
    of_gate: list[str],
    of_gateway: Sequence[str] = (),
) -> None:
    """Print what changes; `of_gate` and `of_gateway` are what there is to say about these."""
    warnings = [*plan.warnings, *of_gateway]
    if given(context).as_json:
        print_json(
            {
                "changes": plan.difference,
                "warnings": warnings,
                "commands": plan.commands,
                "routing": {"add": [*map(str, plan.add)], "remove": [*map(str, plan.remove)]},
                "gate": of_gate,
            }
        )
        return
    for line in plan.difference[2:]:
        tell(line, _COLOURS.get(line[:1], ""))
    for warning in (*warnings, *of_gate):
        tell(f"warning: {warning}", "yellow")
    if plan.empty:
        tell(nothing)
    else:
        added, removed = (sum(line.startswith(sign) for line in plan.difference[2:]) for sign in "+-")
        tell(f"{verb}: {added} lines more, {removed} fewer", "bold")
