"""Fan-out: clients that address more mail servers than an honest one would, as the gate reports them.

The supervisor runs this beside its workers. The gate counts, in the kernel; whoever it reports is handed to
the worker that the client belongs to, which locks it as for any other event. Also the gate is told here what
a new configuration says, and whether there is one at all: it comes and goes by appliance-ctl.
"""

import asyncio
import contextlib
import errno
from collections.abc import Callable

from appliance.bpf.pinned import PINS, Gate
from appliance.config import Address, Config
from appliance.log import Log
from appliance.supervisor.workers import Workers

_PAUSE = 0.25  # seconds between two looks at the gate's reports
_MOST_WAITING = 1024  # clients whose worker is away


class FanOut:
    """The watch over the gate, for as long as `run` runs. `changed` is called when it is another gate."""

    def __init__(self, config: Config, workers: Workers, log: Log, changed: Callable[[], None]) -> None:
        self._config = config
        self._workers = workers
        self._log = log
        self._changed = changed
        self._gate: Gate | None = None
        self._blind = False
        self._found: dict[Address, int] = {}

    def reload(self, config: Config) -> None:
        """Tell the gate what a new configuration says."""
        self._config = config
        self._blind = False
        try:
            if self._gate:
                self._gate.configure(config)
        except OSError:
            self._leave()  # looked for anew, and what is wrong told

    async def run(self) -> None:
        """Watch until this is cancelled."""
        first = True
        while True:
            if self._gate and not self._gate.stands():
                self._leave()
            if self._gate is None and self._meet() and not first:
                self._changed()
            first = False
            self._look()
            await asyncio.sleep(_PAUSE)

    def _leave(self) -> None:
        if self._gate:
            self._gate.close()
            self._gate = None

    def _meet(self) -> bool:
        """Look for a gate and tell it what to do."""
        gate = None
        try:
            gate = Gate()
            if not gate.is_current():  # or it is not finished
                raise OSError(errno.ESTALE, "the gate is of another version")
            gate.configure(self._config)
        except OSError as error:
            if gate:
                gate.close()
            self._complain(error)
            return False
        self._gate, self._blind = gate, False
        return True

    def _complain(self, error: OSError) -> None:
        """Say once that nobody counts servers although somebody should."""
        if not self._blind and "fanout" in self._config.lock_on:
            why = f"{error.strerror}: {PINS}; appliance-ctl up makes the gate, or says what it lacks"
            self._log.warning("FANOUT:BLIND", why=why)
        self._blind = True

    def _look(self) -> None:
        """Hand on who has been reported."""
        if self._gate and len(self._found) < _MOST_WAITING:
            with contextlib.suppress(OSError):
                self._found.update(self._gate.suspects())
        for address, servers in [*self._found.items()]:
            worker = self._workers.owner(address)
            if worker:
                worker.tell("fanout", address=str(address), servers=servers)
                del self._found[address]
