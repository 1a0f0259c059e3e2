"""The gateway in each mode finds the server that was meant and speaks to it from the right address."""

import os
import re
import signal
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from lab import router
from lab.network import CLIENT4, CLIENT6, PUBLIC_CLIENT4, PUBLIC_CLIENT6, ROUTER4, ROUTER6, Network
from lab.process import wait_until
from lab.servers import Exim, MailServer, OpenSMTPD, Postfix
from tests.lab.conftest import GatewayFactory
from tests.lab.raw import RawClient, queue_id

pytestmark = pytest.mark.lab

SOURCES = (CLIENT4, CLIENT6, PUBLIC_CLIENT4, PUBLIC_CLIENT6)
ROUTER_OUTSIDE = {4: "198.51.100.1", 6: "2001:db8:25::1"}
INTERCEPTING = ("tproxy", "netfilter", "tproxy,netfilter")


def version(address: str) -> int:
    return 6 if ":" in address else 4


def seen_by_server(mode: str, source: str) -> str:
    """The address that a mode shows the server for a client."""
    if mode == "tproxy" or (mode == "tproxy,netfilter" and source in (PUBLIC_CLIENT4, PUBLIC_CLIENT6)):
        return source
    return ROUTER_OUTSIDE[version(source)]


def send(network: Network, server: str, source: str, port: int = 25) -> tuple[str, int]:
    """Send a mail to Postfix; give its queue identifier there, and the client's port."""
    with RawClient(network.client, server, source=source, port=port) as client:
        client.begin()
        client.envelope()
        name = queue_id(client.data(b"Subject: from %s\r\n" % source.encode()))
        return name, client.socket.getsockname()[1]


@pytest.mark.parametrize("mode", INTERCEPTING)
@pytest.mark.option("mode")
def test_the_server_sees_the_address_of_the_mode(
    network: Network, postfix: Postfix, gateway: GatewayFactory, mode: str
) -> None:
    gateway({"mode": mode})
    for source in SOURCES:
        server = postfix.ipv6 if version(source) == 6 else postfix.ipv4
        name, port = send(network, server, source)
        postfix.wait_log(f"{name}: client=unknown[{seen_by_server(mode, source)}]")
        message = postfix.mailbox("alice").wait(f"from {source}")
        assert f"X-NAT-Received: from [{source}]:{port} ".encode() in message


