"""3, mode remote-udp: what the gateway asks a router, and what it makes of each kind of answer."""

import contextlib
import dataclasses
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.origin import FOUND, NOT_FOUND, QUERY, REPLY, read_query, write_reply
from lab.process import wait_until
from tests.lab.scripted import ScriptedServer, descriptors
from tests.proxy.inside import Inside
from tests.proxy.lookup.helper import OTHER, ROUTER, UdpHelper, UdpScript, found

TEXTS: dict[str, str | int] = {
    name: f"{name} it is"
    for name in ("msg_lookup_notfound", "msg_lookup_timeout", "msg_lookup_mismatch", "msg_malformed_ip")
}


@pytest.fixture
def helper(inside: Inside) -> Iterator[UdpHelper]:
    """A helper at ROUTER, and a gateway that asks it."""
    with UdpHelper(inside.server.address, "anna") as helper:
        use(inside, helper.port)
        yield helper
    inside.idle()


def use(inside: Inside, port: int, **options: str | int) -> None:
    chosen = {**TEXTS, "mode": "remote-udp", "remote_port": port, "timeout_lookup": 5, "lock_on": "never"}
    inside.use(**{**chosen, **options})


def failed(inside: Inside, source: str = ROUTER) -> str:
    """Connect in vain; give the cause that the client is told."""
    with inside.connect(source) as client:
        assert client.reply() == "220 gw.example.test ESMTP"
        answer = client.ask("MAIL FROM:<a@b>")
    beginning = "451 gw.example.test your mail server could not be found ("
    assert answer.startswith(beginning)
    return answer.removeprefix(beginning).removesuffix(")")


@pytest.mark.option("mode", "remote_port", "remote_udp_secret")
def test_the_query_names_the_connection_as_the_gateway_sees_it(inside: Inside, helper: UdpHelper) -> None:
    use(inside, helper.port, remote_udp_secret=0xFEEDBEEF)
    asked: list[tuple[str, int]] = []

    def keep(helper: UdpHelper, data: bytes, gateway: tuple[str, int]) -> None:
        asked.append(gateway)
        found(helper, data, gateway)

    helper.script = keep
    cookies = set()
    for _ in range(2):
        with inside.session(ROUTER) as client:
            port = client.socket.getsockname()[1]
            assert client.begin().finish().startswith("250")
        fields = struct.unpack("!IIIHH4s4sHH32s6s", helper.heard[-1])
        cookies.add(fields[1])
        assert (fields[0], *fields[2:5]) == (0x52504844, 0xFEEDBEEF, 0x0402, 0x0001)
        assert fields[5:9] == (socket.inet_aton(ROUTER), socket.inet_aton("127.0.0.1"), port, inside.port)
        assert fields[9:] == (bytes(32), bytes(6))
    assert len(cookies) == 2
    assert [address for address, _ in asked] == ["127.0.0.1", "127.0.0.1"]
    assert f"X-NAT-Received: from [{ROUTER}]:{port} [ident anna]" in inside.server.messages[-1]
    where = "{}:{}".format(*inside.server.address)
    assert f"ident=anna, dst={where}" in inside.wait_log("NEW ")


def send_to_other_place(helper: UdpHelper, data: bytes, gateway: tuple[str, int]) -> None:
    """A forger who sees the query, but is not where it was sent to."""
    for address in (OTHER, ROUTER):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as forger:
            forger.bind((address, 0))
            forger.sendto(elsewhere(helper, data), gateway)


def elsewhere(helper: UdpHelper, data: bytes) -> bytes:
    """Answer that leads to nowhere."""
    right = helper.reply(data)
    return right[:20] + socket.inet_aton("127.0.0.99") + right[24:]


def changed(offset: int, new: bytes) -> UdpScript:
    def send(helper: UdpHelper, data: bytes, gateway: tuple[str, int]) -> None:
        wrong = elsewhere(helper, data)
        helper.socket.sendto(wrong[:offset] + new + wrong[offset + len(new) :], gateway)

    return send


def send_short(helper: UdpHelper, data: bytes, gateway: tuple[str, int]) -> None:
    for size in range(16):
        helper.socket.sendto(elsewhere(helper, data)[:size], gateway)


