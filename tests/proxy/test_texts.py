"""Every text for mail users is what a mail user reads: each msg_ option, changed, changes a reply.

Texts of parts that have test files of their own (quotas, patterns, block lists, remote lookups) are proven
there; `ELSEWHERE` names them.
"""

import asyncio
import errno
import os
import resource
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop

from appliance.config import OPTIONS, parse
from appliance.log import Log
from appliance.proxy import admission
from appliance.proxy.clients import Clients
from appliance.proxy.lookup import Endpoint, Lookup, LookupFailure, Route
from appliance.proxy.scoreboard import Scoreboard
from appliance.proxy.service import Service
from appliance.proxy.visit import Visit
from tests.proxy.inside import Inside
from tests.proxy.test_events import CLEAN, SCAN, SPAM, VIRUS
from tests.proxy.within import served, service

ELSEWHERE = (
    "msg_max_per_ident",
    "msg_ratelimit_",
    "msg_rate_",
    "msg_regex_",
    "msg_dnsdb_",
    "msg_spf_",
    "msg_lookup_",
    "msg_malformed_",
)
NOWHERE = {"msg_unknown_scanner"}
Way = Callable[[Inside], str]


def using(way: Callable[[Inside], str], **options: str | int) -> tuple[dict[str, str | int], Way]:
    return options, way


def after(*lines: str, code: str) -> Way:
    """Say lines to a gateway that plays server; give the answer to the last."""

    def way(inside: Inside) -> str:
        with inside.connect() as client:
            assert client.reply().startswith("220 gw.example.test ESMTP")
            for line in lines:
                answer = client.ask(line)
        assert answer.startswith(code)
        return answer

    return way


def greeted(inside: Inside) -> str:
    with inside.connect() as client:
        return client.reply()


def crowded(inside: Inside) -> str:
    with inside.session():
        return greeted(inside)


def locked_out(inside: Inside) -> str:
    (inside.locks / "127.0.0.1").touch()
    return greeted(inside)


def after_a_virus(inside: Inside) -> str:
    with inside.session() as client:
        assert client.begin().finish(VIRUS).startswith("550")
        return client.ask("MAIL FROM:<a@b.test>")


def no_directory(inside: Inside) -> str:
    inside.spool.rmdir()
    return refused_data(inside)


def refused_data(inside: Inside) -> str:
    with inside.session() as client:
        client.ask("MAIL FROM:<a@b.test>")
        client.ask("RCPT TO:<c@d.test>")
        return client.ask("DATA")


def overtaken(inside: Inside) -> str:
    """More commands than the queue holds, before the server answers the first."""
    inside.server.hooks["NOOP"] = lambda _: time.sleep(0.02)
    with inside.session() as client:
        client.say(*["NOOP"] * 40)
        replies = [client.reply() for _ in range(16)]
    return replies[-1]


def early(inside: Inside) -> str:
    inside.server.hooks["connect"] = lambda _: time.sleep(0.2)
    with inside.connect() as client:
        client.say("NOOP")
        return client.reply()


def waited(inside: Inside) -> str:
    with inside.connect() as client:
        client.reply()
        return client.reply()


def not_offered(inside: Inside) -> str:
    with inside.session() as client:
        return client.ask("BURL imap://x")


GONE: dict[str, str | int] = {"fixed_server_port": 1}
SCANS: dict[str, str | int] = {**SCAN, "lock_on": "spam"}
TEXTS: dict[str, tuple[dict[str, str | int], Way]] = {
    "msg_virus_found": using(lambda inside: inside.send(VIRUS), **SCANS),
    "msg_virus_no_more": using(after_a_virus, **SCANS),
    "msg_virus_locked": using(locked_out),
    "msg_spam_found": using(lambda inside: inside.send(SPAM), **SCANS),
    "msg_scanner_failed": using(lambda inside: inside.send("X-Virus:\r\n\r\n"), **SCANS),
    "msg_cannot_connect": using(after("MAIL FROM:<a@b>", code="451"), **GONE),
    "msg_spool_open_fail": using(no_directory, **SCANS),
    "msg_pipeline_full": using(overtaken, pipeline_size=16),
    "msg_session_timeout": using(waited, **GONE, timeout_session=1),
    "msg_sign_off": using(after("QUIT", code="221"), **GONE),
    "msg_hello": using(after("EHLO x", code="250"), **GONE),
    "msg_proto_error": using(after("DATA", code="503"), **GONE),
    "msg_transaction_failed": using(after("NOOP", "NOOP", code="554"), **GONE, on_takeover_cmds=1),
    "msg_unimpl_command": using(not_offered),
    "msg_max_reached": using(crowded, max_connections=1),
    "msg_max_per_host": using(crowded, max_per_host=1, lock_on="never"),
    "msg_system_load": using(greeted, max_load="1e-9"),
    "msg_auth_required": using(refused_data, auth_require="mandatory"),
    "msg_size_limit": using(lambda inside: inside.send(CLEAN + "x" * 99 + "\r\n"), size_limit=50),
    "msg_fixed_xclient_fail": using(after("MAIL FROM:<a@b>", code="451"), mode="fixed+xclient"),
    "msg_earlytalker": using(early, lock_on="never"),
    "msg_loop_avoidance": using(greeted, mode="getsockname", bind_address="127.0.0.1"),
}
"""How each text can be provoked: the options that it takes, and what to do."""

