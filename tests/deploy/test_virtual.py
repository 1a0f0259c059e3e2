"""The appliance on Debian's own kernel with its own headers, in a virtual machine: the gate at home.

The role is applied while the machine is a container, and the disk that it leaves is booted.
"""

import json
import re
import time
from collections.abc import Iterator

import pytest

from lab.clients import swaks
from lab.machine import Machine, Site
from lab.network import CLIENT4
from lab.process import wait_until
from lab.samples import EICAR
from lab.servers import Postfix
from lab.virtual_machine import VirtualMachine
from tests.deploy import scanners
from tests.deploy.administrator import Administrator
from tests.deploy.conftest import TIMES
from tests.deploy.test_life import INFECTED, condition, delivered, is_dropped

pytestmark = [pytest.mark.virtual, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def virtual() -> Iterator[Site]:
    with Site("virtual", kind=VirtualMachine, kernel=True) as site:
        scanners.give_signature(site.machine)
        site.machine.boot()
        yield site


def reached_nft(machine: Machine) -> str:
    """Give how many packets of the locked client got past the gate, to nftables."""
    listed = machine.run(["nft", "list", "set", "inet", "appliance", "locked4"]).stdout
    found = re.search(rf"{re.escape(INFECTED)} counter packets (\d+) ", listed)
    assert found, listed
    return found[1]


def differences_with_a_vrf(machine: Machine) -> list[str]:
    """Give what check finds where the clients' interface is in a VRF: in a network apart."""
    make = (
        "ip link add lan type veth peer name far",
        "ip link add vrf-lan type vrf table 77",
        "ip link set lan master vrf-lan",
    )
    words = " && ".join((*make, "appliance-ctl --json check"))
    checked = machine.run(["unshare", "--net", "sh", "-c", words], check=False)
    found: list[str] = json.loads(checked.stdout)["differences"]
    return found


def test_the_gate_drops_locked_clients_on_debians_own_kernel(virtual: Site) -> None:
    machine = virtual.machine
    assert isinstance(machine, VirtualMachine)
    Administrator(virtual, TIMES).succeed(
        "make a machine the appliance, with the gate",
        proxy_name="gw.example.test",
        clamd=True,
        max_load=0,
        lock_talk=0,
    )
    begin = time.monotonic()
    machine.change_over().boot()
    wait_until(
        lambda: condition(machine) == "active",
        300,
        "the gateway",
        1,
    )
    TIMES.append(("boot it as a virtual machine, until the gateway serves", time.monotonic() - begin))
    assert "Debian" in machine.run(["uname", "--kernel-version"]).stdout
    check = json.loads(machine.run(["appliance-ctl", "--json", "check"]).stdout)
    assert check == {"differences": [], "missing": []}
    link = json.loads(machine.run(["ip", "--json", "link", "show", "lan"]).stdout)[0]
    assert link["xdp"]["mode"] in (1, 2)  # native, or generic where the interface has no better

    postfix = Postfix(virtual.mail).start()
    virtual.client.add_address(f"{INFECTED}/24")
    message = delivered(virtual, postfix, INFECTED)
    assert f"[{INFECTED}]" in message
    assert "gw.example.test" in message
    sent = swaks(virtual.client, postfix.ipv4, source=INFECTED, subject="bad mail", body=EICAR)
    assert sent.refusal.startswith("550"), sent.transcript
    wait_until(lambda: is_dropped(virtual, postfix, INFECTED), 30, "the kernel drops the locked client")
    tries = reached_nft(machine)
    assert is_dropped(virtual, postfix, INFECTED)
    assert reached_nft(machine) == tries  # the gate was first
    assert CLIENT4 in delivered(virtual, postfix, CLIENT4)
    machine.run(["appliance-ctl", "unlock", INFECTED])
    wait_until(lambda: not is_dropped(virtual, postfix, INFECTED), 30, "the client is let in again")
    for mode in ("netfilter", "tproxy,netfilter"):
        machine.run(["sed", "--in-place", f"s/^mode .*/mode {mode}/", "/etc/smtp-gated.conf"])
        machine.run(["systemctl", "restart", "smtp-gated-rules", "smtp-gated"])
        wait_until(lambda: condition(machine) == "active", 100, "the gateway", 1)
        check = json.loads(machine.run(["appliance-ctl", "--json", "check"]).stdout)
        assert check == {"differences": [], "missing": []}, mode
        for _ in range(2):
            assert "gw.example.test" in delivered(virtual, postfix, CLIENT4)
    told = " ".join(differences_with_a_vrf(machine))
    assert "lan_interfaces: lan is in the VRF vrf-lan, which has to be named, too" in told
    assert "sysctl net.ipv4.tcp_l3mdev_accept is 0" in told
    TIMES.append(("prove the gate on Debian's own kernel, in all", time.monotonic() - begin))
