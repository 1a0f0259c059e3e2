"""What the processes are and may do: priority, user, limits of scripts, root directory, files, queue."""

import os
import re
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest

from appliance import process
from lab.network import Network
from lab.process import processor_time
from lab.samples import EICAR
from lab.servers import Clamd, Spamd
from tests.lab.loopback import NAME, Scene, scene
from tests.lab.scripted import BODY, Talk
from tests.supervisor import program
from tests.supervisor.program import wait_until

pytestmark = pytest.mark.lab


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory that everybody may use, as pytest's are not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)


def nice(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[16])


@pytest.mark.option("priority")
@pytest.mark.parametrize("priority", [7, -5, 0])
def test_workers_run_at_the_priority(priority: int) -> None:
    with scene(priority=priority) as gate:
        assert [nice(pid) for pid in gate.gateway.workers()] == [priority] * 2
        assert gate.greeted().begin().finish().startswith("250")


@pytest.mark.option("set_user", "set_group")
def test_users_and_groups_by_number() -> None:
    with scene(set_user=54321, set_group=54322) as gate:
        for pid in gate.gateway.workers():
            status = Path(f"/proc/{pid}/status").read_text()
            assert re.search(r"^Uid:(\t54321){4}$", status, re.MULTILINE)
            assert re.search(r"^Gid:(\t54322){4}$", status, re.MULTILINE)
        assert gate.greeted().begin().finish().startswith("250")
        assert (gate.gateway.home / "msg").stat().st_uid == 54321


SCRIPT = """#!/bin/sh
sleep 0.2  # limits are set when a script runs already
{ ulimit -c; ulimit -v; ulimit -d; ulimit -f; } | tr '\\n' ' ' >%s/told.new
mv %s/told.new %s/told
"""


@pytest.mark.option("limit_core_size", "limit_virt_size", "limit_data_size", "limit_fsize", "action_script")
@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        # in blocks of 512 bytes, kilobytes twice, and blocks again
        ((0, 1 << 29, 1 << 28, 1 << 20), "0 524288 262144 2048 "),
        ((-1, 0, 0, 0), None),
        ((-1, -1, -1, -1), None),
    ],
)
def test_scripts_are_limited_and_workers_are_not(
    home: Path, numbers: tuple[int, ...], told: str | None
) -> None:
    script = home / "script"
    script.write_text(SCRIPT % ((home,) * 3))
    script.chmod(0o755)
    names = ("limit_core_size", "limit_virt_size", "limit_data_size", "limit_fsize")
    with scene(action_script=script, lock_duration=0, **dict(zip(names, numbers, strict=True))) as gate:
        for pid in gate.gateway.workers():
            limits = Path(f"/proc/{pid}/limits").read_text()
            assert re.search(r"^Max address space +unlimited", limits, re.MULTILINE)
        event(gate)
        wait_until((home / "told").exists)
        usual = subprocess.run(
            ["sh", "-c", "ulimit -c; ulimit -v; ulimit -d; ulimit -f"], capture_output=True
        )
        expected = told or usual.stdout.decode().replace("\n", " ")
        assert (home / "told").read_text() == expected
        assert "ACTION:FAILED" not in gate.log


@pytest.mark.option("limit_virt_size", "limit_data_size")
def test_the_limits_of_old_leave_room_for_scripts_of_every_kind(home: Path) -> None:
    script = home / "script"
    script.write_text(
        "#!/usr/bin/python3\nimport email, json, os, ssl, subprocess, time\ntime.sleep(0.1)\n"
        f"subprocess.run(['perl', '-MPOSIX', '-e', 'open F, q(>{home}/told); print F $ENV{{FOUND}}'])\n"
    )
    script.chmod(0o755)
    with scene(action_script=script, lock_duration=0) as gate:
        event(gate)
        wait_until(lambda: (home / "told").exists() and (home / "told").read_text() == "EARLYTALK")


