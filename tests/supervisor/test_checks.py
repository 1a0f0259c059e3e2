"""What keeps a gateway from starting, on real directories, sockets and users."""

import os
import pwd
import resource
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.config import Config, SocketAddress, parse
from appliance.supervisor.checks import absent_scanners, obstacles, warnings
from appliance.supervisor.errors import StartError
from appliance.supervisor.listeners import open_listeners
from tests.ports import free_port
from tests.supervisor.program import PROGRAM

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def config(home: Path, **options: object) -> Config:
    places = {"pidfile": home / "run/pid", "statefile": home / "run/state", "spool_path": home / "msg"}
    return Config({"mode": "fixed", "lock_path": home / "lock", **places, **options})


def test_missing_directories_are_made(home: Path) -> None:
    assert obstacles(config(home)) == []
    assert sorted(path.name for path in home.iterdir()) == ["lock", "msg", "run"]
    assert obstacles(config(home)) == []


def test_directories_without_a_parent_are_not(home: Path) -> None:
    found = obstacles(config(home, spool_path=home / "a/b c"))
    assert len(found) == 1
    assert found[0].startswith(f"spool_path: directory {home}/a/b c: No such file or directory; ")
    assert f"install -d -o {os.geteuid()} -g {os.getegid()} -m 0750 '{home}/a/b c'" in found[0]


def test_something_else_in_the_place_of_a_directory(home: Path) -> None:
    (home / "msg").touch()
    assert "msg: something else is in its place;" in obstacles(config(home))[0]


def test_no_lock_directory_is_needed_without_locks(home: Path) -> None:
    assert obstacles(config(home, lock_path=home / "a/b", lock_duration=0)) == []
    assert len(obstacles(config(home, lock_path=home / "a/b"))) == 1


def test_a_directory_for_rate_limits_is_needed_only_with_them(home: Path) -> None:
    here = {"ratelimit_path": home / "ratelimit", "ratelimit_period": 60}
    assert obstacles(config(home, **here)) == []
    assert (home / "ratelimit").is_dir()
    assert obstacles(config(home, ratelimit_path=home / "a/b")) == []
    assert obstacles(config(home, ratelimit_path=home / "a/b", ratelimit_period=60))


@ROOT_ONLY
def test_directories_belong_to_the_gateways_user_and_are_judged_by_its_rights(home: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    groups = os.getgroups()
    assert obstacles(config(home, set_user="nobody")) == []
    assert (home / "msg").stat().st_uid == (home / "lock").stat().st_uid == nobody.pw_uid
    assert (home / "run").stat().st_uid == 0
    (home / "msg").chmod(0o500)
    assert "msg: not writable for user nobody; " in obstacles(config(home, set_user="nobody"))[0]
    assert (os.getresuid(), os.getresgid(), os.getgroups()) == ((0, 0, 0), (0, 0, 0), groups)


@ROOT_ONLY
def test_a_directory_that_is_read_only_for_the_unit_is_told_from_one_of_another_user(home: Path) -> None:
    places = {"lock_path": home / "lock", "spool_path": home / "msg", "pidfile": home / "pid"}
    places["statefile"] = home / "state"
    lines = [f"{name} {path}\n" for name, path in places.items()]
    (home / "conf").write_text("mode fixed\nfixed_server 127.0.0.1\n" + "".join(lines))
    (home / "lock").mkdir()
    words = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o ro tmpfs "$0" && exec "$@"']
    command = [*words, str(home / "lock"), PROGRAM, "-f", str(home / "conf")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert f"lock_path: directory {home}/lock: Read-only file system; " in done.stderr
    assert "ReadWritePaths=" in done.stderr


def test_unknown_users() -> None:
    assert obstacles(Config({"set_user": "no-such-user"})) == [
        "set_user no-such-user: there is no such user; create it or name another"
    ]
    assert "set_group no-such-group" in obstacles(Config({"set_group": "no-such-group"}))[0]


@ROOT_ONLY
def test_workers_as_root_are_warned_of() -> None:
    assert "run as root" in warnings(Config())[0]
    assert warnings(Config({"set_user": "nobody"})) == []


def test_a_limit_of_open_files_that_is_too_low(monkeypatch: pytest.MonkeyPatch) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    many = Config({"max_connections": hard, "set_user": "nobody"})
    (told,) = warnings(many)
    assert told.startswith(f"max_connections {hard}: may need {64 + 5 * hard} open files")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, resource.RLIM_INFINITY))
    assert warnings(many) == []