IGNORED = {
    "another cookie": changed(4, b"\xff\x00\xff\x00"),
    "no cookie": changed(4, bytes(4)),
    "another magic": changed(0, b"RPHE"),
    "another source": send_to_other_place,
    "too short to be an answer": send_short,
    "the query itself, by another": changed(0, bytes(16)),
}


@pytest.mark.parametrize("kind", IGNORED)
def test_what_is_no_answer_is_ignored(inside: Inside, helper: UdpHelper, kind: str) -> None:
    def both(helper: UdpHelper, data: bytes, gateway: tuple[str, int]) -> None:
        for _ in range(3):
            IGNORED[kind](helper, data, gateway)
        found(helper, data, gateway)

    helper.script = both
    assert inside.send("", ROUTER).startswith("250")
    assert len(helper.heard) == 1


def flags(bits: int) -> bytes:
    return struct.pack("!H", bits)


def cut(helper: UdpHelper, data: bytes, gateway: tuple[str, int]) -> None:
    helper.socket.sendto(helper.reply(data)[:40], gateway)


def lengthened(helper: UdpHelper, data: bytes, gateway: tuple[str, int]) -> None:
    helper.socket.sendto(helper.reply(data) + bytes(1400), gateway)


MISMATCHES = {
    "another version": (changed(12, b"\x04\x01"), "version 0x0401 where 0x0402 was asked"),
    "the version for IPv6": (changed(12, b"\x06\x00"), "version 0x0600 where 0x0402 was asked"),
    "a query": (changed(14, flags(QUERY)), "flags 0x0001"),
    "a query that is a reply": (changed(14, flags(QUERY | REPLY | FOUND)), "flags 0x0013"),
    "neither found nor not": (changed(14, flags(REPLY)), "flags 0x0002"),
    "found and not found": (changed(14, flags(REPLY | FOUND | NOT_FOUND)), "flags 0x0032"),
    "truncated": (cut, "40 bytes"),
    "too long": (lengthened, " bytes"),
}


@pytest.mark.parametrize("kind", MISMATCHES)
@pytest.mark.option("msg_lookup_mismatch", "msg_lookup_failed")
def test_an_answer_that_is_not_understood(inside: Inside, helper: UdpHelper, kind: str) -> None:
    helper.script, why = MISMATCHES[kind]
    assert failed(inside) == "msg_lookup_mismatch it is"
    line = inside.wait_log("LOOKUP:FAILED")
    assert f"src={ROUTER}:" in line
    assert f"port {helper.port} not understood" in line
    assert why in line
    assert len(helper.heard) == 1


@pytest.mark.option("msg_lookup_notfound")
def test_a_router_that_does_not_know(inside: Inside, helper: UdpHelper) -> None:
    def lost(helper: UdpHelper, data: bytes, gateway: tuple[str, int]) -> None:
        helper.socket.sendto(write_reply(helper.query(data), None), gateway)

    helper.script = lost
    assert failed(inside) == "msg_lookup_notfound it is"
    assert f"the router knows no connection to 127.0.0.1:{inside.port}" in inside.wait_log("LOOKUP:FAILED")


@pytest.mark.parametrize(
    ("address", "port"),
    [("0.0.0.0", 25), ("255.255.255.255", 25), ("224.0.0.25", 25), ("127.0.0.1", 0)],
)
@pytest.mark.option("msg_malformed_ip")
def test_a_destination_that_cannot_be(inside: Inside, helper: UdpHelper, address: str, port: int) -> None:
    helper.script = changed(20, socket.inet_aton(address))
    if not port:
        helper.script = changed(26, bytes(2))
    assert failed(inside) == "msg_malformed_ip it is"
    inside.wait_log("is of no use: address ")


@pytest.mark.parametrize(
    ("raw", "ident"),
    [
        (b"b" * 32, "b" * 32),
        (b"x\r\nRCPT TO:<a>", "x__RCPT_TO:_a_"),
        (b"a], dst=[1.2.3.4", "a___dst=_1.2.3.4"),
        (b"\xff\xfe\x00hidden", "__"),
        (b"/../../etc", "/../../etc"),
    ],
)
def test_an_ident_can_do_no_harm(inside: Inside, helper: UdpHelper, raw: bytes, ident: str) -> None:
    use(inside, helper.port, lock_on="regex", regex_reject_mail_from="spam")

    def named(helper: UdpHelper, data: bytes, gateway: tuple[str, int]) -> None:
        right = helper.reply(data)
        helper.socket.sendto(right[:28] + raw.ljust(32, b"\0") + right[60:], gateway)

    helper.script = named
    with inside.session(ROUTER) as client:
        assert client.begin().finish().startswith("250")
        assert f"[ident {ident}]\r\n" in inside.server.messages[0]
        assert client.ask("MAIL FROM:<spam@b>").startswith("550")
    name = "".join(char if char.isalnum() or char in "-=+:" else "_" for char in ident)
    assert inside.locked() == [f"{ROUTER}-{name}"]


