"""A program running on a lab host: its real process number, its output, its end.

Made by `lab.host.Host.start`. Knows nothing of what the program is.
"""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path


class LabError(Exception):
    """Something in the lab did not happen in time, or ended too soon; the text ends with the last output."""


def wait_until(condition: Callable[[], object], timeout: float, what: str, pause: float = 0.01) -> None:
    """Return once `condition()` is true; raise LabError naming `what` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"not within {timeout:g} s: {what}")
        time.sleep(pause)


def processor_time(pid: int) -> float:
    """Give the seconds, of user and system, that a process with all its threads has worked so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Process:
    """A started program. `pid` is its number as seen from outside, good for os.kill and /proc/<pid>."""

    def __init__(self, argv: list[str], log: Path, *, environment: dict[str, str]):
        self.log = log
        self.name = log.stem
        with log.open("ab") as output:
            self._start = output.tell()
            # nsenter and what it runs form one process group of their own: kill() reaches both.
            self._nsenter = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )
        self.pid = self._find()

    def _find(self) -> int:
        """The program is the one child that nsenter forks to be inside the PID namespace."""
        children = Path(f"/proc/{self._nsenter.pid}/task/{self._nsenter.pid}/children")
        found: list[str] = []

        def look() -> bool:
            with contextlib.suppress(OSError):
                found[:] = children.read_text().split()
                if found and Path(f"/proc/{found[0]}/comm").read_text() != "nsenter\n":
                    return True  # it has become the program
            return self._nsenter.poll() is not None

        wait_until(look, 5, f"start of {self.name}", pause=0.001)
        return int(found[0]) if found else 0

    def running(self) -> bool:
        """Tell whether the program has not ended yet."""
        return self._nsenter.poll() is None

    def output(self) -> str:
        """Give all that the program wrote to stdout and stderr, and its log if that goes to the same file."""
        with self.log.open("rb") as file:
            file.seek(self._start)
            return file.read().decode(errors="replace")

    def wait_output(self, pattern: str, timeout: float = 10) -> re.Match[str]:
        """Wait until the regular expression is found in the output; give the match."""
        deadline = time.monotonic() + timeout
        while not (match := re.search(pattern, self.output(), re.MULTILINE)):
            if time.monotonic() > deadline or not self.running():
                raise LabError(
                    f"{self.name}: no {pattern!r} in its output within {timeout:g} s:\n{self.tail()}"
                )
            time.sleep(0.01)
        return match

    def tail(self) -> str:
        """Give the last lines of the output, for an error message."""
        return "\n".join(self.output().splitlines()[-25:])

    def signal(self, number: int) -> None:
        """Send a signal to the program itself, not to its children. Nothing happens if it has ended."""
        with contextlib.suppress(ProcessLookupError):
            if self.pid and self.running():
                os.kill(self.pid, number)
                if number == signal.SIGCONT:  # nsenter stops with the program, but would not go on with it
                    os.kill(self._nsenter.pid, number)

    def wait(self, timeout: float = 10) -> int:
        """Wait for the end; give the exit status, negative for a signal."""
        try:
            return self._nsenter.wait(timeout)
        except subprocess.TimeoutExpired:
            raise LabError(f"{self.name} still runs after {timeout:g} s:\n{self.tail()}") from None

    def terminate(self, timeout: float = 5) -> int:
        """End the program with SIGTERM, with SIGKILL after `timeout` seconds; give the exit status."""
        self.signal(signal.SIGTERM)
        with contextlib.suppress(LabError):
            return self.wait(timeout)
        return self.kill()

    def kill(self) -> int:
        """End the program and those of its children that stayed in its process group, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._nsenter.pid, signal.SIGKILL)
        return self.wait(5)
