"""The kernel through libnftables: one transaction, a listing, and a place to try rules in.

Called by the installer. Works in the network namespace of the calling thread. Nothing here knows the
configuration, nor what the rules are for.
"""

import ctypes
import os
from collections.abc import Callable, Sequence
from threading import Thread
from typing import TypeVar

from appliance.nft.expression import Json
from appliance.nft.names import LIVELY, TABLE

_CLONE_NEWNET = 0x40000000
_TELLING = ("inet_service", "ifname", "inet_proto")  # what sets of others' rules may say of our connections
T = TypeVar("T")


class KernelError(Exception):
    """The kernel or libnftables refused; the text says what, and what to do where that is known."""


class Unreadable(KernelError):
    """What is to be listed cannot be."""


def transact(commands: Sequence[Json]) -> list[Json]:
    """Execute commands, all or none of them; give what they list. Raises KernelError, and so Unreadable."""
    return _execute(commands, terse=False)


def ruleset() -> list[Json]:
    """List all tables of this namespace, of sets only elements that matter. Raises KernelError."""
    return _with_elements(_execute([{"list": {"ruleset": None}}], terse=True))


def table(family: str, name: str) -> list[Json]:
    """List one table like that; nothing if it is not there. Raises KernelError."""
    try:
        listed = _execute([{"list": {"table": {"family": family, "name": name}}}], terse=True)
    except Unreadable as error:
        raise Unreadable(f"{error}; without them it can: nft add table {family} {name}") from None
    except KernelError as error:
        if "No such file" in str(error):
            return []
        raise
    return _with_elements(listed)


def _with_elements(listing: list[Json]) -> list[Json]:
    """Fetch elements set by set: to list 50,000 locks takes seconds, and nobody here asks for them."""
    for entry in listing:
        about = entry.get("set")
        if about and (_is_planned(about) or about["type"] in _TELLING):
            listed = transact([{"list": {"set": {key: about[key] for key in ("family", "table", "name")}}}])
            about |= listed[0]["set"]
    return listing


def _is_planned(about: Json) -> bool:
    return about["table"] == TABLE and about["name"] not in LIVELY


def _execute(commands: Sequence[Json], *, terse: bool) -> list[Json]:
    try:
        from nftables import Nftables  # a package of the system, which may lack it
    except ImportError:
        raise KernelError("the nftables library is missing; install the package python3-nftables") from None
    nft = Nftables()
    nft.set_json_output(True)
    nft.set_terse_output(terse)
    try:
        status, output, error = nft.json_cmd({"nftables": list(commands)})
    except ValueError:  # libnftables up to 1.0.6 breaks off at a table that has flags
        raise Unreadable("libnftables cannot list a table that has flags, such as owner") from None
    if status:
        lines = (" ".join(line.split()) for line in error.splitlines())
        told = dict.fromkeys(line.removeprefix("internal:0:0-0: Error: ") for line in lines if line)
        raise KernelError("; ".join(told)[:400])
    return list((output or {}).get("nftables", []))[1:]  # the first names libnftables


def elsewhere(work: Callable[[], T]) -> T:
    """Call `work` in a new network namespace that ends with it; give its result or raise what it raised.

    A namespace belongs to a thread; this one stays where it is. Raises KernelError if the kernel refuses.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def leave_and_work() -> None:
        try:
            if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
                reason = os.strerror(ctypes.get_errno())
                raise KernelError(
                    f"no network namespace to try the rules in: {reason}; CAP_SYS_ADMIN is needed"
                )
            results.append(work())
        except BaseException as error:  # raised again in the caller's thread
            errors.append(error)

    thread = Thread(target=leave_and_work, name="elsewhere")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def as_kernel_tells(commands: Sequence[Json]) -> list[Json]:
    """Give commands that make tables in the words in which the kernel would list them.

    They are executed in a namespace of their own, so that this shows whether it can do all that, too. Raises
    KernelError.
    """

    def try_it() -> list[Json]:
        transact(commands)
        return ruleset()

    return elsewhere(try_it)
