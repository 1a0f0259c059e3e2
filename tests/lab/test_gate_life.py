"""The gate on the lab's router: made, changed, renewed and taken away without a trace."""

import contextlib
import os
import socket
from pathlib import Path

import pytest

from appliance.bpf import maps, programs
from appliance.bpf.pinned import Gate
from lab.namespace import inside
from lab.network import CLIENT4, MAIL4, Network
from lab.process import wait_until
from tests.lab.conftest import GatewayFactory
from tests.lab.gate import PYTHON, RouterGate, locks_of, standing

pytestmark = pytest.mark.lab

PROGRAM_BY_ID, MAP_BY_ID = 13, 14  # commands of bpf(2)


def test_up_changes_what_differs_and_nothing_else(network: Network) -> None:
    with standing(network.router) as gate:
        assert gate.do("check") == []
        first, inode = gate.link(), (gate.pins / "locks").stat().st_ino
        assert gate.do("up") == []
        assert gate.link() == first
        gate.write(lock_talk=3, trusted_clients="10.0.0.7")
        assert gate.do("check") == ["the gate works to other settings"]
        assert gate.do("up") == []
        assert gate.do("check") == []
        gate.write(lan_interfaces="wan")
        assert gate.do("check") == [
            "the gate is not on wan",
            "the gate is on lan, which is not in lan_interfaces",
        ]
        gate.write(lan_interfaces="lan,wan", xdp="generic")
        assert gate.do("up") == []
        assert "xdpgeneric" in gate.link()
        gate.write(lan_interfaces="wan,nosuch,lo", xdp="auto")
        complaints = gate.do("up")
        assert [line.partition(": ")[2] for line in complaints] == [
            "interface nosuch: No such device",
            "interface lo: it carries no Ethernet frames; nft alone drops locked clients there",
        ]
        assert gate.do("check") == ["the gate is not on nosuch"]
        assert "xdp" not in gate.link()
        assert (gate.pins / "locks").stat().st_ino == inode
        gate.write(xdp="off")
        assert gate.do("check") == ["the gate stands (/sys/fs/bpf/smtp-gated)"]
        assert gate.do("up") == []
        assert not gate.pins.exists()


def test_a_gate_of_another_version_is_not_misread_but_renewed(network: Network) -> None:
    gate = RouterGate(network.router)
    gate.write()
    program = """
import ctypes, struct
from pathlib import Path
from appliance.bpf import maps
from appliance.bpf.layout import MAPS, PROGRAM
pins = Path("/sys/fs/bpf/smtp-gated")
pins.mkdir()
for name in (*MAPS, PROGRAM):  # other maps than ours: arrays of one number
    maps.pin(maps.bpf(0, struct.pack("=IIIII", 2, 4, 8, 1, 0))[0], pins / name)
"""
    network.router.run([PYTHON, "-c", program])
    with pytest.raises(OSError, match="another version"):
        Gate(gate.pins)
    with pytest.raises(OSError, match="another version"):
        locks_of(gate)
    assert gate.do("check") == ["the gate is of another version; up renews it"]
    try:
        assert gate.do("up") == []
        assert gate.do("check") == []
    finally:
        assert gate.do("down") == []


@pytest.mark.parametrize(("mode", "xdp"), [("generic", "auto"), ("generic", "native"), ("native", "generic")])
def test_another_program_is_left_alone(network: Network, mode: str, xdp: str) -> None:
    program = programs.load(programs.PASSES_ALL, "another")
    other = inside(
        network.router.namespace,
        lambda: programs.attach(program, socket.if_nametoindex("lan"), programs.MODES[mode]),
    )
    gate = RouterGate(network.router, xdp=xdp)
    gate.write()
    try:
        (line,) = gate.do("up")
        assert "interface lan: another XDP program is there" in line
        assert "name another" in gate.link()
    finally:
        os.close(other)
        os.close(program)
        assert gate.do("down") == []


