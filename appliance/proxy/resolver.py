"""Questions to the DNS, with a memory: what the checks ask while a client waits.

`Service` makes one `Resolver` for each configuration. Answers are kept as long as their TTL allows, within
bounds; who asks for what is being asked for already joins in. What an answer means is the checks' business.
"""

import asyncio
import copy
import io
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import dns.asyncbackend
import dns.asyncresolver
import dns.exception
import dns.inet
import dns.message
import dns.name
import dns.nameserver
import dns.rdata
import dns.resolver
import dns.ttl

from appliance.config import SocketAddress

CONCURRENT = 256  # questions under way at once, with a socket each; more wait for their turn
WAITING = 4096  # questions under way and waiting; more fail at once
KEPT = 8192  # answers kept
KEPT_SIZE = 2048  # bytes of an answer; larger ones are not kept
POSITIVE_TTL, NEGATIVE_TTL = 86400, 3600  # seconds for which an answer is kept at most
RECORDS = 128  # records of an answer that are looked at
_EDNS_SIZE = 1232  # bytes that pass unfragmented everywhere
_RESOLV_CONF = Path("/etc/resolv.conf")
_LOCAL = "127.0.0.1"  # asked where resolv.conf names nobody, as the C library does

# The gateway's user may not be able to read our files later, and no answer shall make us try.
dns.rdata.load_all_types()  # type: ignore[no-untyped-call]
_BACKEND = dns.asyncbackend.get_backend("asyncio")

Kind = str  # A, AAAA, MX, PTR or TXT
Values = tuple[str | bytes, ...]


class ResolverError(Exception):
    """There is no answer, not even that there is nothing; the text says why."""


class _Answer(NamedTuple):
    values: Values
    expires: float  # in monotonic time


class Resolver:
    """Asks the `servers`, or those of the system when there are none.

    Belongs to one event loop, from the first question on.
    """

    def __init__(self, servers: Sequence[SocketAddress] = ()) -> None:
        self._servers = servers
        self._kept: OrderedDict[tuple[str, Kind], _Answer] = OrderedDict()
        self._asked: dict[tuple[str, Kind], asyncio.Task[_Answer | Exception]] = {}
        self._slots = asyncio.Semaphore(CONCURRENT)
        self._stub: dns.asyncresolver.Resolver | None = None
        self._stub_of: int | None = None

    async def ask(self, name: str, kind: Kind, timeout: float) -> Values:  # noqa: ASYNC109
        """Give the records of a name, without its last dot; empty when there are none, or no such name.

        Addresses and names are text, TXT records are bytes, MX records are their hosts, the preferred first.
        Raises TimeoutError after `timeout` seconds, earlier when it joins a question that began earlier, and
        ResolverError.
        """
        key = (name.lower(), kind)
        if kept := self._kept.get(key):
            if kept.expires > time.monotonic():
                self._kept.move_to_end(key)
                return kept.values
            del self._kept[key]
        task = self._asked.get(key)
        if task is None:
            if len(self._asked) >= WAITING:
                raise ResolverError("too many questions at a time")
            task = asyncio.get_running_loop().create_task(self._query(key, timeout))
            self._asked[key] = task
        # Others may wait for the same, and the answer is worth keeping: it comes whoever has left.
        answer = await asyncio.shield(task)
        if isinstance(answer, Exception):
            raise type(answer)(str(answer))
        return answer.values

    async def _query(self, key: tuple[str, Kind], timeout: float) -> _Answer | Exception:  # noqa: ASYNC109
        """Answer, keep and forget a question; give errors instead of raising them, as nobody may listen."""
        try:
            async with asyncio.timeout(timeout), self._slots:
                answer = await self._resolve(*key, timeout)
        except (TimeoutError, dns.exception.Timeout):
            return TimeoutError("no answer in time")
        except (dns.exception.DNSException, OSError, EOFError) as error:
            return ResolverError(str(error) or type(error).__name__)
        finally:
            del self._asked[key]
        size = sum(len(value) for value in answer.values)
        if answer.expires > time.monotonic() and size <= KEPT_SIZE:
            self._kept[key] = answer
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return answer

    async def _resolve(self, name: str, kind: Kind, lifetime: float) -> _Answer:
        try:
            qname = dns.name.Name([*(label.encode() for label in name.split(".")), b""])
        except dns.exception.DNSException:  # no server has such a name
            return _Answer((), 0)
        stub = copy.copy(self._current_stub())  # for this question alone
        stub.timeout = min(stub.timeout, lifetime / len(stub.nameservers))  # or a silent one would take all
        try:
            answer = await _asked(stub, qname, kind, lifetime)
        except dns.resolver.NXDOMAIN as nothing:
            response = nothing.response(qname)  # type: ignore[no-untyped-call]
            return _Answer((), _expiry(response, NEGATIVE_TTL))
        records = list(answer)[:RECORDS]
        if kind == "MX":
            records.sort(key=lambda record: (record.preference, record.exchange))
        values = tuple(_VALUES[kind](record) for record in records)
        return _Answer(values, _expiry(answer.response, POSITIVE_TTL if values else NEGATIVE_TTL))

    def _current_stub(self) -> dns.asyncresolver.Resolver:
        """Give dnspython's resolver, a new one when resolv.conf has changed."""
        changed = None if self._servers else _changed()
        if self._stub is None or changed != self._stub_of:
            self._stub_of = changed
            self._stub = stub = dns.asyncresolver.Resolver(configure=False)
            if self._servers:
                stub.nameservers = [dns.nameserver.Do53Nameserver(at.host, at.port) for at in self._servers]
            else:
                _configure(stub)
            stub.use_edns(0, 0, _EDNS_SIZE)
        return self._stub


