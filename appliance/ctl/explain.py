"""The command explain: all that is known of one client, and what would happen to its next connection.

The way of a connection is followed from the kernel's rules to the gateway's admission; the first that stops
it decides. What the gateway would say comes from the worker that the client belongs to.
"""

from typing import Any

import typer

from appliance.config import Config
from appliance.ctl import known
from appliance.ctl.ask import ask
from appliance.ctl.base import Code, Context, CtlError, given, print_json, tell_of
from appliance.ctl.limits import described, show_record, stored
from appliance.ctl.locking import Client
from appliance.ctl.neighbours import neighbours
from appliance.ctl.times import end, moment
from appliance.nft.ruleset import intercepts
from appliance.proxy.quota import Use
from appliance.supervisor.requests import TALLIES
from appliance.supervisor.status import COLUMNS

commands = typer.Typer()


@commands.command()
def explain(context: typer.Context, client: Client) -> None:
    """Tell everything known of a client, and what would happen to its next connection, and why."""
    found = _facts(given(context), known.client(client))
    if given(context).as_json:
        print_json(found)
    else:
        _show(found)


def _facts(context: Context, client: known.Client) -> dict[str, Any]:
    config, address = context.config(), str(client.address)
    facts: dict[str, Any] = {
        "client": client.name,
        "trusted": known.trusted(config, client.address),
        "from": neighbours().get(address),
        "locks": _locks(config, address),
        **_kernel(address),
        "gate": _gate(config, client),
        **_gateway(context, client),
    }
    facts |= _limits(config, client, facts["gateway"])
    outcome, why = _next(config, client, facts)
    return {**facts, "next": {"outcome": outcome, "why": why}}


def _locks(config: Config, address: str) -> list[dict[str, object]] | str:
    try:
        return [lock._asdict() for lock in known.locks(config, address)]
    except CtlError as error:
        return str(error)


def _kernel(address: str) -> dict[str, object]:
    kernel = known.kernel_locks()
    if isinstance(kernel, str):
        return {"kernel_why_not": kernel, "kernel": None}
    element = kernel.get(address)
    if element is None:
        return {"kernel_why_not": None, "kernel": None}
    locked = {"left": element.remaining, "tried": element.packets, "why": element.comment}
    return {"kernel_why_not": None, "kernel": locked}


def _gate(config: Config, client: known.Client) -> dict[str, object] | None:
    counted = known.gate_client(config, client.address)
    if counted is None:
        return None
    return {
        "syns": counted.syns,
        "dropped": counted.dropped,
        "servers": counted.servers,
        "seen": counted.seen,
    }


def _limits(config: Config, client: known.Client, gateway: dict[str, Any] | None) -> dict[str, object]:
    """Take what the worker has in memory, or else what is on disk, half a second late."""
    if config.ratelimit_period <= 0:
        return {"limits": None, "limits_why_not": "ratelimit_period is not set"}
    fresh = gateway.pop("limits", None) if gateway else None
    if fresh and not client.ident:
        return {"limits": described(fresh, config), "limits_why_not": None}
    try:
        found = stored(config, client)
    except CtlError as error:
        return {"limits": None, "limits_why_not": str(error)}
    return {"limits": found, "limits_why_not": None if found else "nothing is used"}


def _gateway(context: Context, client: known.Client) -> dict[str, object]:
    try:
        told = ask(context, "client", address=str(client.address))
    except CtlError as error:
        return {"gateway": None, "gateway_why_not": str(error), "gateway_down": error.code is Code.DOWN}
    told["tally"] = dict(zip(TALLIES, told["tally"], strict=False))
    told["sessions"] = [dict(zip(COLUMNS[2:], row[1:], strict=False)) for row in told["sessions"]]
    return {"gateway": told, "gateway_why_not": None, "gateway_down": False}


