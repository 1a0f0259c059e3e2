"""Doing something inside a network namespace from this process, without leaving one's own.

A namespace belongs to a thread, so the work is done by a thread that enters, works and ends. Sockets made
there stay in that namespace for life, whoever uses them. Called by `lab.host` and `lab.network`; knows
nothing of hosts.
"""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import TypeVar

CLONE_NEWNET = 0x40000000
T = TypeVar("T")
_libc = ctypes.CDLL(None, use_errno=True)


def inside(namespace: Path, work: Callable[[], T]) -> T:
    """Call `work` in a network namespace (a path like /proc/PID/ns/net); give its result or its exception."""
    results: list[T] = []
    errors: list[BaseException] = []

    def enter_and_work() -> None:
        try:
            descriptor = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if _libc.setns(descriptor, CLONE_NEWNET):
                    number = ctypes.get_errno()
                    raise OSError(number, os.strerror(number), str(namespace))
            finally:
                os.close(descriptor)
            results.append(work())
        except BaseException as error:  # raised again in the caller's thread
            errors.append(error)

    thread = Thread(target=enter_and_work, name=f"inside {namespace}")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
