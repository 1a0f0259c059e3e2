"""The administrator's action script: started once for an event, told everything, never waited for.

`events.py` calls `ActionScripts.run`. Whether an event deserves the script is decided there.
The script runs as the gateway's user in a process session of its own, so nothing it does reaches the
gateway; its exit status is ignored.
"""

import asyncio
import contextlib
import os
import resource
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType

from appliance.config import Config
from appliance.log import Log
from appliance.process import ended

_RUNNING = 32  # scripts at once
_WAITING = 256  # events that wait for one of them to end; more are dropped
_TIMEOUT = 60.0  # seconds until a script that hangs is killed with its process group
_VALUE_LENGTH = 512
# With threads, no code of its own had better run between fork and exec; not every system has another way.
_LIMITS_OTHERS = hasattr(resource, "prlimit")
_NULL = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)  # here already, because a chroot may not have it
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What the script is told: each field is the environment variable of the same name in capitals.

    `found` names the event, as VIRUS or MAX_HOST. `unixtime` is the start of the connection; TIME is the
    same for people. `auth` is the sum of 1 offered, 2 accepted, 4 rejected; `size` and `lock_duration` are
    bytes and seconds.
    """

    proxy_name: str
    found: str
    virus_name: str = ""
    spam_score: float = 0.0
    source_ip: str
    source_port: int
    target_ip: str = ""
    target_port: int = 0
    local_ip: str
    local_port: int
    ident: str = ""
    ident_count: int = 0
    helo: str = ""
    mail_from: str = ""
    rcpts_total: int = 0
    size: int = 0
    transaction: int = 0
    auth: int = 0
    spool_name: str = ""
    lock_file: str = ""
    lock_duration: int = 0
    unixtime: int

    def environment(self) -> dict[str, str]:
        """Return all variables, always the same set, free of control characters and of bounded length."""
        values = {name.upper(): _clean(str(value)) for name, value in asdict(self).items()}
        return {
            **values,
            "SPAM_SCORE": f"{self.spam_score:.3f}",
            "TIME": time.ctime(self.unixtime),
            "PATH": _PATH,
        }


def _clean(value: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in value[:_VALUE_LENGTH])


Limits = Mapping[int, int]
"""What setrlimit(2) allows a script, by kind."""

NO_LIMITS: Limits = MappingProxyType({})


def limits(config: Config) -> Limits:
    """Put together the options limit_*; some numbers set no limit."""
    found = {
        "RLIMIT_AS": config.limit_virt_size,  # which OpenBSD does not have
        "RLIMIT_DATA": config.limit_data_size,
        "RLIMIT_FSIZE": config.limit_fsize,
    }
    above_zero = {
        getattr(resource, name): most for name, most in found.items() if most > 0 and hasattr(resource, name)
    }
    core = config.limit_core_size
    return above_zero | ({resource.RLIMIT_CORE: core} if core >= 0 else {})


class ActionScripts:
    """Runs the scripts of a worker: at most 32 at once, each for at most `timeout` seconds.

    The worker has one of these for all its configurations, so that reloads do not multiply the bounds.
    """

    def __init__(self, log: Log, timeout: float = _TIMEOUT) -> None:
        self._log = log
        self._timeout = timeout
        self._turns = asyncio.Semaphore(_RUNNING)
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: list[Event] = []  # those without a turn so far

    def run(self, script: Path, event: Event, limits: Limits = NO_LIMITS) -> None:
        """Start `script` for an event when its turn comes, within limits.

        Never waits; a flood is dropped and logged.
        """
        if len(self._tasks) >= _RUNNING + _WAITING:
            self._dropped(event, "too many scripts are running")
            return
        self._waiting.append(event)
        task = asyncio.get_running_loop().create_task(self._run(script, event, limits))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def finish(self, within: float) -> None:
        """The worker ends: give scripts `within` seconds to start and to end.

        Those that still run go on by themselves, those that still wait are dropped and logged.
        """
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=within)
        for event in self._waiting:
            self._dropped(event, "the gateway ends")

    def _dropped(self, event: Event, why: str) -> None:
        self._log.warning("ACTION:DROPPED", found=event.found, src=event.source_ip, why=why)

    async def _run(self, script: Path, event: Event, limits: Limits) -> None:
        environment = event.environment()
        arguments = (
            environment["FOUND"],
            environment["SOURCE_IP"],
            environment["IDENT"] or "-",
            environment["TARGET_IP"],
        )
        async with self._turns:
            self._waiting.remove(event)
            thread = ThreadPoolExecutor(1)  # its own: in a common one it might start when it counts as failed
            try:
                starting = asyncio.get_running_loop().run_in_executor(
                    thread, _start, script, arguments, environment, limits
                )
                await self._watch(await starting, script, event)
            except (OSError, ValueError, RuntimeError) as error:  # the last: there can be no more threads
                self._log.err("ACTION:FAILED", script=script, why=error)
            finally:
                thread.shutdown(wait=False)

    async def _watch(self, process: subprocess.Popen[bytes], script: Path, event: Event) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                await ended(process)
        except TimeoutError:
            self._log.warning("ACTION:TIMEOUT", script=script, found=event.found, src=event.source_ip)
            with contextlib.suppress(PermissionError):  # it became another user, as by sudo
                os.killpg(process.pid, signal.SIGKILL)  # not reaped yet, so the number is still its own
            await ended(process)


def _start(
    script: Path, arguments: Sequence[str], environment: Mapping[str, str], limits: Limits
) -> subprocess.Popen[bytes]:
    """Start the script; in a thread, because the process waits for the file to be read.

    Not by asyncio: uvloop lets its children inherit descriptors, among them the listener and the supervisor's
    socket. What clients said is in UTF-8, whatever the locale: one such as pl_PL has not all letters.
    """
    process = subprocess.Popen(
        [script, *map(str.encode, arguments)],
        env={name.encode(): value.encode() for name, value in environment.items()},
        cwd="/",
        stdin=_NULL,
        stdout=_NULL,
        stderr=_NULL,
        start_new_session=True,
        preexec_fn=None if _LIMITS_OTHERS else lambda: _limit(0, limits),
    )
    if _LIMITS_OTHERS:
        _limit(process.pid, limits)
    return process


def _limit(pid: int, limits: Limits) -> None:
    """Limit a process: another one where the system can do that, else, with 0, this one."""
    for kind, most in limits.items():
        hard = (resource.prlimit(pid, kind) if pid else resource.getrlimit(kind))[1]
        lower = most if hard == resource.RLIM_INFINITY else min(most, hard)
        if pid:
            resource.prlimit(pid, kind, (lower, lower))
        else:
            resource.setrlimit(kind, (lower, lower))
