"""How the gateway leaves the terminal: the command returns once mail is served, or with the reason."""

import os
import sys
from collections.abc import Callable


def run_in_background(serve: Callable[[Callable[[], None]], int]) -> int:
    """Run `serve(ready)` in a process of its own session; both the caller and that process return from here.

    The caller gets 0 when `ready` was called, or else what `serve` returned, whose reasons have gone to the
    stderr both share until then.
    """
    reading, writing = os.pipe()
    if child := os.fork():
        os.close(writing)
        os.waitpid(child, 0)
        with open(reading, "rb") as pipe:  # noqa: PTH123 - a descriptor, not a path
            told = pipe.read(1)
        return told[0] if told else 1
    os.close(reading)
    os.setsid()
    if os.fork():
        os._exit(0)  # the process that is left leads no session, so no terminal can become its own
    os.chdir("/")
    os.umask(0o022)
    # Workers inherit 0 to 2, so nothing but this process, and it only so far, may hold the terminal.
    terminal = sys.stderr = open(os.dup(2), "w", buffering=1)  # noqa: PTH123, SIM115
    _leave_stdio()
    answered = False

    def ready() -> None:
        nonlocal answered
        sys.stderr = sys.__stderr__
        terminal.close()
        answered = os.write(writing, b"\0") == 1

    code = 1
    try:
        code = serve(ready)
    finally:
        if not answered:
            os.write(writing, bytes([code]))
    return code


def _leave_stdio() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)
