"""A machine's life with the appliance: made from bare Debian, rebooted, upgraded under load, made bare again.

The tests follow each other on one machine. Mail is sent by the client and taken by Postfix; neither knows of
the machine between them.
"""

import contextlib
import json
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deploy import dist
from lab.clients import swaks
from lab.machine import Machine, Site
from lab.network import CLIENT4, CLIENT6, MAIL4
from lab.process import wait_until
from lab.samples import EICAR, GTUBE
from lab.servers import Postfix
from tests.deploy.administrator import Administrator
from tests.deploy.conftest import PYTHON, TIMES, Load

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(600)]

INFECTED, SPAMMER = "10.77.1.13", "10.77.1.14"
# Not of interest: what changes by itself, and what Debian's own tools remember.
ELSEWHERE = (
    "dev proc run srv sys tmp var/cache var/log var/lib/apt var/lib/dpkg var/lib/systemd var/lib/ucf"
    " var/lib/clamav var/lib/logrotate"
    " root var/backups var/tmp"
)


def state(machine: Machine) -> dict[str, str]:
    """Give what the machine consists of: files, packages, accounts, units, the kernel's network."""
    leave_out = " -o ".join(f"-path /{path}" for path in ELSEWHERE.split())
    files = f"find / -xdev \\( {leave_out} -o -name __pycache__ \\) -prune -o -printf '%p %m %u %l\\n' | sort"
    commands = {
        "files": files,
        "packages": "dpkg-query --show --showformat='${Package} ${db:Status-Status}\\n'",
        "accounts": "getent passwd; getent group",
        "units": "systemctl list-unit-files --no-legend --no-pager",
        "rules": "nft list ruleset 2> /dev/null; ip rule; ip -6 rule; ip route show table all type local",
        "settings": "cd /proc/sys/net && grep -rs . ipv4/conf ipv6/conf ipv4/ip_forward core | sort",
    }
    return {
        what: machine.run(["sh", "-c", command], check=False).stdout for what, command in commands.items()
    }


def version(machine: Machine) -> str:
    return machine.run(["smtp-gated", "-v"]).stdout.split()[1]


def main_process(machine: Machine, unit: str = "smtp-gated") -> str:
    return machine.run(["systemctl", "show", "--property=MainPID", "--value", unit]).stdout


def condition(machine: Machine) -> str:
    return machine.run(["systemctl", "is-active", "smtp-gated"], check=False).stdout.strip()


def is_green(machine: Machine) -> None:
    """Everything runs, and the kernel is as planned."""
    assert (
        machine.run(["systemctl", "is-active", "smtp-gated", "smtp-gated-rules"]).stdout == "active\nactive\n"
    )
    assert json.loads(machine.run(["appliance-ctl", "--json", "status"]).stdout)["gateway"]
    status = machine.run(["appliance-ctl", "status"]).stdout
    assert "clamd at /run/clamav/clamd.ctl: there" in status
    assert "spamassassin at 127.0.0.1:783: there" in status
    machine.run(["appliance-ctl", "check"])
    assert machine.run(["systemctl", "is-system-running"]).stdout == "running\n"


def delivered(site: Site, postfix: Postfix, source: str) -> str:
    """Send a clean mail; give it as Postfix has it."""
    subject = f"clean mail at {time.monotonic()}"
    server = postfix.ipv6 if ":" in source else postfix.ipv4
    sent = swaks(site.client, server, source=source, subject=subject)
    assert sent.accepted, sent.transcript
    return postfix.mailbox("alice").wait(subject).decode()


def is_dropped(site: Site, postfix: Postfix, source: str) -> bool:
    """Whether the kernel drops a client's connections, so that they never get as far as an answer."""
    try:
        site.client.connect((postfix.ipv4, 25), source=source, timeout=1.5).close()
    except TimeoutError:
        return True
    return False


