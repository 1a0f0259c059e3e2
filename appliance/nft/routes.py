"""Policy routing: whatever carries the gateway's mark is delivered here, whoever it is addressed to.

Called by the installer. Works in the network namespace of the calling thread, through pyroute2. Ours is what
bears our number as routing protocol; nothing else is ever touched.
"""

import errno
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from appliance.config import Config
from appliance.nft.names import PROTOCOL
from appliance.nft.ruleset import versions

# Before whatever rules an administrator has, for those would lead a marked packet away.
_FIRST = 10
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_EVERYWHERE = {4: "0.0.0.0/0", 6: "::/0"}
_TO_TABLE, _GOTO, _NOTHING = 1, 2, 3  # what a rule does
_LOCAL = 2  # the type of a route
_HOST = 254  # the scope of local routes
_INVERTED = 2  # the flag of a rule with a not
_ALL_BITS = 0xFFFFFFFF
_IPV6_OFF = Path("/proc/sys/net/ipv6/conf/lo/disable_ipv6")
_OF_THE_SYSTEM = {253: "default", 254: "main", 255: "local"}


@dataclass(frozen=True, order=True)
class Entry:
    """A rule of policy routing, or the route it leads to if `priority` is 0; str() is as ip(8) says it."""

    version: int
    priority: int
    mark: int = 0
    from_router: bool = False
    table: int = 0
    target: int = 0

    def __str__(self) -> str:
        family = f"ip -{self.version}"
        if not self.priority:
            return f"{family} route: local default dev lo table {self.table} proto {PROTOCOL}"
        selector = f"fwmark {self.mark:#x} " * bool(self.mark) + "iif lo " * self.from_router
        does = f"lookup {self.table}" if self.table else f"goto {self.target}" if self.target else "nop"
        return f"{family} rule: {self.priority}: from all {selector}{does} proto {PROTOCOL}"


def wanted(config: Config, *, staying: bool = False) -> list[Entry]:
    """Give what a configuration needs, beside the rules of others; `staying`: where ours are already.

    What the router itself sends passes over the rule that matters: with the sysctl tcp_fwmark_accept its
    answers bear the mark and would never leave, and with src_valid_mark the kernel asks the rules where a
    marked packet may come from as if one were sent there.
    """
    if "tproxy" not in config.mode:
        return []
    mark, table, first = config.fwmark, config.route_table, _first(staying=staying)
    return sorted(
        entry
        for version in versions(config)
        for entry in (
            Entry(version, 0, table=table),
            Entry(version, first, mark, from_router=True, target=first + 2),
            Entry(version, first + 1, mark, table=table),
            Entry(version, first + 2),
        )
    )


def _first(*, staying: bool) -> int:
    """Give the priority where ours begin: before all others; below 4 there is no room left.

    A rule that is added without a priority gets the one before the first that there is, which is ours: so do
    ip(8) and wg-quick. `staying`: where they are, be that before all others or not.
    """
    if staying and (found := [entry.priority for entry in present() if entry.priority]):
        return min(found)
    with IPRoute() as netlink:
        rules = [rule for version in _FAMILIES for rule in _rules(netlink, version)]
    others = [rule.get_attr("FRA_PRIORITY") for rule in rules if not _is_ours(rule)]
    lowest = min(filter(None, others), default=_FIRST + 3)
    return min(_FIRST, lowest - 3) if lowest > 3 else _FIRST


def conflicts(config: Config) -> Iterator[str]:
    """Tell for what else the mark and the table are used, or that there is no IPv6; each with what to do."""
    if "tproxy" not in config.mode:
        return
    if config.route_table in _OF_THE_SYSTEM:
        name = _OF_THE_SYSTEM[config.route_table]
        yield f"route_table {config.route_table} is the system's table {name}; choose another"
        return
    if 6 in versions(config) and _has_no_ipv6():
        yield (
            f"bind_address {config.bind_address} serves IPv6, which is turned off here (sysctl "
            "net.ipv6.conf.lo.disable_ipv6); turn it on, or bind to an IPv4 address such as 0.0.0.0"
        )
        return
    with IPRoute() as netlink:
        for version in versions(config):
            for rule in _rules(netlink, version):
                mark, mask = rule.get_attr("FRA_FWMARK"), rule.get_attr("FRA_FWMASK") or _ALL_BITS
                where = f"ip -{version} rule {rule.get_attr('FRA_PRIORITY') or 0}"
                if _is_ours(rule) or rule["flags"] & _INVERTED:
                    continue
                if mark and config.fwmark & mask == mark:
                    yield f"fwmark {config.fwmark} is used by {where}; choose another, or remove that rule"
                elif _table(rule, "FRA_TABLE") == config.route_table:
                    yield f"route_table {config.route_table} is used by {where}; choose another"
            if any(route["proto"] != PROTOCOL for route in _routes(version, table=config.route_table)):
                yield f"route_table {config.route_table} has other routes of IPv{version}; choose another"


