"""The gateway itself on a lab host: its configuration file, start, log, status, workers, reload and end.

Called by tests, demo and benchmarks. Interception is set apart, with `lab.router`.
"""

import contextlib
import os
import pwd
import re
import shutil
import signal
import socket
import tempfile
from pathlib import Path

from lab.host import Host
from lab.image import CHECKOUT
from lab.process import LabError, Process, processor_time, wait_until

PROGRAM = CHECKOUT / ".venv" / "bin" / "smtp-gated"
BUILT = os.environ.get("GATEWAY_PATH", "")  # where to find another build of the gateway than the checkout's
Options = dict[str, str | int | None]
USER, GROUP = "nobody", "nogroup"


class Gateway:
    """A gateway in the foreground on `host`. `options` win over the lab's; None leaves one out of the file.

    `spool`, `locks`, `state` and `control` are its directories, status file and control socket, seen from
    outside too.
    """

    def __init__(self, host: Host, options: Options | None = None):
        self.host = host
        self.directory = Path(tempfile.mkdtemp(prefix="gateway-", dir=host.run_directory))
        self.directory.chmod(0o755)
        self.file = self.directory / "smtp-gated.conf"
        self.spool, self.locks = (self.directory / name for name in ("msg", "lock"))
        self.state = self.directory / "state"
        self.control = self.directory / "control"
        account = pwd.getpwnam(USER)
        os.chown(self.directory, account.pw_uid, account.pw_gid)
        for directory in (self.spool, self.locks):
            directory.mkdir()
            os.chown(directory, account.pw_uid, account.pw_gid)
        self.options: Options = {
            "proxy_name": "gw.example.test",
            "bind_address": "::",
            "port": 9199,
            "mode": "tproxy",
            "workers": 2,
            "pidfile": str(self.directory / "pid"),
            "statefile": str(self.state),
            "control_socket": str(self.control),
            "set_user": USER,
            "set_group": GROUP,
            "spool_path": str(self.spool),
            "lock_path": str(self.locks),
            "log_level": "debug",
            "max_connections": 1000,
            "max_per_host": 1000,
            "max_load": 0,
            "spam_max_load": 0,
        }
        self.options |= options or {}
        self.process: Process | None = None
        self._notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._notices.bind(str(self.directory / "notify"))

    def write(self) -> None:
        """Write the configuration file from `options`."""
        lines = [f"{name} {value}\n" for name, value in self.options.items() if value is not None]
        self.file.write_text("".join(lines))

    def start(self, timeout: float = 15) -> "Gateway":
        """Start and wait until its workers serve; raise LabError with the end of its log if they do not."""
        self.write()
        environment = {"NOTIFY_SOCKET": self._notices.getsockname(), "PYTHONPATH": BUILT}
        self.process = self.host.start(
            [PROGRAM, "-f", self.file], log=self.directory / "log", environment=environment
        )
        self._wait_ready(timeout)
        return self

    def _wait_ready(self, timeout: float) -> None:
        """Wait until the gateway tells what it would tell systemd."""
        process = self._running
        told = ""

        def ready() -> bool:
            nonlocal told
            with contextlib.suppress(BlockingIOError):
                told = self._notices.recv(4096).decode()
            return "READY=1" in told or not process.running()

        try:
            wait_until(ready, timeout, "the gateway ready")
        except LabError as error:
            raise LabError(f"{error}\n{process.tail()}") from None
        if not process.running():
            raise LabError(f"the gateway ended with {process.wait()}:\n{process.tail()}")

    @property
    def _running(self) -> Process:
        if not self.process:
            raise LabError("the gateway has not been started")
        return self.process

    @property
    def log(self) -> str:
        """All it has logged since its start."""
        return self._running.output()

    def wait_log(self, pattern: str, timeout: float = 10) -> re.Match[str]:
        """Wait until the regular expression is in the log; give the match."""
        return self._running.wait_output(pattern, timeout)

    def status(self, timeout: float = 5) -> str:
        """Have the status file written (SIGUSR1) and give its text."""
        self.state.unlink(missing_ok=True)
        self._running.signal(signal.SIGUSR1)
        wait_until(self.state.exists, timeout, "the status file")
        return self.state.read_text()

    def processes(self, words: str = "") -> list[int]:
        """Give the numbers of its processes, as seen from outside, in the order they were started.

        `words` stand in the command line of those that are meant.
        """
        pid = self._running.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        return [each for each in (pid, *map(int, children.split())) if words in _command_line(each)]

    def workers(self) -> list[int]:
        """Give the process numbers of the workers."""
        return self.processes("appliance.proxy.worker")

    def mirrors(self) -> list[int]:
        """Give the process number of the lock mirror, if there is one now."""
        return self.processes("appliance.supervisor.mirror")

    def processor_time(self) -> float:
        """Give the seconds that all its processes have worked."""
        return sum(map(processor_time, self.processes()))

    def reload(self, options: Options | None = None, timeout: float = 10) -> None:
        """Change options, write the file, send SIGHUP, wait until it is done; the log tells how it went."""
        self.options |= options or {}
        self.write()
        with contextlib.suppress(BlockingIOError):
            while self._notices.recv(4096):
                pass
        self._running.signal(signal.SIGHUP)
        self._wait_ready(timeout)

    def terminate(self, timeout: float = 10) -> int:
        """End it as an administrator would, with SIGTERM, again after `timeout` s; give the exit status."""
        process = self._running
        process.signal(signal.SIGTERM)
        try:
            return process.wait(timeout)
        except LabError:
            return process.terminate()

    def close(self) -> None:
        """End it at once and remove its directory."""
        if self.process:
            for worker in self.workers() if self.process.running() else []:
                os.kill(worker, signal.SIGKILL)
            self.process.kill()
            self.process = None
        self._notices.close()
        shutil.rmtree(self.directory, ignore_errors=True)


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:  # ended meanwhile
        return ""
