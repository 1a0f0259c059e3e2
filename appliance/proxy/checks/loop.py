"""Connections that would lead back to where they come from."""

from appliance.config import Config
from appliance.proxy.checks.base import Check
from appliance.proxy.scoreboard import Counter
from appliance.proxy.session import PASS, Action, Gate, Verdict
from appliance.proxy.visit import Visit


class Loop(Check):
    """Refuses them: the client's own address as destination, or the gateway's own listener."""

    gate = Gate.CONNECT

    @staticmethod
    def wanted(config: Config) -> bool:
        """In all modes but the fixed ones, whose destination the administrator chose."""
        return not config.mode.startswith("fixed")

    def ask(self, visit: Visit, subject: bytes) -> Verdict:  # noqa: ARG002
        """Compare both ends."""
        target = visit.target
        assert target
        if target.address != visit.client.address and not self._service.is_own(target):
            return PASS
        self._service.board.add(Counter.REJECT_OTHER)
        self._service.log.err("REJECT:LOOP", **visit.who(), dst=target)
        return Verdict(Action.HANGUP, 554, "", self._config.msg_loop_avoidance)