def _has_no_ipv6() -> bool:
    """Tell whether the loopback interface, where all our routes lead, has no IPv6."""
    return not _IPV6_OFF.exists() or _IPV6_OFF.read_text().strip() != "0"


def before_ours() -> Iterator[str]:
    """Tell which rules of others are asked before ours: of the same priority those that were there first."""
    with IPRoute() as netlink:
        for version in _FAMILIES:
            for rule in _rules(netlink, version):  # in the order in which they are asked
                priority, ours = rule.get_attr("FRA_PRIORITY") or 0, _is_ours(rule)
                if priority > _FIRST + 1 or (ours and rule["action"] == _TO_TABLE):
                    break
                if priority and not ours:
                    yield f"ip -{version} rule {priority}"


def present() -> list[Entry]:
    """Give our rules and routes that are there."""
    found = [
        Entry(version, 0, table=_table(route, "RTA_TABLE"))
        for version in _FAMILIES
        for route in _routes(version, proto=PROTOCOL)
        if route["type"] == _LOCAL
    ]
    with IPRoute() as netlink:
        for version in _FAMILIES:
            found += [_entry(version, rule) for rule in _rules(netlink, version) if _is_ours(rule)]
    return sorted(found)


def _entry(version: int, rule: Any) -> Entry:
    return Entry(
        version,
        rule.get_attr("FRA_PRIORITY") or 0,
        rule.get_attr("FRA_FWMARK") or 0,
        rule.get_attr("FRA_IIFNAME") == "lo",
        _table(rule, "FRA_TABLE") if rule["action"] == _TO_TABLE else 0,
        rule.get_attr("FRA_GOTO") or 0,
    )


def add(entry: Entry) -> None:
    """Add a rule or route. Raises OSError."""
    _do("add", entry)


def remove(entry: Entry) -> None:
    """Remove a rule or route of ours; nothing happens if it is gone. Raises OSError."""
    try:
        _do("del", entry)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESRCH):
            raise


def _do(what: str, entry: Entry) -> None:
    family = _FAMILIES[entry.version]
    try:
        with IPRoute() as netlink:
            if entry.priority:
                action = _TO_TABLE if entry.table else _GOTO if entry.target else _NOTHING
                selector: dict[str, Any] = {"fwmark": entry.mark, "fwmask": _ALL_BITS} if entry.mark else {}
                if entry.from_router:
                    selector["iifname"] = "lo"
                if entry.table:
                    selector["table"] = entry.table
                if entry.target:
                    selector["goto"] = entry.target
                netlink.rule(
                    what, family=family, priority=entry.priority, action=action, protocol=PROTOCOL, **selector
                )
                return
            netlink.route(
                what,
                family=family,
                type="local",
                dst=_EVERYWHERE[entry.version],
                table=entry.table,
                scope=_HOST,
                proto=PROTOCOL,
                oif=socket.if_nametoindex("lo"),
            )
    except NetlinkError as error:
        raise OSError(error.code, f"{error.args[1]}: {what} {entry}") from None


def _rules(netlink: Any, version: int) -> list[Any]:
    return list(netlink.get_rules(family=_FAMILIES[version]))


def _routes(version: int, **chosen: int) -> list[Any]:
    """Give the routes of a table or a protocol. The kernel chooses them: it may have a million."""
    with IPRoute(strict_check=True) as netlink:
        return list(netlink.route("dump", family=_FAMILIES[version], dump_filter={}, **chosen))


def _is_ours(rule: Any) -> bool:
    return bool(rule.get_attr("FRA_PROTOCOL") == PROTOCOL)


def _table(message: Any, attribute: str) -> int:
    return int(message.get_attr(attribute) or message["table"])