def _next(config: Config, client: known.Client, facts: dict[str, Any]) -> tuple[str, str]:
    """Say what would happen to the next connection; the order is that of its way."""
    intercepted = intercepts(config)
    if intercepted and facts["trusted"]:
        return "passes by", f"it is in trusted_clients ({facts['trusted']}): nothing looks at its mail"
    if known.led_past(config, facts["kernel_why_not"]):
        return "passes by", facts["kernel_why_not"]
    if locked := facts["kernel"]:
        if not config.lock_talk:
            return "dropped", f"the kernel drops it: {locked['why']}"
        talk = (
            f"the kernel lets {config.lock_talk} connections a minute through (lock_talk) and drops the rest"
        )
        return "refused", f"lock: {locked['why']}; {talk}; {_hears(config, config.msg_virus_locked)}"
    gateway = facts["gateway"]
    if gateway is None or gateway["ending"]:
        return _without_gateway(config, intercepted, facts)
    if refusal := gateway["refusal"]:
        name, why, text = (str(part) for part in refusal)
        return "refused", f"{name}: {why}; {_hears(config, text)}"
    if limits := facts["limits"]:
        spent = limits["limits"][Use.CONNECTIONS.word]
        if 0 < spent["quota"] <= spent["used"]:
            why = f"{spent['used']} of {spent['quota']} are used until {moment(limits['until'])}"
            return "refused", f"ratelimit_connections: {why}; {_hears(config, config.msg_rate_reject)}"
    locks = facts["locks"] if isinstance(facts["locks"], list) else []
    if client.ident and any(not lock["exempt"] for lock in locks if lock["name"] == client.name):
        return "refused", f"a lock on this ident; {_hears(config, config.msg_virus_locked)}"
    asked = config.dnsbl and "dnsbl" not in config.auth_skip
    but = ", unless a list of dnsbl has it" if asked else ""
    return "accepted", f"nothing is against it{but}; what it sends is inspected"


def _hears(config: Config, text: str) -> str:
    return f"it hears: 554 {config.proxy_name} {' '.join(text.splitlines())}"


def _without_gateway(config: Config, intercepted: bool, facts: dict[str, Any]) -> tuple[str, str]:
    if not facts["gateway"] and not facts["gateway_down"]:
        return "unknown", "nothing before the gateway is against it, and the gateway cannot be asked"
    ending = "the gateway is draining" if facts["gateway"] else "no gateway runs"
    if not intercepted:
        return "refused", f"{ending}, and nothing else listens at port {config.port}"
    if config.on_failure == "open":
        return "passes by", f"{ending}, and on_failure is open: nothing looks at its mail"
    return "refused", f"{ending}, and on_failure is closed"


def _show(facts: dict[str, Any]) -> None:
    tell_of("client", f"{facts['client']}{' at ' + facts['from'] if facts['from'] else ''}")
    tell_of("trusted", f"yes: {facts['trusted']} in trusted_clients" if facts["trusted"] else "no")
    if isinstance(facts["locks"], str):
        tell_of("lock", f"unknown: {facts['locks']}")
    for lock in facts["locks"] if isinstance(facts["locks"], list) else ():
        kind = "exempt from locks" if lock["exempt"] else f"locked {end(lock['until'])}"
        why = lock["why"] or "no cause given"
        tell_of("lock", f"{lock['name']} is {kind}, since {moment(lock['since'])}: {why}")
    if not facts["locks"]:
        tell_of("lock", "none")
    if facts["kernel"]:
        tell_of(
            "kernel",
            f"drops it; {facts['kernel']['tried']} connections tried so far: {facts['kernel']['why']}",
        )
    else:
        why = facts["kernel_why_not"]
        tell_of("kernel", f"unknown: {why}" if why else "does not drop it")
    if gate := facts["gate"]:
        tried = f"{gate['syns']} connections tried, {gate['dropped']} of them dropped"
        tell_of("gate", f"{tried}, about {gate['servers']} mail servers lately; seen {moment(gate['seen'])}")
    _show_gateway(facts)
    if facts["limits"]:
        tell_of("limits", "this many of these may be used in a period:")
        show_record(facts["limits"])
    else:
        tell_of("limits", facts["limits_why_not"])
    tell_of("next", f"{facts['next']['outcome'].upper()}: {facts['next']['why']}")


def _show_gateway(facts: dict[str, Any]) -> None:
    gateway = facts["gateway"]
    if not gateway:
        tell_of("gateway", facts["gateway_why_not"])
        return
    tell_of("worker", f"{gateway['worker']}, process {gateway['pid']}")
    tally = ", ".join(f"{number} {name}" for name, number in gateway["tally"].items())
    tell_of("lately", f"{tally} (in the last one to two hours)")
    tell_of("sessions", f"{gateway['open']} open")
    for each in gateway["sessions"]:
        tell_of("", f"{each['source']} to {each['target']}: {each['state']}, {each['trns']} mails so far")
