"""The lock directory: names, ages, owners, and files that appear whole or not at all."""

import os
import stat
import threading
import time
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest

from appliance.proxy.locks import FOREVER, LockDirectory, lock_name, read_lock

ME = os.geteuid()
IP = "192.0.2.7"


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


class Locks(LockDirectory):
    def __init__(self, path: Path, duration: int = 3600, perm: int = 0o660, uid: int = ME) -> None:
        self.ended: list[Path] = []
        super().__init__(path, perm, duration, uid, self.ended.append)


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


@pytest.mark.parametrize(
    ("ip", "ident", "name"),
    [
        (IP, "", "192.0.2.7"),
        ("::ffff:192.0.2.7", "", "192.0.2.7"),
        ("2001:db8::1", "", "2001:db8::1"),
        (IP, "user", "192.0.2.7-user"),
        (IP, "a-b=c+d:e", "192.0.2.7-a-b=c+d:e"),
        (IP, "..", "192.0.2.7-__"),
        (IP, "../../etc/passwd", "192.0.2.7-______etc_passwd"),
        (IP, "a\nb\0c\xe4\u4e16", "192.0.2.7-a_b_c__"),
        (IP, "x" * 300, "192.0.2.7-" + "x" * 64),
        ("../etc", "", ".._e_c"),
        ("fe80::1%eth0", "", "fe80::1_e__0"),
    ],
)
def test_lock_names(ip: str, ident: str, name: str) -> None:
    assert lock_name(ip, ident) == name


@pytest.mark.option("lock_path", "lock_perm")
def test_a_created_lock_is_found_with_its_cause_and_permissions(tmp_path: Path) -> None:
    locks = Locks(tmp_path, perm=0o664)
    assert locks.find(IP) is None
    path = locks.create(IP, "", "VIRUS: Eicar\r\nforged line\x1b")
    assert path == tmp_path / IP
    assert path.read_text() == "VIRUS: Eicar??forged line?\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o664
    lock = locks.find(IP)
    assert lock
    assert (lock.path, lock.until) == (path, lock.since + 3600)
    assert list(tmp_path.iterdir()) == [path]


def test_a_locked_client_is_not_locked_again(tmp_path: Path) -> None:
    locks = Locks(tmp_path)
    assert locks.create(IP, "", "first")
    assert locks.create(IP, "", "second") is None
    assert (tmp_path / IP).read_text() == "first\n"
    assert list(tmp_path.iterdir()) == [tmp_path / IP]


def test_a_lock_on_an_ident_is_not_one_on_the_client(tmp_path: Path) -> None:
    locks = Locks(tmp_path)
    assert locks.create(IP, "joe", "cause")
    assert locks.find(IP) is None
    assert locks.find(IP, "jim") is None
    assert locks.find(IP, "joe")
    assert locks.create(IP, "", "cause")
    assert locks.find(IP, "jim") is None


@pytest.mark.option("lock_duration")
def test_an_old_lock_is_removed_and_reported_once(tmp_path: Path) -> None:
    locks = Locks(tmp_path, duration=60)
    path = locks.create(IP, "", "cause")
    assert path
    age(path, 59)
    assert locks.find(IP)
    age(path, 61)
    assert locks.find(IP) is None
    assert locks.find(IP) is None
    assert not path.exists()
    assert locks.ended == [path]


def test_a_new_event_after_the_end_locks_again(tmp_path: Path) -> None:
    locks = Locks(tmp_path, duration=60)
    path = locks.create(IP, "", "first")
    assert path
    age(path, 61)
    assert locks.create(IP, "", "second") == path
    assert path.read_text() == "second\n"
    assert locks.ended == [path]


def test_touch_prolongs_and_rm_ends_a_lock(tmp_path: Path) -> None:
    locks = Locks(tmp_path, duration=60)
    path = tmp_path / IP
    path.touch()  # as an administrator does, in the gateway's name
    age(path, 50)
    path.touch()
    lock = locks.find(IP)
    assert lock and lock.until
    assert lock.until > time.time() + 55
    path.unlink()
    assert locks.find(IP) is None
    assert locks.ended == []


@pytest.mark.option("lock_duration")
def test_minus_one_locks_forever(tmp_path: Path) -> None:
    locks = Locks(tmp_path, duration=FOREVER)
    path = locks.create(IP, "", "cause")
    assert path
    age(path, 10 * 365 * 86400)
    lock = locks.find(IP)
    assert lock
    assert lock.until is None


@pytest.mark.option("lock_duration")
def test_zero_is_no_locking(tmp_path: Path) -> None:
    locks = Locks(tmp_path, duration=0)
    assert locks.create(IP, "", "cause") is None
    (tmp_path / IP).touch()
    assert locks.find(IP) is None
    assert (tmp_path / IP).exists()


