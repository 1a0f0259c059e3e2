"""3, mode remote: a line each way over TCP, and helpers that do not know when to end."""

import contextlib
import re
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from lab.process import wait_until
from tests.lab.scripted import descriptors
from tests.proxy.inside import Inside
from tests.proxy.lookup.helper import ROUTER, TcpHelper, TcpScript
from tests.proxy.lookup.test_remote_udp import TEXTS, failed


@pytest.fixture
def asked(inside: Inside) -> Iterator[Callable[..., None]]:
    """Have the gateway ask a helper that goes by a script, asked(script, option=value)."""
    with contextlib.ExitStack() as stack:

        def begin(script: TcpScript, **options: str | int) -> None:
            helper = stack.enter_context(TcpHelper(script))
            chosen = {**TEXTS, "mode": "remote", "remote_port": helper.port, "lock_on": "never"}
            inside.use(**{**chosen, "timeout_lookup": 5, **options})

        yield begin
    inside.idle()


def saying(text: str) -> TcpScript:
    """Answer with a text, in which PORTS stands for those of the query."""

    def answer(connection: socket.socket, line: bytes) -> None:
        connection.sendall(text.replace("PORTS", line.decode().strip()).encode("latin-1"))

    return answer


def at(inside: Inside) -> str:
    return "{} : {}".format(*inside.server.address)


@pytest.mark.option("mode", "remote_port")
@pytest.mark.parametrize(
    ("answer", "ident"),
    [
        ("PORTS : ORIGIN : AT : anna\r\n", "anna"),
        ("PORTS:ORIGIN:AT:anna\n", "anna"),
        ("  PORTS  : ORIGIN  :  AT :   anna b \r\n", "anna_b"),
        ("PORTS : ORIGIN : AT : 0123456789012345678901234\r\n", "01234567890123456789"),
        ("PORTS : ORIGIN : AT : fd77::1:5\r\n", "fd77::1:5"),
        ("PORTS : ORIGIN : AT : a\x00\xff]\r\n", "a___"),
        ("PORTS : ORIGIN : AT : anna\r\nPORTS : ERROR : NO-USER\r\n", "anna"),
    ],
)
def test_the_answer_leads_to_the_server(
    inside: Inside, asked: Callable[..., None], answer: str, ident: str
) -> None:
    lines = []

    def keep(connection: socket.socket, line: bytes) -> None:
        lines.append((line, connection.getpeername()[0]))
        saying(answer.replace("AT", at(inside)))(connection, line)

    asked(keep)
    with inside.session(ROUTER) as client:
        port = client.socket.getsockname()[1]
        assert client.begin().finish().startswith("250")
    assert lines == [(b"%d , %d\r\n" % (port, inside.port), "127.0.0.1")]
    assert f"[ident {ident}]\r\n" in inside.server.messages[0]


@pytest.mark.parametrize("answer", ["PORTS : ORIGIN : AT :\r\n", "PORTS : ORIGIN : AT\r\n"])
def test_an_answer_without_ident(inside: Inside, asked: Callable[..., None], answer: str) -> None:
    asked(saying(answer.replace("AT", at(inside))), max_per_ident=1)
    with inside.session(ROUTER), inside.session(ROUTER):
        assert inside.send("", ROUTER).startswith("250")
    assert "[ident-empty]" in inside.server.messages[0]


