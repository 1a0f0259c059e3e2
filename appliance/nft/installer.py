"""Makes the kernel agree with a configuration, undoes that, and tells where they differ.

Called by `appliance.ctl`. Works in the network namespace of the calling thread. The table changes in one
transaction, so that at no moment a connection is missed; whatever fails, all is as before.
"""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from pyroute2 import IPRoute

from appliance.config import Config
from appliance.nft import foreign, kernel, names, routes, ruleset, sysctls, text
from appliance.nft.expression import Json
from appliance.nft.kernel import KernelError
from appliance.nft.routes import Entry
from appliance.nft.state import DIRECTORY, State
from appliance.nft.table import Table, steps

_LEGACY = (Path("/proc/net/ip_tables_names"), Path("/proc/net/ip6_tables_names"))


class Refused(Exception):
    """The configuration cannot work here; `reasons` say why, and what to do."""

    def __init__(self, reasons: list[str]) -> None:
        super().__init__("\n".join(reasons))
        self.reasons = reasons


@dataclass(frozen=True)
class Plan:
    """What would change: the difference as a person reads it, and the steps."""

    difference: list[str]
    warnings: list[str]
    before: Table | None
    after: Table | None
    add: list[Entry] = field(default_factory=list)
    remove: list[Entry] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Whether the kernel is as it should be already."""
        return not (self.commands or self.add or self.remove)

    @property
    def commands(self) -> list[Json]:
        """The one transaction that changes the table."""
        return steps(self.before, self.after)

    @property
    def commands_back(self) -> list[Json]:
        """The transaction that undoes it."""
        return steps(self.after, self.before)


class Installer:
    """The kernel's rules for one configuration, in the network namespace of whoever calls the methods.

    `early` lets interfaces be missing that will be there later, as when a machine starts. They may be when
    rules come back that a firewall's reload has flushed, too.
    """

    def __init__(self, config: Config, *, early: bool = False, directory: Path = DIRECTORY) -> None:
        self._config, self._early, self._directory = config, early, directory
        self._blind = ""

    def plan(self) -> Plan:
        """Tell what `up` would change. Raises Refused, KernelError, OSError."""
        listing = self._list()
        reasons = [*self._refusals(listing)]
        if reasons:
            raise Refused(reasons)
        wanted = Table.find(self._as_kernel_tells())
        return self._plan(listing, wanted, routes.wanted(self._config))

    def up(self) -> Plan:
        """Install the rules; give what was changed.

        Raises Refused, KernelError, OSError; all is as before then.
        """
        state = State(self._directory)
        with state.alone():
            plan = self.plan()
            known = state.read()
            if not plan.empty or not known:
                self._apply(plan, state, known or sysctls.found(self._config))
        return plan

    def down(self) -> Plan:
        """Remove everything of ours; give what was removed.

        Raises KernelError, OSError; all is as before then.
        """
        state = State(self._directory)
        with state.alone():
            plan = self._plan(self._list(), None, [])
            self._apply(plan, state, None)
        return plan

    def check(self) -> list[str]:
        """Tell in which ways the kernel differs from the plan; nothing if all is well.

        Raises Refused, KernelError, OSError.
        """
        listing = self._list()
        present, wanted = Table.find(listing), Table.find(self._as_kernel_tells())
        found = [*self._refusals(listing)]
        found += _table_drift(present, wanted)
        there, needed = routes.present(), routes.wanted(self._config, staying=True)
        found += [f"missing: {entry}" for entry in needed if entry not in there]
        found += [f"left over: {entry}" for entry in there if entry not in needed]
        found += [f"asked before ours: {rule}" for rule in routes.before_ours() if needed]
        found += self._hindered(listing)
        return found + sysctls.drift(State(self._directory).read(), sysctls.found(self._config))

    def _plan(self, listing: list[Json], after: Table | None, wanted: list[Entry]) -> Plan:
        before, present = Table.find(listing), routes.present()
        difference = text.difference(
            [*text.lines(before, after), *map(str, present)], [*text.lines(after), *map(str, wanted)]
        )
        return Plan(
            difference,
            [*self._warnings(listing)] if after else [],
            before,
            after,
            [entry for entry in wanted if entry not in present],
            [entry for entry in present if entry not in wanted],
        )

    def _apply(self, plan: Plan, state: State, found: dict[str, str] | None) -> None:
        """Do the steps in the order in which no packet is misled; when one fails, undo those before."""
        known = state.read()
        with ExitStack() as undo:
            if found != known:  # what is there already needs no room on a disk that may be full
                undo.callback(state.write if known else lambda _: state.remove(), known)
                state.write(found) if found is not None else state.remove()
            for entry in plan.add:
                undo.callback(routes.remove, entry)
                routes.add(entry)
            if plan.commands:
                kernel.transact(plan.commands)
                undo.callback(kernel.transact, plan.commands_back)
            for entry in plan.remove:
                routes.remove(entry)
                undo.callback(routes.add, entry)
            undo.pop_all()

    def _list(self) -> list[Json]:
        """List all tables or, where the library cannot, the gateway's own."""
        try:
            return kernel.ruleset()
        except kernel.Unreadable as error:
            self._blind = str(error)
            return kernel.table(names.FAMILY, names.TABLE)

    def _as_kernel_tells(self) -> list[Json]:
        commands = ruleset.build(self._config)
        try:
            return kernel.as_kernel_tells(commands)
        except KernelError as error:
            raise Refused([f"mode {self._config.mode}: {error}{_culprit(commands)}"]) from None

    def _refusals(self, listing: list[Json]) -> Iterator[str]:
        config = self._config
        if ruleset.intercepts(config) and not config.lan_interfaces:
            yield f"lan_interfaces is not set, and mode {config.mode} takes connections that arrive there"
        if "netfilter" in config.mode and config.bind_address.is_loopback:
            yield f"bind_address {config.bind_address} cannot be reached by redirection; use 0.0.0.0 or ::"
        there = {name for _, name in socket.if_nameindex()}
        for name in config.lan_interfaces if not (self._early or self._flushed(listing)) else ():
            if name not in there:
                yield f"lan_interfaces: there is no interface {name} here"
        if not ruleset.intercepts(config):
            return
        for taker in self._takers(listing):
            if taker.steals:
                yield f"mail is taken by {taker}; remove that rule, or change intercept_ports"
        if "tproxy" in config.mode:
            yield from routes.conflicts(config)
            yield from sysctls.conflicts(config)
            for rule in foreign.marks(listing, config.fwmark):
                yield f"fwmark {config.fwmark} is set by {rule}; choose another"

    def _flushed(self, listing: list[Json]) -> bool:
        """Tell whether the rules were up and somebody has flushed them, with an interface away or not."""
        return Table.find(listing) is None and bool(State(self._directory).read())

    def _takers(self, listing: list[Json]) -> list[foreign.Taker]:
        if not ruleset.intercepts(self._config):
            return []
        with IPRoute() as netlink:
            own = frozenset(str(address.get_attr("IFA_ADDRESS")) for address in netlink.get_addr())
        return foreign.takers(listing, self._config, own)

    def _hindered(self, listing: list[Json]) -> list[str]:
        """Tell what the administrator has to change lest mail does not come to the gateway."""
        takers = self._takers(listing)
        stopped = [f"stops mail before it comes here: {taker}" for taker in takers if not taker.steals]
        return [*stopped, *sysctls.of_vrfs(self._config)]

    def _warnings(self, listing: list[Json]) -> Iterator[str]:
        config = self._config
        if not ruleset.intercepts(config):
            return
        for version in {4, 6}.difference(ruleset.versions(config)):
            fate = "passes by uninspected" if config.on_failure == "open" else "is refused"
            yield f"bind_address {config.bind_address} takes no IPv{version}: such mail {fate}; use ::"
        yield from sysctls.warnings(sysctls.found(config))
        yield from self._hindered(listing)
        if self._blind:
            yield f"other tables are not looked at: {self._blind}"
        for path in _LEGACY:
            if path.exists() and path.read_text().strip():
                yield f"there are rules of iptables-legacy ({path}), which cannot be looked at from here"


