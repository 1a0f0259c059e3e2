"""appliance-ctl and a gateway that runs: what it shows and changes, who may use it, who cannot harm it."""

import contextlib
import io
import json
import os
import pty
import re
import signal
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from appliance.ctl.app import main
from lab.gateway import Gateway, Options
from lab.host import ACCOUNTS, OPERATORS
from lab.image import CHECKOUT
from lab.kernel import Kernel
from lab.namespace import inside
from lab.network import CLIENT4, CLIENT6, PUBLIC_CLIENT4, Network
from lab.process import wait_until
from tests.lab.conftest import GatewayFactory
from tests.lab.gate import standing
from tests.lab.scripted import ScriptedServer, Talk

pytestmark = pytest.mark.lab

BIN = CHECKOUT / ".venv" / "bin"
AS_ANOTHER = """
import os, sys
from appliance.ctl.app import main
user, groups = int(sys.argv[1]), [int(group) for group in sys.argv[2].split(",")]
os.setgroups(groups)
os.setgid(groups[0])
os.setuid(user)
sys.exit(main(sys.argv[3:]))
"""  # imported with the rights of root: others may be unable to read the checkout


class Ctl:
    """The tool on the host of a gateway, with that one's file."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    def command(self, *arguments: str) -> list[str]:
        return [str(BIN / "appliance-ctl"), "--config", str(self.gateway.file), *arguments]

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.gateway.host.run(self.command(*arguments), check=False)

    def text(self, *arguments: str) -> str:
        done = self(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def json(self, *arguments: str) -> Any:
        """Run a command in this process, in the host's network, which takes a tenth of the time."""
        words, out = ["--json", "--config", str(self.gateway.file), *arguments], io.StringIO()
        with contextlib.redirect_stdout(out):
            assert inside(self.gateway.host.namespace, lambda: main(words)) == 0
        return json.loads(out.getvalue())

    def outcome(self, client: str) -> tuple[str, str]:
        """What `explain` foretells."""
        found = self.json("explain", client)["next"]
        return found["outcome"], found["why"]

    def run_as(self, user: str, groups: list[int], *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run it as another user."""
        words = [str(ACCOUNTS[user]), ",".join(map(str, groups)), "--config", str(self.gateway.file)]
        return self.gateway.host.run(
            [BIN / "python", "-P", "-c", AS_ANOTHER, *words, *arguments], check=False
        )


Start = Callable[[Options], Ctl]


@pytest.fixture
def start(gateway: GatewayFactory) -> Start:
    return lambda options: Ctl(gateway(options))


def connect(network: Network, server: ScriptedServer, source: str = CLIENT4) -> Talk:
    return Talk(network.client.connect(server.address, source=source, timeout=10))


def test_every_command_in_both_forms(network: Network, server: ScriptedServer, start: Start) -> None:
    path = str(network.router.run_directory / "limits-of-ctl")
    limits: Options = {"ratelimit_period": 600, "ratelimit_recipients": 50, "ratelimit_path": path}
    ctl = start({**limits, "antivirus_type": "clamd", "scan_max_size": 1000, "ignore_errors": "yes"})
    with connect(network, server) as client:
        client.greet().begin().finish()
        gateway = ctl.json("status")["gateway"]
        assert (gateway["counters"]["sessions"], gateway["counters"]["messages"]) == (1, 1)
        assert len(gateway["workers"]) == 2
        assert gateway["scanners"][0][0] == "clamd"
        assert "no scanner at" in gateway["scanners"][0][2]
        text = ctl.text("status")
        assert re.search(r"^gateway +up for \d+s", text, re.MULTILINE)
        assert "1 messages let through" in text
        assert "scanners  clamd at /" in text

        (session,) = ctl.json("sessions")["sessions"]
        assert session["source"].startswith(f"{CLIENT4}:")
        assert session["trns"] == 1
        row = ctl.text("sessions").splitlines()[1].split()
        assert row[0] == str(session["pid"])
        assert row[5:7] == [session["source"], f"{server.address[0]}:25"]

        (talker,) = ctl.json("clients", "--by", "mails")["clients"]
        tally = {"connections": 1, "mails": 1, "refusals": 0, "destinations": 1}
        assert talker == {
            "client": CLIENT4,
            "open": 1,
            **tally,
            "syns": None,
            "dropped": None,
            "servers": None,
        }
        assert ctl.text("clients").splitlines()[1].split() == [CLIENT4, "1", "1", "1", "0", "1"]
        assert ctl.json("top")["clients"] == [talker]

        found = ctl.json("explain", CLIENT4)
        assert found["from"].startswith("lan ")
        assert found["gateway"]["worker"] == [worker["pid"] for worker in gateway["workers"]].index(
            session["pid"]
        )
        assert found["gateway"]["tally"] == tally
        (own,) = found["gateway"]["sessions"]
        assert own["source"] == session["source"]
        assert found["limits"]["limits"]["recipients"]["used"] == 1
        assert "next      ACCEPTED: " in ctl.text("explain", CLIENT4)
    used = ctl.json("limits", "set", CLIENT4, "recipients=1")["limits"]["recipients"]
    assert used == {"used": 1, "quota": 1, "tries": 1}
    wait_until(lambda: _refuses(network, server), 5, "the quota at work")
    assert "quotas of its own" in ctl.text("limits", "show", CLIENT4)
    ctl.text("limits", "clear", CLIENT4, "--quotas")
    wait_until(lambda: not _refuses(network, server), 5, "the quota gone")


def _refuses(network: Network, server: ScriptedServer) -> bool:
    with connect(network, server) as client:
        client.greet()
        assert client.ask("MAIL FROM:<a@b.test>").startswith("250")
        return not client.ask("RCPT TO:<alice@example.test>").startswith("250")


def test_a_lock_by_hand_reaches_the_kernel_and_is_taken_back(
    network: Network, server: ScriptedServer, start: Start, kernel: Kernel
) -> None:
    ctl = start({"lock_talk": 0, "trusted_clients": PUBLIC_CLIENT4})
    kernel.install(ctl.gateway.options)
    assert "is locked until" in ctl.text("lock", CLIENT4, "--for", "2h", "--why", "[red]spam[/red]")
    assert ctl.json("lock", CLIENT6, "--for", "forever")["until"] is None
    kernel.wait_locked(CLIENT4, CLIENT6)
    remaining = kernel.locked()[CLIENT4].remaining
    assert remaining
    assert 7150 < remaining <= 7200
    with pytest.raises(TimeoutError):
        network.client.connect(server.address, source=CLIENT4, timeout=0.3)
    (listed,) = [row for row in ctl.json("locks")["locks"] if row["client"] == CLIENT4]
    assert listed["tried"] >= 1
    assert listed["from"].startswith("lan ")
    assert (listed["by"], listed["in_kernel"]) == ("appliance-ctl", True)
    row = next(line for line in ctl.text("locks").splitlines() if line.startswith(CLIENT4))
    assert "ADMIN root: [red]spam[/red]" in row
    assert ctl.outcome(CLIENT4) == ("dropped", "the kernel drops it: ADMIN root: [red]spam[/red]")
    assert re.search(r"kernel +rules are up, \d+ connections intercepted; 2 locked,", ctl.text("status"))

    done = ctl("lock", PUBLIC_CLIENT4)
    assert done.returncode == 1
    assert "is trusted and never locked" in done.stderr
    assert ctl.outcome(PUBLIC_CLIENT4)[0] == "passes by"

    assert sorted(ctl.json("unlock", "--all")["unlocked"]) == [CLIENT4, CLIENT6]
    kernel.wait_locked()
    with connect(network, server) as client:
        client.greet()


def test_rules_that_are_missing_are_told_of(start: Start, kernel: Kernel) -> None:
    ctl = start({"lan_interfaces": "lan"})
    kernel.remove()
    missing = "the kernel has no table inet appliance; appliance-ctl up makes it"
    assert f"kernel    MAIL PASSES BY: {missing}" in ctl.text("status")
    assert ctl.outcome(CLIENT4) == ("passes by", missing)
    kernel.install(ctl.gateway.options)
    assert ctl.outcome(CLIENT4)[0] == "accepted"


def test_rules_that_the_running_gateway_cannot_serve_are_told_of(start: Start) -> None:
    """It takes another mode and port at its next start only: until then mail would be refused."""
    ctl = start({"lan_interfaces": "lan", "xdp": "off"})
    assert ctl.json("plan")["warnings"] == []
    ctl.gateway.options |= {"mode": "netfilter", "port": 9198}
    ctl.gateway.write()
    told = [
        "the gateway runs with mode tproxy, not netfilter: restart it",
        "the gateway runs with port 9199, not 9198: restart it",
    ]
    assert ctl.json("plan")["warnings"] == told
    said = ctl("check")
    assert said.returncode == 1
    assert set(told) <= set(said.stdout.splitlines())


def test_what_the_gate_counted_stands_beside_it(
    network: Network, server: ScriptedServer, start: Start
) -> None:
    ctl = start({"fanout_period": 60})
    with standing(network.router, {"fanout_period": 60}):
        with connect(network, server) as client:
            client.greet()
            (talker,) = json.loads(ctl.text("clients", "--by", "servers", "--json"))["clients"]
            assert (talker["client"], talker["connections"], talker["destinations"]) == (CLIENT4, 1, 1)
            assert (talker["syns"], talker["dropped"], talker["servers"]) == (1, 0, 1)
            assert re.search(rf"^{CLIENT4} +1 +1 +0 +0 +1 +1 +0 +1 *$", ctl.text("clients"), re.MULTILINE)
            assert "gate      on lan (native)" in ctl.text("status")
            told = "gate      1 connections tried, 0 of them dropped, about 1 mail servers lately"
            assert told in ctl.text("explain", CLIENT4)
        process = ctl.gateway.process
        assert process
        assert process.terminate() is not None
        done = ctl("clients")
        assert done.returncode == 4
        assert re.search(rf"^{CLIENT4} +1 +0 +1 *$", done.stdout, re.MULTILINE)
        assert "the gateway's counts are missing: no gateway answers" in done.stdout
    assert ctl("clients").stdout == ""


def test_what_is_foretold_comes_true(network: Network, server: ScriptedServer, start: Start) -> None:
    limits = network.router.run_directory / "limits-of-foretelling"
    ctl = start(
        {
            "max_per_host": 1,
            "lock_on": "virus",
            "ratelimit_period": 600,
            "ratelimit_connections": 3,
            "ratelimit_path": str(limits),
        }
    )
    with contextlib.ExitStack() as stack:

        def comes_true(expected: str) -> None:
            """What the next connection meets is what was said before."""
            outcome, why = ctl.outcome(CLIENT4)
            client = stack.enter_context(connect(network, server))
            greeting = client.reply()
            assert outcome == ("accepted" if greeting.startswith("220") else "refused")
            if outcome == "refused":
                assert greeting == why.partition("it hears: ")[2]
                client.socket.close()
            assert expected in f"{outcome}: {why}"

        comes_true("accepted: nothing is against it")
        comes_true("refused: max_per_host: it has 1 of 1 open")
        stack.pop_all().close()
        wait_until(lambda: not ctl.json("sessions")["sessions"], 5, "the end of the session")
        ctl.text("lock", CLIENT4, "--why", "because")
        comes_true("refused: lock: ADMIN root: because")
        ctl.text("unlock", CLIENT4)
        for _ in range(2):
            comes_true("accepted")
            stack.pop_all().close()
            wait_until(lambda: not ctl.json("sessions")["sessions"], 5, "the end of the session")
        comes_true("refused: ratelimit_connections: 3 of 3 are used")


def test_who_may_ask(start: Start) -> None:
    ctl = start({})
    status = ctl.gateway.control.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (0, OPERATORS, 0o660)
    operator = ctl.run_as("alice", [ACCOUNTS["alice"], OPERATORS], "status")
    assert (operator.returncode, operator.stderr) == (0, "")
    assert "gateway   up for" in operator.stdout
    assert "kernel    unknown: only root may ask the kernel" in operator.stdout
    for user in ("bob", "smtpgw"):
        done = ctl.run_as(user, [ACCOUNTS[user]], "sessions")
        assert (done.returncode, done.stdout) == (5, "")
        assert "only root and members of the group appliance may ask the gateway" in done.stderr
    done = ctl.run_as("alice", [ACCOUNTS["alice"], OPERATORS], "lock", CLIENT4)
    assert (done.returncode, done.stdout) == (5, "")
    assert "only root can lock a client: try again with sudo" in done.stderr
    assert not any(ctl.gateway.locks.iterdir())
    ctl.text("lock", f"{CLIENT4}-bob", "--for", "2h", "--why", "because")
    done = ctl.run_as("alice", [ACCOUNTS["alice"], OPERATORS], "locks")
    assert (done.returncode, done.stdout) == (5, "")
    assert f"only root can read {ctl.gateway.locks}/{CLIENT4}-bob: try again with sudo" in done.stderr
    done = ctl.run_as("alice", [ACCOUNTS["alice"], OPERATORS], "explain", f"{CLIENT4}-bob")
    assert (done.returncode, done.stderr) == (0, "")
    assert "lock      unknown: only root can read " in done.stdout


def test_a_reload_tells_what_came_of_it(start: Start) -> None:
    ctl = start({})
    ctl.gateway.options |= {"max_per_host": 7, "workers": 1}
    ctl.gateway.write()
    rows = {row["option"]: row for row in ctl.json("config", "diff")["differences"]}
    assert set(rows) == {"max_per_host", "workers"}
    assert (rows["workers"]["running"], rows["workers"]["file"], rows["workers"]["restart"]) == (
        "2",
        "1",
        True,
    )
    assert re.search(r"^max_per_host +1000 +7 +reload *$", ctl.text("config", "diff"), re.MULTILINE)
    text = ctl.text("reload")
    assert "a restart is needed before these take effect: workers" in text
    assert text.endswith("reloaded\n")
    assert {row["option"] for row in ctl.json("config", "diff")["differences"]} == {"workers"}

    ctl.gateway.options |= {"antivirus_type": "clamd", "antivirus_path": "/run/mistyped"}
    ctl.gateway.write()
    missing = "no scanner at /run/mistyped (No such file or directory): start it, or correct antivirus_path"
    assert missing in " ".join(ctl.text("reload").split())
    ctl.gateway.wait_log(re.escape(missing))

    ctl.gateway.file.write_text("mode tproxy\nmax_per_host many\n")
    done = ctl("reload")
    assert done.returncode == 2  # the file cannot even tell where the socket is
    ctl.gateway.options |= {"spool_path": "/proc/nowhere"}
    ctl.gateway.write()
    for arguments in (["reload"], ["--json", "reload"]):
        done = ctl(*arguments)
        assert done.returncode == 2
        assert "spool_path: directory /proc/nowhere" in done.stderr
        assert "the gateway goes on with what it had" in done.stderr
    assert ctl.gateway.log.count("CONTROL:RELOAD uid=0") == 4


def test_a_worker_that_hangs_is_named(start: Start) -> None:
    ctl = start({})
    pids = [worker["pid"] for worker in ctl.json("status")["gateway"]["workers"]]
    ctl.gateway.host.run(["kill", "-STOP", str(pids[0])])
    try:
        assert f"worker {pids[0]} does not answer: what it has is missing above" in ctl.text("sessions")
    finally:
        ctl.gateway.host.run(["kill", "-CONT", str(pids[0])])


def test_a_hostile_crowd_does_not_keep_root_out(
    network: Network, server: ScriptedServer, start: Start
) -> None:
    ctl = start({})
    crowd = """
import os, socket, sys
os.setgroups([int(sys.argv[2])]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[1]))
clients = [socket.socket(socket.AF_UNIX) for _ in range(200)]
for number, client in enumerate(clients):
    client.connect(sys.argv[3])
    try:
        client.sendall([b"", b'{"do": "sessions"}\\n', b"[" * 5000, b"x" * 100000][number % 4])
    except OSError:
        pass
