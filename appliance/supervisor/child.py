"""How the supervisor's own programs begin and end: the workers and the lock mirror."""

import os
import subprocess
import sys

from appliance import process

GONE_WITHIN = 5.0  # seconds between the end of the conversation and the end of the process
_NOT_INHERITED = {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"}  # systemd hears the supervisor alone


def start(
    module: str, *options: str, environment: dict[str, str], **descriptors: int
) -> subprocess.Popen[bytes]:
    """Start a program that dies with this process and inherits `descriptors`, each named by an option.

    What `environment` says, ours may say better. Raises OSError, SubprocessError.
    """
    options += tuple(word for name, number in descriptors.items() for word in (f"--{name}", str(number)))
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module, *options],
        stdin=subprocess.DEVNULL,
        pass_fds=[*descriptors.values()],
        start_new_session=True,  # ^C in the terminal is for the supervisor
        preexec_fn=process.begin_as_child,  # safe: this process has no threads
        env=environment | {name: text for name, text in os.environ.items() if name not in _NOT_INHERITED},
    )
