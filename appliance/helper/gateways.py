"""Which gateways may ask, and how often: whom the helper answers at all. Used by `service.py`."""

import time
from collections.abc import Sequence

from appliance.config.network import Network
from appliance.log import Log
from appliance.origin import Address


class Gateways:
    """Networks of gateways, each allowed `rate` questions a second, with as many at once."""

    def __init__(self, networks: Sequence[Network], rate: int) -> None:
        self._rate = float(rate)
        self._left = {network: (self._rate, time.monotonic()) for network in networks}

    def find(self, address: Address) -> Network | None:
        """Give the network that an address is allowed by."""
        return next((network for network in self._left if address in network), None)

    def spend(self, network: Network) -> bool:
        """Take one question off what a network has left; false when there is none."""
        left, since = self._left[network]
        now = time.monotonic()
        left = min(self._rate, left + (now - since) * self._rate)
        self._left[network] = (left - 1 if left >= 1 else left, now)
        return left >= 1


class Complaints:
    """Warnings that strangers can cause: one a second of each kind, with how many there were."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._kinds: dict[str, tuple[float, int]] = {}

    def warn(self, kind: str, source: Address) -> None:
        """Log the kind (words that begin the line) and the last source, unless it was just done."""
        since, count = self._kinds.get(kind, (float("-inf"), 0))
        now, count = time.monotonic(), count + 1
        if now - since >= 1:
            self._log.warning(kind, src=source, times=count)
            since, count = now, 0
        self._kinds[kind] = (since, count)
