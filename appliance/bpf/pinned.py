"""The gate at work, by its pinned maps: what it is told, and what it has counted and found.

gate.py makes the maps; the supervisor and appliance-ctl use them through this. Where there is no gate, making
one of these raises OSError, and nothing else here is lost by that. Locks are in locks.py.
"""

import errno
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Self

from appliance.bpf import layout
from appliance.bpf.layout import Client, Settings
from appliance.bpf.maps import Map
from appliance.config import Address, Config, Network

PINS: Final = Path("/sys/fs/bpf/smtp-gated")
_FIRST = bytes(4)  # key of the only element of an array
_YES = (1).to_bytes(8, "little")
_AT_ONCE = 256  # suspects that are taken off the queue with one look


def open_map(pins: Path, name: str) -> Map:
    """Open a map of the gate. Raises OSError, ESTALE if it is that of another version."""
    found = Map.open(pins / name)
    if found.value_size != layout.MAPS[name]:
        found.close()
        raise OSError(errno.ESTALE, "the gate is of another version")
    return found


class Gate:
    """The gate pinned in the directory `pins`, as a context manager. Raises OSError when there is none."""

    def __init__(self, pins: Path = PINS) -> None:
        self._path = pins / "configured"
        self._inode = self._path.stat().st_ino
        with ExitStack() as opened:
            names = ("configured", "clients", "trusted_clients", "trusted_servers", "suspects")
            maps = [opened.enter_context(open_map(pins, name)) for name in names]
            self._configured, self._clients, self._trusted_clients, self._trusted_servers, self._suspects = (
                maps
            )
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the maps; the gate stays."""
        self._opened.close()

    def stands(self) -> bool:
        """Tell whether this is still the gate that is pinned there."""
        try:
            return self._path.stat().st_ino == self._inode
        except OSError:
            return False

    def is_current(self) -> bool:
        """Tell whether it was compiled from the source that is here now."""
        return layout.unpack_source(self._settings())[0] == layout.fingerprint()

    def _settings(self) -> bytes:
        return self._configured.lookup(_FIRST) or bytes(self._configured.value_size)

    def configure(self, config: Config, *, fresh: bool = False) -> None:
        """Tell it all that a configuration says but the interfaces. A `fresh` one is given its identity."""
        source, seed = layout.unpack_source(self._settings())
        if fresh:
            source, seed = layout.fingerprint(), layout.seed()
        self._configured.update(_FIRST, settings(config).pack(source, seed))
        _fill(self._trusted_clients, config.trusted_clients)
        _fill(self._trusted_servers, config.trusted_servers)

    def is_configured(self, config: Config) -> bool:
        """Tell whether it was told just that."""
        found = self._settings()
        return (
            found == settings(config).pack(*layout.unpack_source(found))
            and set(self._trusted_clients.keys()) == layout.keys(config.trusted_clients)
            and set(self._trusted_servers.keys()) == layout.keys(config.trusted_servers)
        )

    def suspects(self) -> Iterator[tuple[Address, int]]:
        """Take the reports that have come in: clients with too many servers, and with about how many."""
        for _ in range(_AT_ONCE):
            found = self._suspects.pop()
            if found is None:
                return
            yield layout.unpack_suspect(found)

    def clients(self, period: int) -> Iterator[Client]:
        """Give what is counted of each client, in no order; `period` is fanout_period in seconds."""
        for key, value in self._clients.items():
            yield layout.unpack_client(key, value, period)

    def client(self, address: Address, period: int) -> Client | None:
        """Give what is counted of one client, None if it has not been seen lately."""
        key = layout.pack_address(address)
        value = self._clients.lookup(key)
        return layout.unpack_client(key, value, period) if value else None


def settings(config: Config) -> Settings:
    """Give what a configuration means for the gate."""
    watched = "fanout" in config.lock_on and config.lock_duration != 0
    return Settings(
        frozenset(config.intercept_ports),
        config.lock_talk,
        config.fanout_limit if watched else 0,
        config.fanout_period,
    )


def _fill(trie: Map, networks: Iterable[Network]) -> None:
    wanted, present = layout.keys(networks), set(trie.keys())
    for key in wanted - present:
        trie.update(key, _YES)
    for key in present - wanted:
        trie.delete(key)
