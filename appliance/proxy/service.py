"""A configuration put to use: what all sessions that began under it share.

The worker makes one at its start and at each reload; a session keeps the one it began with. Counters and
clients outlive it.
"""

import os
import time
from pathlib import Path

from appliance import process
from appliance.config import Config
from appliance.log import Log
from appliance.proxy import action, lookup, scanners
from appliance.proxy.action import ActionScripts
from appliance.proxy.clients import Clients
from appliance.proxy.locks import LockDirectory
from appliance.proxy.resolver import Resolver
from appliance.proxy.scoreboard import Scoreboard

_LOAD_AGE = 1.0  # seconds for which a load average is believed


class Service:
    """Everything a session needs that its configuration decides."""

    def __init__(
        self,
        config: Config,
        log: Log,
        board: Scoreboard,
        clients: Clients,
        scripts: ActionScripts | None = None,
    ) -> None:
        self.config = config
        self.log = log
        self.board = board
        self.clients = clients
        self.lookup = lookup.make(config)
        self.outgoing_addr = "" if config.outgoing_addr.is_unspecified else str(config.outgoing_addr)
        self.resolver = Resolver(config.dns_servers)
        self.virus, self.spam = scanners.configured(config)
        self.spool_limit = max(
            config.scan_max_size if self.virus else 0, config.spam_max_size if self.spam else 0
        )
        self.spool_named = any(scanner.needs_path for scanner in (self.virus, self.spam) if scanner)
        self.locks = LockDirectory.of(config, config.lock_path, os.geteuid(), self._expired)
        self.scripts = scripts or ActionScripts(log)
        self.script_limits = action.limits(config)
        self._load = (0.0, 0.0)

    def load(self) -> float:
        """The load average of the last minute."""
        now = time.monotonic()
        if now - self._load[0] > _LOAD_AGE:
            self._load = (now, process.load_average())
        return self._load[1]

    def is_own(self, destination: lookup.Endpoint) -> bool:
        """Tell whether a destination is the gateway's own listener."""
        return destination.port == self.config.port and process.owns(destination.address)

    def _expired(self, path: Path) -> None:
        self.log.notice("LOCK:EXPIRED", lock=path)