@contextlib.contextmanager
def session_to_its_end(site: Site, postfix: Postfix) -> Iterator[None]:
    """A session that is open when the gateway is told to stop within the block, and is heard after that."""

    def quit_late(client: socket.socket) -> bytes:
        wait_until(lambda: condition(site.machine) != "active", 200, "the gateway told to stop", 0.5)
        client.sendall(b"QUIT\r\n")
        return client.recv(512)

    with site.client.connect((postfix.ipv4, 25)) as client, ThreadPoolExecutor() as threads:
        assert client.recv(512).startswith(b"220")
        reply = threads.submit(quit_late, client)
        yield
        assert reply.result().startswith(b"221")


@pytest.fixture(scope="module")
def bare(site: Site) -> dict[str, str]:
    """The machine's state before anything was done to it."""
    return state(site.machine)


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("max_per_hots", 3, "no such variable: max_per_hots"),
        ("max_per_host", "many", "option max_per_host: "),
        ("lan_interfaces", "lan,guests", "has no interface guests; it has lan, lo, wan"),
        ("lock_perm", 0o660, "write it in quotes"),
        ("clamd", "maybe", "smtp_appliance_clamd: maybe is neither true nor false"),
    ],
)
def test_a_bad_variable_stops_before_anything_is_touched(
    administrator: Administrator, bare: dict[str, str], variable: str, value: object, words: str
) -> None:
    good = dict(administrator.variables)
    outcome = administrator.apply(f"refuse a bad {variable}", **{variable: value})
    administrator.variables = good
    assert (outcome.failed, outcome.changed) == (1, 0)
    assert words in outcome.output
    assert state(administrator.site.machine) == bare


@pytest.mark.usefixtures("bare")
def test_a_first_start_that_fails_leaves_no_rules_and_the_configuration_that_was_there(
    administrator: Administrator, site: Site
) -> None:
    machine = site.machine
    machine.run(["tee", "/etc/smtp-gated.conf"], input="# of old\n")
    machine.run(["chmod", "600", "/etc/smtp-gated.conf"])
    good = dict(administrator.variables)
    taken = "import socket, time; taken = socket.create_server(('', 9199)); time.sleep(600)"
    machine.run(["systemd-run", "--collect", "--unit=taken", "python3", "-c", taken])
    outcome = administrator.apply("fail to start the first time", gate=False, on_failure="closed")
    machine.run(["systemctl", "stop", "taken"])
    administrator.variables = good
    assert outcome.failed == 1
    assert "nothing ran before" in outcome.output, outcome.output[-2000:]
    assert "appliance" not in machine.run(["nft", "list", "tables"]).stdout
    assert machine.run(["stat", "--format=%a", "/etc/smtp-gated.conf"]).stdout == "600\n"
    assert machine.run(["cat", "/etc/smtp-gated.conf"]).stdout == "# of old\n"
    assert machine.run(["systemctl", "--failed", "--no-legend"]).stdout == ""
    machine.run(["rm", "/etc/smtp-gated.conf"])


def test_a_bare_machine_becomes_the_appliance(administrator: Administrator, bare: dict[str, str]) -> None:
    assert "smtp-gated" not in bare["units"]
    administrator.succeed(
        "make a bare machine the appliance",
        clamd=True,
        spamd=True,
        spam_max_size=3000,  # the mails that are sent under load are longer: two processors have enough to do
        gate=False,  # the kernel is not the machine's own
        log_file="/var/log/smtp-gated.log",
        proxy_name="gw.example.test",
        lock_talk=0,
        max_load=0,  # the machine that runs the tests is a busy one
        spam_max_load=0,
        metrics_listen="127.0.0.1:9925",
        msg_virus_locked="You have a virus.\nCall 123.",
    )
    is_green(administrator.site.machine)


def test_the_second_run_changes_nothing(administrator: Administrator) -> None:
    machine = administrator.site.machine
    earlier = ["/opt/smtp-appliance/releases/earlier", "/opt/smtp-appliance/releases/earliest"]
    machine.run(["mkdir", *earlier])  # as many as smtp_appliance_keep_releases says
    outcome = administrator.succeed("run again, with nothing to do")
    assert outcome.changes() == []
    assert outcome.changed == 0
    machine.run(["rmdir", *earlier])


