"""Quotas: how much a client may use in a period (options ratelimit_*). One check for each thing counted.

The first of them, at admission, finds the client's record in the ledger; the others spend from that. All are
asked wherever ratelimit_period is set, because a client's own quota may limit what the configuration does
not.
"""

from collections.abc import Awaitable
from typing import ClassVar

from appliance.config import Config
from appliance.proxy import events
from appliance.proxy.checks.base import Check, cut
from appliance.proxy.locks import lock_name
from appliance.proxy.quota import Limits, Record, Use
from appliance.proxy.records import RecordsError
from appliance.proxy.scoreboard import Counter
from appliance.proxy.service import Service
from appliance.proxy.session import PASS, Action, Gate, Verdict
from appliance.proxy.visit import Visit


class Quota(Check):
    """What these checks have in common."""

    use: ClassVar[Use]
    counter: ClassVar[Counter] = Counter.REJECT_RATELIMIT

    def __init__(self, service: Service) -> None:
        super().__init__(service)
        self._ledger = service.clients.ledger
        self._limits = Limits.of(service.config)

    @staticmethod
    def wanted(config: Config) -> bool:
        """Where rate limiting is on."""
        return config.ratelimit_period > 0

    def _record(self, visit: Visit) -> Record:
        """The client's record, fit to be spent from."""
        record = visit.record
        assert record
        record.refresh(self._limits, self._ledger.clock())
        self._ledger.changed(record)
        return record

    def _refused(self, visit: Visit, use: Use) -> None:
        record = visit.record
        assert record
        self._service.board.add(self.counter)
        details = {"limit": use.word, "quota": record.quotas[use], "tries": record.tries[use]}
        self._service.log.notice("RATELIMIT:REFUSED", **visit.who(), **details)


class Connections(Quota):
    """Connections; turns away, too, those whose record cannot be used."""

    gate = Gate.CONNECT
    use = Use.CONNECTIONS
    counter = Counter.REJECT_RATE

    def __init__(self, service: Service) -> None:
        super().__init__(service)
        self._ledger.serve(service.config, service.log)

    async def _fetch(self, visit: Visit, client: str) -> Verdict:
        try:
            fetched = await self._ledger.fetch(client, self._limits, makeshift=self._config.ignore_errors)
        except RecordsError:
            self._service.board.add(Counter.REJECT_RATELIMIT)
            self._service.log.notice("RATELIMIT:UNUSABLE", **visit.who())
            return Verdict(Action.HANGUP, 554, "", self._config.msg_ratelimit_error)
        return self._admit(visit, fetched)

    def ask(self, visit: Visit, subject: bytes) -> Verdict | Awaitable[Verdict]:  # noqa: ARG002
        """Count the connection; take time only for a client not seen before."""
        client = lock_name(visit.client.address, visit.ident)
        known = self._ledger.known(client)
        return self._admit(visit, known) if known else self._fetch(visit, client)

    def _admit(self, visit: Visit, record: Record) -> Verdict:
        visit.hold(record)
        if self._record(visit).spend(self.use):
            return PASS
        self._refused(visit, self.use)
        return Verdict(Action.HANGUP, 554, "", self._config.msg_rate_reject)


class Destinations(Quota):
    """Mail servers: how many different ones in a period, and how many are remembered."""

    gate = Gate.CONNECT
    use = Use.DESTINATIONS

    def ask(self, visit: Visit, subject: bytes) -> Verdict:  # noqa: ARG002
        """Count the server that the client is on its way to."""
        assert visit.target
        server = visit.target.address.encode()
        record, now, expiration = self._record(visit), self._ledger.clock(), self._limits.expiration
        within = record.spend_name(self.use, server)
        if within and (expiration < 0 or record.remember(server, now, expiration)):
            return PASS
        self._refused(visit, self.use)
        return Verdict(Action.HANGUP, 554, "", self._config.msg_ratelimit_dst)


class Names(Quota):
    """Different names that a client gives."""

    text: ClassVar[str]

    def ask(self, visit: Visit, subject: bytes) -> Verdict:
        """Count the name; case makes no difference."""
        if self._record(visit).spend_name(self.use, self._name(subject).lower()):
            return PASS
        self._refused(visit, self.use)
        return self._take_over(getattr(self._config, self.text))

    def _name(self, subject: bytes) -> bytes:
        return subject


class Helos(Names):
    """Names in HELO and EHLO."""

    gate = Gate.HELO
    use = Use.HELOS
    text = "msg_ratelimit_helo"


class Senders(Names):
    """Sender addresses."""

    gate = Gate.MAIL
    use = Use.MAILFROMS
    text = "msg_ratelimit_mailfrom"

    def _name(self, subject: bytes) -> bytes:
        return cut(subject, self._config.email_length)


class Recipients(Quota):
    """Recipients."""

    gate = Gate.RCPT
    use = Use.RECIPIENTS

    def ask(self, visit: Visit, subject: bytes) -> Verdict:  # noqa: ARG002
        """Refuse the recipient; the message may still go to those before it."""
        if self._record(visit).spend(self.use):
            return PASS
        self._refused(visit, self.use)
        return Verdict(Action.REFUSE, 552, "5.3.2", self._config.msg_ratelimit_rcptto)


class Messages(Quota):
    """Messages, and whether any bytes are left for another."""

    gate = Gate.DATA
    use = Use.SESSIONS

    def ask(self, visit: Visit, subject: bytes) -> Verdict:  # noqa: ARG002
        """Refuse the message."""
        record = self._record(visit)
        if record.exhausted(Use.BYTES):
            record.tries[self.use] += 1
            self._refused(visit, Use.BYTES)
        elif record.spend(self.use):
            return PASS
        else:
            self._refused(visit, self.use)
        return Verdict(Action.REFUSE, 552, "5.3.2", self._config.msg_ratelimit_messages)


class Bytes(Quota):
    """Bytes of whole messages; refuses nothing."""

    gate = Gate.END
    use = Use.BYTES

    def ask(self, visit: Visit, subject: bytes) -> Verdict:  # noqa: ARG002
        """Count the message that has just ended."""
        assert visit.session
        self._record(visit).add(self.use, visit.session.message_size)
        return PASS


class Rejects(Quota):
    """What servers refuse for good; more than the quota is an event."""

    text: ClassVar[str]

    def ask(self, visit: Visit, subject: bytes) -> Verdict:
        """Count a refusal."""
        if not subject.startswith(b"5") or self._record(visit).spend(self.use):
            return PASS
        self._refused(visit, self.use)
        assert visit.record
        found = f"RATELIMIT_{self.use.name}"
        cause = f"{found} more than {visit.record.quotas[self.use]} in {self._limits.period} seconds"
        events.report(visit, "ratelimit", found, cause)
        return self._take_over(getattr(self._config, self.text))


class SenderRejects(Rejects):
    """Refused MAIL commands."""

    gate = Gate.REPLY_MAIL
    use = Use.MAILFROM_REJECTS
    text = "msg_ratelimit_mailfrom_rejects"


class RecipientRejects(Rejects):
    """Refused RCPT commands."""

    gate = Gate.REPLY_RCPT
    use = Use.RCPTTO_REJECTS
    text = "msg_ratelimit_rcptto_rejects"


class AuthRejects(Rejects):
    """Refused authentication."""

    gate = Gate.REPLY_AUTH
    use = Use.AUTH_REJECTS
    text = "msg_ratelimit_auth_rejects"
