"""Who is behind a connection: names for clients, by their address, a file, or an administrator's program.

A name goes to the gateway, into its log, the header of each mail, and the names of lock files. Where nothing
better is known, it is the client's address: mail never waits for a name. Used by `service.py`.
"""

import asyncio
import os
import re
import select
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_network
from pathlib import Path

from appliance.log import Log
from appliance.origin import Address, Flow

NAME_MAX = 32  # characters; what a datagram for IPv4 has room for
FILE_MAX = 16 << 20  # bytes of a file of names
COMMANDS = 8  # programs that run at once; more wait
COMMAND_TIME = 2.0  # seconds for a program, its waiting included
_GRACE = 0.5  # seconds for a program that is killed to be gone
_LINE_MAX = 256  # bytes that a program prints
_NAME = re.compile(rf"[A-Za-z0-9._@+=:/-]{{1,{NAME_MAX}}}")
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


class IdentError(Exception):
    """A file of names that cannot be used; the text says where and why."""


class Idents(ABC):
    """Names the client of a connection."""

    @abstractmethod
    async def name(self, connection: Flow) -> str:
        """Give the name for a connection as its client sees it; never fails."""

    def reload(self) -> None:  # noqa: B027 - most read no file
        """Read the file again, if there is one. Raises IdentError and keeps what was read before."""


class Addresses(Idents):
    """The client's address is its name."""

    async def name(self, connection: Flow) -> str:
        """Write the address; IPv6 without colons where it would be too long."""
        written = str(connection.source)
        return written if len(written) <= NAME_MAX else connection.source.packed.hex()


class Names(Addresses):
    """A file of lines `ADDRESS NAME` or `NETWORK NAME`; the longest prefix counts. Comments begin with #."""

    def __init__(self, path: Path) -> None:
        """Read the file; raises IdentError."""
        self._path = path
        self.reload()

    def reload(self) -> None:
        """Read the file again, all of it or nothing."""
        names: dict[tuple[int, int], dict[int, str]] = {}
        try:
            with self._path.open("rb") as file:
                raw = file.read(FILE_MAX + 1)
        except OSError as error:
            raise IdentError(f"{self._path}: {error.strerror}") from None
        if len(raw) > FILE_MAX:
            raise IdentError(f"{self._path}: larger than {FILE_MAX} bytes")
        for number, line in enumerate(raw.decode("utf-8", "replace").splitlines(), 1):
            if words := line.partition("#")[0].split():
                try:
                    network, name = words
                    parsed = ip_network(network)
                except ValueError:
                    raise IdentError(f"{self._path}:{number}: not an address or network and a name") from None
                if not _NAME.fullmatch(name):
                    allowed = f"up to {NAME_MAX} letters, digits and . _ @ + = : / -"
                    raise IdentError(f"{self._path}:{number}: a name has {allowed}")
                prefix = (parsed.version, parsed.prefixlen)
                names.setdefault(prefix, {})[int(parsed.network_address)] = name
        self._names = sorted(names.items(), key=lambda item: -item[0][1])

    async def name(self, connection: Flow) -> str:
        """Find the longest prefix that has a name, or take the address."""
        return self._find(connection.source) or await super().name(connection)

    def _find(self, client: Address) -> str | None:
        for (version, length), names in self._names:
            if version == client.version:
                host_bits = client.max_prefixlen - length
                if name := names.get(int(client) >> host_bits << host_bits):
                    return name
        return None


class Command(Addresses):
    """A program that is run with both addresses and ports of a connection, and prints a name."""

    def __init__(self, program: Path, log: Log) -> None:
        self._program = program
        self._log = log
        self._threads = ThreadPoolExecutor(COMMANDS, "command")

    async def name(self, connection: Flow) -> str:
        """Run the program, or take the address if it fails."""
        deadline = time.monotonic() + COMMAND_TIME
        run = asyncio.get_running_loop().run_in_executor
        try:
            # A thread may hang where nothing can be killed, as in a program on a disk that does not answer.
            async with asyncio.timeout(COMMAND_TIME + _GRACE):
                return await run(self._threads, self._run, connection, deadline)
        except (subprocess.TimeoutExpired, TimeoutError):
            why = f"no name within {COMMAND_TIME:g} s"
        except (OSError, ValueError, RuntimeError) as error:  # the last: there can be no more threads
            why = str(error)
        self._log.warning("IDENT:FAILED", client=connection.source, command=self._program, why=why)
        return await super().name(connection)

    def _run(self, connection: Flow, deadline: float) -> str:
        """Give the first line that the program prints, in a thread; it is killed if it has not ended then."""
        if time.monotonic() > deadline:  # there were too many others
            raise TimeoutError
        ends = (
            connection.source,
            connection.source_port,
            connection.destination,
            connection.destination_port,
        )
        with subprocess.Popen(
            [str(self._program), *map(str, ends)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_ENVIRONMENT,
            cwd="/",
            start_new_session=True,
        ) as process:
            try:
                assert process.stdout
                line = _first_line(process.stdout.fileno(), deadline)
                status = process.wait(max(deadline - time.monotonic(), 0))
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        name = line.decode("ascii", "replace").strip()
        if status or not _NAME.fullmatch(name):
            raise ValueError(f"exit status {status}, printed {name[:NAME_MAX]!r}")
        return name


def _first_line(pipe: int, deadline: float) -> bytes:
    """Read a line, or what there is of it at the end of file. Raises TimeoutError, ValueError if too long."""
    read, ready = b"", select.poll()
    ready.register(pipe)
    while b"\n" not in read:
        if not ready.poll(max(deadline - time.monotonic(), 0) * 1000):
            raise TimeoutError
        piece = os.read(pipe, _LINE_MAX)
        if not piece:
            return read
        read += piece
        if len(read) > _LINE_MAX:
            raise ValueError(f"more than {_LINE_MAX} bytes printed")
    return read.partition(b"\n")[0]