@pytest.mark.option("ignore_errors")
@pytest.mark.option("outgoing_addr")
@pytest.mark.parametrize(
    ("address", "mode", "told"),
    [
        ("192.0.2.1", "netfilter", True),
        ("2001:db8::1", "fixed", True),
        ("192.0.2.1", "tproxy", False),  # where it is not used
        ("127.0.0.1", "fixed", False),
        ("0.0.0.0", "fixed", False),
        ("::", "fixed", False),
    ],
)
def test_a_source_address_that_the_machine_does_not_have(address: str, mode: str, told: bool) -> None:
    found = warnings(parse(f"mode {mode}\nfixed_server 127.0.0.1\noutgoing_addr {address}\n"))
    assert any(f"outgoing_addr {address}: no address of this machine" in line for line in found) is told


def test_an_absent_virus_scanner_is_an_obstacle_unless_errors_are_ignored(home: Path) -> None:
    values = {"antivirus_type": "clamd", "antivirus_path": SocketAddress(home / "clamd")}
    fatal, told = absent_scanners(Config(values))
    assert f"{home}/clamd" in fatal[0]
    assert told == []
    fatal, told = absent_scanners(Config(values | {"ignore_errors": True}))
    assert fatal == []
    assert f"{home}/clamd" in told[0]
    assert absent_scanners(Config(values | {"scan_max_size": 0})) == ([], [])


def test_an_absent_spam_scanner_is_only_told(home: Path) -> None:
    values = {
        "antispam_type": "spamassassin",
        "antispam_path": SocketAddress(home / "spamd"),
        "spam_max_size": 1,
    }
    fatal, told = absent_scanners(Config(values))
    assert fatal == []
    assert f"{home}/spamd" in told[0]


def listening(text: str, count: int = 2) -> list[socket.socket]:
    return open_listeners(parse(text), count)


@pytest.mark.parametrize(
    ("address", "reached", "refused"),
    [
        ("127.0.0.1", ["127.0.0.1"], ["::1"]),
        ("0.0.0.0", ["127.0.0.9"], ["::1"]),
        ("::", ["127.0.0.9", "::1"], []),
    ],
)
@pytest.mark.option("bind_address", "port")
def test_families_of_an_address(address: str, reached: list[str], refused: list[str]) -> None:
    port = free_port()
    listeners = listening(f"bind_address {address}\nport {port}")
    assert len(listeners) == 2
    for target in reached:
        socket.create_connection((target, port), 5).close()
    for target in refused:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((target, port), 5)
    for listener in listeners:
        listener.close()


@pytest.mark.parametrize("family", ["127.0.0.1", "::"])
def test_a_port_in_use_also_by_another_gateway(family: str) -> None:
    port = free_port()
    listeners = listening(f"bind_address 127.0.0.1\nport {port}")
    with pytest.raises(
        StartError, match=f"port {port}: Address already in use; another program listens there"
    ):
        listening(f"bind_address {family}\nport {port}")
    for listener in listeners:
        listener.close()


def test_a_port_is_free_again_although_sessions_go_on() -> None:
    port = free_port()
    text = f"bind_address 127.0.0.1\nport {port}"
    sessions = []
    for _ in range(2):
        (listener,) = listening(text, 1)
        sessions.append(socket.create_connection(("127.0.0.1", port), 5))
        listener.setblocking(True)
        sessions.append(listener.accept()[0])
        listener.close()
    for session in sessions:
        session.close()


@pytest.mark.option("bind_address")
def test_an_address_of_no_interface() -> None:
    with pytest.raises(StartError, match=r"192.0.2.77.*no interface of this host has the address"):
        listening("bind_address 192.0.2.77")


@ROOT_ONLY
def test_transparent_sockets() -> None:
    port = free_port()
    for listener in listening(f"bind_address ::\nport {port}\nmode tproxy"):
        assert listener.getsockopt(socket.IPPROTO_IP, 19)
        assert listener.getsockopt(socket.IPPROTO_IPV6, 75)
        assert not listener.getblocking()
        listener.close()
