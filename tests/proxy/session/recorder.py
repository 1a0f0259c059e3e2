"""A recording `Effects` and the few words the session's tests are written in. No test lives here."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from appliance.proxy.session import PASS, Effects, Gate, Phase, Session, Settings, Texts, Verdict

TEXTS = Texts(
    hello="hello",
    sign_off="bye",
    proto_error="wrong order",
    unimpl_command="not here",
    transaction_failed="enough",
    session_timeout="too slow",
    pipeline_full="pipeline full",
    size_limit="too big",
    fixed_xclient_fail="no introduction",
)

REPLY_GATES = Gate.REPLY_MAIL | Gate.REPLY_RCPT | Gate.REPLY_AUTH


@dataclass
class Copy:
    """One message as the scanners would see it, and what became of it."""

    spool: bytearray = field(default_factory=bytearray)
    passed: bool = False


class Recorder(Effects):
    """Remembers every effect and plays the checks.

    `verdicts` names the answer of a gate, by gate or by (gate, subject). At the gates in `late` the answer
    comes only through `answer_late`. Calls that the worker could not carry out (bytes for a closed
    connection, a copy that was never begun) fail at once.
    """

    def __init__(
        self,
        verdicts: dict[Gate | tuple[Gate, bytes], Verdict] | None = None,
        *,
        late: int = 0,
        header: bytes = b"",
        spool_fails: Verdict | None = None,
    ) -> None:
        self.to_client_bytes = bytearray()
        self.to_server_bytes = bytearray()
        self.events: list[str] = []
        self.copies: list[Copy] = []
        self.withheld: list[bytes] = []  # the server's stream each time the scanners were asked
        self._open: Copy | None = None
        self._verdicts = verdicts or {}
        self._late = late & ~REPLY_GATES
        self._pending: Verdict | None = None
        self._header = header
        self._spool_fails = spool_fails
        self._server_closed = self._client_closed = self._is_direct = False

    # -- Effects ---------------------------------------------------------------------------------------

    def to_client(self, data: bytes) -> None:
        assert data
        assert not self._client_closed
        assert not self._is_direct
        self.to_client_bytes += data

    def to_server(self, data: bytes) -> None:
        assert data
        assert not self._server_closed
        assert not self._is_direct
        self.to_server_bytes += data

    def ask(self, gate: Gate, subject: bytes) -> Verdict | None:
        assert self._pending is None
        assert not self._client_closed
        assert gate.name
        shown = b"" if gate is Gate.EARLY else subject
        self.events.append(f"{gate.name} {shown.decode('latin-1')}".strip())
        if gate is Gate.END:
            self.withheld.append(bytes(self.to_server_bytes))
        verdict = self._verdicts.get((gate, subject)) or self._verdicts.get(gate, PASS)
        if gate & self._late:
            self._pending = verdict
            return None
        return verdict

    def begin_message(self) -> bytes:
        assert self._open is None
        self._open = Copy()
        self.copies.append(self._open)
        self.events.append("begin")
        return self._header

    def spool(self, data: bytes) -> Verdict | None:
        assert data
        assert self._open
        self._open.spool += data
        return self._spool_fails

    def drop_message(self) -> None:
        if self._open:
            self.events.append("drop")
        self._open = None

    def finish_message(self) -> None:
        assert self._open
        self._open.passed = True
        self._open = None
        self.events.append("finish")

    def direct(self) -> None:
        self._is_direct = True
        self.events.append("direct")

    def taken_over(self, reason: str) -> None:
        self.events.append(f"taken over: {reason}")

    def close_server(self) -> None:
        assert not self._server_closed
        self._server_closed = True
        self.events.append("close server")

    def close_client(self) -> None:
        assert not self._client_closed
        self._client_closed = True
        self.events.append("close client")

    # -- for the tests -----------------------------------------------------------------------------------

    def answer_late(self, session: Session) -> bool:
        """Give the late verdict that is due; tells whether there was one."""
        verdict, self._pending = self._pending, None
        if verdict is None:
            return False
        session.resume(verdict)
        return True

    @property
    def waits(self) -> bool:
        """Whether a late verdict is due."""
        return self._pending is not None

    @property
    def passed(self) -> list[bytes]:
        """The messages whose end was released, as the scanners saw them."""
        return [bytes(copy.spool) for copy in self.copies if copy.passed]


@dataclass(frozen=True)
class Step:
    """One thing that happens: bytes from one side, or its end when `data` is None."""

    who: str
    data: bytes | None


def lines(*parts: str | bytes) -> bytes:
    """Join: a str is a line and gets its CRLF, bytes are taken as they are."""
    return b"".join(part if isinstance(part, bytes) else part.encode() + b"\r\n" for part in parts)


def C(*parts: str | bytes) -> Step:  # noqa: N802
    """The client says."""
    return Step("client", lines(*parts))


def S(*parts: str | bytes) -> Step:  # noqa: N802
    """The server says."""
    return Step("server", lines(*parts))


CLIENT_ENDS = Step("client", None)
SERVER_ENDS = Step("server", None)
EXPIRES = Step("clock", None)


def settings(**changes: object) -> Settings:
    """Give settings with a copy for the scanners, short texts, and what a test changes."""
    return Settings(**({"proxy_name": "gw", "texts": TEXTS, "spool": True} | changes))  # type: ignore[arg-type]


def play(
    session: Session, recorder: Recorder, steps: tuple[Step, ...], *, size: int = 0, patient: bool = False
) -> None:
    """Let a conversation happen in pieces of `size` bytes (0: as written).

    Late verdicts come as soon as asked for or, when `patient`, only when the whole step has been said.
    """
    for step in steps:
        for piece in _pieces(step, size):
            if step.who == "clock":
                session.expire()
            elif session.phase in (Phase.CLOSED, Phase.DIRECT):
                break
            elif piece is None:
                (session.client_eof if step.who == "client" else session.server_eof)()
            else:
                (session.client_data if step.who == "client" else session.server_data)(piece)
            while not patient and recorder.answer_late(session):
                pass
        while recorder.answer_late(session):
            pass


def _pieces(step: Step, size: int) -> Iterator[bytes | None]:
    if step.data is None or not size:
        yield step.data
        return
    for at in range(0, len(step.data), size):
        yield step.data[at : at + size]
