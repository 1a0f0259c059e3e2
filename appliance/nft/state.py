"""What was found before the rules were installed, kept while they are there, by network namespace.

Called by the installer. It lies under /run, as the rules live no longer than the kernel does. Losing it loses
the comparison of sysctls, nothing else: rules and routes bear names of their own.
"""

import contextlib
import fcntl
import json
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DIRECTORY = Path("/run/smtp-gated-rules")
_SO_NETNS_COOKIE = 71
_LONGEST = 1 << 16


def _namespace() -> str:
    """Give a number that the kernel never gives another network namespace until it is booted again."""
    try:
        with socket.socket(socket.AF_UNIX) as any_socket:
            return str(struct.unpack("Q", any_socket.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8))[0])
    except OSError:  # before Linux 5.14; this number may be given again
        return f"inode-{Path('/proc/thread-self/ns/net').stat().st_ino}"


class State:
    """The state file of the calling thread's network namespace, in a directory."""

    def __init__(self, directory: Path = DIRECTORY) -> None:
        self.file = directory / f"{_namespace()}.json"
        self._boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()

    def read(self) -> dict[str, str]:
        """Give the sysctls found before, by name; nothing if nothing is known."""
        try:
            with self.file.open() as file:
                known: Any = json.loads(file.read(_LONGEST))
            if known["boot"] == self._boot:
                return {str(name): str(value) for name, value in known["sysctls"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        return {}

    def write(self, sysctls: dict[str, str]) -> None:
        """Keep what was found; the file is there wholly or not at all. Raises OSError."""
        new = self.file.with_suffix(".new")
        new.write_text(json.dumps({"boot": self._boot, "sysctls": sysctls}, indent=1) + "\n")
        new.replace(self.file)

    def remove(self) -> None:
        """Forget what was found. Raises OSError."""
        self.file.unlink(missing_ok=True)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Let one installer work at a time; others wait. Raises OSError."""
        self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory = os.open(self.file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            yield
        finally:
            os.close(directory)
