"""What is known of one client's connection: the facts that admission, checks, events and the log share.

The connection fills it in as it learns more; the others read it. No behaviour lives here.
"""

import time

from appliance.proxy.locks import Lock
from appliance.proxy.lookup import Endpoint, Route
from appliance.proxy.quota import Record
from appliance.proxy.service import Service
from appliance.proxy.session import Session


class Visit:
    """One connection from `client`, accepted at `local`, under the configuration of `service`.

    `since` is its unix time. `route` is there once the destination is known, `source`, the address that the
    server sees, once there is a connection to it, `session` once there is somebody to talk to, `record` where
    rate limits are on.
    """

    def __init__(self, service: Service, client: Endpoint, local: Endpoint) -> None:
        self.service = service
        self.client = client
        self.local = local
        self.since = time.time()
        self.route: Route | None = None
        self.session: Session | None = None
        self.source = ""
        self.record: Record | None = None

    def hold(self, record: Record) -> None:
        """Have a record of what the client has used, until `release`."""
        record.sessions += 1
        self.record = record

    def release(self) -> None:
        """Let go of the record."""
        if self.record:
            self.record.sessions -= 1
            self.record = None

    @property
    def target(self) -> Endpoint | None:
        """The mail server, once it is known."""
        return self.route.destination if self.route else None

    @property
    def ident(self) -> str:
        """Who is behind the client's address, where the mode can tell."""
        return self.route.ident if self.route else ""

    @property
    def auth(self) -> int:
        """The session's authentication bits."""
        return self.session.auth if self.session else 0

    def who(self) -> dict[str, object]:
        """The fields that every log line about this connection carries."""
        return {"src": self.client, "ident": self.ident}

    def locked(self) -> Lock | None:
        """The lock in force on this client, or on who is behind its address."""
        find, address = self.service.locks.find, self.client.address
        return find(address) or (find(address, self.ident) if self.ident else None)
