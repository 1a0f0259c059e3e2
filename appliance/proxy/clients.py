"""What one worker knows of its clients. A client lives in one worker, so nothing here is shared."""

from appliance.proxy.ledger import Ledger


class Clients:
    """How many sessions each client address has open.

    `ledger` knows what each may use.
    """

    def __init__(self) -> None:
        self._sessions: dict[str, int] = {}
        self.ledger = Ledger()

    def sessions(self, address: str) -> int:
        """Sessions of a client."""
        return self._sessions.get(address, 0)

    def opened(self, address: str) -> None:
        """Count a session in."""
        self._sessions[address] = self._sessions.get(address, 0) + 1

    def closed(self, address: str) -> None:
        """Count it out; a client without sessions is forgotten."""
        left = self._sessions[address] - 1
        if left:
            self._sessions[address] = left
        else:
            del self._sessions[address]
