"""What the supervisor tells systemd; nothing where systemd is not listening."""

import contextlib
import os
import socket


def notify(words: str) -> None:
    """Send a message of sd_notify(3), such as READY=1. Never waits, never fails."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    with sender, contextlib.suppress(OSError):
        sender.sendto(words.encode(), address)


def watchdog_interval() -> float:
    """Seconds between two signs of life, half of what systemd allows; 0 = it does not ask for any."""
    allowed = os.environ.get("WATCHDOG_USEC", "")
    meant = os.environ.get("WATCHDOG_PID", str(os.getpid()))
    return int(allowed) / 2_000_000 if allowed.isdecimal() and meant == str(os.getpid()) else 0.0
