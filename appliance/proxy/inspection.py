"""Whom a gate's question goes to: the connection hands the session's questions in here."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from appliance.proxy.checks import Checks
from appliance.proxy.checks.base import Check
from appliance.proxy.message import Message
from appliance.proxy.session import PASS, Action, Gate, Verdict
from appliance.proxy.talkers import Tally
from appliance.proxy.visit import Visit


def _unheard(_verdict: Verdict) -> None:
    """Take a verdict that comes when the session is over."""


class Inspection:
    """Asks the configured checks about a visit, and its `message`; late verdicts go to `resume`."""

    def __init__(self, visit: Visit, checks: Checks, resume: Callable[[Verdict], None]) -> None:
        self._visit = visit
        self._checks = checks
        self._resume = resume
        self._late: asyncio.Task[None] | None = None
        self.message = Message(visit, resume)
        self.waiting = ""  # for which check, as the status file calls it

    def admit(self) -> Verdict | Awaitable[Verdict]:
        """Answer the gate CONNECT, the one that is asked before there is a session."""
        if target := self._visit.target:
            self._tally().went_to(target.address)
        return self._ask_checks(Gate.CONNECT, b"")

    def ask(self, gate: Gate, subject: bytes) -> Verdict | None:
        """Answer a gate of the session; None when the answer takes time."""
        answer = self._ask_checks(gate, subject)
        if not isinstance(answer, Verdict):
            self._late = asyncio.get_running_loop().create_task(self._answer_late(answer, gate))
            return None
        if answer.action is Action.PASS:
            return self._ask_message(gate)
        if answer.action is not Action.DIRECT:
            self._tally().refusals += 1
        return answer

    def cancel(self) -> None:
        """Nobody waits for an answer any more."""
        if self._late:
            self._late.cancel()
        self._resume = self.message.resume = _unheard

    def _ask_message(self, gate: Gate) -> Verdict | None:
        if gate is Gate.DATA:
            return self.message.open()
        if gate is Gate.END:
            return self.message.end()
        return PASS

    async def _answer_late(self, answer: Awaitable[Verdict], gate: Gate) -> None:
        try:
            verdict: Verdict | None = await answer
        except Exception as error:  # a check that breaks down must not take good mail with it
            told = {"message": f"a check at {gate.name} failed", "exception": error}
            asyncio.get_running_loop().call_exception_handler(told)
            verdict = PASS
        self._late = None
        if verdict is PASS:
            verdict = self._ask_message(gate)
        elif verdict:
            self._tally().refusals += 1
        if verdict:
            self._resume(verdict)

    def _ask_checks(self, gate: Gate, subject: bytes) -> Verdict | Awaitable[Verdict]:
        """Ask the checks of a gate until one does not pass, or takes time."""
        checks = self._checks.at(gate)
        for number, check in enumerate(checks):
            answer = check.ask(self._visit, subject)
            if not isinstance(answer, Verdict):
                return self._ask_on(self._wait(check, answer), checks[number + 1 :], subject)
            if answer.action is not Action.PASS:
                return answer
        return PASS

    async def _ask_on(self, first: Awaitable[Verdict], checks: Sequence[Check], subject: bytes) -> Verdict:
        """Ask further checks as long as they pass."""
        verdict = await first
        for check in checks:
            if verdict.action is not Action.PASS:
                break
            answer = check.ask(self._visit, subject)
            verdict = answer if isinstance(answer, Verdict) else await self._wait(check, answer)
        return verdict

    def _tally(self) -> Tally:
        return self._visit.service.clients.talkers.of(self._visit.client.address)

    async def _wait(self, check: Check, answer: Awaitable[Verdict]) -> Verdict:
        self.waiting = check.state
        try:
            return await answer
        finally:
            self.waiting = ""