async def _asked(
    stub: dns.asyncresolver.Resolver, name: dns.name.Name, kind: Kind, lifetime: float
) -> dns.resolver.Answer:
    """Ask the servers, and if they only complain of how we ask, ask as in old times."""
    ask = partial(
        stub.resolve, name, kind, raise_on_no_answer=False, lifetime=lifetime, search=False, backend=_BACKEND
    )
    try:
        return await ask()
    except dns.resolver.NoNameservers as failed:
        if all(told != "FORMERR" for *_, told, _ in failed.kwargs["errors"]):
            raise
        stub.use_edns(-1)  # servers without EDNS say so (RFC 6891 section 7)
        return await ask()


def _changed() -> int | None:
    try:
        return _RESOLV_CONF.stat().st_mtime_ns
    except OSError:
        return None


def _configure(stub: dns.asyncresolver.Resolver) -> None:
    """Read resolv.conf; who is named there by something that is no address, is left out."""
    try:
        with _RESOLV_CONF.open(errors="replace") as file:
            stub.read_resolv_conf(io.StringIO("".join(filter(_is_understood, file))))
        stub.timeout = max(stub.timeout, 1)  # which is what timeout:0 means to the C library
    except (dns.resolver.NoResolverConfiguration, OSError):
        stub.nameservers = [_LOCAL]


def _is_understood(line: str) -> bool:
    """Tell whether a line of resolv.conf says something that we need, and says it well."""
    keyword, value, *_ = [*line.split(), "", ""]
    return keyword == "options" or (keyword == "nameserver" and dns.inet.is_address(value))


def _expiry(response: dns.message.QueryMessage, most: float) -> float:
    """Tell until when an answer holds; without a TTL or a SOA that says so, it does not."""
    ttl = response.resolve_chaining().minimum_ttl
    return time.monotonic() + min(ttl, most) if ttl != dns.ttl.MAX_TTL else 0


def _host(name: dns.name.Name) -> str:
    return ".".join(label.decode("utf-8", "replace") for label in name.labels[:-1])


_VALUES: dict[Kind, Callable[[Any], str | bytes]] = {
    "A": lambda record: record.address,
    "AAAA": lambda record: record.address,
    "MX": lambda record: _host(record.exchange),
    "PTR": lambda record: _host(record.target),
    "TXT": lambda record: b"".join(record.strings),
}