def test_an_empty_ident_is_nobody(inside: Inside, helper: UdpHelper) -> None:
    use(inside, helper.port, max_per_ident=1)

    def unnamed(helper: UdpHelper, data: bytes, gateway: tuple[str, int]) -> None:
        helper.socket.sendto(helper.reply(data)[:28] + bytes(38), gateway)

    helper.script = unnamed
    with inside.session(ROUTER) as first, inside.session(ROUTER):
        assert first.begin().finish().startswith("250")
    assert "[ident-empty]" in inside.server.messages[0]


@pytest.mark.option("remote_udp_retries")
@pytest.mark.lab
@pytest.mark.parametrize("how", ["lost", "late"])
def test_a_datagram_that_is_lost_or_late(inside: Inside, helper: UdpHelper, how: str) -> None:
    """The answer to the first one serves as well when it comes after the second one was sent."""
    use(inside, helper.port, timeout_lookup=1, remote_udp_retries=2)

    def slowly(helper: UdpHelper, data: bytes, gateway: tuple[str, int]) -> None:
        if len(helper.heard) == 2:
            found(helper, data if how == "lost" else helper.heard[0], gateway)

    helper.script = slowly
    begin = time.monotonic()
    assert inside.send("", ROUTER).startswith("250")
    assert 0.9 < time.monotonic() - begin < 1.8
    assert helper.heard[0] == helper.heard[1]


def test_an_answer_that_comes_more_than_once(inside: Inside, helper: UdpHelper) -> None:
    def often(helper: UdpHelper, data: bytes, gateway: tuple[str, int]) -> None:
        for _ in range(5):
            found(helper, data, gateway)
        helper.socket.sendto(elsewhere(helper, data), gateway)

    helper.script = often
    for _ in range(3):
        assert inside.send("", ROUTER).startswith("250")
    assert len(helper.heard) == len(inside.server.messages) == 3


@pytest.mark.option("timeout_lookup", "remote_udp_retries", "msg_lookup_timeout")
@pytest.mark.lab
@pytest.mark.parametrize(("retries", "sent"), [(0, 1), (1, 1), (3, 3)])
def test_a_router_that_says_nothing(inside: Inside, helper: UdpHelper, retries: int, sent: int) -> None:
    use(inside, helper.port, timeout_lookup=1, remote_udp_retries=retries)
    helper.script = lambda *_: None
    with UdpHelper(inside.server.address, "berta", OTHER, helper.port):
        begin = time.monotonic()
        with inside.connect(ROUTER) as waiting:
            assert inside.send("", OTHER).startswith("250")  # nobody else has to wait
            assert time.monotonic() - begin < 0.8
            waiting.reply()
            assert sent - 0.2 < time.monotonic() - begin < sent + 0.8
            assert "msg_lookup_timeout it is" in waiting.ask("MAIL FROM:<a@b>")
    assert f"no answer from port {helper.port} in {sent} times 1 s" in inside.wait_log("LOOKUP:FAILED")
    assert len(helper.heard) == sent


@pytest.mark.lab
def test_a_helper_that_starts_again(inside: Inside) -> None:
    """The network tells that nobody listens; the next datagram finds somebody."""
    with UdpHelper(inside.server.address, "anna") as helper:
        use(inside, helper.port, timeout_lookup=1)
        assert inside.send("", ROUTER).startswith("250")
    with inside.connect(ROUTER) as client:
        time.sleep(0.3)
        assert [row[1] for row in inside.rows()] == ["ident"]
        with UdpHelper(inside.server.address, "anna", port=helper.port):
            assert client.greet().begin().finish().startswith("250")
    use(inside, helper.port, timeout_lookup=1, remote_udp_retries=1)
    assert failed(inside) == "msg_lookup_timeout it is"
    assert "(Connection refused)" in inside.wait_log("LOOKUP:FAILED")
    inside.idle()


