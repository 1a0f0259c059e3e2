"""appliance-helper on a router, asked by everybody in every way: who gets which answer, and what it costs."""

import contextlib
import re
import socket
import struct
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

import pytest

from appliance.origin import Flow, NotFound, Origin, Query, read_reply, write_query
from lab import router
from lab.branches import GATEWAY4, GATEWAY6, ROUTERS4, ROUTERS6, Branches, Helper
from lab.host import Host
from lab.image import CHECKOUT
from lab.network import CLIENT4, CLIENT6
from lab.process import wait_until

pytestmark = pytest.mark.lab

SECRET = 0xFEEDBEEF
SERVERS = {4: "198.51.100.25", 6: "2001:db8:25::25"}
GATEWAYS, ROUTERS = {4: GATEWAY4, 6: GATEWAY6}, {4: ROUTERS4[0], 6: ROUTERS6[0]}
NET_ADMIN = 1 << 12


class Scene(NamedTuple):
    """A helper with a secret, and one connection of each IP version that its router sent to the gateway."""

    network: Branches
    helper: Helper
    flows: dict[int, Flow]
    listeners: dict[int, socket.socket]

    def socket(self, version: int = 4, host: Host | None = None, source: str = "") -> socket.socket:
        """Give a datagram socket of the gateway, or another host, that is connected to the helper."""
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        made = (host or self.network.gateway).open_socket(family, socket.SOCK_DGRAM)
        if source:
            made.bind((source, 0))
        made.connect((ROUTERS[version], 114))
        made.settimeout(5)
        return made

    def query(self, version: int = 4, secret: int = SECRET) -> Query:
        """Ask about the connection."""
        return Query(self.flows[version], 0xC00C1E, secret)

    def served(self) -> None:
        """See that a right question is answered at once."""
        with self.socket() as asking:
            asking.send(write_query(self.query()))
            assert read_reply(asking.recv(500), self.query())


@pytest.fixture(scope="module")
def network() -> Iterator[Branches]:
    with Branches("helper") as network:
        router.hand_over(network.router, GATEWAY4, GATEWAY6)
        yield network


@pytest.fixture(scope="module")
def secret(network: Branches) -> Path:
    path = network.directory / "secret"
    path.write_text(f"{SECRET}\n")
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def scene(network: Branches, secret: Path) -> Iterator[Scene]:
    flows, listeners = {}, {}
    with contextlib.ExitStack() as stack:
        for version, server in SERVERS.items():
            listener = listeners[version] = stack.enter_context(
                network.gateway.listen((GATEWAYS[version], 9199))
            )
            stack.enter_context(network.client.connect((server, 25)))
            accepted, peer = listener.accept()
            stack.enter_context(accepted)
            ends = ip_address(peer[0]), peer[1], ip_address(GATEWAYS[version]), 9199
            flows[version] = Flow(*ends)
        helper = stack.enter_context(contextlib.closing(Helper(network.router, "--secret-file", secret)))
        yield Scene(network, helper, flows, listeners)


@pytest.mark.parametrize("version", [4, 6])
def test_the_origin_is_found(scene: Scene, version: int) -> None:
    query = scene.query(version)
    with scene.socket(version) as asking:
        asking.send(write_query(query))
        reply = asking.recv(500)
    assert len(reply) == len(write_query(query))
    client = {4: CLIENT4, 6: CLIENT6}[version]
    assert read_reply(reply, query) == Origin(ip_address(SERVERS[version]), 25, client)


@pytest.mark.parametrize("version", [4, 6])
def test_what_is_not_there_is_not_found(scene: Scene, version: int) -> None:
    known = scene.flows[version]
    with scene.socket(version) as asking:
        for flow in (
            Flow(known.source, known.source_port ^ 1, known.destination, 9199),
            Flow(known.source, known.source_port, known.destination, 9198),
            Flow(known.destination, known.source_port, known.destination, 9199),
        ):
            asked = Query(flow, 7, SECRET)
            asking.send(write_query(asked))
            reply = asking.recv(500)
            assert len(reply) <= len(write_query(asked))
            with pytest.raises(NotFound):
                read_reply(reply, asked)


