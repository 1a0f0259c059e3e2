"""3, modes remote and remote-udp, as a whole: two sites that hide their clients, their helpers, one gateway.

Both sites use the same private addresses, so that only the router and the ident together tell people apart.
"""

import contextlib
import re
from collections.abc import Callable, Iterator

import pytest

from lab import router
from lab.branches import GATEWAY4, GATEWAY6, ROUTERS4, ROUTERS6, Branches, Helper
from lab.gateway import PROGRAM, Gateway, Options
from lab.host import Host
from lab.network import CLIENT4, CLIENT6, PUBLIC_CLIENT6
from lab.process import wait_until
from lab.servers import OpenSMTPD, Postfix
from tests.lab.raw import RawClient
from tests.lab.scripted import ScriptedServer, Talk

pytestmark = pytest.mark.lab

HERE, THERE = ("198.51.100.25", "2001:db8:25::25"), ("198.51.100.26", "2001:db8:25::26")
OTHER4 = "10.77.1.6"
GatewayFactory = Callable[..., Gateway]


@pytest.fixture(scope="module")
def network() -> Iterator[Branches]:
    with Branches("remote") as network:
        for each in (network.router, network.router2):
            router.hand_over(each, GATEWAY4, GATEWAY6)
        network.client.add_address(f"{OTHER4}/24")
        for address in THERE:
            network.mail.add_address(address + ("/64" if ":" in address else "/24"))
        yield network


@pytest.fixture(scope="module")
def helpers(network: Branches) -> Iterator[tuple[Helper, Helper]]:
    with contextlib.ExitStack() as stack:
        first, second = (
            stack.enter_context(contextlib.closing(Helper(each)))
            for each in (network.router, network.router2)
        )
        yield first, second


@pytest.fixture
def servers(network: Branches) -> Iterator[dict[str, ScriptedServer]]:
    """A mail server at each of four addresses."""
    made = {address: ScriptedServer(network.mail.listen((address, 25))) for address in (*HERE, *THERE)}
    yield made
    for server in made.values():
        server.close()


@pytest.fixture
def gateway(network: Branches, helpers: tuple[Helper, Helper]) -> Iterator[GatewayFactory]:
    """Start a gateway that the helpers serve: gateway(option=value)."""
    assert all(helper.process.running() for helper in helpers)
    with contextlib.ExitStack() as stack:

        def start(**options: str | int) -> Gateway:
            routers = ",".join((*ROUTERS4, *ROUTERS6, PUBLIC_CLIENT6))
            chosen: Options = {"mode": "remote-udp", "remote_routers": routers, "timeout_lookup": 2}
            made = Gateway(network.gateway, {**chosen, **options})
            stack.callback(made.close)
            return made.start()

        yield start


def connect(client: Host, server: str, source: str | None = None) -> Talk:
    return Talk(client.connect((server, 25), source=source))


def send(client: Host, server: str, source: str | None = None) -> str:
    with connect(client, server, source) as talk:
        return talk.greet().begin().finish()


@pytest.mark.option("mode", "remote_routers")
@pytest.mark.parametrize("mode", ["remote", "remote-udp"])
def test_clients_of_both_sites_reach_different_servers(
    network: Branches, gateway: GatewayFactory, servers: dict[str, ScriptedServer], mode: str
) -> None:
    running = gateway(mode=mode)
    for client, hidden, places in (
        (network.client, (ROUTERS4[0], ROUTERS6[0]), HERE),
        (network.client2, (ROUTERS4[1], ROUTERS6[1]), THERE),
    ):
        for shown, server, ident in zip(hidden, places, (CLIENT4, CLIENT6), strict=True):
            with connect(client, server) as talk:
                assert talk.greet().begin().finish().startswith("250")
            [message] = servers[server].messages
            assert f"X-NAT-Received: from [{shown}]:" in message
            assert f" [ident {ident}]\r\n" in message
            where = f"[{server}]" if ":" in server else server
            running.wait_log(rf"NEW src=\[?{shown}\]?:\d+, ident={ident}, dst={re.escape(where)}:25,")


