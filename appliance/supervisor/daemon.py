"""The supervisor: the privileged parent that holds the listeners, keeps the workers and answers signals.

The command line calls `run`. Not a byte of SMTP is read here; the parts are next door: checks, listeners,
workers, status.
"""

import asyncio
import os
import resource
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from appliance import process
from appliance.bpf import steering
from appliance.config import OPTIONS, Config, ConfigError, check, load
from appliance.log import Log
from appliance.notify import notify, watchdog_interval
from appliance.privileges import PrivilegeError, identity
from appliance.proxy import lookup
from appliance.proxy.doorway import queue_length
from appliance.proxy.scoreboard import Scoreboard
from appliance.supervisor import checks, status
from appliance.supervisor.background import run_in_background
from appliance.supervisor.control import ControlSocket
from appliance.supervisor.errors import StartError
from appliance.supervisor.fanout import FanOut
from appliance.supervisor.features import version
from appliance.supervisor.http import MetricsServer
from appliance.supervisor.listeners import let_go, open_listeners
from appliance.supervisor.mirroring import Mirroring
from appliance.supervisor.pidfile import PidFile
from appliance.supervisor.requests import Requests
from appliance.supervisor.workers import Workers

_AGAIN = 1.0  # seconds until a chore that met a defect is begun again


def run(config_path: Path, foreground: bool) -> int:
    """Run the gateway with a configuration file; give the exit code, 0 or 1, reasons told on stderr.

    In the background this returns as soon as mail is served, and once more in the process that served it.
    Raises ConfigError when the file cannot be used.
    """
    path = config_path.absolute()
    config = load(path, modes=lookup.modes())
    if foreground:
        return _serve(path, config, None)
    return run_in_background(lambda ready: _serve(path, config, ready))


def _serve(path: Path, config: Config, ready: Callable[[], None] | None) -> int:
    """Serve until told to end; `ready` leaves the terminal, None stays in the foreground."""
    process.set_name("smtp-gated")
    stderr = ready is None and not _stderr_is_journal()
    log = Log.of(config, stderr=stderr)
    try:
        return _start(path, config, log, ready, stderr=stderr)
    except StartError as error:
        log = Log.of(config, stderr=False)
        for line in str(error).splitlines():
            if config.log_target != "stderr":
                log.crit(f"START:FAILED {line}")
            print(f"smtp-gated: {line}", file=sys.stderr)
        return 1


def _start(path: Path, config: Config, log: Log, ready: Callable[[], None] | None, *, stderr: bool) -> int:
    obstacles = checks.obstacles(config)
    if obstacles:
        raise StartError("\n".join(obstacles))
    obstacles, absent = checks.absent_scanners(config)
    if obstacles:
        raise StartError("\n".join(obstacles))
    if ready and config.log_target == "stderr":
        absent.append("log_target stderr: nobody reads it in the background; start with -f, or log elsewhere")
    for line in (*config.warnings, *checks.warnings(config), *absent):
        log.warning(line)
        if ready:
            print(f"smtp-gated: warning: {line}", file=sys.stderr)
    _allow_descriptors(checks.descriptors(config))
    # From here on smtp-gated -r finds this process: what it sends waits until there are handlers for it.
    signal.pthread_sigmask(signal.SIG_BLOCK, process.SIGNALS)
    pidfile = PidFile(config.pidfile)
    try:
        asyncio.run(Supervisor(path, config, log, stderr=stderr).run(ready or (lambda: None)))
    finally:
        pidfile.remove()
    return 0


def _allow_descriptors(needed: int) -> None:
    """Let this process, and so its workers, open that many files, or as many as the hard limit has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _stderr_is_journal() -> bool:
    """Whether stderr leads to systemd's journal, which gets every line from syslog already."""
    found = os.fstat(2)
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


async def kept_up(chore: Callable[[], Awaitable[None]], log: Log) -> None:
    """Do something as long as it goes on; when a defect ends it, tell, and begin again."""
    while True:
        try:
            await chore()
            return
        except Exception as error:
            log.bug("a chore of the supervisor", error)
            await asyncio.sleep(_AGAIN)