def test_each_router_is_asked_about_its_own_clients(inside: Inside, helper: UdpHelper) -> None:
    use(inside, helper.port, max_per_ident=0)
    with (
        contextlib.closing(ScriptedServer(socket.create_server(("127.0.0.1", 0)))) as second,
        UdpHelper(second.address, "berta", OTHER, helper.port) as other,
    ):
        threads = [threading.Thread(target=inside.send, args=("", router)) for router in (ROUTER, OTHER) * 5]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(helper.heard) == len(other.heard) == 5
        assert all(f"[{ROUTER}]" in message and "anna" in message for message in inside.server.messages)
        assert all(f"[{OTHER}]" in message and "berta" in message for message in second.messages)
        assert len(inside.server.messages) == len(second.messages) == 5


@pytest.mark.option("remote_routers")
def test_only_routers_are_asked(inside: Inside, helper: UdpHelper) -> None:
    """Whoever else reaches the gateway could answer what it likes, and have its mail relayed anywhere."""
    use(inside, helper.port, remote_routers=f"192.0.2.0/24,{OTHER}")
    assert failed(inside) == "msg_lookup_notfound it is"
    inside.wait_log("not one of remote_routers")
    assert helper.heard == []
    use(inside, helper.port, remote_routers="127.0.0.0/30")
    assert inside.send("", ROUTER).startswith("250")


@pytest.mark.option("max_per_ident", "msg_max_per_ident", "lock_on")
def test_sessions_of_one_ident(inside: Inside, helper: UdpHelper) -> None:
    use(inside, helper.port, max_per_ident=2, lock_on="maxident", msg_max_per_ident="too many of you")
    with (
        UdpHelper(inside.server.address, "anna", OTHER, helper.port),
        inside.session(ROUTER),
        inside.session(ROUTER),
    ):
        with inside.connect(ROUTER) as third:
            assert third.rest() == b"554 gw.example.test too many of you\r\n"
        assert inside.locked() == [f"{ROUTER}-anna"]
        with inside.session(OTHER) as namesake:  # behind another router: another person
            assert namesake.begin().finish().startswith("250")
        helper.origin = dataclasses.replace(helper.origin, ident="carl")
        inside.session(ROUTER).close()
    inside.wait_log("REJECT:MAX_IDENT")


@pytest.mark.option("ratelimit_sessions", "ratelimit_period", "ratelimit_path")
def test_rate_limits_and_locks_of_one_ident(inside: Inside, helper: UdpHelper, tmp_path: Path) -> None:
    use(inside, helper.port, ratelimit_period=3600, ratelimit_sessions=1, ratelimit_path=str(tmp_path))
    with inside.session(ROUTER) as client:
        assert client.begin().finish().startswith("250")
        client.ask("MAIL FROM:<a@b>")
        client.ask("RCPT TO:<a@b>")
        assert client.ask("DATA").startswith("552")
    with inside.connect(ROUTER) as client:
        client.greet()
        client.ask("MAIL FROM:<a@b>")
        client.ask("RCPT TO:<a@b>")
        assert client.ask("DATA").startswith("552")
    helper.origin = dataclasses.replace(helper.origin, ident="carl")
    assert inside.send("", ROUTER).startswith("250")
    (inside.locks / f"{ROUTER}-carl").touch()
    with inside.connect(ROUTER) as client:
        assert client.rest().startswith(b"554 ")
    assert "ident=carl" in inside.wait_log("LOCK:LOCKED")


def test_a_client_that_leaves_meanwhile_leaves_nothing_behind(inside: Inside, helper: UdpHelper) -> None:
    helper.script = lambda *_: None
    before = descriptors(inside.pid)
    clients = [inside.connect(ROUTER) for _ in range(20)]
    wait_until(lambda: len(helper.heard) == 20, 5, "all queries")
    assert descriptors(inside.pid) == before + 40
    for client in clients:
        client.reset()
    wait_until(lambda: descriptors(inside.pid) == before, 5, "their sockets' end")
    helper.script = found
    assert inside.send("", ROUTER).startswith("250")
    assert read_query(helper.heard[-1])
