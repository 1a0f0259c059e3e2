"""What clients call themselves and whom they write to, in the log. Refuses nothing."""

import base64
import hashlib

from appliance.config import Config
from appliance.log import plain
from appliance.proxy.checks.base import Check, cut
from appliance.proxy.session import PASS, Gate, Verdict
from appliance.proxy.visit import Visit

_OUTCOMES = {"accepted", "rejected"}


class HeloJournal(Check):
    """Logs the names given with HELO and EHLO."""

    gate = Gate.HELO

    @staticmethod
    def wanted(config: Config) -> bool:
        """Where log_helo is on."""
        return config.log_helo

    def ask(self, visit: Visit, subject: bytes) -> Verdict:
        """Log the name."""
        self._service.log.info("HELO/EHLO", **visit.who(), helo=subject)
        return PASS


class MailJournal(Check):
    """Logs senders with the server's answer to them."""

    gate = Gate.REPLY_MAIL

    @staticmethod
    def wanted(config: Config) -> bool:
        """Where log_mail_from names an outcome."""
        return bool(config.log_mail_from & _OUTCOMES)

    def ask(self, visit: Visit, subject: bytes) -> Verdict:
        """Log the address if its outcome is wanted."""
        if shown := _shown(subject, self._config.log_mail_from, self._config.email_length):
            self._service.log.info(f"MAIL FROM {shown}", **visit.who())
        return PASS


class RcptJournal(Check):
    """Logs recipients with the server's answer to them."""

    gate = Gate.REPLY_RCPT

    @staticmethod
    def wanted(config: Config) -> bool:
        """Where log_rcpt_to names an outcome."""
        return bool(config.log_rcpt_to & _OUTCOMES)

    def ask(self, visit: Visit, subject: bytes) -> Verdict:
        """Log the address if its outcome is wanted."""
        if shown := _shown(subject, self._config.log_rcpt_to, self._config.email_length):
            self._service.log.info(f"RCPT TO: {shown}", **visit.who())
        return PASS


def _shown(subject: bytes, wanted: frozenset[str], length: int) -> str:
    """Give `code<address>`, the address plain or digested; empty when this outcome is not wanted."""
    code, _, address = subject.partition(b" ")
    if ("accepted" if code.startswith(b"2") else "rejected") not in wanted:
        return ""
    return f"{code.decode()}<{shown_address(address, wanted, length)}>"


def shown_address(address: bytes, wanted: frozenset[str], length: int) -> str:
    """Give an address as a log line has it: cut to `length`, and digested if base64 is `wanted`."""
    address = cut(address, length)
    if "base64" in wanted:
        address = base64.b64encode(hashlib.md5(address, usedforsecurity=False).digest())
    return plain(address)
