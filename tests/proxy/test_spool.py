"""A message's copy: limits, permissions, names, failures, and what a killed gateway leaves behind."""

import errno
import fcntl
import gc
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest

from appliance.proxy import spool as module
from appliance.proxy.spool import Memory, Spool, sweep

NAME = "1700000000.42"
BOTH = pytest.mark.parametrize("named", [False, True], ids=["unnamed", "named"])
EVERYWHERE = pytest.mark.parametrize("kind", ["memory", "unnamed", "named"])


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Memory]:
    """The memory of copies, of which nothing may be held in the end."""
    mine = Memory()
    monkeypatch.setattr(module, "MEMORY", mine)
    yield mine
    gc.collect()
    assert mine.held == 0


@pytest.fixture
def made(tmp_path: Path, memory: Memory) -> Iterator[Callable[..., Spool]]:
    """Make copies of a kind, which are closed in the end."""
    copies: list[Spool] = []

    def make(kind: str, perm: int = 0o600, limit: int = 100) -> Spool:
        memory.room = 0 if kind == "unnamed" else 1000
        copies.append(Spool(tmp_path, NAME, perm, limit, kind == "named"))
        return copies[-1]

    yield make
    for copy in copies:
        copy.close()


def content(spool: Spool) -> bytes:
    return spool.read(0, spool.length)


def in_file(spool: Spool) -> bytes:
    return os.pread(spool.descriptor(), 1_000_000, 0)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@EVERYWHERE
def test_the_copy_holds_the_header_and_the_message(
    tmp_path: Path, made: Callable[..., Spool], kind: str
) -> None:
    spool = made(kind)
    spool.header(b"X-Proxy-Spool-Info: src=192.0.2.1:1\r\n")
    spool.write(b"one\r\n")
    spool.write(memoryview(b"two\r\n"))
    assert content(spool) == b"X-Proxy-Spool-Info: src=192.0.2.1:1\r\none\r\ntwo\r\n"
    assert spool.read(len("X-Proxy-"), 5) == b"Spool"
    assert in_file(spool) == content(spool)
    assert spool.size == 10
    assert spool.path == (tmp_path / NAME if kind == "named" else None)
    with pytest.raises(EOFError):
        spool.read(0, spool.length + 1)
    spool.close()
    spool.close()
    assert names(tmp_path) == []


@EVERYWHERE
@pytest.mark.parametrize("perm", [0o600, 0o640, 0o666])
def test_permissions_are_exact_whatever_the_umask(made: Callable[..., Spool], kind: str, perm: int) -> None:
    spool = made(kind, perm)
    spool.write(b"one\r\n")
    if kind != "memory":
        assert stat.S_IMODE(os.fstat(spool.descriptor()).st_mode) == perm
    assert stat.S_IMODE(spool.keep().stat().st_mode) == perm


@EVERYWHERE
def test_a_message_at_the_limit_is_copied_and_one_byte_more_drops_it(
    tmp_path: Path, made: Callable[..., Spool], memory: Memory, kind: str
) -> None:
    spool = made(kind, limit=10)
    spool.header(b"not counted: at all\r\n")
    spool.write(b"0123456789")
    assert not spool.dropped
    spool.write(b"x")
    assert spool.dropped
    assert (spool.path, memory.held) == (None, 0)
    assert names(tmp_path) == []
    spool.write(b"y" * 5)
    spool.header(b"late: 1\r\n")
    assert spool.size == 16
    for use in (spool.keep, spool.descriptor, lambda: spool.read(0, 0)):
        with pytest.raises(FileNotFoundError):
            use()
    assert names(tmp_path) == []


@EVERYWHERE
def test_what_is_kept_stays(tmp_path: Path, made: Callable[..., Spool], kind: str) -> None:
    spool = made(kind)
    spool.write(b"kept")
    lent = os.dup(spool.descriptor())
    assert spool.keep() == spool.keep() == tmp_path / NAME
    assert content(spool) == in_file(spool) == os.pread(lent, 100, 0) == b"kept"
    os.close(lent)
    spool.close()
    assert names(tmp_path) == [NAME]
    assert (tmp_path / NAME).read_bytes() == b"kept"


@EVERYWHERE
def test_only_the_last_message_of_a_session_is_kept(
    tmp_path: Path, made: Callable[..., Spool], kind: str
) -> None:
    for text in (b"first", b"second"):
        spool = made(kind)
        spool.write(text)
        spool.keep()
        spool.close()
    assert names(tmp_path) == [NAME]
    assert (tmp_path / NAME).read_bytes() == b"second"


def test_copies_are_in_memory_while_there_is_room(tmp_path: Path, memory: Memory) -> None:
    memory.room = 100
    little, large = (Spool(tmp_path, f"{NAME}-{number}", 0o600, 1000, False) for number in range(2))
    little.write(b"l" * 40)
    large.write(b"m" * 50)
    assert memory.held == 90
    large.write(b"n" * 20)
    assert memory.held == 40  # the one that has grown too large is a file
    little.write(b"l" * 60)
    assert memory.held == 100
    assert content(large) == b"m" * 50 + b"n" * 20
    assert names(tmp_path) == []
    for copy in (little, large):
        copy.close()


def test_a_copy_in_memory_needs_no_directory_until_it_is_kept(tmp_path: Path, memory: Memory) -> None:
    spool = Spool(tmp_path / "missing", NAME, 0o600, 100, False)
    spool.write(b"one\r\n")
    with pytest.raises(FileNotFoundError):
        spool.keep()
    assert in_file(spool) == content(spool) == b"one\r\n"  # the next scanner has it still
    memory.room = 0
    with pytest.raises(FileNotFoundError):
        spool.write(b"two\r\n")
    assert spool.dropped


