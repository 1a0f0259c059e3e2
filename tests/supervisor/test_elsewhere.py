"""The gateway on another system than Linux, as far as Linux can look like one: nothing is missed."""

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.supervisor.program import PROGRAM, Gateway, ended, wait_until

pytestmark = pytest.mark.lab

ELSEWHERE = Path(__file__).with_name("elsewhere")


@pytest.fixture(autouse=True)
def freebsd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every Python that is started from here take itself for one on FreeBSD."""
    monkeypatch.setenv("PYTHONPATH", str(ELSEWHERE))


@pytest.fixture
def elsewhere(gateway: Gateway) -> Gateway:
    """A gateway there."""
    gateway.write(workers="auto", control_socket=f"{gateway.home}/run/control", max_load="1000")
    return gateway


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, timeout=30, check=False)


def test_it_looks_like_another_system() -> None:
    code = (
        "import ctypes, os, socket, sys; ctypes.CDLL(None).getpid(); "
        "print(sys.platform, hasattr(os, 'memfd_create'), hasattr(socket, 'SO_PEERCRED'), "
        "hasattr(ctypes.CDLL(None), 'prctl'), os.path.exists('/'))\nopen('/proc/self/status')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "freebsd14 False False False True\n"
    assert "FileNotFoundError" in done.stderr


def test_a_record_lock_is_laid_out_as_there() -> None:
    code = (
        "import ctypes; from appliance.supervisor.pidfile import _Lock as lock; "
        "print(ctypes.sizeof(lock), *(f'{name}={getattr(lock, name).offset}' for name, _ in lock._fields_))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "32 l_start=0 l_len=8 l_pid=16 l_type=20 l_whence=22 l_sysid=24\n"


def test_the_modes_are_those_of_the_system() -> None:
    done = run("-V")
    assert (done.returncode, done.stderr) == (0, "")
    features = dict(re.findall(r"^  (\w+) +: (.+)$", done.stdout, re.MULTILINE))
    assert "fixed fixed+xclient getsockname" in features["USE_NAT"]
    assert not {"netfilter", "tproxy", "tproxy,netfilter"} & set(features["USE_NAT"].split())
    assert features["TPROXY"] == "no"


def test_a_file_is_checked(tmp_path: Path) -> None:
    file = tmp_path / "gate.conf"
    file.write_text("mode fixed\nfixed_server 192.0.2.1\n")
    done = run("-t", file)
    assert (done.returncode, done.stderr) == (0, "")
    file.write_text("mode tproxy\n")
    done = run("-t", file)
    assert done.returncode == 2
    assert "option mode: this system does not have the mode tproxy; it has fixed " in done.stderr


def test_a_gateway_serves(elsewhere: Gateway) -> None:
    home = elsewhere.home
    script = home / "script"
    script.write_text(f"#!/bin/sh\nulimit -f > {home}/told\n")
    script.chmod(0o755)
    home.chmod(0o777)
    elsewhere.write(
        outgoing_addr="127.0.0.1",
        max_per_host="2",
        lock_on="maxhost",
        lock_duration="60",
        action_script=str(script),
        limit_fsize="1048576",
    )
    elsewhere.start()
    with elsewhere.session() as client, elsewhere.session():
        client.sendall(b"EHLO x\r\nMAIL FROM:<a@x>\r\n")
        wait_until(lambda: client.recv(100))
        with elsewhere.connect() as third:
            assert third.recv(1000).startswith(b"554")
        wait_until(lambda: (home / "told").exists() and (home / "told").read_text())
        assert (home / "told").read_text() == "2048\n"
    assert elsewhere.process
    elsewhere.process.send_signal(signal.SIGUSR1)
    wait_until(lambda: (home / "run" / "state").exists())
    elsewhere.process.send_signal(signal.SIGTERM)
    assert elsewhere.process.wait(10) == 0
    log = (home / "log").read_text()
    assert "BUG" not in log
    assert "Traceback" not in log
    assert "workers=1" in log


def test_a_worker_that_dies_is_replaced(elsewhere: Gateway) -> None:
    elsewhere.start()
    (worker,) = elsewhere.workers()
    subprocess.run(["kill", "-KILL", str(worker)], check=True)
    elsewhere.wait_log("WORKER:CRASHED")
    with elsewhere.session():
        assert elsewhere.workers() != [worker]


def test_workers_end_with_the_supervisor(elsewhere: Gateway) -> None:
    elsewhere.start()
    (worker,) = elsewhere.workers()
    assert elsewhere.process
    elsewhere.process.kill()
    wait_until(lambda: ended(worker))


def test_several_workers_are_refused(elsewhere: Gateway) -> None:
    elsewhere.write(workers="2")
    done = elsewhere.run("-f")
    assert done.returncode == 1
    assert "workers 2: this system cannot keep a client with one worker; set it to 1" in done.stderr


def test_the_control_socket_knows_its_peer(elsewhere: Gateway) -> None:
    elsewhere.start()
    with socket.socket(socket.AF_UNIX) as asker:
        asker.settimeout(10)
        asker.connect(f"{elsewhere.home}/run/control")
        asker.sendall(b'{"do":"status"}\n')
        assert asker.recv(100).startswith(b'{"version"')
