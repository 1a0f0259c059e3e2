"""Patterns of the administrator's for what clients call themselves and whom they write from and to.

A name or address that does not match regex_enforce_*, or matches regex_reject_*, ends the session for the
server, which never sees it. How patterns are read stands in `appliance.config.regex`.
"""

import functools
from collections.abc import Callable
from typing import ClassVar

from appliance.config import Config
from appliance.config.regex import compiled
from appliance.log import plain
from appliance.proxy import events
from appliance.proxy.checks.base import Check, cut
from appliance.proxy.checks.journal import shown_address
from appliance.proxy.scoreboard import Counter
from appliance.proxy.service import Service
from appliance.proxy.session import PASS, Gate, Verdict
from appliance.proxy.session.state import AUTH_ACCEPTED
from appliance.proxy.visit import Visit

_REMEMBERED = 1024  # names or addresses, of some hundred bytes at most, whose outcome is at hand


class _Patterns(Check):
    """The two patterns for one thing that clients say; `what` it is stands in the options' names."""

    what: ClassVar[str]

    def __init__(self, service: Service) -> None:
        super().__init__(service)
        self._refusing = [  # the option, its pattern, and whether a match is what it refuses
            (option, compiled(pattern), matching)
            for option, matching in (
                (f"regex_enforce_{self.what}", False),
                (f"regex_reject_{self.what}", True),
            )
            if (pattern := getattr(self._config, option))
        ]
        # Clients say the same over and over, and a look here costs a tenth of a search.
        self._offended: Callable[[bytes], str] = functools.lru_cache(_REMEMBERED)(self._search)

    @classmethod
    def wanted(cls, config: Config) -> bool:
        """Where one of the patterns is set."""
        return bool(
            getattr(config, f"regex_enforce_{cls.what}") or getattr(config, f"regex_reject_{cls.what}")
        )

    def ask(self, visit: Visit, subject: bytes) -> Verdict:
        """Search in the subject; clients that have authenticated are spared by auth_skip regex."""
        if "regex" in self._config.auth_skip and visit.auth & AUTH_ACCEPTED:
            return PASS
        option = self._offended(self._cut(subject))
        return self._refuse(visit, option, subject) if option else PASS

    def _search(self, subject: bytes) -> str:
        """Give the option that refuses this; empty when none does."""
        text = subject.decode("utf-8", "replace")
        for option, pattern, refused in self._refusing:
            if bool(pattern.search(text)) is refused:
                return option
        return ""

    def _refuse(self, visit: Visit, option: str, subject: bytes) -> Verdict:
        found = f"REGEX_{self.what.upper()}"
        self._service.board.add(Counter.REGEX)
        self._service.log.notice("REGEX:REJECT", **visit.who(), regex=option, value=self._shown(subject))
        events.report(visit, "regex", found, f"{found} {option}")
        return self._take_over(getattr(self._config, f"msg_regex_{self.what}"))

    def _cut(self, subject: bytes) -> bytes:
        return cut(subject, self._config.email_length)

    def _shown(self, subject: bytes) -> str:
        logged: frozenset[str] = getattr(self._config, f"log_{self.what}")
        return shown_address(subject, logged, self._config.email_length)


class RegexHelo(_Patterns):
    """Names in HELO and EHLO."""

    gate = Gate.HELO
    what = "helo"

    def _cut(self, subject: bytes) -> bytes:
        return subject  # no address, and as long as a command line at most

    def _shown(self, subject: bytes) -> str:
        return plain(subject)


class RegexMailFrom(_Patterns):
    """Senders."""

    gate = Gate.MAIL
    what = "mail_from"


class RegexRcptTo(_Patterns):
    """Recipients."""

    gate = Gate.RCPT
    what = "rcpt_to"
