"""Lists of clients in the DNS: who is on block lists (dnsbl) and on no allow list (dnswl) is refused.

All zones are asked at the same time. One that does not answer lists nobody.
"""

import asyncio
from ipaddress import ip_address

from appliance.config import Config, DnsList
from appliance.config.dnsbl import refuses, together
from appliance.proxy import events
from appliance.proxy.checks.base import Check
from appliance.proxy.resolver import ResolverError
from appliance.proxy.scoreboard import Counter
from appliance.proxy.session import PASS, Action, Gate, Verdict
from appliance.proxy.session.state import AUTH_ACCEPTED
from appliance.proxy.visit import Visit

_NAMED = 3  # lists named in the reply, which has to fit a line

Found = list[tuple[DnsList, str]]


class Dnsbl(Check):
    """Turns listed clients away before there is a server."""

    gate = Gate.CONNECT
    state = "dnsbl"

    @staticmethod
    def wanted(config: Config) -> bool:
        """Where there are lists, and nobody is spared them."""
        return bool(config.dnsbl) and "dnsbl" not in config.auth_skip

    async def ask(self, visit: Visit, subject: bytes) -> Verdict:  # noqa: ARG002
        """Look the client up."""
        if text := await self._refusal(visit):
            return Verdict(Action.HANGUP, 554, "", text)
        return PASS

    async def _refusal(self, visit: Visit) -> str:
        """Give the text that refuses a client, having reported the event; empty when it may stay."""
        config = self._config
        allowed, found = await asyncio.gather(
            self._find(visit, config.dnswl), self._find(visit, config.dnsbl)
        )
        weight = together(entry for entry, _ in found)
        named = ", ".join(f"{entry.zone} ({answer})" for entry, answer in found[:_NAMED])
        if allowed:
            zone, answer = allowed[0][0].zone, allowed[0][1]
            self._service.log.info("DNSWL:FOUND", **visit.who(), zone=zone, answer=answer)
        elif found and weight >= config.dnsbl_threshold:
            self._service.board.add(Counter.REJECT_DNSBL)
            self._service.log.notice("DNSBL:FOUND", **visit.who(), found=named, weight=f"{weight:g}")
            events.report(visit, "dnsbl", "DNSBL", f"DNSBL {named}")
            return f"{config.msg_dnsdb_reject}: {named}"
        elif found:
            self._service.log.info("DNSBL:PASSED", **visit.who(), found=named, weight=f"{weight:g}")
        return ""

    async def _find(self, visit: Visit, lists: tuple[DnsList, ...]) -> Found:
        """Give the lists that know the client, each with the answer that counted, in their order."""
        zones = list(dict.fromkeys(entry.zone for entry in lists))
        answers = await asyncio.gather(*(self._answers(visit, zone) for zone in zones))
        heard = dict(zip(zones, answers, strict=True))
        return [
            (entry, counting[0])
            for entry in lists
            if (counting := [answer for answer in heard[entry.zone] if entry.matches(answer)])
        ]

    async def _answers(self, visit: Visit, zone: str) -> list[str]:
        try:
            name = f"{_reversed(visit.client.address)}.{zone}"
            found = sorted(map(str, await self._service.resolver.ask(name, "A", self._config.timeout_dnsbl)))
        except TimeoutError:
            self._service.log.warning("DNSBL:TIMEOUT", **visit.who(), zone=zone)
        except ResolverError as error:
            self._service.log.warning("DNSBL:FAILED", **visit.who(), zone=zone, why=error)
        else:
            for answer in filter(refuses, found):
                why = f"the list does not serve this name server, and says so by {answer}"
                self._service.log.warning("DNSBL:FAILED", **visit.who(), zone=zone, why=why)
            return found
        return []


class DnsblAtMail(Dnsbl):
    """Waits with that until MAIL, and spares clients that have authenticated by then."""

    gate = Gate.MAIL

    @staticmethod
    def wanted(config: Config) -> bool:
        """Where there are lists, and auth_skip names them."""
        return bool(config.dnsbl) and "dnsbl" in config.auth_skip

    async def ask(self, visit: Visit, subject: bytes) -> Verdict:  # noqa: ARG002
        """Look the client up unless it has authenticated."""
        if visit.auth & AUTH_ACCEPTED or not (text := await self._refusal(visit)):
            return PASS
        return self._take_over(text)


def _reversed(address: str) -> str:
    """Give an address as lists spell it: octets or nibbles, the last one first."""
    parsed = ip_address(address.partition("%")[0])
    return parsed.reverse_pointer.rsplit(".", 2)[0]