@pytest.mark.option("action_script")
def test_letters_that_the_locale_lacks_keep_no_script_from_running(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In UTF-8, and what is none as the letter that stands for it."""
    for name, value in (("LC_ALL", "C"), ("PYTHONUTF8", "0"), ("PYTHONCOERCECLOCALE", "0")):
        monkeypatch.setenv(name, value)
    script = home / "script"
    script.write_text(f'#!/bin/sh\nprintf %s "$HELO" >{home}/new\nmv {home}/new {home}/told\n')
    script.chmod(0o755)
    with scene(action_script=script, lock_duration=0, regex_reject_helo="bot") as gate:
        client = gate.client()
        assert client.reply().startswith("220 ")
        client.send("EHLO żółw".encode() + b"\xff.bot\r\n")
        assert client.reply().startswith("550 ")
        wait_until(lambda: (home / "told").exists() or "ACTION:FAILED" in gate.log)
        assert (home / "told").read_bytes() == "żółw\ufffd.bot".encode()


@pytest.mark.option("action_script")
def test_scripts_hear_the_signals_that_workers_do_not(home: Path) -> None:
    script = home / "script"
    script.write_text(f"#!/bin/sh\ngrep SigIgn /proc/$$/status >{home}/new\nmv {home}/new {home}/told\n")
    script.chmod(0o755)
    with scene(action_script=script, lock_duration=0) as gate:
        event(gate)
        wait_until((home / "told").exists)
    ignored = int((home / "told").read_text().split()[1], 16)
    assert [number.name for number in process.SIGNALS if ignored >> number - 1 & 1] == []


def event(gate: Scene) -> None:
    """Do what starts the script."""
    gate.server.hooks["connect"] = lambda _talk: time.sleep(0.5)
    client = gate.client()
    client.say("EHLO early.test")
    assert client.reply().startswith("554 ")


@pytest.mark.option("chroot_path", "spool_path", "lock_path", "antivirus_path", "antispam_path")
def test_in_a_root_of_their_own_workers_scan_lock_and_reload(
    network: Network, clamd: Clamd, spamd: Spamd
) -> None:
    root = Path(tempfile.mkdtemp(prefix="root-", dir=network.directory))  # where sockets can be linked to
    root.chmod(0o755)
    for directory in ("msg", "lock", "run"):
        (root / directory).mkdir(parents=True)
        shutil.chown(root / directory, "nobody", "nogroup")
    for name, server in (("clamd", clamd), ("spamd", spamd)):
        (root / "run" / name).hardlink_to(server.socket)
    options = {
        "chroot_path": root,
        "spool_path": "/msg",
        "lock_path": "/lock",
        "antivirus_type": "clamd",
        "antivirus_path": "/run/clamd",
        "antivirus_transfer": "fd",
        "antispam_type": "spamassassin",
        "antispam_path": "/run/spamd",
        "spam_max_size": 100000,
        "spam_max_load": 1000,
        "max_load": 1000,
        "spool_leave_on": "always",
        "lock_on": "virus",
    }
    with scene(**options) as gate:
        for pid in gate.gateway.workers():
            assert Path(f"/proc/{pid}/root").readlink() == root
        assert gate.greeted("127.0.0.3").begin().finish().startswith("250")
        assert "SCAN:CLEAN" in gate.log
        assert "SPAM:CLEAN" in gate.log
        assert gate.greeted("127.0.0.4").begin().finish(f"Subject: x\r\n\r\n{EICAR}\r\n").startswith("550 ")
        assert (root / "lock/127.0.0.4").read_text().startswith("VIRUS ")
        assert gate.told("127.0.0.4").startswith(f"554 {NAME} ")
        assert len(list((root / "msg").iterdir())) == 2
        gate.gateway.write(proxy_name="gw2.example.test")
        assert gate.gateway.run("-r").returncode == 0
        gate.wait_log("RELOAD:DONE")
        wait_until(lambda: gate.told("127.0.0.4").startswith("554 gw2.example.test "))
        assert gate.greeted("127.0.0.5").begin().finish().startswith("250")


@pytest.mark.option("chroot_path", "action_script")
def test_the_script_is_in_the_root_too(home: Path) -> None:
    root = home / "root"
    (root / "lock").mkdir(parents=True)
    (root / "msg").mkdir()
    root.chmod(0o777)
    needed = re.findall(
        r"(/\S+)", subprocess.run(["ldd", "/bin/dash"], capture_output=True, text=True).stdout
    )
    for library in ("/bin/dash", *needed):
        (root / library[1:]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, root / library[1:])
    (root / "script").write_text("#!/bin/dash\necho $1 $2 >/told\n")
    (root / "script").chmod(0o755)
    for directory in ("msg", "lock"):
        shutil.chown(root / directory, "nobody", "nogroup")
    options = {"chroot_path": root, "spool_path": "/msg", "lock_path": "/lock", "action_script": "/script"}
    with scene(**options) as gate:
        event(gate)
        wait_until(
            lambda: (root / "told").exists() and (root / "told").read_text() == "EARLYTALK 127.0.0.2\n"
        )


@pytest.mark.option("enfile_sleep")
@pytest.mark.parametrize("sleep", [1, 0])
def test_out_of_files_clients_wait_in_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sleep: int
) -> None:
    limited = tmp_path / "limited"
    limited.write_text(f'#!/bin/sh\nexec prlimit --nofile=64 {program.PROGRAM} "$@"\n')
    limited.chmod(0o755)
    monkeypatch.setattr(program, "PROGRAM", str(limited))
    with scene(enfile_sleep=sleep, connect_queue=200, workers=1, lock_on="never") as gate:
        crowd = [gate.client() for _ in range(40)]
        served: list[str] = []
        while select.select([crowd[len(served)].socket], [], [], 0.3)[0]:
            served.append(crowd[len(served)].reply())
        assert 10 < len(served) < 40
        assert set(served) == {"220 mail.example.test ESMTP"}
        assert re.search(r"ACCEPT:PAUSED why=too many open files, time=1", gate.log)
        (worker,) = gate.gateway.workers()
        before = processor_time(worker)
        time.sleep(0.5)
        assert processor_time(worker) - before < 0.1
        for client in crowd[: len(served)]:
            client.close()
        for client in crowd[len(served) :]:  # none of them was dropped
            assert client.reply() == "220 mail.example.test ESMTP"
            client.close()
        assert gate.log.count("ACCEPT:PAUSED") < 10


@pytest.mark.option("connect_queue")
def test_the_queue_is_as_long_as_wanted_also_after_a_reload() -> None:
    def queues(gate: Scene) -> set[str]:
        command = ["ss", "-Hltn", f"sport = :{gate.gateway.port}"]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return {line.split()[2] for line in found.splitlines()}

    with scene(connect_queue=2077) as gate:
        assert queues(gate) == {"2077"}
        gate.gateway.write(connect_queue="33")
        assert gate.gateway.run("-r").returncode == 0
        wait_until(lambda: queues(gate) == {"1024"})


@pytest.mark.option("connect_queue")
def test_a_crowd_that_comes_while_nobody_accepts_is_served() -> None:
    with scene(workers=1, lock_on="never", max_connections=0, max_per_host=0) as gate:
        (worker,) = gate.gateway.workers()
        os.kill(worker, signal.SIGSTOP)
        crowd = [gate.client() for _ in range(300)]
        os.kill(worker, signal.SIGCONT)
        assert {client.reply() for client in crowd} == {"220 mail.example.test ESMTP"}
        for client in crowd:
            client.close()


@pytest.mark.option("buffer_size")
def test_a_larger_buffer_takes_more_for_a_slow_server() -> None:
    assert taken(1516) + 5_000_000 < taken(16_000_000)  # the kernel takes several million by itself


def taken(buffer_size: int) -> int:
    """Tell how much of a message is taken from a client while its server reads nothing."""

    def deaf(talk: Talk) -> bool:
        talk.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        talk.say("354 go on")
        full.wait(20)
        raise EOFError

    full = Event()

    with scene({"DATA": deaf}, buffer_size=buffer_size) as gate:
        client = gate.greeted()
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        client.begin()
        client.socket.settimeout(0.3)
        sent = 0
        line = BODY.encode() * 500
        try:
            while sent < 50_000_000:
                sent += client.socket.send(line)
        except TimeoutError:
            full.set()
        return sent