def test_questions_at_the_same_time_get_each_its_own_answer(scene: Scene, network: Branches) -> None:
    servers = [f"198.51.100.{number}" for number in range(100, 140)]
    with contextlib.ExitStack() as stack:
        asking = stack.enter_context(scene.socket())
        wanted = {}
        for number, server in enumerate(servers):
            stack.enter_context(network.client.connect((server, 25)))
            accepted, peer = scene.listeners[4].accept()
            stack.enter_context(accepted)
            flow = Flow(ip_address(peer[0]), peer[1], ip_address(GATEWAY4), 9199)
            wanted[number] = Query(flow, number, SECRET)
        for query in wanted.values():
            asking.send(write_query(query))
        while wanted:
            reply = asking.recv(500)
            cookie = int.from_bytes(reply[4:8])
            found = read_reply(reply, wanted.pop(cookie))
            assert found == Origin(ip_address(servers[cookie]), 25, CLIENT4)


def test_nobody_else_gets_a_byte(scene: Scene) -> None:
    """Silence, not even a refusal: what is forged must not make the helper talk to its victim."""
    right = write_query(scene.query())
    wrong = {
        "wrong secret": [
            write_query(scene.query(secret=secret)) for secret in (0, SECRET ^ 1, SECRET << 1 & 0xFFFFFFFF)
        ],
        "not a question": [
            *(right[:size] for size in range(0, len(right), 5)),
            right + b"\0",
            right * 20,
            b"RPHE" + right[4:],
            right[:12] + b"\x06\x00" + right[14:],
            right[:14] + b"\x00\x02" + right[16:],
            right[:14] + b"\xff\xff" + right[16:],
        ],
        "asks about a connection to another": [right[:20] + socket.inet_aton("192.0.2.10") + right[24:]],
    }
    with scene.socket() as asking:
        for datagrams in wrong.values():
            for datagram in datagrams:
                asking.send(datagram)
        asking.settimeout(0.3)
        with pytest.raises(TimeoutError):
            asking.recv(500)
    strangers = ((scene.network.mail, ""), (scene.network.client, ""))
    for host, source in strangers:
        with scene.socket(host=host, source=source) as asking:
            asking.send(right)
            asking.settimeout(0.2)
            with pytest.raises(TimeoutError):
                asking.recv(500)
    for kind in (*wrong, "not a gateway"):
        scene.helper.process.wait_output(f"HELPER:REFUSED {kind} src=")
    scene.served()


def test_a_question_comes_back_from_where_it_was_asked(scene: Scene) -> None:
    """A router has many addresses, and the gateway believes only the one that its client came from."""
    asked = scene.query()
    with scene.socket() as asking:
        asking.connect(("10.77.1.1", 114))
        asking.send(write_query(asked))
        assert read_reply(asking.recv(500), asked)


def test_a_flood_is_not_answered_and_does_no_harm(network: Branches, scene: Scene) -> None:
    helper = Helper(network.router, "--port", "1114", "--rate", "20")
    try:
        asked = scene.query(secret=0)
        with scene.socket() as asking, scene.socket(host=network.mail) as stranger:
            for each in (asking, stranger):
                each.connect((ROUTERS[4], 1114))
            for _ in range(2000):
                asking.send(write_query(asked))
                stranger.send(write_query(asked))
            time.sleep(1.5)
            asking.send(write_query(asked))
            asking.settimeout(0.5)
            replies = 0
            with contextlib.suppress(TimeoutError):
                while asking.recv(500):
                    replies += 1
            assert 21 <= replies < 60
        told = [line for line in helper.log if "HELPER:REFUSED" in line]
        assert 2 <= len(told) < 10
    finally:
        helper.close()
    scene.served()


def tcp(scene: Scene, version: int = 4) -> socket.socket:
    return scene.network.gateway.connect((ROUTERS[version], 114), timeout=9)


def heard(connection: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(500):
            data += piece
    return data


@pytest.mark.parametrize("version", [4, 6])
def test_lines_over_tcp(scene: Scene, version: int) -> None:
    port = scene.flows[version].source_port
    where = f"[{SERVERS[6]}]" if version == 6 else SERVERS[4]
    client = {4: CLIENT4, 6: CLIENT6}[version]
    found = f"{port} , 9199 : ORIGIN : {where} : 25 : {client}\r\n"
    for line, answer in (
        (f"{port} , 9199\r\n", found),
        (f"{port},9199\n{port},9199\n", found),
        (f"{port} , 9198\r\n", f"{port} , 9198 : ERROR : NO-USER\r\n"),
        ("0 , 9199\r\n", ""),
        ("x" * 10_000 + "\r\n", ""),
        ("hello\r\n", ""),
    ):
        with tcp(scene, version) as asking:
            asking.sendall(line.encode())
            assert heard(asking).decode() == answer


def test_tcp_has_bounds(scene: Scene) -> None:
    """Silent and trickling gateways are left after 5 s; strangers at once; and there are only so many."""
    with scene.network.mail.connect((ROUTERS[4], 114)) as stranger:
        begin = time.monotonic()
        assert heard(stranger) == b""
        assert time.monotonic() - begin < 1
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(tcp(scene)) for _ in range(64)]
        begin = time.monotonic()
        for byte in b"1234":
            silent[0].sendall(bytes([byte]))
            time.sleep(0.1)
        with tcp(scene) as late:
            late.sendall(b"%d , 9199\r\n" % scene.flows[4].source_port)
            assert heard(late) == b""
        scene.helper.process.wait_output("HELPER:BUSY src=192.0.2.9")
        scene.served()
        assert [heard(each) for each in silent] == [b""] * 64
        assert 4 < time.monotonic() - begin < 7
    with tcp(scene) as again:
        again.sendall(b"%d , 9199\r\n" % scene.flows[4].source_port)
        assert b"ORIGIN" in heard(again)