print("there", flush=True)
sys.stdin.read()
"""
    host = ctl.gateway.host
    words = [str(ACCOUNTS["alice"]), str(OPERATORS), str(ctl.gateway.control)]
    hostile = subprocess.Popen(
        host.command([str(BIN / "python"), "-c", crowd, *words]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert hostile.stdin
    assert hostile.stdout
    assert hostile.stdout.readline() == b"there\n"
    assert "up for" in ctl.text("status")
    with connect(network, server) as client:
        assert client.greet().begin().finish().startswith("250")
    hostile.stdin.close()
    hostile.wait(10)
    hostile.stdout.close()
    assert ctl.json("status")["gateway"]["crashed"] == 0


def test_top_is_live_until_q(start: Start) -> None:
    ctl = start({})
    ours, theirs = pty.openpty()
    with open(ours, "r+b", buffering=0) as terminal:  # noqa: PTH123
        command = ctl.gateway.host.command(ctl.command("top", "--every", "0.5"))
        shown = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env={"TERM": "xterm"})
        seen = b""
        while seen.count(b"gateway up for") < 2:
            seen += terminal.read(4096)
        terminal.write(b"xq")
        assert shown.wait(10) == 0
        assert b"a second 0.0 connections" in seen
        assert b"clients by connections" in seen
    os.close(theirs)


@pytest.mark.option("metrics_listen")
def test_metrics(network: Network, server: ScriptedServer, start: Start) -> None:
    ctl = start({"metrics_listen": "127.0.0.1:9925", "lock_duration": 60})
    with connect(network, server) as client:
        client.greet().begin().finish()
    ctl.text("lock", CLIENT6)
    with ctl.gateway.host.connect(("127.0.0.1", 9925)) as scraper:
        scraper.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        page = b"".join(iter(lambda: scraper.recv(65536), b"")).decode().partition("\r\n\r\n")[2]
    found = {
        sample.name: sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if not sample.labels
    }
    assert found["appliance_connections_total"] == found["appliance_messages_total"] == 1
    assert (found["appliance_locks"], found["appliance_workers"]) == (1, 2)


@pytest.mark.option("control_socket")
def test_drained_and_down(network: Network, server: ScriptedServer, start: Start) -> None:
    ctl = start({"on_failure": "closed"})
    with connect(network, server) as client:
        client.greet()
        assert ctl.json("drain") == {"sessions": 1}
        assert ctl.json("status")["gateway"]["ending"]
        assert re.search(r"up for \d+s, DRAINING: no more connections", ctl.text("status"))
        assert "draining already" in ctl("drain").stderr
        assert ctl.outcome(CLIENT4)[0] == "refused"
    process = ctl.gateway.process
    assert process
    assert process.wait(10) == 0
    assert not ctl.gateway.control.exists()
    done = ctl("status")
    assert done.returncode == 4
    assert "DOWN: no gateway answers" in done.stdout

    ctl.gateway.start()
    ctl.text("status")
    process = ctl.gateway.process
    assert process
    process.signal(signal.SIGKILL)
    process.wait(10)
    assert ctl.gateway.control.exists()
    assert ctl("status").returncode == 4
    ctl.gateway.start()
    ctl.text("status")  # the socket that was left over is in nobody's way
