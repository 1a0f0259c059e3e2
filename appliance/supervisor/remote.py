"""What the command line does to a gateway that runs already: it sends signals, and reads the status file.

Called by `cli.py`. The process is found by the lock on the pid file, so no other is ever signalled. Each
function tells what went wrong on stderr and gives the exit code, 0 or 1.
"""

import os
import shutil
import signal
import sys
import time
from pathlib import Path

from appliance.config import Config
from appliance.supervisor import pidfile

_FRESH_WITHIN = 5.0  # seconds; the supervisor itself waits two for a worker
_GLANCE = 0.02


def terminate(config: Config) -> int:
    """End the gateway: it accepts no more, and ends with its last session. Told twice, it ends at once."""
    return _signal(config, signal.SIGTERM)


def reload(config: Config) -> int:
    """Have the gateway read its configuration file again; its log tells what came of it."""
    return _signal(config, signal.SIGHUP)


def status(config: Config) -> int:
    """Have the gateway write its status and print it."""
    return _fresh_status(config) or _print(config.statefile)


def status_file(config: Config) -> int:
    """Have the gateway write its status and print the name of the file."""
    code = _fresh_status(config)
    if not code:
        print(config.statefile)
    return code


def _signal(config: Config, number: signal.Signals) -> int:
    try:
        pid = pidfile.holder(config.pidfile)
        if pid is None:
            return _fail(f"no gateway is running with pidfile {config.pidfile}")
        if pid <= 0:  # the kernel has no number for it here; to kill(2) these would be whole groups
            return _fail(f"the gateway of pidfile {config.pidfile} is in another container; signal it there")
        os.kill(pid, number)
    except PermissionError:
        return _fail(f"the gateway of pidfile {config.pidfile} belongs to another user; try as root")
    except OSError as error:
        return _fail(f"pidfile {config.pidfile}: {error.strerror}")
    return 0


def _fresh_status(config: Config) -> int:
    before = _state(config.statefile)
    if code := _signal(config, signal.SIGUSR1):
        return code
    deadline = time.monotonic() + _FRESH_WITHIN
    while _state(config.statefile) in (before, None):
        if time.monotonic() > deadline:
            return _fail(
                f"statefile {config.statefile} was not written within {_FRESH_WITHIN:.0f} s; see the log"
            )
        time.sleep(_GLANCE)
    return 0


def _state(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _print(path: Path) -> int:
    try:
        with path.open(encoding="ascii", errors="replace") as file:
            shutil.copyfileobj(file, sys.stdout)
    except OSError as error:
        return _fail(f"statefile {path}: {error.strerror}")
    return 0


def _fail(words: str) -> int:
    print(f"smtp-gated: {words}", file=sys.stderr)
    return 1