def _status(helper: Helper) -> dict[str, str]:
    lines = Path(f"/proc/{helper.process.pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_it_keeps_one_capability_and_no_name_of_root(scene: Scene) -> None:
    status = _status(scene.helper)
    assert status["Uid"].split() == status["Gid"].split() == ["65534"] * 4
    for kind, bits in (("Prm", NET_ADMIN), ("Eff", NET_ADMIN), ("Inh", 0), ("Bnd", 0), ("Amb", 0)):
        assert int(status[f"Cap{kind}"], 16) == bits
    assert status["NoNewPrivs"] == "1"
    assert status["Threads"] == "1"


def test_it_starts_as_the_unit_starts_it(network: Branches, scene: Scene) -> None:
    """Not by root: by a user with two capabilities, of which it keeps one."""
    unit = (CHECKOUT / "systemd" / "appliance-helper.service").read_text()
    [granted] = re.findall(r"^AmbientCapabilities=(.*)$", unit, re.MULTILINE)
    assert f"CapabilityBoundingSet={granted}\n" in unit
    names = granted.replace("CAP_", "+").replace(" ", ",").lower()
    caps = [f"--inh-caps={names}", f"--ambient-caps={names}", f"--bounding-set=-all,{names}"]
    prefix = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *caps]
    helper = Helper(network.router, "--listen", ROUTERS[4], "--port", "115", before=prefix)
    try:
        status = _status(helper)
        assert int(status["CapPrm"], 16) == int(status["CapEff"], 16) == NET_ADMIN
        assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
        with scene.socket() as asking:
            asking.connect((ROUTERS[4], 115))
            asking.send(write_query(scene.query(secret=0)))
            assert read_reply(asking.recv(500), scene.query())
    finally:
        helper.close()


def test_it_grows_with_nothing(scene: Scene) -> None:
    """Thousands of questions later it is as large as before."""
    asked = scene.query()
    helper = Helper(scene.network.router, "--port", "1116", "--rate", "1000000", "--log-level", "notice")
    try:
        with scene.socket() as asking:
            asking.connect((ROUTERS[4], 1116))
            sizes = []
            for _ in range(3):
                for _ in range(1000):
                    asking.send(write_query(Query(asked.flow, asked.cookie, 0)))
                    assert asking.recv(500)
                statm = Path(f"/proc/{helper.process.pid}/statm").read_text()
                sizes.append(int(statm.split()[1]) * 4096)
        assert sizes[2] - sizes[1] < 1 << 20
    finally:
        helper.close()


def test_it_starts_again_and_ends(network: Branches, secret: Path) -> None:
    helper = Helper(network.router, "--port", "1117", "--secret-file", secret)
    assert helper.process.terminate() == 0
    assert helper.log[-1] == "notice: STOP"
    helper.start()
    helper.process.signal(1)
    helper.process.wait_output("RELOAD:DONE")
    helper.close()
    wait_until(lambda: not network.router.listening(1117), 5, "the port free")


def test_what_a_program_reads_byte_by_byte(scene: Scene) -> None:
    """The reply to the datagram of old, field by field."""
    with scene.socket() as asking:
        asking.send(write_query(scene.query()))
        fields = struct.unpack("!IIIHH4s4sHH32s6s", asking.recv(500))
    flow = scene.flows[4]
    assert fields[:5] == (0x52504844, 0xC00C1E, SECRET, 0x0402, 0x0012)
    assert fields[5:9] == (flow.source.packed, socket.inet_aton(SERVERS[4]), flow.source_port, 25)
    assert fields[9:] == (CLIENT4.encode().ljust(32, b"\0"), bytes(6))