def greeted(network: Network, server: str, source: str, port: int) -> socket.socket:
    """Connect from a port of the client's that may be in use for another server; read the greeting."""
    made = network.client.open_socket(socket.AF_INET6 if version(source) == 6 else socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.settimeout(3)
    made.bind((source, port))
    made.connect((server, 25))
    assert made.recv(1000).startswith(b"220 ")
    return made


def quit_first(client: socket.socket) -> None:
    """Let the gateway's side close first, and keep what the port last served (TIME_WAIT)."""
    client.sendall(b"QUIT\r\n")
    heard = b""
    while piece := client.recv(1000):
        heard += piece
    assert heard.startswith(b"221 ")
    client.close()


@pytest.mark.option("mode", "on_failure")
@pytest.mark.parametrize("on_failure", ["open", "closed"])
@pytest.mark.parametrize("mode", INTERCEPTING)
def test_a_client_may_use_a_port_for_two_servers_and_again(
    network: Network, postfix: Postfix, gateway: GatewayFactory, mode: str, on_failure: str
) -> None:
    """All the same to a client, but by redirection they only differ in what connection tracking knows."""
    gateway({"mode": mode, "on_failure": on_failure})
    second = {4: "198.51.100.46", 6: "2001:db8:25::46"}
    network.mail.add_address(f"{second[4]}/24")
    network.mail.add_address(f"{second[6]}/64")
    for number, source in enumerate(SOURCES):
        port = 20_000 + 10 * (INTERCEPTING.index(mode) * 2 + (on_failure == "open")) + number
        one = postfix.ipv6 if version(source) == 6 else postfix.ipv4
        other = second[version(source)]
        with ExitStack() as stack:
            held = stack.enter_context(greeted(network, one, source, port))
            beside = stack.enter_context(greeted(network, other, source, port))
            quit_first(beside)
            quit_first(held)
        for server in (one, other, one):
            quit_first(greeted(network, server, source, port))


@pytest.mark.parametrize("mode", ["tproxy", "tproxy,netfilter"])
def test_towards_the_server_no_port_of_the_clients_is_taken(
    network: Network, postfix: Postfix, gateway: GatewayFactory, mode: str
) -> None:
    """To connection tracking both would be the same connection, which is invalid and not masqueraded."""
    rules = " ".join(
        f"chain {hook} {{ type filter hook {hook} priority 0; ct state invalid drop; }}\n"
        for hook in ("input", "forward", "output")
    )
    rules += "chain hide { type nat hook postrouting priority srcnat; oifname wan masquerade; }\n"
    ports = "net/ipv4/ip_local_port_range"
    found = network.router.run(["cat", f"/proc/sys/{ports}"]).stdout
    network.router.run(["nft", "-f", "-"], input=f"table inet strict {{ {rules} }}")
    try:
        network.router.sysctl(ports, "40000 40003")
        gateway({"mode": mode})
        for server, source in ((postfix.ipv4, PUBLIC_CLIENT4), (postfix.ipv6, PUBLIC_CLIENT6)):
            held = [greeted(network, server, source, port) for port in range(40000, 40004)]
            for client in held:
                quit_first(client)
    finally:
        network.router.sysctl(ports, found)
        network.router.run(["nft", "delete", "table", "inet", "strict"])


@pytest.mark.parametrize("mode", INTERCEPTING)
def test_each_server_is_reached_by_its_own_address(
    network: Network,
    postfix: Postfix,
    exim: Exim,
    opensmtpd: OpenSMTPD,
    gateway: GatewayFactory,
    mode: str,
) -> None:
    gateway({"mode": mode})
    servers: tuple[tuple[MailServer, bytes], ...] = (
        *((postfix, b"220 mail.example.test ESMTP Postfix"), (exim, b"220 exim.example.test ESMTP Exim")),
        (opensmtpd, b"220 opensmtpd.example.test ESMTP OpenSMTPD"),
    )
    for server, greeting in servers:
        for address in (server.ipv4, server.ipv6):
            with RawClient(network.client, address) as client:
                assert client.reply().startswith(greeting)
                assert client.ask(b"QUIT").startswith(b"221")


@pytest.mark.parametrize("source", [CLIENT4, CLIENT6])
@pytest.mark.parametrize("server", ["ipv4", "ipv6"])
@pytest.mark.option("mode", "fixed_server", "fixed_server_port")
def test_mode_fixed_serves_both_families(
    network: Network, postfix: Postfix, gateway: GatewayFactory, source: str, server: str
) -> None:
    gateway({"mode": "fixed", "fixed_server": getattr(postfix, server)})
    listener = ROUTER6 if version(source) == 6 else ROUTER4
    name, port = send(network, listener, source, 9199)
    postfix.wait_log(f"{name}: client=unknown[{ROUTER_OUTSIDE[version(getattr(postfix, server))]}]")
    message = postfix.mailbox("alice").wait(f"from {source}")
    assert f"X-NAT-Received: from [{source}]:{port} ".encode() in message


@pytest.mark.parametrize("source", [CLIENT4, CLIENT6])
@pytest.mark.parametrize("server", ["ipv4", "ipv6"])
@pytest.mark.option("mode")
def test_xclient_tells_the_server_who_the_client_is(
    network: Network, postfix: Postfix, gateway: GatewayFactory, source: str, server: str
) -> None:
    gateway({"mode": "fixed+xclient", "fixed_server": getattr(postfix, server)})
    listener = ROUTER6 if version(source) == 6 else ROUTER4
    with RawClient(network.mail, postfix.ipv4) as client:
        greeting, offered = client.reply(), client.ask(b"EHLO client.test")
    with RawClient(network.client, listener, source=source, port=9199) as client:
        assert client.reply() == greeting
        assert client.ask(b"EHLO client.test") == offered  # without XCLIENT, which the router is offered
        for command in (b"XCLIENT ADDR=192.0.2.1", b"xclient"):
            assert client.ask(command).startswith(b"502 5.5.1 ")
        client.envelope()
        name = queue_id(client.data(b"Subject: introduced\r\n"))
    postfix.wait_log(f"{name}: client=unknown[{source}]")
    assert f"[{source}]".encode() in postfix.mailbox("alice").wait("introduced")


def test_a_server_without_xclient_is_left_alone(
    network: Network, opensmtpd: OpenSMTPD, gateway: GatewayFactory
) -> None:
    words = "the server wants no introductions"
    gateway({"mode": "fixed+xclient", "fixed_server": opensmtpd.ipv4, "msg_fixed_xclient_fail": words})
    with RawClient(network.client, ROUTER4, port=9199) as client:
        assert client.reply().startswith(b"220 gw.example.test ")
        assert client.ask(b"EHLO client.test").startswith(b"250 ")
        assert client.ask(b"MAIL FROM:<a@b.test>") == f"451 gw.example.test {words}\r\n".encode()
        assert client.ask(b"RCPT TO:<a@b.test>").startswith(b"503 ")
        assert client.ask(b"QUIT").startswith(b"221 ")
        assert client.rest() == b""


@pytest.mark.parametrize("mode", INTERCEPTING)
def test_a_connection_to_the_gateway_itself_is_a_loop(
    network: Network, gateway: GatewayFactory, mode: str
) -> None:
    gateway({"mode": mode, "msg_loop_avoidance": "no running in circles"})
    for listener in (ROUTER4, ROUTER6, "203.0.113.1"):  # the rules let nobody get there but the router itself
        with RawClient(network.router, listener, port=9199) as client:
            assert client.rest() == b"554 gw.example.test no running in circles\r\n"


def test_mode_getsockname_knows_no_address_that_was_redirected(
    network: Network, postfix: Postfix, gateway: GatewayFactory
) -> None:
    gateway({"mode": "getsockname", "msg_loop_avoidance": "no running in circles"})
    router.intercept(network.router, "netfilter")
    for server in (postfix.ipv4, postfix.ipv6):
        with RawClient(network.client, server) as client:
            assert client.rest() == b"554 gw.example.test no running in circles\r\n"


@pytest.mark.parametrize("mode", ["tproxy", "netfilter"])
@pytest.mark.parametrize("six", [False, True])
def test_a_server_that_is_not_reached_is_played(
    network: Network, gateway: GatewayFactory, mode: str, six: bool
) -> None:
    running = gateway({"mode": mode, "timeout_connect": 2, "msg_cannot_connect": "no way"})
    running.reload({"msg_connect_timeout": "no answer"})
    network.mail.add_address("2001:db8:25::90/64" if six else "198.51.100.90/24")
    network.mail.add_address("2001:db8:25::91/64" if six else "198.51.100.91/24")
    hole = "ip6 daddr 2001:db8:25::91" if six else "ip daddr 198.51.100.91"
    chain = f"chain input {{ type filter hook input priority 0; {hole} tcp dport 25 drop; }}\n"
    network.mail.run(["nft", "-f", "-"], input=f"table inet hole {{ {chain} }}")
    prefix, nowhere = ("2001:db8:25::", "2001:db8:dead::1") if six else ("198.51.100.", "192.0.2.1")
    try:
        for address, reason in (
            (f"{prefix}90", "no way ({}: Connection refused)"),
            (nowhere, "no way ({}: Network is unreachable)"),
            (f"{prefix}91", "no answer ({})"),
        ):
            with RawClient(network.client, address) as client:
                assert client.reply().startswith(b"220 gw.example.test ")
                assert re.match(rb"250 gw\.example\.test .*\r\n\Z", client.ask(b"EHLO client.test"))
                told = reason.format(f"[{address}]:25" if six else f"{address}:25")
                assert client.ask(b"MAIL FROM:<a@b.test>") == f"451 gw.example.test {told}\r\n".encode()
                assert client.ask(b"QUIT").startswith(b"221 ")
                assert client.rest() == b""
    finally:
        network.mail.run(["nft", "delete", "table", "inet", "hole"])


def test_workers_are_unprivileged_and_come_back_when_killed(gateway: GatewayFactory) -> None:
    running = gateway(None)
    first, second = running.workers()
    assert "Uid:\t65534\t65534\t65534" in Path(f"/proc/{first}/status").read_text()
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: len(running.workers()) == 2 and first not in running.workers(), 10, "a new worker")
    assert second in running.workers()


def test_reload_and_termination(gateway: GatewayFactory) -> None:
    running = gateway(None)
    running.reload({"proxy_name": "new.example.test"})
    running.wait_log("RELOAD:DONE")
    running.reload({"max_per_host": "many"})
    assert "max_per_host" in running.wait_log("RELOAD:REFUSED.*")[0]
    assert running.terminate() == 0
