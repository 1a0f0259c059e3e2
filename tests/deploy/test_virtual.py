"""The appliance on Debian's own kernel with its own headers, in a virtual machine: the gate at home."""

import json
from collections.abc import Iterator

import pytest

from deploy import dist
from lab.machine import Site
from lab.machine_image import CACHE
from lab.servers import Postfix
from lab.virtual_machine import VirtualMachine
from tests.deploy.administrator import Administrator
from tests.deploy.conftest import TIMES
from tests.deploy.test_life import INFECTED, delivered, is_dropped

pytestmark = [pytest.mark.virtual, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def virtual() -> Iterator[Site]:
    with Site("virtual", kind=VirtualMachine, kernel=True) as site:
        site.machine.boot(timeout=300)
        yield site


def test_the_gate_drops_locked_clients_on_debians_own_kernel(virtual: Site) -> None:
    machine = virtual.machine
    assert "Debian" in machine.run(["uname", "--kernel-version"]).stdout
    administrator = Administrator(
        virtual, dist.wheel(virtual.directory / "dist"), dist.wheelhouse(CACHE / "wheelhouse"), TIMES
    )
    administrator.patience = 1500
    administrator.succeed(
        "make a virtual machine the appliance", proxy_name="gw.example.test", max_load=0, lock_talk=0
    )
    check = json.loads(machine.run(["appliance-ctl", "--json", "check"], timeout=60).stdout)
    assert check == {"differences": [], "missing": []}
    link = json.loads(machine.run(["ip", "--json", "link", "show", "lan"]).stdout)[0]
    assert link["xdp"]["mode"] in (1, 2)  # native, or generic where the interface has no better

    postfix = Postfix(virtual.mail).start()
    virtual.client.add_address(f"{INFECTED}/24")
    assert "gw.example.test" in delivered(virtual, postfix, INFECTED)
    machine.run(["appliance-ctl", "lock", INFECTED, "--for", "1h"], timeout=60)
    assert is_dropped(virtual, postfix, INFECTED)
    locked = machine.run(["nft", "list", "set", "inet", "appliance", "locked4"]).stdout
    assert f"{INFECTED} counter packets 0 " in locked  # the gate was first
    machine.run(["appliance-ctl", "unlock", INFECTED], timeout=60)
    assert "gw.example.test" in delivered(virtual, postfix, INFECTED)
