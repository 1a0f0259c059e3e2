"""The lock mirror, step by step: a real directory, and real sets in a network namespace of their own."""

import os
import time
from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path

import pytest

from appliance.config import Config, parse
from appliance.config.network import Address
from appliance.log import Log
from appliance.nft.locks import Element, Lock, LockSets
from appliance.proxy.locks import LockDirectory, locked_address
from appliance.supervisor import mirror as module
from appliance.supervisor.mirror import Mirror
from lab.namespace import inside
from lab.process import wait_until
from tests.nft.test_locks import TABLE, Namespace

pytestmark = pytest.mark.lab

IP, OTHER, SIX = "192.0.2.7", "192.0.2.8", "2001:db8::7"


class Scene:
    """A mirror of a directory, with what it did to a gate and what it logged."""

    def __init__(self, directory: Path, namespace: Namespace, capfd: pytest.CaptureFixture[str]) -> None:
        self.directory = directory
        self.namespace = namespace
        self.gate = Gate()
        self._capfd = capfd
        self._log = ""
        self.sets = inside(namespace.path, LockSets)
        self.begin()

    def begin(self, **options: object) -> None:
        """Start a mirror."""
        log = Log("debug", "mail", stderr=True, target="stderr")
        self.mirror = Mirror(log, self.sets, [self.gate])
        self.configure(**options)

    def configure(self, **options: object) -> None:
        values = {"lock_path": self.directory, "lock_duration": 600, **options}
        self.mirror.configure(Config(values))
        self.settle()

    def settle(self, seconds: float = 0.0) -> None:
        """Let the mirror work until it has nothing to do, for some seconds at least."""
        end = time.monotonic() + seconds
        while True:
            self.mirror.step()
            if self.mirror.due() == 0:
                continue
            if time.monotonic() >= end:
                return
            time.sleep(0.01)

    def elements(self) -> dict[str, Element]:
        return {str(element.address): element for element in self.sets.dump()}

    def locked(self) -> set[str]:
        """Whom the kernel drops, once the mirror has looked; the gate has to agree."""
        self.settle()
        found = set(self.elements())
        assert set(self.gate.locks) == found
        return found

    def lock(self, name: str, cause: str = "VIRUS Eicar", age: float = 0.0) -> Path:
        path = self.directory / name
        path.write_text(f"{cause}\n")
        then = time.time() - age
        os.utime(path, (then, then))
        return path

    @property
    def log(self) -> str:
        self._log += self._capfd.readouterr().err
        return self._log


class Gate:
    """Another place for locks, which only remembers them."""

    def __init__(self) -> None:
        self.locks: dict[str, tuple[float | None, str]] = {}

    def add(self, address: Address, deadline: float | None, cause: str) -> None:
        self.locks[str(address)] = (deadline, cause)

    def remove(self, address: Address) -> None:
        del self.locks[str(address)]

    def replace(self, locks: Mapping[Address, Lock]) -> None:
        self.locks = {str(address): (until, cause) for address, (until, cause) in locks.items()}


