"""The commands limits show, set and clear: what a client has used of its rate limits, and quotas of its own.

They work on the database of rate limits, from which a running gateway takes edits over within a second.
"""

import contextlib
import time
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from appliance.config import OPTIONS, Config
from appliance.ctl import known
from appliance.ctl.base import Code, CtlError, given, print_json, show_table, table, tell
from appliance.ctl.locking import Client
from appliance.ctl.times import moment, span
from appliance.proxy.quota import Limits, Record, Use
from appliance.proxy.records import PERSONAL, Records, RecordsError

limits = typer.Typer(
    no_args_is_help=True, help="Look at a client's rate limits, give it others, forget its use."
)
commands = typer.Typer()
commands.add_typer(limits, name="limits")


@contextlib.contextmanager
def _database(config: Config, doing: str, *, create: bool = False) -> Iterator[Records]:
    directory = config.outside(config.ratelimit_path)
    with known.as_owner(config, doing), Records(directory, create=create) as database:
        try:
            yield database
        except RecordsError as error:
            raise CtlError(f"{database.path}: {error}") from None


def stored(config: Config, client: known.Client) -> dict[str, Any] | None:
    """Give what the database has of a client, None if nothing. Raises CtlError."""
    with _database(config, "read rate limits") as database:
        record = database.get(client.name) if database.path.exists() else None
    return _as_of_now(record, config) if record else None


def _as_of_now(record: Record, config: Config) -> dict[str, Any]:
    """Do what the gateway does at the client's next use: personal quotas may be gone, the period over."""
    record.refresh(Limits.of(config), time.time())
    return described(record.facts(), config)


def described(facts: dict[str, Any], config: Config) -> dict[str, Any]:
    """Give a record's facts as they are now: of a period that is over nothing is left."""
    since, now = facts["since"], time.time()
    limits = facts["limits"]
    if not now - config.ratelimit_period < since <= now:
        since = now
        limits = {name: {**limit, "used": 0, "tries": 0} for name, limit in limits.items()}
    return {
        "client": facts["client"],
        "personal": facts["generation"] >= PERSONAL,
        "since": since,
        "until": since + config.ratelimit_period,
        "limits": limits,
    }


def show_record(found: dict[str, Any]) -> None:
    """Print a record for people."""
    whose = "quotas of its own" if found["personal"] else "the configured quotas"
    left = span(found["until"] - time.time())
    tell(f"{found['client']}: {whose}, counted since {moment(found['since'])}, anew in {left}")
    columns = ("LIMIT", "USED#", "QUOTA#", "TRIES#", "")
    show_table(table(columns, (_cells(name, each) for name, each in found["limits"].items())))


def _cells(name: str, limit: dict[str, int]) -> list[object]:
    spent = 0 < limit["quota"] <= limit["used"]
    return [name, limit["used"], limit["quota"] or "none", limit["tries"], "spent" if spent else ""]


@limits.command("show")
def limits_show(context: typer.Context, client: Client) -> None:
    """Show what a client may use in a period and has used."""
    config, who = _config(context), known.client(client)
    found = stored(config, who)
    if found is None:
        raise CtlError(_no_record(who))
    _show(context, found)


@limits.command("set")
def limits_set(
    context: typer.Context,
    client: Client,
    quotas: Annotated[
        list[str],
        typer.Argument(
            metavar="LIMIT=NUMBER..",
            help=f"Limits are {', '.join(use.word for use in Use)}; 0 sets none.",
        ),
    ],
) -> None:
    """Give a client quotas of its own, which stay until limits clear --quotas takes them away."""
    config, who = _config(context), known.client(client)
    wanted = dict(map(_quota, quotas))
    with _database(config, "change rate limits", create=True) as database:
        record = database.set_quotas(who.name, wanted, Limits.of(config))
    _show(context, _as_of_now(record, config))


@limits.command("clear")
def limits_clear(
    context: typer.Context,
    client: Client,
    quotas: Annotated[bool, typer.Option("--quotas", help="Take quotas of its own away, too.")] = False,
) -> None:
    """Forget what a client has used: its period begins anew."""
    config, who = _config(context), known.client(client)
    with _database(config, "change rate limits") as database:
        if not database.path.exists():
            raise CtlError(_no_record(who))
        record = database.clear(who.name)
        if quotas:
            record = database.drop_quotas(who.name)
    _show(context, _as_of_now(record, config))


def _quota(text: str) -> tuple[Use, int]:
    name, _, number = text.partition("=")
    use = next((use for use in Use if use.word == name), None)
    if use is None or not (number.isascii() and number.isdecimal() and len(number) < 16):
        names = ", ".join(use.word for use in Use)
        raise CtlError(f"{text!r} is no quota: write LIMIT=NUMBER, LIMIT one of {names}", Code.BAD_USAGE)
    kind = OPTIONS[f"ratelimit_{name}"].kind  # what is allowed to all is to one
    try:
        return use, kind.read(str(int(number)))
    except ValueError as error:
        raise CtlError(f"{name}: {error}; allowed is {kind.allowed}", Code.BAD_USAGE) from None


def _no_record(who: known.Client) -> str:
    return f"there is no record of {who.name}: it has used nothing lately, or under an ident"


def _config(context: typer.Context) -> Config:
    config = given(context).config()
    if config.ratelimit_period <= 0:
        where = given(context).config_path
        raise CtlError(f"ratelimit_period is not set in {where}: there are no rate limits; set it and reload")
    return config


def _show(context: typer.Context, found: dict[str, Any]) -> None:
    if given(context).as_json:
        print_json(found)
    else:
        show_record(found)
