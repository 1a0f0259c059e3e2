"""Anything at all, in both directions: no bytes break a session."""

import random

from hypothesis import given
from hypothesis import strategies as st

from appliance.proxy.session import Action, Gate, Phase, Session, Verdict
from tests.proxy.session import recorder as recording
from tests.proxy.session.recorder import Recorder
from tests.proxy.session.test_properties import HEADER, late_gates, modes, profile

noise = st.one_of(
    st.binary(max_size=60),
    st.sampled_from(
        [
            b"250 ok\r\n",
            b"250-x\r\n",
            b"354 go\r\n",
            b"334 \r\n",
            b"235 yes\r\n",
            b"220 mx\r\n",
            b"421 bye\r\n",
            b"550 no\r\n",
            b"250-mx\r\n250-CHUNKING\r\n250 AUTH=X\r\n",
            b"DATA\r\n",
            b"BDAT 5\r\nab",
            b"cde",
            b"AUTH X\r\n",
            b"EHLO c\r\n",
            b"STARTTLS\r\n",
            b".\r\n",
            b"\r\n.\r\n",
            b"NOOP " + b"x" * 2100,
            b"\n",
            b"\r",
            b"\0",
            b"RCPT TO:<a>\r\n",
            b"QUIT\r\n",
            b"BDAT 5 LAST\r\nabcde",
            b"RSET\r\n",
            b"MAIL FROM:<a>\r\n",
            b"AUTH " + b"x" * 12300,
            b"250 " + b"x" * 4100,
        ]
    ),
)
EVENTS = st.tuples(
    st.sampled_from(["client", "server", "late", "client ends", "server ends", "expire"]), noise
)
ACTIONS = [Action.PASS] * 4 + [Action.REFUSE, Action.TAKEOVER, Action.HANGUP]


@given(
    events=st.lists(EVENTS, max_size=40),
    mode=modes,
    late=late_gates,
    seed=st.integers(0, 1 << 32),
    options=st.fixed_dictionaries(
        {
            "pipeline_size": st.sampled_from([2, 5, 128]),
            "size_limit": st.sampled_from([0, 5]),
            "forbid_starttls": st.booleans(),
            "mask_xclient": st.booleans(),
            "on_takeover_cmds": st.sampled_from([1, 10]),
        }
    ),
)
@profile
def test_no_bytes_break_it(
    events: list[tuple[str, bytes]], mode: str, late: int, seed: int, options: dict[str, object]
) -> None:
    chance = random.Random(seed)
    checks = Whims(late=late, header=HEADER, chance=chance)
    session = Session(recording.settings(gates=sum(Gate), bare_newline=mode, **options), checks)
    for what, data in events:
        if session.phase in (Phase.CLOSED, Phase.DIRECT):
            break
        if what == "client":
            session.client_data(data)
        elif what == "server":
            session.server_data(data)
        elif what == "late":
            checks.answer_late(session)
        elif chance.random() < 0.2:
            {"client ends": session.client_eof, "server ends": session.server_eof, "expire": session.expire}[
                what
            ]()
        assert len(session._awaited) <= 130
        assert len(session._tail) <= 4096


class Whims(Recorder):
    """Decides by the dice."""

    def __init__(self, *, late: int, header: bytes, chance: random.Random) -> None:
        super().__init__(late=late, header=header)
        self._chance = chance

    def ask(self, gate: Gate, subject: bytes) -> Verdict | None:
        self._verdicts = {gate: Verdict(self._chance.choice(ACTIONS), 550, "5.7.1", "whim")}
        return super().ask(gate, subject)

    def spool(self, data: bytes) -> Verdict | None:
        super().spool(data)
        return Verdict(Action.TAKEOVER, 451, "4.3.1", "disk") if self._chance.random() < 0.05 else None
