"""The lab itself: hosts reach each other, servers take mail, scanners scan, nothing stays behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lab import router, run_directory
from lab.clients import msmtp, smtp_source, swaks
from lab.image import CHECKOUT
from lab.network import CLIENT4, CLIENT6, MAIL4, MAIL6, PUBLIC_CLIENT4, PUBLIC_CLIENT6, Network
from lab.process import LabError
from lab.run_directory import BASE, RunDirectory
from lab.samples import EICAR, GTUBE
from lab.servers import PASSWORD, Clamd, Exim, HAProxy, MailServer, OpenSMTPD, Postfix, SmtpSink, Spamd

pytestmark = pytest.mark.lab


@pytest.mark.parametrize(
    ("source", "target"),
    [(CLIENT4, MAIL4), (PUBLIC_CLIENT4, MAIL4), (CLIENT6, MAIL6), (PUBLIC_CLIENT6, MAIL6)],
)
def test_client_reaches_mail_host_under_its_own_address(network: Network, source: str, target: str) -> None:
    with (
        network.mail.listen((target, 2525)) as listener,
        network.client.connect((target, 2525), source=source) as connection,
    ):
        accepted, peer = listener.accept()
        with accepted:
            assert peer[0] == source
            connection.sendall(b"hello")
            assert accepted.recv(100) == b"hello"


def test_hosts_have_names_files_and_processes_of_their_own(network: Network) -> None:
    script = "hostname; id -un alice; echo mine > /etc/lab-test; cat /proc/1/comm"
    assert network.client.run(["sh", "-c", script]).stdout.split() == ["client", "alice", "cat"]
    assert not Path("/etc/lab-test").exists()
    assert not network.mail.root.joinpath("etc/lab-test").exists()
    assert socket.gethostname() != "client"


def test_a_program_that_takes_too_long_is_killed(network: Network) -> None:
    begin = time.monotonic()
    with pytest.raises(LabError, match="longer than"):
        network.client.run(["sh", "-c", "sleep 60; true"], timeout=0.3)
    assert time.monotonic() - begin < 3
    assert "sleep" not in network.client.run(["sh", "-c", "cat /proc/[0-9]*/comm"]).stdout


def test_a_program_that_was_stopped_goes_on_and_its_end_is_noticed(network: Network) -> None:
    program = network.client.start(["sleep", "60"])
    program.signal(signal.SIGSTOP)
    time.sleep(0.3)
    program.signal(signal.SIGCONT)
    assert program.terminate() == -signal.SIGTERM


def test_a_started_program_has_its_real_process_number(network: Network) -> None:
    program = network.client.start(["sleep", "60"])
    assert Path(f"/proc/{program.pid}/comm").read_text() == "sleep\n"
    os.kill(program.pid, signal.SIGKILL)
    assert program.wait() == -signal.SIGKILL


@pytest.mark.parametrize("mode", ["tproxy", "netfilter", "tproxy,netfilter"])
def test_interception_brings_the_clients_port_25_to_the_router(network: Network, mode: str) -> None:
    router.intercept(network.router, mode)
    listener = network.router.open_socket(socket.AF_INET6)
    try:
        # SO_REUSEADDR, IP_TRANSPARENT, IPV6_TRANSPARENT
        for level, option in ((socket.SOL_SOCKET, 2), (socket.SOL_IP, 19), (socket.IPPROTO_IPV6, 75)):
            listener.setsockopt(level, option, 1)
        listener.bind(("::", 9199))
        listener.listen()
        listener.settimeout(5)
        for source, target in ((CLIENT4, MAIL4), (PUBLIC_CLIENT6, MAIL6)):
            with network.client.connect((target, 25), source=source):
                accepted, peer = listener.accept()
                with accepted:
                    by_tproxy = mode == "tproxy" or (mode != "netfilter" and source == PUBLIC_CLIENT6)
                    assert peer[0].removeprefix("::ffff:") == source
                    assert (accepted.getsockname()[0].removeprefix("::ffff:") == target) == by_tproxy
    finally:
        listener.close()
        router.release(network.router)


def deliver(network: Network, server: MailServer) -> None:
    for number, address in enumerate((server.ipv4, server.ipv6)):
        sent = swaks(network.client, address, subject=f"smoke {number}", body="Good morning.")
        assert sent.accepted, sent.transcript
        assert b"Good morning." in server.mailbox("alice").wait(f"smoke {number}")


def test_postfix(network: Network, postfix: Postfix) -> None:
    deliver(network, postfix)
    sent = swaks(network.client, postfix.ipv4, "--tls", "--auth-user", "alice", "--auth-password", PASSWORD)
    assert sent.accepted, sent.transcript
    offered = " ".join(sent.replies)
    for extension in ("PIPELINING", "CHUNKING", "8BITMIME", "SMTPUTF8", "DSN", "AUTH", "STARTTLS"):
        assert extension in offered
    wrong = swaks(network.client, postfix.ipv4, "--auth-user", "alice", "--auth-password", "wrong")
    assert not wrong.accepted
    assert wrong.refusal.startswith("535")
    status, said = msmtp(
        network.client, postfix.ipv4, "Subject: by msmtp\n\n.\nlast line\n", recipient="bob@example.test"
    )
    assert status == 0, said
    assert b"\n.\nlast line" in postfix.mailbox("bob").wait("by msmtp")
    assert swaks(network.client, postfix.ipv4, recipient="carol@elsewhere.test").refusal.startswith("554")


def test_postfix_offers_xclient_to_the_router_alone(network: Network, postfix: Postfix) -> None:
    def ehlo(host: str) -> bytes:
        with getattr(network, host).connect((postfix.ipv4, 25)) as connection:
            connection.recv(512)
            connection.sendall(b"EHLO x\r\n")
            return bytes(connection.recv(4096))

    assert b"XCLIENT" in ehlo("router")
    assert b"XCLIENT" not in ehlo("client")


def test_exim(network: Network, exim: Exim) -> None:
    deliver(network, exim)
    assert "sender@client.test" in exim.log
    assert swaks(network.client, exim.ipv4, "--tls").accepted


def test_opensmtpd(network: Network, opensmtpd: OpenSMTPD) -> None:
    deliver(network, opensmtpd)


def test_load_into_a_sink_through_haproxy(network: Network) -> None:
    sink = SmtpSink(network.mail).start()
    relay = HAProxy(network.router, (sink.address, 25)).start()
    assert smtp_source(network.client, sink.address, messages=50, sessions=5).rate > 50
    assert smtp_source(network.client, "10.77.1.1", port=9199, messages=50, sessions=5).messages == 50
    relay.stop()
    sink.stop()


def test_clamd_finds_eicar_and_nothing_else(network: Network, clamd: Clamd) -> None:
    for text, found in ((EICAR, True), ("harmless", False)):
        (network.directory / "scanned").write_text(f"Subject: x\r\n\r\n{text}\r\n")
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(clamd.socket))
            connection.sendall(f"SCAN {network.directory}/scanned\n".encode())
            answer = connection.recv(1000).decode()
        assert answer.endswith("FOUND\n") == found
        assert answer.endswith("OK\n") != found


def test_spamd_scores_gtube_and_nothing_else(spamd: Spamd) -> None:
    for text, spam in ((GTUBE, "True"), ("See you at noon.", "False")):
        message = f"From: a@b.test\r\nSubject: x\r\n\r\n{text}\r\n".encode()
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(spamd.socket))
            connection.sendall(b"CHECK SPAMC/1.5\r\nContent-length: %d\r\n\r\n" % len(message) + message)
            connection.settimeout(20)
            assert f"Spam: {spam} ;" in connection.makefile().read()


def test_nothing_survives_a_killed_lab() -> None:
    script = (
        "import time; from lab.network import Network; n = Network('killed')\n"
        "print(n.directory, n.mail.pid, n.mail.start(['sleep', '77']).pid, flush=True); time.sleep(60)"
    )
    lab = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=CHECKOUT, text=True)
    assert lab.stdout
    directory, *pids = lab.stdout.readline().split()
    lab.kill()
    lab.wait()
    lab.stdout.close()
    deadline = time.monotonic() + 5
    while any(Path("/proc", pid).exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not [pid for pid in pids if Path("/proc", pid).exists()]
    assert directory not in Path("/proc/mounts").read_text()
    assert "veth" not in subprocess.run(["ip", "-d", "link"], capture_output=True, text=True).stdout
    with Network("next"):  # sweeps what the killed one left
        assert Path(directory).parent == BASE
        assert not Path(directory).exists()


def test_runs_side_by_side_leave_no_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tmp_path / "runs"
    monkeypatch.setattr(run_directory, "BASE", base)

    def come_and_go(_: int) -> None:
        directory = RunDirectory("run")
        (directory.path / "file").write_text("")
        directory.close()
        directory.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(come_and_go, range(400)))
    assert not base.exists()