@pytest.mark.parametrize("source", [CLIENT4, CLIENT6])
def test_mail_flows_with_the_clients_address(site: Site, postfix: Postfix, source: str) -> None:
    message = delivered(site, postfix, source)
    assert f"[{'IPv6:' if ':' in source else ''}{source}]" in message
    assert "gw.example.test" in message  # it went through the gateway


def test_the_build_that_fits_its_python_runs(site: Site) -> None:
    where = "from appliance.proxy.session import client; print(client.__file__)"
    python = "/opt/smtp-appliance/current/bin/python"
    compiled = PYTHON in ("", f"{sys.version_info.major}.{sys.version_info.minor}")
    assert site.machine.run([python, "-c", where]).stdout.endswith(".so\n" if compiled else ".py\n")
    workers = site.machine.run(["pgrep", "--full", "appliance.proxy.worker"]).stdout.split()
    assert workers
    for worker in workers:
        loaded = site.machine.run(["cat", f"/proc/{worker}/maps"]).stdout
        assert ("/appliance/proxy/connection.cpython-" in loaded) == compiled


def test_services_are_hardened(site: Site) -> None:
    for unit, worst in (("smtp-gated", 32), ("smtp-gated-rules", 50)):
        site.machine.run(["systemd-analyze", "security", "--no-pager", f"--threshold={worst}", unit])
    workers = site.machine.run(["pgrep", "--full", "appliance.proxy.worker"]).stdout.split()
    assert workers
    for worker in workers:
        fields = dict(
            line.split(":\t")
            for line in site.machine.run(["cat", f"/proc/{worker}/status"]).stdout.splitlines()
        )
        assert fields["Uid"].split()[0] != "0"
        assert fields["CapEff"] == f"{1 << 13:016x}"  # CAP_NET_RAW, for transparent sockets
        assert fields["NoNewPrivs"] == "1"
        assert fields["Seccomp"] == "2"


def test_metrics_and_logs_are_there(site: Site) -> None:
    ask = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:9925/metrics').read().decode())"
    assert "sessions" in site.machine.run(["python3", "-c", ask]).stdout
    assert "smtp-gated" in site.machine.run(["cat", "/var/log/smtp-gated.log"]).stdout
    owner = site.machine.run(["stat", "--format=%a %U %G", "/var/log/smtp-gated.log"]).stdout
    assert owner == "640 root adm\n"  # senders stand in it
    site.machine.run(["logrotate", "--force", "/etc/logrotate.d/smtp-gated"])
    assert site.machine.run(["ls", "/var/log/smtp-gated.log.1"]).stdout
    assert site.machine.run(["journalctl", "--unit=smtp-gated", "--grep=START"]).stdout


def test_a_virus_is_cut_and_its_sender_dropped_by_the_kernel(site: Site, postfix: Postfix) -> None:
    site.client.add_address(f"{INFECTED}/24")
    assert not is_dropped(site, postfix, INFECTED)
    sent = swaks(site.client, postfix.ipv4, source=INFECTED, subject="bad mail", body=EICAR)
    assert sent.refusal.startswith("550"), sent.transcript
    wait_until(lambda: is_dropped(site, postfix, INFECTED), 5, "the kernel drops the locked client")
    assert INFECTED in site.machine.run(["nft", "list", "set", "inet", "appliance", "locked4"]).stdout
    assert INFECTED in site.machine.run(["appliance-ctl", "locks"]).stdout
    assert not postfix.mailbox("alice").find("bad mail")
    delivered(site, postfix, CLIENT4)


def test_spam_is_cut_and_its_sender_locked(site: Site, postfix: Postfix) -> None:
    site.client.add_address(f"{SPAMMER}/24")
    sent = swaks(site.client, postfix.ipv4, source=SPAMMER, subject="spam", body=GTUBE)
    assert sent.refusal.startswith("550"), sent.transcript
    wait_until(lambda: is_dropped(site, postfix, SPAMMER), 5, "the kernel drops the locked client")
    assert not postfix.mailbox("alice").find("spam")
    site.machine.run(["appliance-ctl", "unlock", SPAMMER])


