"""SPF: whether the sender's domain lets the address that sends the mail do so.

What the domain says is read in `policy.py`.
"""

import asyncio
from ipaddress import ip_address

from appliance.config import Config
from appliance.proxy import events
from appliance.proxy.checks.base import Check
from appliance.proxy.checks.policy import Outcome, evaluate
from appliance.proxy.scoreboard import Counter
from appliance.proxy.session import PASS, Gate, Verdict
from appliance.proxy.visit import Visit


class Spf(Check):
    """Refuses senders whose domain says fail; every other result passes."""

    gate = Gate.MAIL
    state = "spf"

    @staticmethod
    def wanted(config: Config) -> bool:
        """Where spf names the address to judge."""
        return config.spf != "none"

    async def ask(self, visit: Visit, subject: bytes) -> Verdict:
        """Judge the sender, for a null sender the name given with HELO, within timeout_spf."""
        config = self._config
        assert visit.session
        sender, helo = subject.decode("utf-8", "replace"), visit.session.helo.decode("utf-8", "replace")
        address = self._address(visit)
        outcome = Outcome("temperror")
        try:
            async with asyncio.timeout(config.timeout_spf):
                outcome = await evaluate(
                    self._service.resolver, address, sender, helo, config.proxy_name, config.timeout_spf
                )
        except TimeoutError:
            pass
        failed = outcome.result == "fail"
        log = self._service.log.notice if failed else self._service.log.info
        log(f"SPF:{outcome.result}", **visit.who(), ip=address, domain=outcome.domain)
        return self._refuse(visit, outcome) if failed and not config.spf_log_only else PASS

    def _refuse(self, visit: Visit, outcome: Outcome) -> Verdict:
        self._service.board.add(Counter.SPF)
        events.report(visit, "spf", "SPF", f"SPF {outcome.domain}")
        text = self._config.msg_spf_reject
        if outcome.explanation:
            text += f" ({outcome.domain} says: {outcome.explanation})"
        return self._take_over(text)

    def _address(self, visit: Visit) -> str:
        """Give the address that must be allowed to send."""
        config = self._config
        if config.spf == "fixed":
            return str(config.spf_fixed_ip)
        if config.spf == "incoming":
            return visit.client.address.partition("%")[0]
        set_address, source = config.outgoing_addr, visit.source.partition("%")[0]
        usable = not set_address.is_unspecified and set_address.version == ip_address(source).version
        return str(set_address) if usable else source
