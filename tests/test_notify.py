"""What systemd would hear."""

import os
import socket
from pathlib import Path

import pytest

from appliance.notify import notify, watchdog_interval


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    name = f"@test-notify-{os.getpid()}" if abstract else str(tmp_path / "notify")
    systemd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    systemd.bind(name.replace("@", "\0"))
    systemd.settimeout(5)
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    notify("READY=1")
    assert systemd.recv(100) == b"READY=1"
    systemd.close()
    notify("STOPPING=1")  # nobody hears it, and nothing happens


def test_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")


@pytest.mark.parametrize(
    ("allowed", "pid", "seconds"),
    [
        ("30000000", None, 15.0),
        ("30000000", "own", 15.0),
        ("30000000", "1", 0.0),
        ("", None, 0.0),
        ("x", None, 0.0),
    ],
)
def test_watchdog(monkeypatch: pytest.MonkeyPatch, allowed: str, pid: str | None, seconds: float) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", allowed)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    if pid:
        monkeypatch.setenv("WATCHDOG_PID", pid.replace("own", str(os.getpid())))
    assert watchdog_interval() == seconds
