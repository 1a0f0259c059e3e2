"""Authentication: who must have it before sending (auth_require), and what becomes of those who have."""

from appliance.config import Config
from appliance.proxy.checks.base import Check
from appliance.proxy.scoreboard import Counter
from appliance.proxy.session import PASS, Action, Gate, Verdict
from appliance.proxy.session.state import AUTH_ACCEPTED, AUTH_OFFERED
from appliance.proxy.visit import Visit


class AuthRequired(Check):
    """Refuses messages of clients that have not authenticated, though they must."""

    gate = Gate.DATA

    @staticmethod
    def wanted(config: Config) -> bool:
        """Unless auth_require is no."""
        return config.auth_require != "no"

    def ask(self, visit: Visit, subject: bytes) -> Verdict:  # noqa: ARG002
        """Refuse the message; the client may authenticate and try again."""
        demanded = self._config.auth_require == "mandatory" or visit.auth & AUTH_OFFERED
        if visit.auth & AUTH_ACCEPTED or not demanded:
            return PASS
        self._service.board.add(Counter.NOAUTHS)
        self._service.log.notice("AUTH:REQUIRED", **visit.who())
        return Verdict(Action.REFUSE, 530, "5.7.1", self._config.msg_auth_required)


class AuthOutcome(Check):
    """Counts how the server answered AUTH; with auth_skip direct, whom it let in is not looked at again."""

    gate = Gate.REPLY_AUTH

    @staticmethod
    def wanted(config: Config) -> bool:  # noqa: ARG004
        """Always: outcomes are counted."""
        return True

    def ask(self, visit: Visit, subject: bytes) -> Verdict:
        """Note the outcome."""
        accepted = subject.startswith(b"235")
        self._service.board.add(Counter.AUTH_ACCEPTS if accepted else Counter.AUTH_REJECTS)
        self._service.log.info("AUTH:ACCEPT" if accepted else "AUTH:REJECT", **visit.who())
        return Verdict(Action.DIRECT) if accepted and "direct" in self._config.auth_skip else PASS