class Supervisor:
    """A gateway from its start to its end. Raises StartError when it cannot listen."""

    def __init__(self, path: Path, config: Config, log: Log, *, stderr: bool) -> None:
        self.path = path
        self.config = config
        self._log = log
        self._modes = lookup.modes()  # to look through all packages takes longer than all else in a reload
        count = config.workers or (len(os.sched_getaffinity(0)) if steering.AVAILABLE else 1)
        self._listeners = open_listeners(config, count)
        self.board = Scoreboard.create(count)
        self.workers = Workers(config, self._listeners, self.board, log, stderr=stderr)
        self._mirroring = Mirroring(config, log, stderr=stderr)
        self._fanout = FanOut(config, self.workers, log, self._mirroring.renew)
        self.started = self.reloaded = time.time()
        self._since = time.monotonic()
        self.ending = False
        self._ready = False
        self._status_wanted = asyncio.Event()
        requests = Requests(self, log)
        self._doors: list[ControlSocket | MetricsServer] = []
        if config.control_socket:
            self._doors.append(ControlSocket(config.control_socket, requests.answer, log))
        if config.metrics_listen:
            self._doors.append(MetricsServer(config.metrics_listen, requests.metrics, log))

    async def run(self, ready: Callable[[], None]) -> None:
        """Serve; `ready` is called when every worker does. Returns when all have ended. Raises StartError."""
        asyncio.get_running_loop().set_exception_handler(self._log.unhandled)
        self._handle_signals()
        await self.workers.start()
        if not self.ending:
            self._log.notice("START", version=version(), workers=len(self._listeners), mode=self.config.mode)
            for door in self._doors:
                await door.open()
            ready()
            self._ready = True
            notify("READY=1")
        chores = [
            asyncio.create_task(kept_up(chore, self._log))
            for chore in (self._write_statuses, self._watchdog, self._mirroring.run, self._fanout.run)
        ]
        await self.workers.ended()
        for chore in chores:
            chore.cancel()
        for door in self._doors:
            door.close()
        self._log.notice("STOP")

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT):
            loop.add_signal_handler(number, self.end)
        loop.add_signal_handler(signal.SIGHUP, self.reload)
        loop.add_signal_handler(signal.SIGUSR1, self._status_wanted.set)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, process.SIGNALS)

    def end(self, *, for_good: bool = False) -> None:
        """Accept no more and end with the last session; told twice, end all sessions at once.

        Unless it is `for_good`, systemd keeps the listeners, in case this is a restart: clients wait in them.
        """
        if self.ending:
            self._log.notice("STOP: all sessions are ended")
            self.workers.stop()
            return
        self.ending = True
        self._log.notice("STOP: no more connections are accepted, waiting for the sessions to end")
        notify("STOPPING=1")
        self.workers.drain()
        if for_good:
            let_go(self.config, len(self._listeners))
        for listener in self._listeners:
            listener.close()

    def reload(self) -> tuple[list[str], list[str]]:
        """Read the configuration file again; give problems, for which nothing changes, and warnings."""
        if self.ending:
            why = "the gateway is ending"
            self._log.err(f"RELOAD:REFUSED {why}")
            return [why], []
        if self._ready:
            notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            problems, warnings = self._take_over(load(self.path, modes=self._modes))
        except ConfigError as error:
            problems, warnings = [str(problem) for problem in error.problems], []
        for line in problems:
            self._log.err(f"RELOAD:REFUSED {line}")
        for line in warnings:
            self._log.warning(line)
        if not problems:
            self._log.notice("RELOAD:DONE")
        if self._ready:
            notify("READY=1")
        return problems, warnings

    def _take_over(self, fresh: Config) -> tuple[list[str], list[str]]:
        """Let a new configuration take effect, except for what only a restart can change."""
        late = [name for name, option in OPTIONS.items() if option.restart and self._differs(fresh, name)]
        values = {name: getattr(self.config if name in late else fresh, name) for name in OPTIONS}
        effective = Config(values, fresh.warnings)
        # The file is right by itself, but not all of it takes effect: what it leaves out may be needed still.
        if errors := list(check.errors(effective, self._modes, complete=True)):
            waiting = f"a restart is needed, until which the file does not fit these: {' '.join(late)}"
            return [*(f"option {name}: {why}" for name, why in errors), waiting], []
        if obstacles := checks.obstacles(effective):
            return obstacles, []
        self.config = effective
        for listener in self._listeners:
            listener.listen(queue_length(effective))
        self.workers.reload(effective)
        self._mirroring.reload(effective)
        self._fanout.reload(effective)
        self.reloaded = time.time()
        warnings = [*effective.warnings, *checks.warnings(effective)]
        if late:
            warnings.append(f"RELOAD: a restart is needed before these take effect: {' '.join(late)}")
        return [], warnings

    def _differs(self, fresh: Config, name: str) -> bool:
        return bool(getattr(fresh, name) != getattr(self.config, name))

    async def _write_statuses(self) -> None:
        while True:
            await self._status_wanted.wait()
            self._status_wanted.clear()
            await self._write_status()

    async def _write_status(self) -> None:
        forms = self.config.statefile_type
        facts = status.Facts(
            version=version(),
            started=self.started,
            reloaded=self.reloaded,
            sessions=await self.workers.sessions() if "slots" in forms else [],
            now=time.time(),
            uptime=time.monotonic() - self._since,
            crashed=self.workers.crashed,
            bugs=self.workers.bugs,
            board=self.board,
        )
        try:
            # As it was when the whole daemon was set_user: those of its group may read it.
            who = identity(self.config.set_user, self.config.set_group)
            owner = (who.uid, who.gid) if os.geteuid() == 0 else None
            text = status.render(forms, facts)
            status.write(self.config.statefile, self.config.statefile_perm, text, owner)
        except OSError as error:
            self._log.err("STATUS:FAILED", file=self.config.statefile, why=error.strerror)
        except PrivilegeError as error:
            self._log.err("STATUS:FAILED", file=self.config.statefile, why=error)

    async def _watchdog(self) -> None:
        interval = watchdog_interval()
        while interval:
            notify("WATCHDOG=1")
            await asyncio.sleep(interval)
