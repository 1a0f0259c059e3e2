"""How a rule becomes a test: a conversation, what each side gets, in every way its bytes may arrive."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest

from appliance.proxy.session import Gate, Phase, Session, Verdict
from appliance.proxy.session.xclient import ClientOrigin
from tests.proxy.session.recorder import Recorder, S, Step, lines, play, settings

OFFERS = ("PIPELINING", "ENHANCEDSTATUSCODES", "CHUNKING")
EVERY_GATE = sum(Gate)
ALL_GATES = Gate.HELO | Gate.MAIL | Gate.RCPT | Gate.DATA | Gate.END

Lines = list[str | bytes]


@dataclass(frozen=True)
class Case:
    """A conversation and what must come of it. Only the streams are always compared."""

    rule: str
    steps: tuple[Step, ...]
    client: bytes
    server: bytes
    phase: Phase | None = None
    events: list[str] | None = None
    spool: list[bytes] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    verdicts: dict[Gate | tuple[Gate, bytes], Verdict] = field(default_factory=dict)
    header: bytes = b""
    spool_fails: Verdict | None = None
    offers: tuple[str, ...] | None = OFFERS  # None: not even greeted
    origin: ClientOrigin | None = None
    sizes: tuple[int, ...] = (0, 1, 7)


def case(rule: str, *steps: Step, client: Lines, server: Lines, **more: Any) -> Case:
    """Write a case; lines of `client` and `server` as in `lines`."""
    return Case(rule, steps, lines(*client), lines(*server), **more)


def check(one: Case, size: int, late: bool, patient: bool) -> None:
    """Let the conversation happen, its bytes in pieces of `size`, and look at what came of it."""
    recorder = Recorder(
        one.verdicts, late=EVERY_GATE if late else 0, header=one.header, spool_fails=one.spool_fails
    )
    asked = 0
    for gate in one.verdicts:
        asked |= gate if isinstance(gate, Gate) else gate[0]
    session = Session(settings(**({"gates": asked} | one.settings)), recorder, one.origin)
    if one.offers is not None:
        session.server_data(lines("220 mx ready"))
        session.client_data(lines("EHLO client"))
        play(session, recorder, (S(*_hello(one.offers)),))
        recorder.answer_late(session)
        recorder.to_client_bytes.clear()
        recorder.to_server_bytes.clear()
        recorder.events.clear()
        if Gate.HELO & asked:
            raise AssertionError("a case about HELO starts with offers=None")
    play(session, recorder, one.steps, size=size, patient=patient)
    assert bytes(recorder.to_client_bytes) == one.client
    assert bytes(recorder.to_server_bytes) == one.server
    if one.phase:
        assert session.phase is one.phase
    if one.events is not None:
        assert recorder.events == one.events
    if one.spool is not None:
        assert [bytes(copy.spool) for copy in recorder.copies] == one.spool


def every_way(cases: Iterable[Case]) -> list[Any]:
    """Parameters for `check`: whole and in pieces; verdicts at once, late, late with more bytes behind."""
    return [
        pytest.param(one, size, late, patient, id=f"{one.rule} [{how} {size or 'whole'}]")
        for one in cases
        for size in one.sizes
        for how, late, patient in (("now", False, False), ("late", True, False), ("later", True, True))
        if not late or one.verdicts
    ]


def _hello(offers: tuple[str, ...]) -> list[str]:
    parts = ["mx", *offers]
    return [f"250{' ' if at == len(parts) - 1 else '-'}{part}" for at, part in enumerate(parts)]
