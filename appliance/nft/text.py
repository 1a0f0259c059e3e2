"""Makes nftables JSON readable: rules, sets and chains in the words of nft(8), and what differs in two.

Called by the installer for people to read; never is a text made here given to the kernel. What is not known
here, such as somebody else's rule, is shown as JSON. Pure.
"""

import difflib
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from appliance.nft.expression import Json
from appliance.nft.names import FAMILY, TABLE
from appliance.nft.table import Table

_PRIORITIES = {-300: "raw", -150: "mangle", -100: "dstnat", 0: "filter", 100: "srcnat"}
_SECONDS = {86400: "d", 3600: "h", 60: "m", 1: "s"}
_SHORT = 12  # as many elements stand in a line
_ONE_WORD = ("accept", "drop", "return", "continue", "masquerade", "redirect", "counter", "notrack")


def lines(table: Table | None, like: Table | None = None) -> list[str]:
    """Give the table line by line, much as `nft list table` would; nothing if there is none.

    What another table has, too, comes in the order it has there.
    """
    if table is None:
        return []
    body: list[str] = ["flags .."] if table.flagged else []  # not every library tells which
    order = like or table
    for kind, name in sorted(table.objects, key=_place_in(order.objects)):
        properties = _properties(kind, table.objects[kind, name])
        body += [f"{kind} {name} {{", *("    " + line for line in properties), "}"]
    for name in sorted(table.chains, key=_place_in(order.chains)):
        about = table.chains[name]
        rules = [*_hook(about), *(rule(each) for each in table.rules.get(name, []))]
        body += [f"chain {name} {{", *("    " + line for line in rules), "}"]
    return [f"table {FAMILY} {TABLE} {{", *("    " + line for line in body), "}"]


def _place_in(order: Iterable[Any]) -> Callable[[Any], int]:
    places = {key: place for place, key in enumerate(order)}
    return lambda key: places.get(key, len(places))


def difference(before: list[str], after: list[str]) -> list[str]:
    """Give what goes (-) and what comes (+), with the lines around; nothing if both are the same."""
    return [line.rstrip() for line in difflib.unified_diff(before, after, "now", "then", lineterm="", n=2)]


def rule(about: Json) -> str:
    """Give a rule in one line, its comment at the end."""
    words = " ".join(statement(each) for each in about["expr"])
    return words + (f" comment {json.dumps(about['comment'])}" if about.get("comment") else "")


def _properties(kind: str, about: Json) -> Iterator[str]:
    if kind == "set":
        kinds = about["type"]
        yield "type " + (" . ".join(kinds) if isinstance(kinds, list) else str(kinds))
        if about.get("size"):
            yield f"size {about['size']}"
        if about.get("flags"):
            yield "flags " + ",".join(about["flags"])
        if about.get("timeout"):
            yield "timeout " + _duration(about["timeout"])
        yield from (statement(each) for each in about.get("stmt", []))
        elements = [value(each) for each in about.get("elem", [])]
        for start in range(0, len(elements), _SHORT):
            yield "elements " + ", ".join(elements[start : start + _SHORT])
    elif kind != "counter":
        yield json.dumps(about)
    if about.get("comment"):
        yield f"comment {json.dumps(about['comment'])}"


def _hook(about: Json) -> Iterator[str]:
    if "hook" in about:
        priority = _PRIORITIES.get(about["prio"], about["prio"])
        policy = about.get("policy", "accept")
        yield f"type {about['type']} hook {about['hook']} priority {priority}; policy {policy};"


def _duration(seconds: int) -> str:
    for unit, letter in _SECONDS.items():
        if seconds % unit == 0:
            return f"{seconds // unit}{letter}"
    return f"{seconds}s"


def statement(about: Json) -> str:
    """Give one statement or condition of a rule."""
    ((kind, detail),) = about.items()
    if kind in _ONE_WORD and not detail:
        return kind
    write = _STATEMENTS.get(kind)
    try:
        return write(detail) if write else json.dumps(about)
    except (KeyError, TypeError, ValueError):  # a form that rules of the gateway do not have
        return json.dumps(about)


def value(about: Any) -> str:
    """Give what a condition compares: a fact about the packet, a constant, or several."""
    if isinstance(about, list):
        return "{ " + ", ".join(map(value, about)) + " }"
    if not isinstance(about, dict):
        return str(about)
    ((kind, detail),) = about.items()
    write = _VALUES.get(kind)
    try:
        return write(detail) if write else json.dumps(about)
    except (KeyError, TypeError, ValueError):
        return json.dumps(about)


def _match(detail: Json) -> str:
    left, right, op = detail["left"], detail["right"], detail["op"]
    negation = "!= " if op == "!=" else "" if op in ("==", "in") else f"{op} "
    if "&" in left:  # nft writes these bits of those
        of, bits = left["&"]
        bits = bits["|"] if isinstance(bits, dict) else bits
        return f"{value(of)} {negation}{value(right)} / {','.join(bits)}"
    return f"{value(left)} {negation}{value(right)}"


def _update(detail: Json) -> str:
    inside = " ".join([value(detail["elem"]), *(statement(each) for each in detail.get("stmt", []))])
    return f"{detail['op']} {detail['set']} {{ {inside} }}"


def _limit(detail: Json) -> str:
    over = "over " if detail.get("inv") else ""
    return f"limit rate {over}{detail['rate']}/{detail['per']} burst {detail['burst']} packets"


def _target(verb: str) -> Any:
    def write(detail: Json) -> str:
        family = [detail["family"]] if "family" in detail else []
        address = str(detail.get("addr", ""))
        address = f"[{address}]" if ":" in address else address
        port = f":{detail['port']}" if "port" in detail else ""
        return " ".join([verb, *family, "to", address + port])

    return write


_STATEMENTS: dict[str, Any] = {
    "match": _match,
    "set": _update,
    "limit": _limit,
    "tproxy": _target("tproxy"),
    "redirect": _target("redirect"),
    "dnat": _target("dnat"),
    "mangle": lambda detail: f"{value(detail['key'])} set {value(detail['value'])}",
    "counter": lambda detail: f'counter name "{detail}"' if isinstance(detail, str) else "counter",
    "goto": lambda detail: f"goto {detail['target']}",
    "jump": lambda detail: f"jump {detail['target']}",
    "reject": lambda detail: f"reject with {detail['type']}" if detail else "reject",
    "xt": lambda detail: f"xt {detail['type']} {detail['name']}",
}
_VALUES: dict[str, Any] = {
    "payload": lambda detail: f"{detail['protocol']} {detail['field']}",
    "meta": lambda detail: ("" if detail["key"] in ("iifname", "oifname") else "meta ") + detail["key"],
    "ct": lambda detail: f"ct {detail['key']}",
    "fib": lambda detail: f"fib {' . '.join(detail['flags'])} {detail['result']}",
    "socket": lambda detail: f"socket {detail['key']}",
    "concat": lambda detail: " . ".join(map(value, detail)),
    "set": value,
    "prefix": lambda detail: f"{detail['addr']}/{detail['len']}",
    "range": lambda detail: "-".join(map(value, detail)),
}
