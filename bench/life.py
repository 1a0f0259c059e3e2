"""The daemon's start, up to the first mail accepted, and reloads while clients come and stay."""

import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor

from bench.arena import GATEWAY_PORT, Arena
from bench.load import Workload, send
from bench.row import Effort, Row
from lab.gateway import Gateway
from lab.process import LabError, wait_until

START, RELOAD = 1.0, 100.0  # seconds; milliseconds
STARTS, RELOADS = 3, 10  # in a round, of which the slowest counts
_PAUSE = 0.002  # seconds between tries
_WITHIN = 15.0
_REFUSED = "^reloaded\\.test$"
_PROBE = b"EHLO reloaded.test\r\n"
_MAIL = (
    b"EHLO first.test\r\n",
    b"MAIL FROM:<sender@client.test>\r\n",
    b"RCPT TO:<alice@example.test>\r\n",
    b"DATA\r\n",
    b"Subject: first\r\n\r\nHello.\r\n.\r\n",
)
# Each session waits a second between mails, so that none of the two processors is always busy.
_STAYING = Workload("staying", 500, 2000, 100, kept=True, options=("-w", "1"))
_COMING = Workload("coming", 500, 2000, 100, kept=False, options=("-w", "1"))


def measure(arena: Arena, effort: Effort) -> list[Row]:
    """Start often, and reload often."""
    starts = tuple((max(start(arena) for _ in range(effort.of(STARTS))), 0.0) for _ in range(effort.rounds))
    effort.tell(f"starts, s: {[round(seconds, 3) for seconds, _ in starts]}")
    reloads, disturbed = [], []
    gateway = arena.unstarted_gateway({"lock_on": "virus"}).start()  # a refused name locks nobody
    for _ in range(effort.rounds):
        slowest, failures = reload_among_clients(arena, gateway, effort.of(RELOADS))
        effort.tell(f"reload: {slowest:.1f} ms, {failures} failures")
        reloads.append((slowest, 0.0))
        disturbed.append((float(failures), 0.0))
    gateway.close()
    names = ("start to the first mail", "reload, among 200 clients", "failures of clients at reloads")
    figures = (starts, tuple(reloads), tuple(disturbed))
    return [
        Row(name, unit, "", found, bar, at_most=True, by_ratio=False)
        for name, unit, found, bar in zip(names, ("s", "ms", ""), figures, (START, RELOAD, 0.0), strict=True)
    ]


def start(arena: Arena) -> float:
    """Give the seconds from the start of the program to the acceptance of a mail that waits for it."""
    gateway = arena.unstarted_gateway()
    wait_until(lambda: not arena.host.listening(GATEWAY_PORT), 5, "the end of the gateway before")
    begin = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(gateway.start)
        try:
            while not accepts_mail(arena):
                if time.monotonic() - begin > _WITHIN:
                    raise LabError("the gateway does not listen")
                time.sleep(_PAUSE)
        except OSError as error:
            raise LabError(f"the gateway was there, but accepted no mail: {error}") from error
        seconds = time.monotonic() - begin
        starting.result()
    gateway.close()
    return seconds


def accepts_mail(arena: Arena) -> bool:
    """Try to send a mail; False when nobody listens yet."""
    try:
        session = arena.host.connect((arena.clients[0], GATEWAY_PORT))
    except ConnectionRefusedError:
        return False
    with session, session.makefile("rb") as replies:
        assert replies.readline().startswith(b"220 ")
        for said in _MAIL:
            session.sendall(said)
            while (line := replies.readline())[3:4] == b"-":
                pass
            assert line[:1] in (b"2", b"3"), line
    return True


def reload_among_clients(arena: Arena, gateway: Gateway, count: int) -> tuple[float, int]:
    """Reload so often; give the slowest in milliseconds, and how many clients' programs failed."""
    with ThreadPoolExecutor(2) as pool:
        loads: list[Future[float]] = [
            pool.submit(send, arena.host, arena.clients, GATEWAY_PORT, load) for load in (_STAYING, _COMING)
        ]
        time.sleep(1)  # until all of them are in the middle of it
        slowest = 0.0
        for _ in range(count):
            slowest = max(slowest, reload(arena, gateway))
            time.sleep(0.1)
        if any(load.done() for load in loads):
            raise LabError("the clients had left before the last reload")
        return 1000 * slowest, sum(isinstance(load.exception(), LabError) for load in loads)


def reload(arena: Arena, gateway: Gateway) -> float:
    """Change what a client may call itself; give the seconds from SIGHUP until every worker holds to it."""
    refusing = not gateway.options.get("regex_reject_helo")
    gateway.options["regex_reject_helo"] = _REFUSED if refusing else None
    gateway.write()
    assert gateway.process
    begin = time.monotonic()
    gateway.process.signal(signal.SIGHUP)
    for client in arena.clients:
        while refuses(arena, client) != refusing:
            if time.monotonic() - begin > _WITHIN:
                raise LabError(f"the reload had no effect:\n{gateway.log[-2000:]}")
    return time.monotonic() - begin


def refuses(arena: Arena, client: str) -> bool:
    """Tell whether a new session is refused the name."""
    with arena.host.connect((client, GATEWAY_PORT)) as session, session.makefile("rb") as replies:
        assert replies.readline().startswith(b"220 ")
        session.sendall(_PROBE)
        answer = replies.readline()
        assert answer[:3] in (b"250", b"550"), answer
        return answer.startswith(b"550")