@pytest.fixture
def scene(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[Scene]:
    namespace = Namespace()
    namespace.nft(TABLE)
    (tmp_path / "lock").mkdir()
    made = Scene(tmp_path / "lock", namespace, capfd)
    yield made
    made.sets.close()
    namespace.close()


def test_a_lock_comes_and_goes_with_its_file(scene: Scene) -> None:
    path = scene.lock(IP)
    scene.lock(SIX, "SPAM 9.1", age=100)
    assert scene.locked() == {IP, SIX}
    found = scene.elements()
    assert found[IP].comment == "VIRUS Eicar"
    assert found[IP].remaining in (599, 600)
    assert found[SIX].comment == "SPAM 9.1"
    assert found[SIX].remaining in (499, 500)
    assert scene.gate.locks[IP] == (path.stat().st_mtime + 600, "VIRUS Eicar")
    path.unlink()
    assert scene.locked() == {SIX}


def test_a_lock_that_the_gateway_makes_is_whole_at_once(scene: Scene) -> None:
    locks = LockDirectory(scene.directory, 0o660, 600, os.geteuid(), lambda _: None)
    for number in range(30):
        locks.create(f"198.51.100.{number}", "", f"VIRUS number {number}")
        assert scene.locked() == {f"198.51.100.{n}" for n in range(number + 1)}
        assert scene.elements()[f"198.51.100.{number}"].comment == f"VIRUS number {number}"
    (lock,) = (lock for lock in locks.all() if lock.path.name == "198.51.100.3")
    locks.remove(lock)
    assert "198.51.100.3" not in scene.locked()


def test_a_lock_with_a_duration_of_its_own(scene: Scene) -> None:
    locks = LockDirectory(scene.directory, 0o660, 600, os.geteuid(), lambda _: None)
    locks.create(IP, "", "by hand", 7200)
    locks.create(OTHER, "", "by hand", -1)
    assert scene.locked() == {IP, OTHER}
    assert scene.elements()[IP].remaining in (7199, 7200)
    assert scene.elements()[OTHER].remaining is None
    scene.configure(lock_duration=0)  # nobody is locked then
    assert scene.locked() == set()


def test_touch_renews_and_writing_changes_the_cause(scene: Scene) -> None:
    path = scene.lock(IP, age=300)
    assert scene.locked() == {IP}
    assert scene.elements()[IP].remaining in (299, 300)
    path.touch()
    assert scene.locked() == {IP}
    assert scene.elements()[IP].remaining in (599, 600)
    scene.lock(IP, "another cause")
    scene.settle()
    assert scene.elements()[IP].comment == scene.gate.locks[IP][1] == "another cause"


def test_a_renamed_file_is_another_lock(scene: Scene) -> None:
    path = scene.lock(IP)
    assert scene.locked() == {IP}
    path.rename(scene.directory / OTHER)
    assert scene.locked() == {OTHER}
    (scene.directory / OTHER).rename(scene.directory.parent / OTHER)
    assert scene.locked() == set()
    (scene.directory.parent / OTHER).rename(scene.directory / SIX)
    assert scene.locked() == {SIX}


@pytest.mark.option("lock_duration")
def test_the_duration_is_the_configurations(scene: Scene) -> None:
    path = scene.lock(IP, age=100)
    scene.configure(lock_duration=-1)
    assert scene.elements()[IP].remaining is None
    scene.configure(lock_duration=50)
    assert scene.locked() == set()
    scene.configure(lock_duration=150)
    assert scene.elements()[IP].remaining in (49, 50)
    scene.configure(lock_duration=0)
    assert scene.locked() == set()
    assert path.exists()


@pytest.mark.option("lock_path")
def test_another_directory_is_other_locks(scene: Scene, tmp_path: Path) -> None:
    scene.lock(IP)
    other = tmp_path / "other"
    other.mkdir()
    (other / OTHER).write_text("SPAM\n")
    scene.configure(lock_path=other)
    assert scene.locked() == {OTHER}
    scene.lock(SIX)
    assert scene.locked() == {OTHER}


def test_who_is_exempt_is_not_locked(scene: Scene) -> None:
    path = scene.lock(IP)
    assert scene.locked() == {IP}
    os.chown(path, 12345, 12345)
    assert scene.locked() == set()
    os.chown(path, os.geteuid(), -1)
    assert scene.locked() == {IP}


@pytest.mark.option("trusted_clients")
def test_who_is_trusted_is_not_locked(scene: Scene) -> None:
    scene.lock(IP)
    scene.lock(OTHER)
    scene.lock(SIX)
    assert scene.locked() == {IP, OTHER, SIX}
    scene.configure(trusted_clients=parse(f"trusted_clients {IP},2001:db8::/32").trusted_clients)
    assert scene.locked() == {OTHER}


@pytest.mark.parametrize(
    "name",
    [
        f"{IP}-joe",
        f".{IP}.12.0.99",
        "README",
        "::ffff:192.0.2.7",
        "::ffff:c000:207",
        "192.0.2.07",
        "192.0.2.7 ",
        "192.0.2",
        "3221225991",
        "2001:DB8::7",
        "2001:db8:0:0:0:0:0:7",
        "fe80::1%eth0",
        "192.0.2.7\n",
        "192.0.2.7;flush ruleset",
        "x" * 255,
        "\udcff\udcfe",
    ],
)
def test_what_is_no_lock_on_a_client_is_not_mirrored(scene: Scene, name: str) -> None:
    assert locked_address(name) is None
    scene.lock(name)
    assert scene.locked() == set()
    scene.lock(OTHER)
    assert scene.locked() == {OTHER}


@pytest.mark.parametrize("kind", ["directory", "link", "pipe"])
def test_what_is_no_file_is_no_lock(scene: Scene, kind: str) -> None:
    path = scene.directory / IP
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/etc/hostname")
    assert scene.locked() == set()


def test_locks_made_while_no_mirror_ran_are_found_and_old_elements_go(scene: Scene) -> None:
    scene.lock(IP)
    assert scene.locked() == {IP}
    scene.namespace.nft('add element inet appliance locked4 { 192.0.2.99 comment "left over" }')
    (scene.directory / IP).unlink()
    scene.lock(OTHER)
    scene.lock(SIX, age=601)
    fresh = Mirror(Log("debug", "mail", stderr=False), scene.sets, [scene.gate])
    scene.mirror = fresh
    scene.configure()
    assert scene.locked() == {OTHER}


def test_flushed_sets_and_a_replaced_table_heal(scene: Scene) -> None:
    scene.lock(IP)
    scene.lock(SIX)
    assert scene.locked() == {IP, SIX}
    for damage in (
        "flush set inet appliance locked4",
        "flush table inet appliance; delete element inet appliance locked6 { 2001:db8::7 }",
        f"delete table inet appliance\n{TABLE}",
        "add element inet appliance locked4 { 192.0.2.99 timeout 1h }",
    ):
        scene.namespace.nft(damage)
        scene.settle(0.1)
        assert scene.locked() == {IP, SIX}
    assert scene.log.count("LOCK:KERNEL locks=2") == 4


def test_without_a_table_it_waits_and_says_so_once(scene: Scene) -> None:
    scene.lock(IP)
    assert scene.locked() == {IP}
    scene.namespace.nft("delete table inet appliance")
    for number in range(5):
        scene.lock(f"198.51.100.{number}")
        scene.settle(0.05)
    assert scene.log.count("there is no table inet appliance") == 1
    scene.namespace.nft(TABLE)
    scene.settle(0.1)
    assert scene.locked() == {IP, *(f"198.51.100.{number}" for number in range(5))}
    assert "LOCK:KERNEL locks=6, added=6, removed=0" in scene.log


def test_what_the_kernel_refuses_is_told_and_tried_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RETRY", 0.05)
    broken = "table inet appliance { set locked4 { type ipv4_addr; }; set locked6 { type ipv6_addr; }; }"
    scene.namespace.nft(f"delete table inet appliance\n{broken}")
    scene.lock(IP)
    scene.settle(0.2)
    assert scene.log.count("LOCK:KERNEL why=") == 1
    scene.namespace.nft(f"delete table inet appliance\n{TABLE}")
    scene.settle(0.2)
    assert scene.locked() == {IP}


def test_a_directory_that_is_removed_and_made_again(scene: Scene) -> None:
    scene.lock(IP).rename(scene.directory.parent / "kept")
    scene.lock(OTHER)
    assert scene.locked() == {OTHER}
    scene.directory.rename(scene.directory.parent / "aside")
    assert scene.locked() == set()
    assert f"LOCK:KERNEL why={scene.directory}: No such file or directory" in scene.log
    scene.directory.mkdir()
    scene.lock(IP)
    assert scene.locked() == {IP}
    (scene.directory / IP).unlink()
    scene.directory.rmdir()
    (scene.directory.parent / "aside").rename(scene.directory)
    assert scene.locked() == {OTHER}
    scene.lock(SIX)
    assert scene.locked() == {OTHER, SIX}


@pytest.mark.option("lock_on", "lock_duration")
@pytest.mark.parametrize("options", [{"lock_duration": 0}, {"lock_on": frozenset()}])
def test_where_nobody_is_locked_no_directory_is_missed(scene: Scene, options: dict[str, object]) -> None:
    scene.directory.rmdir()
    scene.begin(**options)
    assert scene.log == ""


def test_events_that_overflow_are_made_up_for(scene: Scene) -> None:
    bound = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    for number in range(bound // 3):
        (scene.directory / f".{number}").touch()  # several events each
    scene.lock(IP)
    (scene.directory / OTHER).touch()
    assert scene.locked() == {IP, OTHER}


def test_a_clock_that_is_set_back_is_noticed(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.lock(IP, age=300)
    assert scene.locked() == {IP}
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - 200)
    scene.settle(0.1)
    assert scene.elements()[IP].remaining in (498, 499, 500)
    monkeypatch.setattr(time, "time", lambda: now() + 1000)
    scene.mirror.configure(Config({"lock_path": scene.directory, "lock_duration": 600}))
    assert scene.locked() == set()


def test_fifty_thousand_locks(scene: Scene) -> None:
    for number in range(50_000):
        (scene.directory / str(ip_address(0x0A000000 + number))).write_text("VIRUS Eicar\n")
    scene.settle()
    assert len(scene.elements()) == 50_000
    begin = time.monotonic()
    scene.lock(IP)
    scene.settle()
    (scene.directory / IP).unlink()
    scene.settle()
    assert time.monotonic() - begin < 0.5
    assert IP not in scene.elements()
    scene.namespace.nft("flush set inet appliance locked4")
    scene.mirror._next_comparison = 0.0  # it has earned a pause
    scene.settle()
    wait_until(lambda: len(scene.elements()) == 50_000, 5, "all locks")  # the kernel's set still grows