BY_HAND = {
    *("msg_unknown_virus", "msg_connect_timeout", "msg_connect_failed", "msg_nomem", "msg_temp_unavail"),
    *("msg_lookup_failed", "msg_lookup_nomem", "msg_lookup_unknown", "msg_spool_problem"),
}


def test_every_text_is_proven_here_or_elsewhere() -> None:
    here = {*TEXTS, *BY_HAND, *NOWHERE}
    assert here <= set(OPTIONS)
    assert {name for name in OPTIONS if name.startswith("msg_")} - here == {
        name for name in OPTIONS if name.startswith(ELSEWHERE) and name not in here
    }
    assert {name for name in OPTIONS if name.startswith("msg_") and OPTIONS[name].obsolete} == NOWHERE


ODD = "100% %s %n {0} żółć \\t"


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.option(name)) for name in TEXTS])
def test_a_text_is_what_the_client_reads(inside: Inside, name: str) -> None:
    options, way = TEXTS[name]
    if name == "msg_loop_avoidance":
        options = {**options, "port": inside.port}
    inside.use(**options, **{name: f"{ODD} of {name}"})
    answer = way(inside)
    assert f"{ODD} of {name}" in answer.encode("latin-1").decode()
    inside.idle()


@pytest.mark.option("msg_spool_problem")
def test_a_copy_that_cannot_be_written(inside: Inside) -> None:
    """A file that may not grow is as good as a full disk."""
    inside.use(**SCANS, msg_spool_problem="spool problem")
    before = resource.prlimit(inside.pid, resource.RLIMIT_FSIZE, (20_000, -1))
    try:
        assert inside.send("Subject: large\r\n\r\n" + "x" * 70_000 + "\r\n") == "451 5.3.1 spool problem"
    finally:
        resource.prlimit(inside.pid, resource.RLIMIT_FSIZE, before)


class Mksd(socketserver.StreamRequestHandler):
    """A scanner that finds a virus which has no name."""

    def handle(self) -> None:
        self.rfile.readline()
        self.wfile.write(b"VIR\n")


@pytest.mark.option("msg_unknown_virus", "msg_virus_found")
def test_a_virus_without_a_name(inside: Inside, tmp_path: Path) -> None:
    texts = {"msg_unknown_virus": "what was it", "msg_virus_found": r"first line\nsecond line"}
    inside.use(antivirus_type="mksd", antivirus_path=str(tmp_path / "mksd"), lock_on="never", **texts)
    with socketserver.ThreadingUnixStreamServer(str(tmp_path / "mksd"), Mksd) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        with inside.session() as client:
            client.begin().send(CLEAN.encode() + b".\r\n")
            assert client.line() == "550-5.7.1 gw.example.test first line"
            assert client.line() == "550 5.7.1 second line (what was it)"
        server.shutdown()


def unreached(inside: Inside) -> str:
    return after("MAIL FROM:<a@b>", code="451 gw.example.test ")(inside)


