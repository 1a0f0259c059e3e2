"""What a domain's SPF record says of an address (RFC 7208), read by pyspf and asked for by our resolver.

Called by the check in `spf.py` alone. pyspf waits for each answer; here it never does. It runs on the answers
that are known, is stopped where one is missing, and begins anew with that one: no thread is held by a domain
whose servers are slow. The records come from the sender's domain, so all that they may cost is bounded.
"""

import asyncio
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import spf

from appliance.proxy.resolver import Resolver, ResolverError, Values

RECORD_SIZE = 4096  # bytes of a policy; those of large senders have some hundred
TERM_SIZE = 512  # characters of a term, as pyspf's time grows with the square
TERMS = 1000  # in a policy and all that it includes
HOSTS = 10  # of an MX or PTR answer, by RFC 7208 section 4.6.4
_EXPLANATION_SIZE = 200  # characters
_NAME_SIZE = 253  # characters of a name in the DNS

_HOST_NAME = re.compile(r"[^\[\]\s]{1,253}\.[^\[\]\s]{1,63}\.?")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What SPF says: one of the seven results, about which domain, and the domain's reason for a fail."""

    result: str
    domain: str = ""
    explanation: str = ""


class _MissingAnswer(Exception):
    """pyspf wants an answer that is not known yet."""


class _Answers:
    """What has been asked for one sender; an answer that did not come is None."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, str], Values | None] = {}
        self.missing: set[tuple[str, str]] = set()
        self.matches: dict[tuple[tuple[object, ...], int], bool] = {}
        self.since = str(int(time.time()))

    def find(self, *keys: tuple[str, str]) -> None:
        """Note what is missing of these; raise _MissingAnswer if something is."""
        self.missing.update(key for key in keys if key not in self.known)
        if self.missing:
            raise _MissingAnswer

    async def fetch(self, resolver: Resolver, timeout: float) -> None:  # noqa: ASYNC109
        """Ask for what is missing, all at once."""
        keys, self.missing = list(self.missing), set()
        found = await asyncio.gather(*(self._ask(resolver, *key, timeout) for key in keys))
        self.known.update(zip(keys, found, strict=True))

    @staticmethod
    async def _ask(resolver: Resolver, name: str, kind: str, timeout: float) -> Values | None:  # noqa: ASYNC109
        try:
            return await resolver.ask(name, kind, timeout)
        except (TimeoutError, ResolverError):
            return None


class _Query(spf.query):  # type: ignore[misc]
    """pyspf's evaluation, with our answers and some more bounds."""

    def __init__(self, answers: _Answers, address: str, sender: str, helo: str, receiver: str) -> None:
        super().__init__(address, sender, helo, receiver=receiver)
        local, _, domain = (sender or helo).rpartition("@")
        self.l = local or "postmaster"
        self.o = self.d = domain
        self.s = f"{self.l}@{domain}"
        self.t = answers.since
        self.set_default_explanation("")
        self._answers = answers
        self._terms = 0
        self.explanations: set[tuple[str, str]] = set()

    def dns(
        self,
        name: str,
        qtype: str,
        cnames: object = None,  # noqa: ARG002 - the resolver follows aliases
        ignore_void: bool = False,
    ) -> list[object]:
        """Give an answer; count those that are empty."""
        values = self._known(name, qtype)
        if not values and not ignore_void:
            self.void_lookups += 1
            if self.void_lookups > spf.MAX_VOID_LOOKUPS:
                raise spf.PermError("Void lookup limit exceeded")
        return list(values)

    def _known(self, name: str, qtype: str) -> Values:
        key = (_lookup_name(name), qtype)
        if not all(0 < len(label) < 64 for label in key[0].split(".")):
            return ()  # no server has such a name
        self._answers.find(key)
        values = self._answers.known[key]
        if values is None:
            raise spf.TempError("no answer from the DNS")
        return values

    def dns_txt(self, domainname: str, rr: str = "TXT", ignore_void: bool = False) -> list[object]:
        """Give the TXT records, whose strings are joined already."""
        return self.dns(domainname, rr, ignore_void=ignore_void) if domainname else []

    def dns_mx(self, domainname: str) -> list[object]:
        """Give the addresses of all MX hosts, asked for together."""
        hosts = self.dns(domainname, "MX")
        if len(hosts) > HOSTS:
            raise spf.PermError(f"More than {HOSTS} MX records")
        self._ask_together(hosts)
        return [address for host in hosts for address in self.dns_a(host, self.A)]

    def cidrmatch(self, addresses: Sequence[object], length: int) -> bool:
        """Tell whether the client is among them; once, however often the evaluation begins anew."""
        key = (tuple(addresses), length)
        if key not in self._answers.matches:
            self._answers.matches[key] = super().cidrmatch(addresses, length)
        return self._answers.matches[key]

    def validated_ptrs(self) -> list[object]:
        """Give the client's names that lead back to it; what fails on the way is no name (section 5.5)."""
        try:
            hosts = self.dns_ptr(self.i)[:HOSTS]
        except spf.TempError:
            return []
        self._ask_together(hosts)
        return [host for host in hosts if self._leads_back(host)]

    def _leads_back(self, host: object) -> bool:
        try:
            return bool(self.cidrmatch(self.dns_a(host, self.A), self.cidrmax))
        except spf.TempError:
            return False

    def _ask_together(self, hosts: list[object]) -> None:
        names = [_lookup_name(host) for host in hosts]
        self._answers.find(*((name, self.A) for name in names if name))

    def dns_spf(self, domain: str) -> str | None:
        """Give the policy of a domain, if it is not too large to be read."""
        record: str | None = super().dns_spf(domain)
        if record:
            terms = record.split(" ")
            self._terms += len(terms)
            if len(record) > RECORD_SIZE or self._terms > TERMS or max(map(len, terms)) > TERM_SIZE:
                raise spf.PermError("The policy is too large")
        return record

    def get_explanation(self, spec: str) -> Any:
        """Read it where it is known; most senders pass, and need none. What is raised here, pyspf ignores."""
        key = (_lookup_name(spec), "TXT")
        self.explanations.add(key)
        return super().get_explanation(spec) if self._answers.known.get(key) else None


