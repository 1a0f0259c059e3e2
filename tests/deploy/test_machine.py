"""The machine before anything of ours is on it: it is bare, routes, and forgets what is not on its disk."""

from collections.abc import Iterator

import pytest

from lab.machine import Site
from lab.network import CLIENT4, CLIENT6, MAIL4, MAIL6

pytestmark = pytest.mark.deploy


@pytest.fixture(scope="module")
def bare() -> Iterator[Site]:
    with Site("bare") as site:
        site.machine.boot()
        yield site


@pytest.mark.parametrize(("source", "server"), [(CLIENT4, MAIL4), (CLIENT6, MAIL6)])
def test_a_bare_machine_routes(bare: Site, source: str, server: str) -> None:
    with bare.mail.listen((server, 25)) as listener, bare.client.connect((server, 25), source=source):
        connection, peer = listener.accept()
        connection.close()
    assert peer[0] == source


def test_a_bare_machine_is_healthy_and_has_nothing_of_ours(bare: Site) -> None:
    assert bare.machine.run(["systemctl", "is-system-running"]).stdout == "running\n"
    assert bare.machine.run(["sh", "-c", "command -v nft smtp-gated clamd pip"], check=False).stdout == ""


def test_a_reboot_keeps_the_disk_and_nothing_else(bare: Site) -> None:
    bare.machine.run(["sh", "-c", "touch /kept /run/lost && ip rule add fwmark 7 table 7"])
    bare.machine.reboot()
    assert bare.machine.run(["ls", "/kept", "/run/lost"], check=False).stdout == "/kept\n"
    assert "fwmark" not in bare.machine.run(["ip", "rule"]).stdout
    test_a_bare_machine_routes(bare, CLIENT4, MAIL4)
