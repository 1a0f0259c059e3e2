"""Clients that speak before they are greeted: no mail program does, spam bots do (option earlytalk)."""

from appliance.config import Config
from appliance.proxy import events
from appliance.proxy.checks.base import Check
from appliance.proxy.scoreboard import Counter
from appliance.proxy.session import Action, Gate, Verdict
from appliance.proxy.visit import Visit


class Earlytalk(Check):
    """Turns them away."""

    gate = Gate.EARLY

    @staticmethod
    def wanted(config: Config) -> bool:
        """In fixed+xclient the gateway itself delays the greeting, so nobody is early."""
        return config.earlytalk and config.mode != "fixed+xclient"

    def ask(self, visit: Visit, subject: bytes) -> Verdict:  # noqa: ARG002
        """Hang up on the client, whatever it said."""
        self._service.board.add(Counter.EARLYTALK)
        self._service.log.notice("EARLYTALK", **visit.who())
        events.report(visit, "earlytalk", "EARLYTALK", "EARLYTALK spoke before the greeting")
        return Verdict(Action.HANGUP, 554, "", f"{self._config.proxy_name} {self._config.msg_earlytalker}")