def ids(pins: Path) -> dict[int, set[int]]:
    """Give the kernel's numbers of what is pinned, by the command of bpf(2) that opens that by its number."""
    found: dict[int, set[int]] = {PROGRAM_BY_ID: set(), MAP_BY_ID: set()}
    for pin in pins.iterdir():
        descriptor = maps.get(pin)
        kind = PROGRAM_BY_ID if pin.name == "gate" else MAP_BY_ID
        if "_" not in pin.name or pin.name.startswith("trusted"):  # no link
            found[kind].add(int.from_bytes(maps.info(descriptor, 8)[4:], "little"))
        os.close(descriptor)
    return found


def exist(found: dict[int, set[int]]) -> list[int]:
    """Give the numbers of what the kernel still has."""
    left = []
    for command, numbers in found.items():
        for number in numbers:
            with contextlib.suppress(FileNotFoundError):
                os.close(maps.bpf(command, number.to_bytes(4, "little"))[0])
                left.append(number)
    return left


def test_appliance_ctl_brings_it_up_and_down_without_a_trace(network: Network) -> None:
    gate = RouterGate(network.router, xdp="auto")
    gate.write()

    def ctl(what: str) -> str:
        done = network.router.run([PYTHON.with_name("appliance-ctl"), "--config", gate.file, what])
        return done.stdout

    before, bare = gate.link(), sorted(gate.pins.parent.iterdir())
    try:
        assert "there is no gate; up makes one" in ctl("plan")
        ctl("up")
        nobody: list[str | Path] = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        for command in ("check", "plan", "up", "down"):
            words = [*nobody, PYTHON.with_name("appliance-ctl"), "--config", gate.file, command]
            refused = network.router.run(words, check=False)
            assert (refused.returncode, refused.stdout) == (5, "")
            assert refused.stderr.count("\n") == 1
            assert "appliance-ctl needs root" in refused.stderr
        assert ctl("check") == "the kernel is as planned\n"
        assert "name gate" in gate.link()
        found = ids(gate.pins)
        assert [*map(len, found.values())] == [1, 6]
        assert len(exist(found)) == 7
    finally:
        ctl("down")
    wait_until(lambda: not exist(found), 5, "all objects gone")
    assert sorted(gate.pins.parent.iterdir()) == bare
    assert gate.link() == before


def test_the_compiler_does_not_stay(network: Network) -> None:
    program = """
import sys
from pathlib import Path
from appliance.bpf import gate
from appliance.config import load
print(gate.up(load(Path(sys.argv[1]))))
print("libbcc" in Path("/proc/self/maps").read_text())
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS")))
"""
    gate = RouterGate(network.router)
    gate.write()
    complaints, compiler, resident = network.router.run([PYTHON, "-c", program, gate.file]).stdout.split(
        "\n"
    )[:3]
    assert gate.do("down") == []
    assert (complaints, compiler) == ("[]", "False")
    assert int(resident) < 60_000  # kB


def test_without_headers_or_compiler_the_rest_works(network: Network, gateway: GatewayFactory) -> None:
    gate = RouterGate(network.router)
    gate.write()
    (line,) = gate.do("up", {"BCC_KERNEL_SOURCE": "/nonexistent"})
    assert "kernel headers: apt install linux-headers-amd64" in line
    assert gate.do("check", {"BCC_KERNEL_SOURCE": "/nonexistent"}) == [
        "there is no gate; up makes one",
        line.partition("is ")[2],
    ]
    gate.write(xdp="auto")
    assert gate.do("check", {"BCC_KERNEL_SOURCE": "/nonexistent"}) == [line.partition("is ")[2]]
    planned = network.router.run(
        [PYTHON.with_name("appliance-ctl"), "--config", gate.file, "plan"],
        environment={"BCC_KERNEL_SOURCE": "/nonexistent"},
    )
    assert f"warning: missing for the gate: {line.partition('is ')[2]}\n" in planned.stdout
    assert not gate.pins.exists()
    running = gateway({"lock_on": "fanout"})
    running.wait_log("FANOUT:BLIND")
    with network.client.connect((MAIL4, 25), source=CLIENT4) as client:
        assert client.recv(100)
