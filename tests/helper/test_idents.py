"""How clients get their names: by address, from a file, from a program that may do anything."""

import asyncio
import os
import subprocess
import threading
import time
from ipaddress import ip_address
from pathlib import Path

import pytest

from appliance.helper import idents
from appliance.helper.idents import Addresses, Command, IdentError, Idents, Names
from appliance.log import Log
from appliance.origin import Flow


def flow(client: str = "10.77.1.5") -> Flow:
    address = ip_address(client)
    server = ip_address("198.51.100.25" if address.version == 4 else "2001:db8:25::25")
    return Flow(address, 40112, server, 25)


def name(source: Idents, client: str = "10.77.1.5") -> str:
    return asyncio.run(source.name(flow(client)))


@pytest.mark.parametrize(
    ("client", "told"),
    [
        ("10.77.1.5", "10.77.1.5"),
        ("fd77:1::5", "fd77:1::5"),
        ("2001:db8:1234:5678:9abc:def0:1234:5678", "20010db8123456789abcdef012345678"),
    ],
)
def test_the_address_is_the_name(client: str, told: str) -> None:
    assert name(Addresses(), client) == told


def test_the_longest_prefix_has_the_name(tmp_path: Path) -> None:
    file = tmp_path / "names"
    file.write_text(
        "# rooms\n10.77.0.0/16 campus\n10.77.1.0/24\tlibrary  # ground floor\n\n10.77.1.5 anna@example\n"
        "fd77:1::/64 library6\n0.0.0.0/0 anybody\n"
    )
    names = Names(file)
    assert [name(names, f"10.77.{end}") for end in ("1.5", "1.6", "2.1")] == [
        *("anna@example", "library", "campus")
    ]
    assert name(names, "192.0.2.1") == "anybody"
    assert name(names, "fd77:1::5") == "library6"
    assert name(names, "fd77:2::5") == "fd77:2::5"


@pytest.mark.parametrize(
    "line",
    [
        *("10.77.1.5", "10.77.1.5 anna berta", "10.77.1.5/24 anna", "anna 10.77.1.5", "10.77.1.5 an,na"),
        *("10.77.1.5 " + "a" * 33, "10.77.1.5 \u0105nna", "10.77.1.5 \x00"),
    ],
)
def test_a_file_with_an_error_is_refused_and_the_old_names_stay(tmp_path: Path, line: str) -> None:
    file = tmp_path / "names"
    file.write_text("10.77.1.5 anna\n")
    names = Names(file)
    file.write_text(f"10.77.1.6 berta\n{line}\n")
    with pytest.raises(IdentError, match=f"{file}:2: "):
        names.reload()
    assert name(names) == "anna"
    assert name(names, "10.77.1.6") == "10.77.1.6"
    file.write_text("10.77.1.6 berta\n")
    names.reload()
    assert name(names) == "10.77.1.5"
    assert name(names, "10.77.1.6") == "berta"


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(IdentError, match="No such file"):
        Names(tmp_path / "names")
    monkeypatch.setattr(idents, "FILE_MAX", 20)
    (tmp_path / "names").write_text("10.77.1.5 anna\n" * 2)
    with pytest.raises(IdentError, match="larger than 20 bytes"):
        Names(tmp_path / "names")


def command(tmp_path: Path, script: str, capfd: pytest.CaptureFixture[str] | None = None) -> Command:
    program = tmp_path / "name"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    log = Log("debug", "daemon", stderr=capfd is not None, path=str(tmp_path / "none"))
    return Command(program, log)


def test_a_program_is_told_the_connection(tmp_path: Path) -> None:
    told = tmp_path / "told"
    asked = command(tmp_path, f'{{ echo "$@"; env; pwd; ls /proc/self/fd; }} >{told}; echo anna; echo more')
    assert name(asked) == "anna"
    lines = told.read_text().splitlines()
    assert lines[0] == "10.77.1.5 40112 198.51.100.25 25"
    assert "/" in lines
    assert sorted(line.partition("=")[0] for line in lines if "=" in line) == ["PATH", "PWD"]
    assert [line for line in lines if line.isdecimal()] == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo anna; exit 1", "exit status 1"),
        ("exit 0", "printed ''"),
        ("echo anna berta", "printed 'anna berta'"),
        ("echo '10.0.0.1]'", "printed"),
        ("yes | tr -d '\\n'", "more than 256 bytes"),
        ("kill -9 $$", "exit status -9"),
    ],
)
def test_a_program_that_fails_leaves_the_address(
    tmp_path: Path, script: str, why: str, capfd: pytest.CaptureFixture[str]
) -> None:
    begin = time.monotonic()
    assert name(command(tmp_path, script, capfd)) == "10.77.1.5"
    assert time.monotonic() - begin < 1.5
    line = capfd.readouterr().err
    assert "IDENT:FAILED client=10.77.1.5" in line
    assert why in line


def test_a_program_that_is_not_there(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = Log("debug", "daemon", stderr=True, path=str(tmp_path / "none"))
    assert name(Command(tmp_path / "name", log)) == "10.77.1.5"
    assert "No such file" in capfd.readouterr().err


@pytest.mark.parametrize("script", ["sleep 9", "echo anna; sleep 9", "setsid sleep 9 & echo anna; sleep 9"])
def test_programs_have_little_time_and_there_are_few(
    tmp_path: Path, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idents, "COMMAND_TIME", 0.5)
    monkeypatch.setattr(idents, "COMMANDS", 3)
    started = tmp_path / "started"
    asked = command(tmp_path, f"echo x >>{started}\n{script}")

    async def ask() -> list[str]:
        return await asyncio.gather(*[asked.name(flow()) for _ in range(10)])

    before = os.listdir("/proc/self/fd")  # noqa: PTH208
    begin = time.monotonic()
    assert asyncio.run(ask()) == ["10.77.1.5"] * 10
    assert time.monotonic() - begin < 1.5
    assert len(os.listdir("/proc/self/fd")) <= len(before)  # noqa: PTH208
    assert 3 <= len(started.read_text().split()) < 10  # one may begin when another has just been ended


def test_programs_that_cannot_be_killed_are_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idents, "COMMAND_TIME", 0.2)
    gone = threading.Event()
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: gone.wait(10))
    asked = command(tmp_path, "echo anna")

    async def ask() -> list[str]:
        return await asyncio.gather(*[asked.name(flow()) for _ in range(2 * idents.COMMANDS)])

    begin = time.monotonic()
    assert asyncio.run(ask()) == ["10.77.1.5"] * 2 * idents.COMMANDS
    assert time.monotonic() - begin < 5
    gone.set()


def test_a_limit_of_threads_leaves_the_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """TasksMax= of the unit is soon reached by programs that start others: the mail goes on all the same."""

    def no_thread(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_thread)
    assert name(command(tmp_path, "echo anna", capfd)) == "10.77.1.5"
    assert "can't start new thread" in capfd.readouterr().err


def test_all_take_their_turn(tmp_path: Path) -> None:
    asked = command(tmp_path, "echo anna")

    async def ask() -> list[str]:
        return await asyncio.gather(*[asked.name(flow()) for _ in range(30)])

    assert asyncio.run(ask()) == ["anna"] * 30