async def evaluate(
    resolver: Resolver,
    address: str,
    sender: str,
    helo: str,
    receiver: str,
    timeout: float,  # noqa: ASYNC109
) -> Outcome:
    """Judge a sender, or the name given with HELO where it is empty; `timeout` is for each question.

    `receiver` is the gateway's name, which explanations may mention. No error is raised: whatever goes wrong
    is a result.
    """
    domain = _ascii((sender or helo).rpartition("@")[2].strip()).removesuffix(".")
    if not _HOST_NAME.fullmatch(domain):
        return Outcome("none", domain)
    local = sender.rpartition("@")[0]
    identity = f"{local}@{domain}" if sender else ""
    answers = _Answers()
    while True:
        query = _Query(answers, address, identity, helo if sender else domain, receiver)
        try:
            result, _, explanation = query.check()
        except _MissingAnswer:
            await answers.fetch(resolver, timeout)
            continue
        except Exception:  # pyspf stumbles over a record: the domain's fault, and not to be believed
            return Outcome("permerror", domain)
        if result != "fail":
            return Outcome(result, domain)
        answers.missing |= query.explanations - answers.known.keys()
        if not answers.missing:
            return Outcome(result, domain, _safe(explanation))
        await answers.fetch(resolver, timeout)


def _lookup_name(name: object) -> str:
    """Give a name as it is asked for: without labels on its left that make it too long (section 7.3)."""
    text = str(name).removesuffix(".").lower()
    return text if len(text) <= _NAME_SIZE else text[-_NAME_SIZE - 1 :].partition(".")[2]


def _ascii(domain: str) -> str:
    """Give a domain as the DNS spells it; empty when there is no such spelling."""
    if domain.isascii():
        return domain
    try:
        return domain.encode("idna").decode() if len(domain) <= _NAME_SIZE else ""
    except UnicodeError:
        return ""


def _safe(explanation: str) -> str:
    """Make what the domain wrote fit a reply: printable ASCII, one line, not long."""
    plain = "".join(char if char.isascii() and char.isprintable() else "?" for char in explanation)
    return plain[:_EXPLANATION_SIZE].strip()
