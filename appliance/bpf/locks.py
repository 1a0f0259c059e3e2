"""The locked clients that the gate knows: a mirror of the lock directory beside the one in nft's sets.

The lock mirror of the supervisor writes here, `dropped` is what appliance-ctl reads. The files are the
truth, and nft drops what the gate does not: nothing that fails here may stop anybody, so it is told in the
log, once.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from appliance.bpf import layout
from appliance.bpf.pinned import PINS, open_map
from appliance.config import Address
from appliance.log import Log

_TOLERANCE = 1_000_000_000  # nanoseconds by which an end may seem to differ because clocks are set


def dropped(pins: Path = PINS) -> dict[Address, int]:
    """Give each client that is locked and how many packets of it were dropped. Raises OSError."""
    with open_map(pins, "locks") as found:
        return {layout.unpack_address(key): layout.unpack_lock(value)[1] for key, value in found.items()}


class GateLocks:
    """The gate's locks. Raises OSError where there is no gate.

    The map is opened when this is made, which needs root or the right to the pins; later calls need neither.
    """

    def __init__(self, log: Log, pins: Path = PINS) -> None:
        self._log = log
        self._map = open_map(pins, "locks")
        self._failing = False

    def close(self) -> None:
        """Close the map; the locks stay."""
        self._map.close()

    def add(self, address: Address, deadline: float | None, cause: str = "", /) -> None:  # noqa: ARG002
        """Lock a client until a unix time, None: without end, or give it another end; its counts stay."""
        self._try(lambda: self._add(layout.pack_address(address), layout.deadline_of(deadline)))

    def remove(self, address: Address, /) -> None:
        """Unlock a client, whether or not it is locked."""
        self._try(lambda: self._map.delete(layout.pack_address(address)))

    def replace(self, locks: Mapping[Address, tuple[float | None, str]], /) -> None:
        """Make these, pairs of deadline and cause, all the locks there are; what is counted stays."""
        self._try(lambda: self._replace(locks))

    def _replace(self, locks: Mapping[Address, tuple[float | None, str]]) -> None:
        wanted = {
            layout.pack_address(address): layout.deadline_of(until) for address, (until, _) in locks.items()
        }
        present = dict(self._map.items())
        for key in present.keys() - wanted.keys():
            self._map.delete(key)
        self._map.update_all(
            [
                (key, layout.pack_lock(deadline, present.get(key)))
                for key, deadline in wanted.items()
                if key not in present or not _same(deadline, layout.unpack_lock(present[key])[0])
            ]
        )

    def _add(self, key: bytes, deadline: int) -> None:
        self._map.update(key, layout.pack_lock(deadline, self._map.lookup(key)))

    def _try(self, work: Callable[[], object]) -> None:
        try:
            work()
        except OSError as error:
            if not self._failing:
                self._log.err("LOCK:GATE", why=f"{error.strerror}; locked clients are dropped by nft alone")
            self._failing = True
        else:
            self._failing = False


def _same(deadline: int, other: int) -> bool:
    return deadline == other or (0 not in (deadline, other) and abs(deadline - other) <= _TOLERANCE)
