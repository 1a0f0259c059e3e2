"""What a worker may do once it faces the network, and what the privileged supervisor keeps away from."""

import json
import pwd
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.gateway import GROUP, USER, Gateway
from lab.image import CHECKOUT
from lab.network import CLIENT4, Network
from lab.process import wait_until
from tests.lab.conftest import GatewayFactory
from tests.lab.scripted import ScriptedServer, Talk, server_on

pytestmark = pytest.mark.lab

NET_RAW = 1 << 13
ESTABLISHED, LISTEN = "01", "0A"
FILTERED = "2"  # seccomp's second mode

ATTEMPTS = """
import ctypes, json, os, socket, sys
from nftables import Nftables
from appliance import process
from appliance.privileges import drop
process.die_with_parent()
if "drop" in sys.argv:
    drop("nobody", "nogroup", 1 << process.CAP_NET_RAW if "raw" in sys.argv else 0)

def attempt(work):
    try:
        return work() or "done"
    except OSError as error:
        return os.strerror(error.errno)

def rule(*commands):
    nft = Nftables()
    return lambda: "done" if nft.json_cmd({"nftables": list(commands)})[0] == 0 else "refused"

def transparent():
    with socket.socket(socket.AF_INET6) as made:
        made.setsockopt(socket.IPPROTO_IPV6, 75, 1)
        made.bind(("2001:db8::99", 0))

def io_uring():
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(425, 1, ctypes.create_string_buffer(120)) < 0:
        raise OSError(ctypes.get_errno(), "")

table = {"family": "inet", "name": "appliance"}
sockets = {
    "packets": (socket.AF_PACKET, socket.SOCK_RAW), "frames": (socket.AF_PACKET, socket.SOCK_DGRAM),
    "raw": (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP),
    "raw6": (socket.AF_INET6, socket.SOCK_RAW, 58),
    "any": (socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_RAW),
    "old": (socket.AF_INET, 10), "xdp": (44, socket.SOCK_RAW),
    "tcp": (socket.AF_INET6, socket.SOCK_STREAM), "udp": (socket.AF_INET, socket.SOCK_DGRAM),
    "unix": (socket.AF_UNIX, socket.SOCK_STREAM),
}
print(json.dumps({
    "table": attempt(rule({"add": {"table": table}})), "flush": attempt(rule({"flush": {"ruleset": None}})),
    "transparent": attempt(transparent), "io_uring": attempt(io_uring),
    **{name: attempt(lambda: socket.socket(*each).close()) for name, each in sockets.items()},
}))
"""


@pytest.fixture
def server(network: Network) -> Iterator[ScriptedServer]:
    server = server_on(network.mail, 45)
    yield server
    server.close()


def facts(text: str) -> dict[str, str]:
    """Give the lines of a /proc/PID/status by their names."""
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


def capabilities(status: dict[str, str]) -> dict[str, int]:
    return {name: int(value, 16) for name, value in status.items() if name.startswith("Cap")}


@pytest.mark.parametrize(
    ("mode", "kept"), [("tproxy", NET_RAW), ("tproxy,netfilter", NET_RAW), ("netfilter", 0)]
)
@pytest.mark.option("set_user", "set_group", "mode")
def test_a_worker_has_the_one_capability_that_its_mode_needs(
    gateway: GatewayFactory, mode: str, kept: int
) -> None:
    account = pwd.getpwnam(USER)
    for pid in gateway({"mode": mode}).workers():
        for thread in Path(f"/proc/{pid}/task").iterdir():
            status = facts((thread / "status").read_text())
            assert capabilities(status) == {
                "CapPrm": kept,
                "CapEff": kept,
                **dict.fromkeys(("CapInh", "CapBnd", "CapAmb"), 0),
            }
            assert status["NoNewPrivs"] == "1"
            assert status["Seccomp"] == FILTERED
            assert set(status["Uid"].split()) == {str(account.pw_uid)}
            assert set(status["Gid"].split()) == {str(account.pw_gid)}
            assert status["Groups"] == str(account.pw_gid)