def test_real_servers(network: Branches, gateway: GatewayFactory) -> None:
    gateway()
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: wait_until(lambda: not network.mail.listening(25), 20, "the port free"))
        first, second = Postfix(network.mail).start(), OpenSMTPD(network.mail).start()
        for each in (first, second):
            stack.callback(each.stop)
        for client, server, shown in (
            (network.client, first, ROUTERS4[0]),
            (network.client2, second, ROUTERS4[1]),
        ):
            with RawClient(client, server.ipv4) as talk:
                talk.begin()
                talk.envelope()
                assert talk.data(b"Subject: from " + client.name.encode() + b"\r\n").startswith(b"250")
            message = server.mailbox("alice").wait(f"from {client.name}")
            assert f"from [{shown}]:".encode() in message
            assert b"[ident 10.77.1.5]" in message


def test_clients_that_the_router_does_not_hide(
    network: Branches, gateway: GatewayFactory, servers: dict[str, ScriptedServer]
) -> None:
    """IPv6 without translation of the client: the gateway asks the client, and its router answers."""
    gateway()
    assert send(network.client, HERE[1], PUBLIC_CLIENT6).startswith("250")
    [message] = servers[HERE[1]].messages
    assert f"from [{PUBLIC_CLIENT6}]:" in message
    assert f"[ident {PUBLIC_CLIENT6}]" in message


@pytest.mark.option("max_per_ident", "lock_on", "lock_path")
@pytest.mark.usefixtures("servers")
def test_limits_and_locks_are_of_router_and_ident_together(
    network: Branches, gateway: GatewayFactory
) -> None:
    running = gateway(max_per_ident=2, lock_on="maxident,regex", regex_reject_mail_from="spam")
    others = ((network.client, OTHER4), (network.client2, CLIENT4))
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(connect(network.client, HERE[0])).greet()
        with connect(network.client, HERE[0]) as third:
            assert third.rest().startswith(b"554 gw.example.test ")
        running.wait_log(rf"REJECT:MAX_IDENT src={ROUTERS4[0]}:\d+, ident={CLIENT4}$")
        name = f"{ROUTERS4[0]}-10_77_1_5"
        assert [path.name for path in running.locks.iterdir()] == [name]
        assert running.wait_log("LOCK:CREATED .*")[0].endswith("cause=MAX_IDENT too many sessions at a time")
        for client, source in others:
            for _ in range(2):
                talk = stack.enter_context(connect(client, HERE[0], source)).greet()
            assert talk.begin().finish().startswith("250")
    with connect(network.client, HERE[0]) as locked:
        assert locked.rest().startswith(b"554 ")
    running.wait_log(rf"LOCK:LOCKED src={ROUTERS4[0]}:\d+, ident={CLIENT4}$")
    (running.locks / name).unlink()
    with connect(network.client2, HERE[0]) as talk:
        assert talk.greet().ask("MAIL FROM:<spam@x>").startswith("550")
    assert [path.name for path in running.locks.iterdir()] == [f"{ROUTERS4[1]}-10_77_1_5"]
    assert send(network.client, HERE[0]).startswith("250")


@pytest.mark.option("ratelimit_sessions", "ratelimit_connections", "ratelimit_path")
@pytest.mark.usefixtures("servers")
def test_rate_limits_are_of_router_and_ident_together(network: Branches, gateway: GatewayFactory) -> None:
    path = network.directory / "ratelimit"
    path.mkdir()
    path.chmod(0o777)
    quotas = {"ratelimit_sessions": 1, "ratelimit_connections": 3}
    running = gateway(ratelimit_period=3600, ratelimit_path=str(path), **quotas)
    for client, source in ((network.client, None), (network.client, OTHER4), (network.client2, None)):
        with connect(client, HERE[0], source) as talk:
            assert talk.greet().begin().finish().startswith("250")
            talk.ask("MAIL FROM:<a@b>")
            talk.ask("RCPT TO:<a@b>")
            assert talk.ask("DATA").startswith("552")
    for _ in range(2):
        connect(network.client2, HERE[0]).greet().close()
    with connect(network.client2, HERE[0]) as fourth:
        assert fourth.rest().startswith(b"554 ")
    connect(network.client, HERE[0]).greet().close()

    name = f"{ROUTERS4[1]}-10_77_1_5"

    def record() -> str:
        return network.gateway.run([PROGRAM, "-L", name, running.file], check=False).stdout

    wait_until(lambda: "connections.tries: 4" in record(), 5, "the record on disk")
    assert {f"client: {name}", "connections.used: 3", "sessions.used: 1"} <= set(record().splitlines())