def test_a_reboot_brings_everything_back(site: Site, postfix: Postfix) -> None:
    begin = time.monotonic()
    site.machine.reboot()
    wait_until(
        lambda: condition(site.machine) == "active",
        60,
        "the gateway",
    )
    TIMES.append(("reboot, until the gateway serves", time.monotonic() - begin))
    is_green(site.machine)
    assert is_dropped(site, postfix, INFECTED)
    assert CLIENT4 in delivered(site, postfix, CLIENT4)
    assert CLIENT6 in delivered(site, postfix, CLIENT6)
    site.machine.run(["appliance-ctl", "unlock", INFECTED])
    wait_until(lambda: not is_dropped(site, postfix, INFECTED), 5, "the client is let in again")


def test_a_firewall_that_flushes_all_rules_leaves_ours(site: Site) -> None:
    machine = site.machine

    def rules() -> str:
        return machine.run(["systemctl", "is-active", "smtp-gated-rules"], check=False).stdout.strip()

    assert "flush ruleset" in machine.run(["cat", "/etc/nftables.conf"]).stdout
    # It takes its time, as it may with many rules.
    slow = "install -d $0 && printf '[Service]\\nExecStartPre=sleep 2\\n' > $0/slow.conf"
    machine.run(["sh", "-c", slow, "/etc/systemd/system/nftables.service.d"])
    machine.run(["systemctl", "daemon-reload"])
    machine.run(["systemctl", "enable", "--now", "nftables"])
    machine.run(["systemctl", "restart", "smtp-gated-rules"])
    for how in ("reload", "restart"):
        machine.run(["systemctl", how, "nftables"])
        wait_until(lambda: rules() == "active", 30, f"rules after {how}")
        is_green(machine)
    machine.reboot()
    wait_until(lambda: condition(machine) == "active", 60, "the gateway")
    is_green(machine)
    machine.run(["systemctl", "disable", "--now", "nftables"])
    machine.run(["rm", "-r", "/etc/systemd/system/nftables.service.d"])
    machine.run(["systemctl", "daemon-reload"])
    machine.run(["systemctl", "start", "smtp-gated-rules"])
    is_green(machine)


def test_a_changed_option_is_taken_over_without_a_restart(
    site: Site, administrator: Administrator, load: Load
) -> None:
    before = main_process(site.machine)
    outcome = administrator.succeed("change an option", max_per_host=200)
    assert outcome.changed == 3  # the file, the rules, the gateway
    assert main_process(site.machine) == before
    assert "max_per_host 200" in site.machine.run(["cat", "/etc/smtp-gated.conf"]).stdout
    assert load.end() > 0
    is_green(site.machine)


def test_the_rules_go_and_come_again(site: Site, postfix: Postfix, administrator: Administrator) -> None:
    administrator.succeed("intercept nothing", intercept=False)
    assert "gw.example.test" not in delivered(site, postfix, CLIENT4)
    assert administrator.succeed("intercept nothing, again").changed == 0
    administrator.succeed("intercept again", intercept=True)
    is_green(site.machine)


def test_a_reload_that_the_gateway_refuses_is_taken_back(site: Site, administrator: Administrator) -> None:
    good = dict(administrator.variables)
    outcome = administrator.apply("refuse what the gateway cannot use", lock_path="/srv/locks")
    administrator.variables = good
    assert outcome.failed == 1
    assert "lock_path: directory /srv/locks: Read-only file system" in outcome.output
    assert "/srv/locks" not in site.machine.run(["cat", "/etc/smtp-gated.conf"]).stdout
    is_green(site.machine)


def test_a_restart_under_load_refuses_nobody(site: Site, load: Load) -> None:
    load.pause = 0
    before = main_process(site.machine)
    for _ in range(3):
        site.machine.run(["systemctl", "restart", "smtp-gated"], timeout=150)
    assert main_process(site.machine) != before
    assert load.end() > 0


