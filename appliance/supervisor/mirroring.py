"""The lock mirror as the supervisor sees it: started, told of reloads, started again when it ends.

`mirror.py` is what runs in that process. It is one of its own because a look at 50,000 locks takes seconds,
in which the supervisor would neither hear signals nor start workers, and because it reads what a client may
have chosen: its rights are those of the gateway's user and to change the kernel's rules, no more.
"""

import asyncio
import contextlib
import json
import socket
import subprocess
import time

from appliance import process
from appliance.config import Config
from appliance.log import Log
from appliance.supervisor import child

_PAUSE = 1.0  # seconds before another start, twice as many after each that ended soon
_LONGEST_PAUSE = 30.0


class Mirroring:
    """A mirror of the locks under `config`, for as long as `run` runs, where there can be one."""

    def __init__(self, config: Config, log: Log, *, stderr: bool) -> None:
        self._order = self._written(config, stderr)
        self._stderr = stderr
        self._log = log
        self._writer: asyncio.StreamWriter | None = None
        self._renewed = False

    @staticmethod
    def _written(config: Config, stderr: bool) -> bytes:
        return json.dumps({"config": config.text(), "stderr": stderr}).encode() + b"\n"

    def reload(self, config: Config) -> None:
        """Give it another configuration."""
        self._order = self._written(config, self._stderr)
        if self._writer and not self._writer.is_closing():
            self._writer.write(self._order)

    def renew(self) -> None:
        """Start it anew, with all its privileges: there is another gate to be opened."""
        self._renewed = True
        if self._writer:
            self._writer.close()

    async def run(self) -> None:
        """Keep a mirror running until this is cancelled, or one ends of its own will: it has told why."""
        if not process.LINUX:
            return  # there is no nftables: pf has a mirror of its own
        if not process.capabilities()[0] >> process.CAP_NET_ADMIN & 1:
            why = "CAP_NET_ADMIN is missing: only the gateway itself turns locked clients away"
            self._log.warning("LOCK:KERNEL", why=why)
            return
        pause, begun = _PAUSE, time.monotonic()
        while (why := await self._live()) or self._renewed:
            if not self._renewed:
                self._log.crit("LOCK:KERNEL", why=why)
                if time.monotonic() - begun > _LONGEST_PAUSE:
                    pause = _PAUSE
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            self._renewed, begun = False, time.monotonic()

    async def _live(self) -> str:
        """See one mirror through its life; give why it ended, empty when that was of its own will."""
        try:
            ours, theirs = socket.socketpair()
            with theirs:
                mirror = child.start("appliance.supervisor.mirror", environment={}, control=theirs.fileno())
        except (OSError, subprocess.SubprocessError) as error:  # no memory, too many files or processes
            return f"the mirror does not start: {error}"
        try:
            reader, self._writer = await asyncio.open_connection(sock=ours)
            self._writer.write(self._order)
            with contextlib.suppress(ConnectionError):
                await reader.read()  # it says nothing: this is its end
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(child.GONE_WITHIN):
                    await process.ended(mirror)  # who ends of its own will takes a moment
        finally:
            if self._writer:
                self._writer.close()
                self._writer = None
            mirror.kill()
            status = mirror.wait()
        return f"the mirror ended with status {status}" if status else ""
