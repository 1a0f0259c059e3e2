"""A table as the kernel lists it, without what changes by itself, and the commands that make one of another.

Called by the installer. Pure: works on nftables JSON, and asks nobody.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Self

from appliance.nft.expression import Json
from appliance.nft.names import FAMILY, LIVELY, TABLE

_IDENTITY = ("family", "table", "name")
_VOLATILE = ("handle", "packets", "bytes", "index")
Key = tuple[str, str]


@dataclass(frozen=True)
class Table:
    """The gateway's table. `objects` are sets and others by kind and name, `rules` those of each chain.

    `flagged`: it has flags, ours never does; nothing in a dormant one counts.
    """

    objects: dict[Key, Json] = field(default_factory=dict)
    chains: dict[str, Json] = field(default_factory=dict)
    rules: dict[str, list[Json]] = field(default_factory=dict)
    flagged: bool = False

    @classmethod
    def find(cls, listing: Iterable[Json]) -> Self | None:
        """Pick the gateway's table from a listing of all tables; None if it is not there."""
        found = flagged = False
        table = cls()
        for entry in listing:
            ((kind, about),) = entry.items()
            if about.get("family") != FAMILY or TABLE not in (about.get("table"), about.get("name")):
                continue
            if kind == "table":
                found, flagged = True, "flags" in about
            elif about["table"] != TABLE:
                continue
            elif kind == "rule":
                table.rules.setdefault(about["chain"], []).append(_lasting(about))
            elif kind == "chain":
                table.chains[about["name"]] = _lasting(about)
            else:
                table.objects[kind, about["name"]] = _lasting(about)
        return replace(table, flagged=flagged) if found else None

    def elements(self, key: Key) -> list[Any]:
        """Give the elements of a set."""
        elements: list[Any] = self.objects[key].get("elem", [])
        return elements


def _lasting(about: Json) -> Json:
    lasting = {key: value for key, value in about.items() if key not in _VOLATILE}
    if about.get("name") in LIVELY:
        lasting.pop("elem", None)
    elif "elem" in lasting:  # the kernel tells them in no order
        lasting["elem"] = sorted(lasting["elem"], key=json.dumps)
    return lasting


def steps(present: Table | None, wanted: Table | None) -> list[Json]:
    """Give the transaction that turns the present table into the wanted one; None stands for no table.

    Sets and counters that stay as they are keep what is in them.
    """
    table = {"family": FAMILY, "name": TABLE}
    if wanted is None:
        return [{"delete": {"table": table}}] if present else []
    if present is None:
        return [{"add": {"table": table}}, *steps(Table(), wanted)]
    gone = [key for key, about in present.objects.items() if not _same_kind(about, wanted.objects.get(key))]
    new = [key for key, about in wanted.objects.items() if not _same_kind(about, present.objects.get(key))]
    unhooked = [name for name, about in present.chains.items() if about != wanted.chains.get(name)]
    hooked = [name for name, about in wanted.chains.items() if about != present.chains.get(name)]
    again = bool(gone or new or unhooked or hooked or present.rules != wanted.rules)
    return [
        *([{"add": {"table": table}}] if present.flagged and not wanted.flagged else ()),
        *({"flush": {"chain": _identity(about)}} for about in present.chains.values() if again),
        *({"delete": {"chain": _identity(present.chains[name])}} for name in unhooked),
        *({"delete": {kind: _identity(present.objects[kind, name])}} for kind, name in gone),
        *({"add": {kind: wanted.objects[kind, name]}} for kind, name in new),
        *_other_elements(present, wanted, new),
        *({"add": {"chain": wanted.chains[name]}} for name in hooked),
        *({"add": {"rule": rule}} for rules in wanted.rules.values() for rule in rules if again),
    ]


def _other_elements(present: Table, wanted: Table, new: list[Key]) -> Iterator[Json]:
    """Change no element that stays: while it is replaced, some kernels' lookups may miss it."""
    for key, about in wanted.objects.items():
        if key in new:
            continue
        there, needed = present.elements(key), wanted.elements(key)
        for verb, elements in (("delete", _without(there, needed)), ("add", _without(needed, there))):
            if elements:
                yield {verb: {"element": _identity(about) | {"elem": elements}}}


def _without(elements: list[Any], others: list[Any]) -> list[Any]:
    known = set(map(json.dumps, others))
    return [each for each in elements if json.dumps(each) not in known]


def _same_kind(about: Json, other: Json | None) -> bool:
    return other is not None and {**about, "elem": 0} == {**other, "elem": 0}


def _identity(about: Json) -> Json:
    return {key: about[key] for key in _IDENTITY}