@pytest.mark.usefixtures("servers")
def test_a_helper_that_starts_again(
    network: Branches, gateway: GatewayFactory, helpers: tuple[Helper, Helper]
) -> None:
    """Who is being looked up waits; who has been is not touched; the other site's clients notice nothing."""
    running = gateway(timeout_lookup=1, remote_udp_retries=5)
    before = connect(network.client, HERE[0]).greet()
    helpers[0].close()
    with connect(network.client, HERE[0]) as waiting:
        assert send(network.client2, HERE[0]).startswith("250")
        assert before.begin().finish().startswith("250")
        helpers[0].start()
        assert waiting.greet().begin().finish().startswith("250")
    before.close()
    assert "LOOKUP:FAILED" not in running.log


@pytest.mark.usefixtures("servers")
def test_a_site_without_a_helper_is_told_so(
    network: Branches, gateway: GatewayFactory, helpers: tuple[Helper, Helper]
) -> None:
    running = gateway(timeout_lookup=1, remote_udp_retries=1, msg_lookup_timeout="no helper")
    helpers[1].close()
    try:
        with connect(network.client2, HERE[0]) as talk:
            talk.reply()
            assert talk.ask("MAIL FROM:<a@b>").endswith("(no helper)")
    finally:
        helpers[1].start()
    running.wait_log(r"no answer from port 114 in 1 times 1 s \(Connection refused\)")
    assert send(network.client2, HERE[0]).startswith("250")


def test_names_from_a_file_and_a_program(
    network: Branches, gateway: GatewayFactory, servers: dict[str, ScriptedServer]
) -> None:
    names, program = network.directory / "names", network.directory / "program"
    names.write_text(f"{CLIENT4} anna\n10.77.1.0/24 library\n")
    program.write_text('#!/bin/sh\necho "port$4@$1"\n')
    program.chmod(0o755)
    gateway(remote_port=1114)
    with contextlib.ExitStack() as stack:
        first = Helper(network.router, "--port", "1114", "--names", names)
        stack.callback(first.close)
        stack.callback(Helper(network.router2, "--port", "1114", "--command", program).close)
        idents = []
        for client, source in ((network.client, None), (network.client, OTHER4), (network.client2, None)):
            assert send(client, HERE[0], source).startswith("250")
            idents.append(re.search(r"\[ident (.*?)\]", servers[HERE[0]].messages[-1]))
        assert [found and found[1] for found in idents] == ["anna", "library", "port25@10.77.1.5"]
        names.write_text(f"{CLIENT4} berta\nnonsense\n")
        first.process.signal(1)
        first.process.wait_output(f"RELOAD:REFUSED the names stay as they were why={names}:2: not an address")
        names.write_text(f"{CLIENT4} berta\n")
        first.process.signal(1)
        first.process.wait_output("RELOAD:DONE")
        assert send(network.client, HERE[0]).startswith("250")
        assert "[ident berta]" in servers[HERE[0]].messages[-1]


@pytest.mark.option("remote_udp_secret")
@pytest.mark.usefixtures("servers")
def test_both_have_to_know_the_secret(network: Branches, gateway: GatewayFactory) -> None:
    secret = network.directory / "secret"
    secret.write_text("4276993775\n")
    secret.chmod(0o600)
    helper = Helper(network.router, "--port", "1115", "--secret-file", secret)
    try:
        options = {"remote_port": 1115, "timeout_lookup": 1, "remote_udp_retries": 1}
        running = gateway(remote_udp_secret="0xfeedbeef", **options)
        assert send(network.client, HERE[0]).startswith("250")
        running.close()
        running = gateway(remote_udp_secret=7, **options)
        with connect(network.client, HERE[0]) as talk:
            talk.reply()
            assert talk.ask("MAIL FROM:<a@b>").startswith("451")
        running.wait_log("no answer from port 1115")
        assert any("HELPER:REFUSED wrong secret src=192.0.2.9" in line for line in helper.log)
    finally:
        helper.close()
