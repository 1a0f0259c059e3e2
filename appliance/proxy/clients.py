"""What one worker knows of its clients. A client lives in one worker, so nothing here is shared."""

from appliance.proxy.ledger import Ledger
from appliance.proxy.talkers import Talkers


class Clients:
    """How many sessions each client address has open, and each ident behind one.

    `ledger` knows what each may use, `talkers` what each has done lately.
    """

    def __init__(self) -> None:
        self._sessions: dict[tuple[str, str], int] = {}
        self.ledger = Ledger()
        self.talkers = Talkers()

    def sessions(self, address: str, ident: str = "") -> int:
        """Sessions of a client, or of one ident of it."""
        return self._sessions.get((address, ident), 0)

    def opened(self, address: str, ident: str = "") -> None:
        """Count a session in; it counts for the ident besides, once that is known."""
        self._sessions[address, ident] = self.sessions(address, ident) + 1
        if not ident:
            self.talkers.of(address).connections += 1

    def closed(self, address: str, ident: str = "") -> None:
        """Count it out; a client without sessions is forgotten."""
        left = self._sessions[address, ident] - 1
        if left:
            self._sessions[address, ident] = left
        else:
            del self._sessions[address, ident]