@pytest.mark.option("msg_connect_timeout", "timeout_connect")
def test_a_server_that_does_not_answer(inside: Inside) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port = full.getsockname()[1]
        inside.use(fixed_server_port=port, timeout_connect=1, msg_connect_timeout="no answer")
        waiting = [socket.socket() for _ in range(3)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(("127.0.0.1", port))
        assert unreached(inside) == f"451 gw.example.test no answer (127.0.0.1:{port})"
        for each in waiting:
            each.close()


@pytest.mark.option("msg_connect_failed", "outgoing_addr")
def test_a_connection_that_cannot_even_be_begun(inside: Inside) -> None:
    inside.use(outgoing_addr="192.0.2.1", msg_connect_failed="not begun")
    where = f"127.0.0.1:{inside.server.address[1]}"
    reason = os.strerror(errno.EADDRNOTAVAIL)
    assert unreached(inside) == f"451 gw.example.test not begun ({where}: {reason})"


@pytest.mark.option("msg_hello")
@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (r"one\ntwo\n", ["250-gw.example.test one", "250 two"]),
        (r"one\n\n250 two", ["250-gw.example.test one", "250-", "250 250 two"]),
        ("one\ttwo", ["250 gw.example.test one?two"]),
        ("\u0105" * 600, ["250 gw.example.test " + "\u0105" * 232]),
    ],
)
def test_a_text_stays_within_its_reply(inside: Inside, text: str, lines: list[str]) -> None:
    inside.use(**GONE, msg_hello=text)
    with inside.connect() as client:
        client.reply()
        client.say("EHLO x", "QUIT")
        heard = client.rest().decode().split("\r\n")
    assert heard[: len(lines)] == lines
    assert heard[len(lines)].startswith("221 ")
    inside.wait_log("CLOSE")
    assert len([line for line in inside.log if "SESSION TAKEOVER" in line]) == 1


class Astray(Lookup):
    """A mode of another package, which does as it is told, and that is not always right."""

    def __init__(self, outcome: Route | Exception) -> None:
        self._outcome = outcome

    async def find(self, accepted: socket.socket, client: Endpoint, local: Endpoint) -> Route:  # noqa: ARG002
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome


def talk_to(outcome: Route | Exception, tmp_path: Path, text: str) -> list[str]:
    """Greet a gateway whose lookup comes out so, and begin a mail; give both answers."""

    async def work() -> list[str]:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        log = Log("crit", "daemon", stderr=False, path=str(tmp_path / "none"))
        by = service(f"mode getsockname\nproxy_name gw\nlock_path {tmp_path}\nmax_load 0\n{text}\n", log)
        by.lookup = Astray(outcome)
        with served(by) as address:
            reader, writer = await asyncio.open_connection(*address)
            greeting = await reader.readline()
            writer.write(b"MAIL FROM:<a@b>\r\n")
            answer = await reader.readline()
            writer.close()
        return [line.decode().strip() for line in (greeting, answer)]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(asyncio.wait_for(work(), 10))


OUTCOMES = [
    pytest.param(outcome, f"451 gw {words}", id=words, marks=pytest.mark.option(*options))
    for outcome, words, options in (
        (LookupFailure("no entry"), "not found (no entry)", ["msg_lookup_failed"]),
        (OSError(errno.ENOMEM, "x"), "not found (no room)", ["msg_lookup_nomem", "msg_lookup_failed"]),
        (OSError(errno.EIO, "broken"), "not found (broken)", ["msg_lookup_failed"]),
        (RuntimeError("bug"), "not found (strange)", ["msg_lookup_unknown", "msg_lookup_failed"]),
        (Route(Endpoint("127.0.0.77", 70_000)), "later", ["msg_temp_unavail"]),
    )
]


@pytest.mark.parametrize(("outcome", "answer"), OUTCOMES)
def test_a_lookup_that_goes_wrong(tmp_path: Path, outcome: Route | Exception, answer: str) -> None:
    texts = {"failed": "not found", "nomem": "no room", "unknown": "strange"}
    text = "".join(f"msg_lookup_{name} {words}\n" for name, words in texts.items())
    heard = talk_to(outcome, tmp_path, text + "msg_temp_unavail later")
    assert heard == ["220 gw ESMTP", answer]


@pytest.mark.option("msg_nomem")
def test_no_memory_for_a_connection(tmp_path: Path) -> None:
    log = Log("crit", "daemon", stderr=False, path=str(tmp_path / "none"))
    service = Service(parse("mode getsockname\nmsg_nomem no room"), log, Scoreboard.create(1), Clients())
    visit = Visit(service, Endpoint("192.0.2.7", 1), Endpoint("192.0.2.1", 25))
    for number in (errno.ENOMEM, errno.ENOBUFS):
        assert str(admission.unreachable(visit, OSError(number, "x"))) == "no room"