def test_a_lock_from_the_future_ends_a_duration_from_now(tmp_path: Path) -> None:
    locks = Locks(tmp_path, duration=60)
    path = locks.create(IP, "", "cause")
    assert path
    age(path, -400 * 86400)
    lock = locks.find(IP)
    assert lock and lock.until
    assert abs(lock.until - time.time() - 60) < 5
    assert abs(path.stat().st_mtime - time.time()) < 5


@pytest.mark.skipif(ME != 0, reason="gives a file to another user")
def test_a_file_of_another_user_exempts_its_client(tmp_path: Path) -> None:
    locks = Locks(tmp_path, duration=60)
    path = tmp_path / IP
    path.write_text("our printer\n")
    os.chown(path, 12345, 12345)
    for seconds in (0, 1000):
        age(path, seconds)
        assert locks.find(IP) is None
        assert locks.create(IP, "", "cause") is None
    assert path.read_text() == "our printer\n"
    assert path.stat().st_uid == 12345
    assert locks.ended == []
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.option("trusted_clients")
def test_a_trusted_client_is_never_locked(tmp_path: Path) -> None:
    trusted = (ip_network("192.0.2.0/30"), ip_network("2001:db8::/32"))
    locks = LockDirectory(tmp_path, 0o660, 3600, ME, lambda _: None, trusted)
    for ip, ident in (("192.0.2.1", ""), ("::ffff:192.0.2.1", ""), ("192.0.2.1", "joe"), ("2001:db8::1", "")):
        assert locks.create(ip, ident, "cause") is None
        assert list(tmp_path.iterdir()) == []
        path = tmp_path / lock_name(ip, ident)
        path.touch()  # older than the trust
        assert locks.find(ip, ident) is None
        path.unlink()
    for ip in (IP, "2001:db9::1"):
        assert locks.create(ip, "", "cause")
        assert locks.find(ip)


@pytest.mark.skipif(ME != 0, reason="plays a gateway that is not root")
def test_a_file_touched_by_root_exempts_too(tmp_path: Path) -> None:
    (tmp_path / IP).touch()
    assert Locks(tmp_path, uid=12345).find(IP) is None


@pytest.mark.parametrize("kind", ["directory", "link"])
def test_what_is_no_file_is_no_lock_and_stays(tmp_path: Path, kind: str) -> None:
    path = tmp_path / IP
    if kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("/etc/hostname")
    locks = Locks(tmp_path)
    assert locks.find(IP) is None
    assert locks.create(IP, "", "cause") is None
    assert path.is_dir() or path.is_symlink()


def test_a_missing_directory_locks_nobody_and_tells_on_creation(tmp_path: Path) -> None:
    locks = Locks(tmp_path / "missing")
    assert locks.find(IP) is None
    with pytest.raises(FileNotFoundError):
        locks.create(IP, "", "cause")


def test_of_many_at_once_one_creates_and_no_reader_sees_half_a_file(tmp_path: Path) -> None:
    cause = "VIRUS " + "v" * 400
    created: list[Path] = []
    seen: set[str] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            for path in tmp_path.glob("192.*"):
                seen.add(path.read_text())

    def create() -> None:
        locks = Locks(tmp_path)
        paths = [locks.create(f"192.0.2.{number}", "", cause) for number in range(200)]
        created.extend(path for path in paths if path)

    reader = threading.Thread(target=read)
    reader.start()
    writers = [threading.Thread(target=create) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    done.set()
    reader.join()
    assert len(created) == len(set(created)) == 200
    assert seen == {cause + "\n"}
    assert len(list(tmp_path.iterdir())) == 200


def sweep(locks: LockDirectory) -> int:
    """Look through the whole directory; give the number of steps it took."""
    return sum(1 for _ in locks.sweep())


@pytest.mark.option("lock_duration")
def test_old_locks_are_swept_away_and_reported_though_nobody_comes(tmp_path: Path) -> None:
    locks = Locks(tmp_path, duration=60)
    old = [locks.create(ip, ident, "cause") for ip, ident in ((IP, ""), (IP, "joe"), ("2001:db8::7", ""))]
    for path in old:
        assert path
        age(path, 61)
    young = locks.create("192.0.2.8", "", "cause")
    assert sweep(locks) == 4
    assert sorted(map(str, locks.ended)) == sorted(map(str, old))
    assert list(tmp_path.iterdir()) == [young]
    sweep(locks)
    assert len(locks.ended) == 3


@pytest.mark.parametrize("duration", [0, FOREVER])
def test_nothing_is_swept_away_where_locks_have_no_end(tmp_path: Path, duration: int) -> None:
    path = Locks(tmp_path).create(IP, "", "cause")
    assert path
    age(path, 10 * 365 * 86400)
    locks = Locks(tmp_path, duration=duration)
    sweep(locks)
    assert path.exists()
    assert locks.ended == []


def test_what_is_no_lock_is_not_swept_away(tmp_path: Path) -> None:
    (tmp_path / "README").touch()
    (tmp_path / "192.0.2.9").mkdir()
    (tmp_path / "192.0.2.10").symlink_to("/etc/hostname")
    (tmp_path / ".hidden").touch()
    (tmp_path / ".192.0.2.7.1.2.3").touch()  # in the making
    exempt = tmp_path / IP
    exempt.touch()
    if ME == 0:
        os.chown(exempt, 12345, 12345)
    else:
        exempt.unlink()
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0), follow_symlinks=False)
    before = sorted(tmp_path.iterdir())
    locks = Locks(tmp_path, duration=60)
    sweep(locks)
    assert sorted(tmp_path.iterdir()) == before
    assert locks.ended == []
    sweep(Locks(tmp_path / "missing"))