def _culprit(commands: list[Json]) -> str:
    """Find the rule that the kernel does not know how to execute."""
    frame = [each for each in commands if "rule" not in each["add"]]
    for each in commands:
        if "rule" in each["add"]:
            try:
                kernel.as_kernel_tells([*frame, each])
            except KernelError:
                return f": {text.rule(each['add']['rule'])}; see docs/kernel.md for the modules this needs"
    return ""


def _table_drift(present: Table | None, wanted: Table | None) -> Iterator[str]:
    """Name what differs, one line for each thing."""
    assert wanted is not None
    if present is None:
        yield f"missing: table {names.FAMILY} {names.TABLE}"
        return
    if present.flagged:
        yield f"changed: table {names.FAMILY} {names.TABLE} has flags; while dormant it does nothing"
    for (kind, name), about in wanted.objects.items():
        there = present.objects.get((kind, name))
        if there is None:
            yield f"missing: {kind} {name}"
        elif there != about:
            lacking = [
                text.value(each) for each in about.get("elem", []) if each not in there.get("elem", [])
            ]
            surplus = [
                text.value(each) for each in there.get("elem", []) if each not in about.get("elem", [])
            ]
            yield f"changed: {kind} {name}" + _listed(" lacks ", lacking) + _listed(" has besides ", surplus)
    yield from (
        f"not ours: {kind} {name}" for kind, name in present.objects if (kind, name) not in wanted.objects
    )
    for name, about in wanted.chains.items():
        if name not in present.chains:
            yield f"missing: chain {name}"
        elif present.chains[name] != about:
            yield f"changed: chain {name}"
        else:
            yield from _rule_drift(name, present.rules.get(name, []), wanted.rules.get(name, []))
    yield from (f"not ours: chain {name}" for name in present.chains if name not in wanted.chains)


def _rule_drift(chain: str, present: list[Json], wanted: list[Json]) -> Iterator[str]:
    missing = [each for each in wanted if each not in present]
    surplus = [each for each in present if each not in wanted]
    yield from (f"missing in chain {chain}: {text.rule(each)}" for each in missing)
    yield from (f"not ours in chain {chain}: {text.rule(each)}" for each in surplus)
    if not missing and not surplus and present != wanted:
        yield f"changed: the order of rules in chain {chain}"


def _listed(word: str, elements: list[str]) -> str:
    return word + ", ".join(elements) if elements else ""
