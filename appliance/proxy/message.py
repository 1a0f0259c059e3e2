"""The message under way: its copy for the scanners, their verdicts, and what is kept of it.

One `Message` serves a session for all its messages, one after the other. The session's questions come through
`Inspection`; what the verdicts do to the conversation is the session's business.
"""

import asyncio
import itertools
import os
import time
from collections.abc import Callable
from typing import Final

from appliance.proxy import events
from appliance.proxy.scanners import Finding, Scanner, State
from appliance.proxy.scoreboard import Counter
from appliance.proxy.session import PASS, Action, Verdict
from appliance.proxy.session.state import AUTH_ACCEPTED
from appliance.proxy.spool import Spool
from appliance.proxy.visit import Visit

_serial = itertools.count(1)
_PROCESS: Final = os.getpid()


class Message:
    """The message a visitor is sending, if any; late verdicts go to `resume`."""

    def __init__(self, visit: Visit, resume: Callable[[Verdict], None]) -> None:
        self._visit = visit
        self.resume = resume
        self._service = visit.service
        self._config = visit.service.config
        self._id = ""
        self._header: list[bytes] | None = None
        self._copy: Spool | None = None
        self._scan: asyncio.Task[None] | None = None
        self.scanning = ""  # the status file's word for the scan under way

    def begin(self) -> bytes:
        """Give the header that tells the server where the message comes from (nat_header)."""
        if self._header is None:
            self._header = self._around_id()
        return self._name().encode().join(self._header)

    def _around_id(self) -> list[bytes]:
        """Give what stands before and behind the message's id in the header, for all messages of a visit."""
        config, client, ident = self._config, self._visit.client, self._visit.ident
        if config.nat_header_type == "none":
            return []
        if config.nat_header_type == "ip-only":
            return [f"{config.nat_header}: {client.address}\r\n".encode()]
        who = f"ident {ident}" if ident else "ident-empty"
        head = f"{config.nat_header}: from [{client.address}]:{client.port} [{who}]\r\n"
        tail = f"\r\n\tabuse-to {config.abuse}\r\n" if config.abuse else "\r\n"
        return [f"{head}\tby {config.proxy_name} with TPROXY id ".encode(), tail.encode()]

    def add(self, data: bytes) -> Verdict | None:
        """Copy a piece of the message; without ignore_errors a full disk ends it."""
        if self._copy is None:
            return None
        try:
            self._copy.write(data)
        except OSError as error:
            return self._spool_failed(error, self._config.msg_spool_problem)
        return None

    def drop(self) -> None:
        """Forget the message under way, and any scan of it."""
        if self._scan:
            self._scan.cancel()
            self._scan = None
        if self._copy:
            self._copy.close()
            self._copy = None
        self._id = ""

    def finish(self) -> None:
        """The message was released."""
        self._service.board.add(Counter.MESSAGES)
        self._service.clients.talkers.of(self._visit.client.address).mails += 1
        self.drop()

    def _name(self) -> str:
        if not self._id:
            self._id = f"{int(time.time())}.{_PROCESS}-{next(_serial)}"
        return self._id

    def open(self) -> Verdict:
        """A message is about to begin: open its copy, if a scanner will want it."""
        if not (self._scanner_of_virus() or self._scanner_of_spam()):
            return PASS
        try:
            self._copy = Spool(
                self._config.spool_path,
                self._name(),
                self._config.spool_perm,
                self._service.spool_limit,
                self._service.spool_named,
            )
            # Here rather than when the server has said 354: a disk too full for it refuses the message.
            self._copy.header(self._spool_header())
        except OSError as error:
            return self._spool_failed(error, self._config.msg_spool_open_fail) or PASS
        return PASS

    def _spool_header(self) -> bytes:
        """The copy's first line: where the message that is about to begin comes from."""
        visit = self._visit
        number = visit.session.transactions + 1 if visit.session else 0
        line = (
            f"{self._config.spool_header}: src={visit.client}, ident={visit.ident},"
            f" dst={visit.target}, trns={number}\r\n"
        )
        return line.encode()

    def _spool_failed(self, error: OSError, text: str) -> Verdict | None:
        self._service.log.err("SPOOL:FAILED", **self._visit.who(), why=error)
        if self._copy:
            self._copy.close()
            self._copy = None
        if self._config.ignore_errors:
            return None
        return Verdict(Action.TAKEOVER, 451, "5.3.1", text)

    def _scanner_of_virus(self) -> Scanner | None:
        skipped = "antivir" in self._config.auth_skip and self._visit.auth & AUTH_ACCEPTED
        return None if skipped else self._service.virus

    def _scanner_of_spam(self) -> Scanner | None:
        skipped = "antispam" in self._config.auth_skip and self._visit.auth & AUTH_ACCEPTED
        return None if skipped else self._service.spam

    def end(self) -> Verdict | None:
        """All of it is with the server but its end: scan it; None when the verdict takes time."""
        if self._copy is None:
            for words, scanner in (("SCAN", self._service.virus), ("SPAM", self._service.spam)):
                if scanner:
                    self._service.log.info(f"{words}:SKIPPED", **self._visit.who())
            return self._locked()
        self._scan = asyncio.get_running_loop().create_task(self._scan_copy(self._copy))
        return None

    async def _scan_copy(self, copy: Spool) -> None:
        try:
            verdict = await self._virus(copy) or await self._spam(copy) or self._locked()
        except Exception as error:
            told = {"message": "a scan failed", "exception": error}
            asyncio.get_running_loop().call_exception_handler(told)
            verdict = Verdict(Action.TAKEOVER, 550, "", self._config.msg_scanner_failed)
        self._keep_on("always", copy)
        self._scan = None
        self.scanning = ""
        if verdict.action is not Action.PASS:
            self._service.clients.talkers.of(self._visit.client.address).refusals += 1
        self.resume(verdict)

    async def _virus(self, copy: Spool) -> Verdict | None:
        config, log, who = self._config, self._service.log, self._visit.who()
        if self._service.virus is None:
            return None
        scanner = self._scanner_of_virus()
        if scanner is None or copy.dropped or copy.size > config.scan_max_size:
            log.info("SCAN:SKIPPED", **who, size=copy.size)
            return None
        self.scanning = "scan"
        began = time.monotonic()
        found = await scanner.scan(copy)
        details = {**who, "size": copy.size, "time": f"{time.monotonic() - began:.3f}"}
        if found.state is State.CLEAN:
            log.info("SCAN:CLEAN", **details)
            return None
        if found.state is not State.FOUND:
            log.err(f"SCAN:{found.state.name}", **details, result=found.detail)
            self._keep_on("error", copy)
            if config.ignore_errors:
                return None
            return Verdict(Action.TAKEOVER, 550, "", config.msg_scanner_failed)
        return self._virus_found(copy, found.name or config.msg_unknown_virus, details)

    def _virus_found(self, copy: Spool, name: str, details: dict[str, object]) -> Verdict:
        config = self._config
        self._service.board.add(Counter.VIRUSES)
        self._service.log.notice("SCAN:VIRUS", **details, virus=name)
        kept = self._keep_on("virus", copy)
        events.report(self._visit, "virus", "VIRUS", f"VIRUS {name}", virus_name=name, spool_name=kept)
        text = f"{config.proxy_name} {config.msg_virus_found} ({name})"
        return Verdict(Action.TAKEOVER, 550, "5.7.1", text, config.msg_virus_no_more)

    async def _spam(self, copy: Spool) -> Verdict | None:
        config, log, who = self._config, self._service.log, self._visit.who()
        if self._service.spam is None:
            return None
        scanner, load = self._scanner_of_spam(), self._service.load()
        busy = 0 < config.spam_max_load < load
        if scanner is None or busy or copy.dropped or copy.size > config.spam_max_size:
            log.info("SPAM:SKIPPED", **who, size=copy.size, load=f"{load:.2f}")
            return None
        self.scanning = "spam"
        began = time.monotonic()
        found = await scanner.scan(copy)
        details = {**who, "size": copy.size, "time": f"{time.monotonic() - began:.3f}"}
        if found.state is State.CLEAN:
            log.info("SPAM:CLEAN", score=f"{found.score:g}", **details)
            return None
        if found.state is not State.FOUND:
            log.err(f"SPAM:{found.state.name}", **details, result=found.detail)
            self._keep_on("error", copy)
            return None
        return self._spam_found(copy, found, details)

    def _spam_found(self, copy: Spool, found: Finding, details: dict[str, object]) -> Verdict | None:
        config = self._config
        score = f"{found.score:g}"
        self._service.board.add(Counter.SPAMS)
        self._service.log.notice("SPAM:FOUND", score=score, **details)
        kept = self._keep_on("spam", copy)
        if "spam" not in config.lock_on:
            return None
        events.report(self._visit, "spam", "SPAM", f"SPAM {score}", spam_score=found.score, spool_name=kept)
        return Verdict(Action.TAKEOVER, 550, "5.7.1", f"{config.msg_spam_found} [{score}]")

    def _locked(self) -> Verdict:
        """Look once more: another session of the same client may have been caught meanwhile."""
        visit, config = self._visit, self._config
        if visit.locked() is None:
            return PASS
        self._service.log.notice("LOCK:LOCKED", **visit.who())
        return Verdict(Action.HANGUP, 451, "4.4.0", config.msg_virus_locked)

    def _keep_on(self, event: str, copy: Spool) -> str:
        """Keep the copy if that is wanted; give its name if so."""
        if not {event, "always"} & self._config.spool_leave_on:
            return ""
        try:
            return str(copy.keep())
        except OSError as error:
            if not copy.dropped:
                self._service.log.err("SPOOL:FAILED", **self._visit.who(), why=error)
            return ""
