"""The program that keeps the table in step with the lock directory."""

import errno
import os
import re
import signal
import sys
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from appliance.config import parse
from appliance.log import Log
from appliance.proxy.locks import LockDirectory
from appliance_bsd import mirror
from appliance_bsd.mirror import Mirror, main
from appliance_bsd.pf_layout import SYSTEMS
from appliance_bsd.pf_table import TABLE, PfTable


class Place:
    """A lock directory, a device with the table, and the mirror between them."""

    def __init__(self, path: Path, device: Any, system: str, *, duration: int = 3600, more: str = "") -> None:
        self.path = path / "lock"
        self.device = device
        config = parse(f"lock_path {self.path}\nlock_duration {duration}\n{more}\n")
        self.mirror = Mirror(
            config,
            PfTable(device, SYSTEMS[system], TABLE),
            Log("debug", "mail", stderr=True, target="stderr"),
        )
        self.locks = LockDirectory(self.path, 0o660, duration, os.geteuid(), lambda _: None)

    def lock(self, *names: str) -> None:
        self.path.mkdir(exist_ok=True)
        for name in names:
            (self.path / name).write_text("VIRUS\n")

    def held(self) -> set[str]:
        return {
            str(ip_address(raw[:4] if family == 2 else raw)) for raw, family, _ in self.device.tables[TABLE]
        }


@pytest.fixture
def place(tmp_path: Path, pf_tables: Callable[..., Any], system: str) -> Place:
    return Place(tmp_path, pf_tables(TABLE), system)


def test_locks_come_and_go(place: Place) -> None:
    place.mirror.look(0)
    assert place.held() == set()
    place.lock("10.0.0.5", "10.0.0.6")
    assert place.locks.create("2001:db8::5", "", "SPAM")
    place.mirror.look(1)
    assert place.held() == {"10.0.0.5", "10.0.0.6", "2001:db8::5"}
    (place.path / "10.0.0.5").unlink()
    os.utime(place.path / "10.0.0.6", (0, 0))
    place.mirror.look(2)
    assert place.held() == {"2001:db8::5"}


def test_only_locks_of_whole_clients_are_mirrored(place: Place) -> None:
    place.lock("10.0.0.5-bob", "README", "010.0.0.7", ".10.0.0.8.1.2", "10.0.0.9")
    if os.geteuid() == 0:
        os.chown(place.path / "10.0.0.9", 1, 1)  # an exemption
        place.lock("10.0.0.10")
    place.mirror.look(0)
    assert place.held() == {"10.0.0.10" if os.geteuid() == 0 else "10.0.0.9"}


def test_trusted_clients_are_not_shut_out(tmp_path: Path, pf_tables: Callable[..., Any], system: str) -> None:
    place = Place(tmp_path, pf_tables(TABLE), system, more="trusted_clients 10.0.0.0/29,2001:db8::/64")
    place.lock("10.0.0.5", "10.0.0.9", "2001:db8::5")
    place.mirror.look(0)
    assert place.held() == {"10.0.0.9"}


def test_nothing_is_asked_while_nothing_changes_and_a_changed_table_heals(place: Place) -> None:
    place.lock("10.0.0.5")
    for second in range(60):
        place.mirror.look(second)
    assert len(place.device.asked) == 1
    place.device.tables[TABLE].clear()  # pfctl -T flush
    place.mirror.look(60)
    assert place.held() == {"10.0.0.5"}


def test_no_locking_locks_nobody(tmp_path: Path, pf_tables: Callable[..., Any], system: str) -> None:
    place = Place(tmp_path, pf_tables(TABLE), system, duration=0)
    place.lock("10.0.0.5")
    place.mirror.look(0)
    assert place.held() == set()


def test_what_fails_is_told_once_and_tried_again(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    place.lock("10.0.0.5")
    del place.device.tables[TABLE]
    for second in range(3):
        place.mirror.look(second)
    (told,) = capfd.readouterr().err.splitlines()
    assert "err: MIRROR:FAILED why=pf table smtp_locked: there is none; put" in told
    place.device.tables[TABLE] = set()
    place.mirror.look(3)
    assert place.held() == {"10.0.0.5"}
    place.device.refuses = errno.EPERM
    place.lock("10.0.0.6")
    place.mirror.look(4)
    place.device.refuses = 0
    place.mirror.look(5)
    assert place.held() == {"10.0.0.5", "10.0.0.6"}
    assert "MIRROR:FAILED" in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_end_lets_everybody_in(place: Place, number: signal.Signals) -> None:
    place.lock("10.0.0.5")
    seen = []

    def pause(seconds: float) -> None:
        assert 1 <= seconds < 10
        seen.append(place.held())
        if len(seen) == 2:
            os.kill(os.getpid(), number)

    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)}
    try:
        mirror._run(place.mirror, pause)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert seen == [{"10.0.0.5"}] * 2
    assert place.held() == set()


def test_the_program_says_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "gate.conf"
    file.write_text("mode pf\nlog_target stderr\nprot 1\n")
    assert main([str(file)]) == 2
    assert 'unknown option "prot"' in capsys.readouterr().err
    file.write_text("mode pf\nlog_target stderr\n")
    monkeypatch.setattr(sys, "platform", "linux")
    assert main([str(file)]) == 1
    assert re.match("appliance-pf-mirror: the system linux has no pf", capsys.readouterr().err)
    monkeypatch.setattr(sys, "platform", "openbsd7")
    assert main([str(file)]) == 1
    assert capsys.readouterr().err.startswith("appliance-pf-mirror: /dev/pf: No such file or directory; ")
    for name in ("", "x" * 32):
        assert main([str(file), "--table", name]) == 1
        told = capsys.readouterr().err
        assert told == f"appliance-pf-mirror: --table {name}: a table of pf has a name of 1 to 31 bytes\n"