@pytest.fixture
def held(site: Site) -> Iterator[str]:
    """A file on the machine: as long as it is there, the gateway does not start."""
    file, drop_in = "/run/held", "/run/systemd/system/smtp-gated.service.d"
    wait = f"[Service]\nExecStartPre=/bin/sh -c 'while [ -e {file} ]; do sleep 0.1; done'\n"
    site.machine.run(["mkdir", "-p", drop_in])
    site.machine.run(["tee", f"{drop_in}/held.conf"], input=wait)
    site.machine.run(["systemctl", "daemon-reload"])
    yield file
    site.machine.run(["rm", "-rf", drop_in, file])
    site.machine.run(["systemctl", "daemon-reload"])


def test_clients_wait_while_a_crashed_gateway_starts_again(site: Site, postfix: Postfix, held: str) -> None:
    site.machine.run(["touch", held])
    site.machine.run(["systemctl", "kill", "--signal=KILL", "--kill-who=main", "smtp-gated"])
    # A worker lives as long as its killed parent, and takes clients with it that come in this moment.
    wait_until(lambda: condition(site.machine) == "activating", 10, "the end of all its processes")
    waiting = [site.client.connect((postfix.ipv4, 25), timeout=30) for _ in range(8)]
    assert condition(site.machine) == "activating"
    site.machine.run(["rm", held])
    for client in waiting:
        assert client.recv(512).startswith(b"220")
        client.close()


def test_an_upgrade_under_load_refuses_nobody(
    site: Site, administrator: Administrator, load: Load, releases: Path, helper: str
) -> None:
    wheels = dist.wheel(releases / "good", "0.2.0")
    before, helping = main_process(site.machine), main_process(site.machine, helper)
    administrator.succeed("upgrade under load", wheels=str(wheels))
    sent = load.end()
    assert sent > 0
    assert version(site.machine) == "0.2.0"
    assert main_process(site.machine) != before
    assert main_process(site.machine, helper) not in ("0\n", helping)
    is_green(site.machine)


def test_a_failed_upgrade_goes_back_and_refuses_nobody(
    site: Site, administrator: Administrator, load: Load, releases: Path, tmp_path: Path
) -> None:
    for part in dist.PARTS:
        copy = shutil.copytree if (dist.CHECKOUT / part).is_dir() else shutil.copy
        copy(dist.CHECKOUT / part, tmp_path / part)
    (tmp_path / "appliance/proxy/worker.py").write_text("raise SystemExit('this release is broken')\n")
    good = dict(administrator.variables)
    outcome = administrator.apply(
        "fail to upgrade, and go back",
        wheels=str(dist.wheel(releases / "bad", "0.3.0", tmp_path)),
        max_per_host=300,
    )
    administrator.variables = good
    assert outcome.failed == 1
    assert "the release and configuration before run again" in outcome.output
    assert load.end() > 0
    assert version(site.machine) == "0.2.0"
    assert "max_per_host 200" in site.machine.run(["cat", "/etc/smtp-gated.conf"]).stdout
    is_green(site.machine)
    assert administrator.succeed("run again, after going back").changed == 0


def test_removal_leaves_nothing(
    site: Site, postfix: Postfix, administrator: Administrator, bare: dict[str, str]
) -> None:
    assert "inet appliance" in site.machine.run(["nft", "list", "tables"]).stdout
    site.machine.run(["touch", "/var/log/smtp-gated.logbook"])  # somebody else's
    with session_to_its_end(site, postfix):
        administrator.succeed("remove the appliance", state="absent")
    now = state(site.machine)
    differences = {what: sorted(set(now[what].splitlines()) ^ set(bare[what].splitlines())) for what in bare}
    assert not any(differences.values()), str(differences)
    assert "gw.example.test" not in delivered(site, postfix, CLIENT4)
    logs = site.machine.run(["find", "/var/log", "-name", "*smtp-gated*"]).stdout
    assert logs == "/var/log/smtp-gated.logbook\n"
    assert administrator.succeed("remove it again").changed == 0
    assert site.machine.run(["systemctl", "is-system-running"]).stdout == "running\n"
    with site.mail.listen((MAIL4, 2525)) as listener, site.client.connect((MAIL4, 2525)):
        listener.accept()[0].close()