@pytest.mark.parametrize("keeps", ["", "raw"])
def test_a_worker_can_neither_change_a_rule_nor_open_a_raw_socket(network: Network, keeps: str) -> None:
    command = [str(CHECKOUT / ".venv/bin/python"), "-c", ATTEMPTS]
    apart = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    free = json.loads(network.router.run([*apart, *command]).stdout)
    assert {name for name, became in free.items() if became != "done"} <= {"old", "io_uring"}  # known to work
    found = json.loads(network.router.run([*apart, *command, "drop", keeps]).stdout)
    for name in ("packets", "frames", "raw", "raw6", "any", "old", "xdp", "io_uring"):
        assert found.pop(name) == "Operation not permitted", name
    assert found.pop("table") == found.pop("flush") == "refused"
    assert found.pop("transparent") == ("done" if keeps else "Operation not permitted")
    assert found == {"tcp": "done", "udp": "done", "unix": "done"}


@pytest.mark.option("set_group")
def test_a_worker_gets_all_groups_of_its_user_and_no_others(
    network: Network, gateway: GatewayFactory
) -> None:
    group = network.router.root / "etc/group"
    before = group.read_text()
    group.write_text(f"{before}scanners:x:61050:{USER}\nothers:x:61051:root\n")
    try:
        running = gateway({"set_group": None})
        for pid in running.workers():
            status = facts(Path(f"/proc/{pid}/status").read_text())
            assert set(status["Groups"].split()) == {str(pwd.getpwnam(USER).pw_gid), "61050"}
    finally:
        group.write_text(before)
    assert GROUP not in running.file.read_text()


@pytest.mark.option("action_script")
def test_the_action_script_has_no_privileges_and_no_descriptors(
    network: Network, server: ScriptedServer, gateway: GatewayFactory
) -> None:
    script = network.directory / "action"
    script.write_text(
        "#!/bin/sh\n"
        f'd={network.directory}/gateway-*/; cat /proc/self/status > "$(echo $d)status"\n'
        f'ls -l /proc/$$/fd > "$(echo $d)files"; echo "$@" > "$(echo $d)done"\n'
    )
    script.chmod(0o755)
    running = gateway({"action_script": str(script), "max_per_host": 1})
    first, second = (Talk(network.client.connect(server.address, source=CLIENT4)) for _ in range(2))
    with first, second:
        assert first.reply().startswith("220")
        assert second.reply().startswith("554")
    wait_until((running.directory / "done").exists, 5, "the end of the script")
    assert (running.directory / "done").read_text() == f"MAX_HOST {CLIENT4} - \n"
    status = facts((running.directory / "status").read_text())
    assert set(capabilities(status).values()) == {0}
    assert status["NoNewPrivs"] == "1"
    assert set(status["Uid"].split()) == {str(pwd.getpwnam(USER).pw_uid)}
    files = (running.directory / "files").read_text()
    assert files.count("-> /dev/null") == 3  # the shell's own are the script and what it reads
    assert "socket:" not in files
    assert "memfd:" not in files


def sockets(pid: int) -> set[str]:
    """Give the inode numbers of the sockets that a process has open."""
    names = (str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir())
    return {name[8:-1] for name in names if name.startswith("socket:[")}


def inodes(gateway: Gateway, state: str) -> set[str]:
    """Give the inode numbers of the TCP sockets of the gateway's host in a state."""
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{gateway.host.pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == state:
                found.add(fields[9])
    return found


def test_only_workers_hold_connections_each_its_own(
    network: Network, server: ScriptedServer, gateway: GatewayFactory
) -> None:
    running = gateway(None)
    assert running.process
    talks = [Talk(network.client.connect(server.address, source=CLIENT4)).greet() for _ in range(5)]
    connected, listening = inodes(running, ESTABLISHED), inodes(running, LISTEN)
    assert len(connected) >= 10
    assert len(listening) == 2
    supervisor = sockets(running.process.pid)
    assert not supervisor & connected
    assert supervisor >= listening
    first, second = (sockets(pid) for pid in running.workers())
    assert connected <= first | second
    assert not first & second
    assert len(first & listening) == len(second & listening) == 1
    for talk in talks:
        talk.close()