def test_what_a_crash_left_half_made_is_swept_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f".{IP}-joe.1.2.3").touch()
    locks = Locks(tmp_path)
    sweep(locks)
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr("appliance.proxy.locks._SETTLED", -1.0)
    sweep(locks)
    assert list(tmp_path.iterdir()) == []
    assert locks.ended == []


def test_of_many_that_see_a_lock_end_one_reports_it(tmp_path: Path) -> None:
    ends: list[Path] = []
    for number in range(200):
        path = Locks(tmp_path).create(f"192.0.2.{number}", "", "cause")
        assert path
        age(path, 3601)
    each = [LockDirectory(tmp_path, 0o660, 3600, ME, ends.append) for _ in range(4)]
    threads = [threading.Thread(target=sweep, args=[locks]) for locks in each]
    for thread in threads:
        thread.start()
    for number in range(200):
        assert each[0].find(f"192.0.2.{number}") is None
    for thread in threads:
        thread.join()
    assert len(ends) == len(set(ends)) == 200
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_is_touched_while_it_is_removed_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locks = Locks(tmp_path, duration=60)
    path = locks.create(IP, "", "cause")
    assert path
    age(path, 61)
    name = Locks._private_name

    def touched_meanwhile(self: Locks, of: str) -> Path:
        path.touch()
        return name(self, of)

    monkeypatch.setattr(Locks, "_private_name", touched_meanwhile)
    assert locks.find(IP) is None  # what was seen
    assert locks.find(IP)
    assert locks.ended == []
    assert list(tmp_path.iterdir()) == [path]


def test_a_lock_may_have_a_duration_of_its_own(tmp_path: Path) -> None:
    locks = Locks(tmp_path, duration=3600)
    for ip, duration in (("192.0.2.1", 60), ("192.0.2.2", 86400), ("192.0.2.3", FOREVER)):
        path = locks.create(ip, "", "CAUSE", duration)
        assert path
        assert path.stat().st_mode & 0o777 == 0o660
        age(path, 4000)
    assert locks.find("192.0.2.1") is None
    found = locks.find("192.0.2.2")
    assert found
    assert found.until == pytest.approx(time.time() + 82400, abs=5)
    endless = locks.find("192.0.2.3")
    assert endless
    assert endless.until is None
    assert read_lock(found.path) == ("CAUSE", "lasts 86400")
    assert [path.name for path in locks.ended] == ["192.0.2.1"]


@pytest.mark.option("lock_duration")
def test_a_sweep_ends_locks_with_a_duration_of_their_own_among_endless_ones(tmp_path: Path) -> None:
    locks = Locks(tmp_path, duration=FOREVER)
    for ip, duration in (("192.0.2.1", 60), ("192.0.2.2", None)):
        path = locks.create(ip, "", "CAUSE", duration)
        assert path
        age(path, 61)
    assert list(locks.sweep()) == [None, None]
    assert [path.name for path in locks.ended] == ["192.0.2.1"]
    assert [lock.path.name for lock in locks.all()] == ["192.0.2.2"]


@pytest.mark.parametrize(
    "line", ["", "lasts", "lasts 0", "lasts -5", "lasts 99999999999", "lasts 5\x1b", "x"]
)
def test_a_duration_that_is_none_is_the_configured_one(tmp_path: Path, line: str) -> None:
    locks = Locks(tmp_path, duration=3600)
    path = tmp_path / IP
    path.write_text(f"CAUSE\n{line}\n")
    path.chmod(0o1660)
    found = locks.find(IP)
    assert found
    assert found.until == found.since + 3600


def test_a_lock_file_that_nobody_can_mean_is_read_in_bounds(tmp_path: Path) -> None:
    path = tmp_path / IP
    path.write_bytes(b"\x1b[2J\xff[red]" + b"x" * 1_000_000)
    cause, lasts = read_lock(path)
    assert cause.startswith("?[2J?[red]xxx")
    assert len(cause) == 500
    assert lasts == ""
    path.unlink()
    path.symlink_to("/etc/passwd")
    assert read_lock(path) == ("", "")


def test_a_removed_lock_is_gone(tmp_path: Path) -> None:
    locks = Locks(tmp_path)
    locks.create(IP, "", "CAUSE")
    found = locks.find(IP)
    assert found
    locks.remove(found)
    locks.remove(found)  # somebody else was quicker
    assert locks.find(IP) is None
    assert not locks.ended
