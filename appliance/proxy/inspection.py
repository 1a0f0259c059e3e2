"""Whom a gate's question goes to: the connection hands the session's questions in here."""

from collections.abc import Callable

from appliance.proxy.checks import Checks
from appliance.proxy.message import Message
from appliance.proxy.session import PASS, Action, Gate, Verdict
from appliance.proxy.visit import Visit


class Inspection:
    """Asks the configured checks about a visit, and its `message`; late verdicts go to `resume`."""

    def __init__(self, visit: Visit, checks: Checks, resume: Callable[[Verdict], None]) -> None:
        self._visit = visit
        self._checks = checks
        self.message = Message(visit, resume)

    def ask(self, gate: Gate, subject: bytes) -> Verdict | None:
        """Answer a gate of the session; None when the answer takes time."""
        for check in self._checks.at(gate):
            verdict = check.ask(self._visit, subject)
            if verdict.action is not Action.PASS:
                return verdict
        if gate is Gate.DATA:
            return self.message.open()
        if gate is Gate.END:
            return self.message.end()
        return PASS
