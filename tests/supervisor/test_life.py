"""A gateway's life from its start to its end: the real program and its workers on the loopback interface."""

import contextlib
import os
import pwd
import re
import resource
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from appliance import process
from tests.supervisor.program import (
    PROGRAM,
    Gateway,
    ended,
    name_of,
    talks,
    wait_until,
)

pytestmark = pytest.mark.lab


def test_a_gateway_of_another_container_is_not_signalled(gateway: Gateway) -> None:
    gateway.start()
    words = ["unshare", "--pid", "--fork", PROGRAM, "-K", str(gateway.file)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, start_new_session=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "is in another container; signal it there" in done.stderr
    assert talks(gateway.session())


@pytest.mark.option("pidfile", "workers")
def test_the_command_returns_when_mail_is_served(gateway: Gateway) -> None:
    done = gateway.run()
    assert done.returncode == 0, done.stderr
    gateway.session().close()
    pid = gateway.pid()
    assert pid
    assert Path(gateway.options["pidfile"]).read_text() == f"{pid}\n"
    assert name_of(pid) == "smtp-gated"
    assert sorted(map(name_of, gateway.workers())) == ["smtp-gated-w0", "smtp-gated-w1"]
    assert os.getsid(pid) not in (pid, os.getsid(0))
    assert {str(Path(f"/proc/{pid}/fd/{fd}").readlink()) for fd in range(3)} == {"/dev/null"}
    assert gateway.run("-K").returncode == 0
    wait_until(lambda: gateway.pid() is None)
    assert not Path(gateway.options["pidfile"]).exists()
    again = gateway.run("-K")
    assert (again.returncode, "no gateway is running" in again.stderr) == (1, True)


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("argument", ["", "-f"])
def test_standard_files_may_be_closed(gateway: Gateway, argument: str, closed: str) -> None:
    command = f"exec {PROGRAM} {argument} {gateway.file} {closed}"
    started = subprocess.Popen(["/bin/sh", "-c", command])
    if not argument:
        assert started.wait(20) == 0
    wait_until(lambda: gateway.pid() is not None)
    wait_until(lambda: len(gateway.workers()) == 2)
    gateway.session().close()
    for pid in (gateway.pid(), *gateway.workers()):
        assert str(Path(f"/proc/{pid}/fd/2").readlink()) == "/dev/null"
    assert gateway.run("-K").returncode == 0
    wait_until(lambda: gateway.pid() is None)
    started.wait(20)


@pytest.mark.parametrize("arguments", [[], ["-f"]])
def test_a_failed_start_says_why_in_one_line(gateway: Gateway, arguments: list[str]) -> None:
    gateway.write(spool_path="/nowhere/at/all")
    done = gateway.run(*arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("smtp-gated: spool_path: directory /nowhere/at/all: ")
    assert done.stderr.count("\n") == 1
    gateway.write(nonsense="1")
    assert gateway.run(*arguments).returncode == 2


@pytest.mark.option("pidfile", "port")
def test_a_second_gateway_does_not_start(gateway: Gateway) -> None:
    gateway.start()
    done = gateway.run()
    assert (done.returncode, "is running with it" in done.stderr) == (1, True)
    gateway.write(pidfile=f"{gateway.home}/run/pid2")
    done = gateway.run()
    assert (done.returncode, "Address already in use" in done.stderr) == (1, True)
    gateway.write(pidfile=f"{gateway.home}/run/pid")
    assert talks(gateway.session())


def test_a_worker_that_dies_is_replaced_and_no_connection_is_refused(gateway: Gateway) -> None:
    gateway.start()
    before = gateway.workers()
    clients = {source: gateway.session(source) for source in (f"127.0.0.{n}" for n in range(1, 9))}
    os.kill(before[0], signal.SIGKILL)
    for source in clients:
        gateway.session(source).close()
    gateway.wait_log("WORKER:CRASHED worker=0")
    after = gateway.workers()
    assert before[1] in after
    assert before[0] not in after
    assert 0 < sum(map(still_talks, clients.values())) < len(clients)
    assert "children.crashed: 1\n" in flat_status(gateway)


def flat_status(gateway: Gateway) -> str:
    gateway.write(statefile_type="flat")
    gateway.signal(signal.SIGHUP)
    gateway.wait_log("RELOAD:DONE")
    return gateway.run("-s").stdout


def test_a_gateway_that_may_open_no_more_files_lives_on(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the machine has no file left for anybody."""
    systemd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    systemd.bind(str(gateway.home / "notify"))
    systemd.settimeout(5)
    monkeypatch.setenv("NOTIFY_SOCKET", str(gateway.home / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    gateway.start()
    clients = [gateway.session(f"127.0.0.{number}") for number in range(1, 9)]
    pid, killed = gateway.pid() or 0, {gateway.workers()[0], *gateway.mirrors()}
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, before[1]))
    for each in killed:
        os.kill(each, signal.SIGKILL)
    gateway.wait_log("WORKER:CRASHED worker=0")
    assert 0 < sum(map(still_talks, clients)) < len(clients)
    systemd.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            systemd.recv(1000)
    systemd.settimeout(5)
    assert systemd.recv(1000) == b"WATCHDOG=1"
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    gateway.session("127.0.0.1").close()
    wait_until(lambda: len(gateway.workers()) == 2 and len(gateway.mirrors()) == len(killed) - 1)
    for number in range(1, 9):
        gateway.session(f"127.0.0.{number}").close()
    systemd.close()


def start_with_library(gateway: Gateway, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Start a gateway whose lock mirror finds this instead of libnftables' module."""
    (gateway.home / "nftables.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(gateway.home))
    gateway.start()


def test_a_mirror_without_its_library_ends_for_good(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_with_library(gateway, monkeypatch, "raise ImportError('not installed')\n")
    gateway.wait_log("LOCK:KERNEL why=install python3-nftables")
    time.sleep(2)
    assert gateway.mirrors() == []
    assert (gateway.home / "log").read_text().count("LOCK:KERNEL") == 1


def test_a_mirror_that_keeps_dying_does_not_keep_the_machine_busy(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_with_library(gateway, monkeypatch, "import os\nos.kill(os.getpid(), 9)  # as for its memory\n")
    time.sleep(9)  # begun after 0, 1, 3 and 7 s, or later on a busy machine
    assert 2 <= (gateway.home / "log").read_text().count("LOCK:KERNEL why=the mirror ended") <= 4


def still_talks(client: socket.socket) -> bool:
    with contextlib.suppress(OSError):
        return talks(client)
    return False


def test_workers_that_keep_dying_do_not_keep_the_machine_busy(gateway: Gateway) -> None:
    gateway.start()
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        for pid in gateway.workers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    crashes = (gateway.home / "log").read_text().count("WORKER:CRASHED")
    assert 4 <= crashes <= 8
    gateway.session().close()


def test_sessions_end_in_peace_and_a_second_signal_ends_them(gateway: Gateway) -> None:
    gateway.start()
    assert gateway.process
    leaving, staying = gateway.session("127.0.0.1"), gateway.session("127.0.0.3")
    gateway.signal(signal.SIGTERM)
    gateway.wait_log("STOP: no more")

    def refused() -> bool:
        try:
            gateway.connect().close()
        except ConnectionRefusedError:
            return True
        return False

    wait_until(refused)
    assert talks(leaving)
    leaving.sendall(b"QUIT\r\n")
    assert leaving.recv(1000) == b"221 Bye\r\n"
    assert talks(staying)
    assert gateway.process.poll() is None
    gateway.signal(signal.SIGTERM)
    assert gateway.process.wait(10) == 0
    assert staying.recv(1000) == b""


def test_the_end_waits_for_the_last_session_only(gateway: Gateway) -> None:
    gateway.start()
    assert gateway.process
    client = gateway.session()
    gateway.signal(signal.SIGQUIT)
    gateway.wait_log("STOP: no more")
    assert gateway.run("-r").returncode == 0
    gateway.wait_log("RELOAD:REFUSED the gateway is ending")
    client.close()
    assert gateway.process.wait(10) == 0


def test_keys_in_the_terminal_do_not_reach_workers(gateway: Gateway) -> None:
    gateway.start()
    groups = {os.getpgid(pid) for pid in gateway.workers()}
    assert os.getpgid(gateway.pid() or 0) not in groups


@pytest.mark.parametrize("number", process.SIGNALS)
def test_signals_that_reach_all_processes_are_for_the_supervisor(
    gateway: Gateway, number: signal.Signals
) -> None:
    """As pkill and `systemctl kill` send them."""
    gateway.start()
    client, workers = gateway.session(), gateway.workers()
    pid = gateway.pid()
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        os.kill(int(child), number)
    for _ in range(5):
        time.sleep(0.1)
        assert talks(client)
    assert gateway.workers() == workers
    assert "crit:" not in (gateway.home / "log").read_text()


def test_a_start_is_refused_until_the_last_session_has_ended(gateway: Gateway) -> None:
    """As scripts of old do it: -K, and at once the next one."""
    gateway.start()
    client = gateway.session()
    assert gateway.run("-K").returncode == 0
    gateway.wait_log("waiting for the sessions to end")
    refused = gateway.run()
    assert refused.returncode == 1
    assert "-K lets its sessions end, -K again ends them" in refused.stderr
    assert talks(client)
    assert gateway.run("-K").returncode == 0
    wait_until(lambda: gateway.pid() is None)
    assert gateway.run().returncode == 0


def test_workers_do_not_outlive_the_supervisor(gateway: Gateway) -> None:
    gateway.start()
    workers = gateway.workers()
    gateway.signal(signal.SIGKILL)
    wait_until(lambda: all(map(ended, workers)))


def test_reload(gateway: Gateway) -> None:
    gateway.start()
    client = gateway.session()
    gateway.write(port="1", nonsense="1")
    assert gateway.run("-r").returncode == 2  # the file is judged before anybody is told
    gateway.signal(signal.SIGHUP)
    gateway.wait_log(f"RELOAD:REFUSED {gateway.file}:")
    del gateway.options["nonsense"]
    gateway.write(spool_path="/nowhere/at/all")
    gateway.signal(signal.SIGHUP)
    gateway.wait_log("RELOAD:REFUSED spool_path")
    gateway.write(spool_path=f"{gateway.home}/msg", proxy_name="changed.example", max_connections="0")
    assert gateway.run("-r").returncode == 0
    gateway.wait_log("a restart is needed before these take effect: port max_connections")
    gateway.wait_log("RELOAD:DONE")
    assert talks(client)
    gateway.write(max_per_host="1", timeout_session="1")
    gateway.signal(signal.SIGHUP)

    def named() -> bool:
        with gateway.connect() as refused:
            return refused.recv(1000).startswith(b"554 changed.example ")

    wait_until(named)
    assert talks(client)


@pytest.mark.option("statefile", "statefile_perm")
def test_status(gateway: Gateway) -> None:
    gateway.start()
    client = gateway.session("127.0.0.7")
    assert talks(client)
    shown = gateway.run("-s")
    assert shown.returncode == 0
    assert re.search(r"^Children:      1/1/0/0$", shown.stdout, re.MULTILINE)
    (row,) = shown.stdout.partition("\nslot ")[2].splitlines()[1:]
    fields = row.split(" ")
    assert len(fields) == 12
    assert int(fields[1]) in gateway.workers()
    assert fields[5].startswith("127.0.0.7:")
    assert gateway.run("-S").stdout == f"{gateway.home}/run/state\n"
    state = (gateway.home / "run/state").stat()
    assert state.st_mode & 0o777 == 0o660
    if "set_user" in gateway.options:
        assert (state.st_uid, state.st_gid) == pwd.getpwnam(gateway.options["set_user"])[2:4]


def test_a_worker_that_hangs_is_shown_as_such(gateway: Gateway) -> None:
    gateway.start()
    hung = gateway.workers()[0]
    os.kill(hung, signal.SIGSTOP)
    assert f"- {hung} unanswered - " in gateway.run("-s").stdout
    os.kill(hung, signal.SIGCONT)
    assert "unanswered" not in gateway.run("-s").stdout


def test_systemd_hears_of_it_all(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    systemd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    systemd.bind(str(gateway.home / "notify"))
    systemd.settimeout(10)
    monkeypatch.setenv("NOTIFY_SOCKET", str(gateway.home / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    gateway.start()
    kept = [systemd.recv(1000).partition(b"\n")[0] for _ in range(2)]
    assert kept == [b"FDSTORE=1"] * 2  # the listeners of both workers
    assert [systemd.recv(1000) for _ in range(4)] == [b"READY=1", *[b"WATCHDOG=1"] * 3]
    gateway.signal(signal.SIGHUP)
    gateway.wait_log("RELOAD:DONE")
    gateway.signal(signal.SIGTERM)
    told: list[bytes] = []
    while told[-1:] != [b"STOPPING=1"]:
        words = systemd.recv(1000)
        if words != b"WATCHDOG=1":
            told.append(words.split(b"\n")[0])
    assert told == [b"RELOADING=1", b"READY=1", b"STOPPING=1"]
    systemd.close()


def start_and_signal(gateway: Gateway, number: signal.Signals) -> None:
    """Start, and send a signal as soon as smtp-gated -r and -s find whom to send theirs to."""
    with (gateway.home / "log").open("w") as log:
        gateway.process = subprocess.Popen([PROGRAM, "-f", gateway.file], stderr=log, text=True)
    while not (pid := gateway.pid()):
        time.sleep(0.001)
    os.kill(pid, number)


def test_a_reload_while_it_starts_is_done_and_systemd_does_not_take_it_for_ready(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(gateway.home / "notify"))
        systemd.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(gateway.home / "notify"))
        start_and_signal(gateway, signal.SIGHUP)
        gateway.wait_log("RELOAD:DONE")
        gateway.wait_log("START ")
        assert [systemd.recv(1000).partition(b"\n")[0] for _ in range(3)] == [b"FDSTORE=1"] * 2 + [b"READY=1"]
        systemd.setblocking(False)
        with pytest.raises(BlockingIOError):
            systemd.recv(1000)


def test_a_status_that_is_wanted_while_it_starts_is_written(gateway: Gateway) -> None:
    start_and_signal(gateway, signal.SIGUSR1)
    wait_until(Path(gateway.options["statefile"]).exists)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT, signal.SIGINT])
def test_an_end_while_it_starts_leaves_nothing_behind(gateway: Gateway, number: signal.Signals) -> None:
    start_and_signal(gateway, number)
    assert gateway.process
    assert gateway.process.wait(10) == 0
    gateway.wait_log("STOP\n")
    assert not Path(gateway.options["pidfile"]).exists()


@pytest.mark.parametrize("most", ["700", "0"])
def test_workers_may_open_as_many_files_as_the_sessions_need(gateway: Gateway, most: str) -> None:
    gateway.write(max_connections=most)
    with (gateway.home / "log").open("w") as log:
        limited = ["prlimit", "--nofile=256:3000", PROGRAM, "-f", str(gateway.file)]
        gateway.process = subprocess.Popen(limited, stderr=log, text=True)
    gateway.wait_log("START ")
    warned = "max_connections 700: may need 3564 open files" in (gateway.home / "log").read_text()
    assert warned == (most == "700")  # without a limit the files are the limit
    for pid in gateway.workers():
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert re.search(r"Max open files +3000 +3000", limits)


def test_privileges_of_workers(gateway: Gateway) -> None:
    gateway.start()
    for pid in gateway.workers():
        status = Path(f"/proc/{pid}/status").read_text()
        assert "CapEff:\t0000000000000000\n" in status
        assert "CapBnd:\t0000000000000000\n" in status or os.geteuid() != 0
        assert "NoNewPrivs:\t1\n" in status
