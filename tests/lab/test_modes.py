"""The gateway in the modes of interception, with every kind of client; its start, reload and end."""

import os
import signal
from pathlib import Path

import pytest

from lab.clients import swaks
from lab.network import CLIENT4, CLIENT6, PUBLIC_CLIENT4, PUBLIC_CLIENT6, Network
from lab.process import wait_until
from lab.servers import Postfix
from tests.lab.conftest import GatewayFactory

pytestmark = pytest.mark.lab
SOURCES = (CLIENT4, CLIENT6, PUBLIC_CLIENT4, PUBLIC_CLIENT6)


@pytest.mark.parametrize("mode", ["tproxy", "netfilter", "tproxy,netfilter"])
def test_mail_of_every_client_is_inspected_and_arrives(
    network: Network, postfix: Postfix, gateway: GatewayFactory, mode: str
) -> None:
    gateway({"mode": mode})
    for source in SOURCES:
        server = postfix.ipv6 if ":" in source else postfix.ipv4
        sent = swaks(network.client, server, source=source, subject=f"{mode} {source}")
        assert sent.accepted, sent.transcript
        message = postfix.mailbox("alice").wait(f"{mode} {source}").decode()
        assert f"[{source}]" in message.partition("X-NAT-Received:")[2].partition("\n")[0]
        keeps_address = mode == "tproxy" or (
            mode == "tproxy,netfilter" and source.startswith(("203.", "2001:"))
        )
        seen = message.partition("(unknown [")[2].partition("]")[0].removeprefix("IPv6:")
        assert (seen == source) == keeps_address


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
