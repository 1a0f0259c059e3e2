"""Checks: a gate and a verdict each. Who is let in stands in `admission.py`, what is scanned in `message.py`.

`Checks` puts the configured ones together, once for each configuration; sessions ask through `Inspection`.
"""

from appliance.proxy.checks import ratelimit
from appliance.proxy.checks.auth import AuthOutcome, AuthRequired
from appliance.proxy.checks.base import Check
from appliance.proxy.checks.dnsbl import Dnsbl, DnsblAtMail
from appliance.proxy.checks.earlytalk import Earlytalk
from appliance.proxy.checks.journal import HeloJournal, MailJournal, RcptJournal
from appliance.proxy.checks.loop import Loop
from appliance.proxy.checks.regex import RegexHelo, RegexMailFrom, RegexRcptTo
from appliance.proxy.checks.spf import Spf
from appliance.proxy.service import Service
from appliance.proxy.session import Gate, Settings, Texts

_ALL: tuple[type[Check], ...] = (
    ratelimit.Connections,
    Dnsbl,
    Loop,
    ratelimit.Destinations,
    Earlytalk,
    HeloJournal,
    RegexHelo,
    ratelimit.Helos,
    ratelimit.Senders,
    RegexMailFrom,
    DnsblAtMail,
    Spf,
    ratelimit.Recipients,
    RegexRcptTo,
    AuthRequired,
    ratelimit.Messages,
    ratelimit.Bytes,
    AuthOutcome,
    MailJournal,
    RcptJournal,
    ratelimit.SenderRejects,
    ratelimit.RecipientRejects,
    ratelimit.AuthRejects,
)
"""Every check there is; those of one gate are asked in this order, until one does not pass."""


class Checks:
    """The checks that a configuration wants, by gate, and the session's settings that follow from it."""

    def __init__(self, service: Service) -> None:
        self.service = service
        wanted = [check(service) for check in _ALL if check.wanted(service.config)]
        self._at = {gate: [check for check in wanted if check.gate is gate] for gate in Gate}
        gates = 0
        for check in wanted:
            gates |= check.gate
        if service.spool_limit:
            gates |= Gate.DATA
        if service.spool_limit or service.config.lock_duration:
            gates |= Gate.END
        self.settings = _settings(service, gates)

    def at(self, gate: Gate) -> list[Check]:
        """Give the checks of a gate."""
        return self._at[gate]


def _settings(service: Service, gates: int) -> Settings:
    config = service.config
    texts = Texts(
        hello=config.msg_hello,
        sign_off=config.msg_sign_off,
        proto_error=config.msg_proto_error,
        unimpl_command=config.msg_unimpl_command,
        transaction_failed=config.msg_transaction_failed,
        session_timeout=config.msg_session_timeout,
        pipeline_full=config.msg_pipeline_full,
        size_limit=config.msg_size_limit,
        fixed_xclient_fail=config.msg_fixed_xclient_fail,
    )
    return Settings(
        proxy_name=config.proxy_name,
        texts=texts,
        gates=gates,
        pipeline_size=config.pipeline_size,
        on_takeover_cmds=config.on_takeover_cmds,
        size_limit=config.size_limit,
        bare_newline=config.bare_newline,
        forbid_starttls=config.forbid_starttls,
        mask_xclient=config.mode == "fixed+xclient",
        spool=service.spool_limit > 0,
    )