def test_a_name_in_use_is_refused_and_its_owner_not_disturbed(tmp_path: Path) -> None:
    spool = Spool(tmp_path, NAME, 0o600, 100, True)
    spool.write(b"mine")
    with pytest.raises(FileExistsError):
        Spool(tmp_path, NAME, 0o600, 100, True)
    assert (tmp_path / NAME).read_bytes() == b"mine"
    spool.close()
    assert names(tmp_path) == []


def test_links_are_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "spool").mkdir()
    for name in (NAME, f".live.{NAME}"):
        (tmp_path / "spool" / name).symlink_to(victim)
        try:
            spool = Spool(tmp_path / "spool", NAME, 0o600, 100, True)
        except FileExistsError:
            continue
        spool.write(b"overwritten")
        spool.close()
    assert victim.read_text() == "precious"


def test_a_missing_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Spool(tmp_path / "missing", NAME, 0o600, 100, True)


def test_a_file_system_without_unnamed_files_gets_a_named_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: Memory
) -> None:
    really_open = os.open

    def old_file_system(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return really_open(path, flags, mode)

    monkeypatch.setattr(os, "open", old_file_system)
    memory.room = 0
    spool = Spool(tmp_path, NAME, 0o600, 100, False)
    spool.write(b"one\r\n")
    assert spool.path == tmp_path / NAME
    spool.close()
    assert names(tmp_path) == []


@BOTH
def test_a_full_disk_raises_once_and_leaves_nothing(tmp_path: Path, named: bool) -> None:
    # A file size limit makes write(2) stop short and then fail just as a full disk does.
    program = f"""
import resource, signal
from pathlib import Path
from appliance.proxy.spool import MEMORY, Spool
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
MEMORY.room = 0
spool = Spool(Path({str(tmp_path)!r}), {NAME!r}, 0o600, 10**9, {named})
spool.write(b"x" * 70_000)
try:
    spool.write(b"x" * 70_000)
except OSError as error:
    print(error.errno, spool.dropped, spool.path)
spool.write(b"x" * 70_000)
print(spool.size)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(errno.EFBIG), "True", "None", "210000"]
    assert names(tmp_path) == []


def kill_one_that_has(tmp_path: Path, statements: str) -> None:
    """Let another process do this with a named copy, then kill it."""
    program = f"""
import time
from pathlib import Path
from appliance.proxy.spool import Spool
spool = Spool(Path({str(tmp_path)!r}), {NAME!r}, 0o640, 10**9, True)
spool.write(b"half a mess")
{statements}
print("done", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"done\n"
        assert sweep(tmp_path) == 0  # it lives
        assert (tmp_path / NAME).exists()
        process.send_signal(signal.SIGKILL)


def test_the_copies_of_a_killed_process_are_swept(tmp_path: Path) -> None:
    kill_one_that_has(tmp_path, "")
    assert names(tmp_path) == [f".live.{NAME}", NAME]
    assert sweep(tmp_path) == 1
    assert names(tmp_path) == []


def test_a_copy_that_is_taken_for_a_leftover_while_it_is_made_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fcntl.flock
    swept: list[int] = []

    def flock(file: int, how: int) -> None:
        if not swept:
            swept.append(0)  # not when the sweep locks it
            swept.append(sweep(tmp_path))
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    spool = Spool(tmp_path, NAME, 0o600, 100, named=True)
    assert swept == [0, 1]
    spool.write(b"whole")
    assert (tmp_path / NAME).read_bytes() == b"whole"
    assert sweep(tmp_path) == 0
    spool.close()
    assert names(tmp_path) == []


def test_kept_and_foreign_files_are_never_swept(tmp_path: Path) -> None:
    kill_one_that_has(tmp_path, "spool.keep()")
    (tmp_path / "notes").write_text("by the administrator")
    (tmp_path / ".live.link").symlink_to(tmp_path / "notes")
    (tmp_path / ".live.directory").mkdir()
    assert sweep(tmp_path) == 0
    assert names(tmp_path) == [".live.directory", ".live.link", NAME, "notes"]
    assert (tmp_path / NAME).read_bytes() == b"half a mess"


def test_a_later_file_of_the_same_name_is_not_swept(tmp_path: Path) -> None:
    kill_one_that_has(tmp_path, "")
    (tmp_path / NAME).unlink()
    (tmp_path / NAME).write_text("another")
    assert sweep(tmp_path) == 1
    assert (tmp_path / NAME).read_text() == "another"


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to another user")
def test_files_of_another_user_are_not_swept(tmp_path: Path) -> None:
    (tmp_path / f".live.{NAME}").write_text("")
    os.chown(tmp_path / f".live.{NAME}", 12345, 12345)
    assert sweep(tmp_path) == 0
    assert names(tmp_path) == [f".live.{NAME}"]


def test_a_piece_that_there_is_no_memory_for_takes_no_room(tmp_path: Path, memory: Memory) -> None:
    class Full(bytearray):
        def __iadd__(self, _: object) -> Self:
            raise MemoryError

    spool = Spool(tmp_path, NAME, 0o600, 100, named=False)
    spool._text = Full()
    with pytest.raises(MemoryError):
        spool.write(b"half a message")
    assert memory.held == 0
    spool.close()


def test_no_directory_nothing_to_sweep(tmp_path: Path) -> None:
    assert sweep(tmp_path / "missing") == 0