@pytest.mark.option("msg_lookup_mismatch", "msg_lookup_notfound", "msg_malformed_ip")
@pytest.mark.parametrize(
    ("answer", "text", "why"),
    [
        ("PORTS : ERROR : NO-USER\r\n", "msg_lookup_notfound", "the router knows no connection"),
        ("PORTS : USERID : UNIX : anna\r\n", "msg_lookup_mismatch", "not understood"),
        ("1 , 2 : ORIGIN : 127.0.0.1 : 25 : anna\r\n", "msg_lookup_mismatch", "to another query"),
        ("PORTS : ORIGIN : 127.0.0.1 : 65536 : anna\r\n", "msg_lookup_mismatch", "not understood"),
        ("PORTS : ORIGIN : 127.0.0.1\r\n", "msg_lookup_mismatch", "not understood"),
        ("\r\n", "msg_lookup_mismatch", "not understood"),
        ("", "msg_lookup_mismatch", "closed after"),
        ("PORTS : ORIGIN : 127.0.0.1 : 25 : anna", "msg_lookup_mismatch", "closed after"),
        ("PORTS : ORIGIN : 127.0.0.1 : 25 : " + "a" * 999 + "\r\n", "msg_lookup_mismatch", "more than 256"),
        ("\xff" * 100_000, "msg_lookup_mismatch", "more than 256"),
        ("PORTS : ORIGIN : 300.0.0.1 : 25 : anna\r\n", "msg_malformed_ip", "300.0.0.1"),
        ("PORTS : ORIGIN : mx.test : 25 : anna\r\n", "msg_malformed_ip", "mx.test"),
        ("PORTS : ORIGIN : [2001:db8::1] : 25 : anna\r\n", "msg_malformed_ip", "2001:db8::1"),
        ("PORTS : ORIGIN :  : 25 : anna\r\n", "msg_malformed_ip", "address"),
        ("PORTS : ORIGIN : 0.0.0.0 : 25 : anna\r\n", "msg_malformed_ip", "0.0.0.0"),
        ("PORTS : ORIGIN : 127.0.0.1 : 0 : anna\r\n", "msg_malformed_ip", "port 0"),
    ],
)
def test_answers_that_lead_nowhere(
    inside: Inside, asked: Callable[..., None], answer: str, text: str, why: str
) -> None:
    asked(saying(answer))
    assert failed(inside) == f"{text} it is"
    assert why in inside.wait_log("LOOKUP:FAILED")


def test_nobody_listens(inside: Inside) -> None:
    with socket.create_server((ROUTER, 0)) as gone:
        port = gone.getsockname()[1]
    inside.use(mode="remote", remote_port=port)
    assert failed(inside) == "Connection refused"
    assert re.search(rf"src={ROUTER}:\d+, ident=, why=Connection refused", inside.wait_log("LOOKUP:FAILED"))
    inside.idle()


def test_a_client_that_leaves_meanwhile_leaves_nothing_behind(
    inside: Inside, asked: Callable[..., None]
) -> None:
    lines = []

    def late(connection: socket.socket, line: bytes) -> None:
        lines.append(line)
        connection.recv(1)

    asked(late)
    before = descriptors(inside.pid)
    clients = [inside.connect(ROUTER) for _ in range(20)]
    wait_until(lambda: len(lines) == 20, 5, "all queries")
    assert descriptors(inside.pid) == before + 40
    for client in clients:
        client.reset()
    wait_until(lambda: descriptors(inside.pid) == before, 5, "their sockets' end")


def silent(connection: socket.socket, _: bytes) -> None:
    connection.recv(1)


def trickling(connection: socket.socket, line: bytes) -> None:
    for byte in line.strip() + b" : ORIGIN : 127.0.0.1 : 25 : anna":
        connection.sendall(bytes([byte]))
        time.sleep(0.1)


@pytest.mark.option("timeout_lookup", "msg_lookup_timeout")
@pytest.mark.lab
@pytest.mark.parametrize("script", [silent, trickling])
def test_a_helper_that_does_not_come_to_an_end(
    inside: Inside, asked: Callable[..., None], script: TcpScript
) -> None:
    asked(script, timeout_lookup=1)
    begin = time.monotonic()
    assert failed(inside) == "msg_lookup_timeout it is"
    assert 0.8 < time.monotonic() - begin < 1.8
    inside.wait_log("LOOKUP:FAILED")


@pytest.mark.option("timeout_lookup")
@pytest.mark.lab
def test_a_slow_helper_is_heard_to_the_end(inside: Inside, asked: Callable[..., None]) -> None:
    def slow(connection: socket.socket, line: bytes) -> None:
        time.sleep(1)
        saying(f"PORTS : ORIGIN : {at(inside)} : anna\r\n")(connection, line)

    asked(slow, timeout_lookup=3)
    assert inside.send("", ROUTER).startswith("250")


@pytest.mark.lab
def test_a_helper_whose_host_does_not_answer(inside: Inside) -> None:
    with socket.create_server((ROUTER, 0), backlog=0) as full:
        inside.use(**TEXTS, mode="remote", remote_port=full.getsockname()[1], timeout_lookup=1)
        waiting = [socket.socket() for _ in range(3)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        assert failed(inside) == "msg_lookup_timeout it is"
        for each in waiting:
            each.close()
