"""The names that the gateway uses in the kernel, shared by all who write there or read from there.

Constants only. Administrators type these names, so they stay as they are.
"""

from typing import Final

FAMILY: Final = "inet"
TABLE: Final = "appliance"

# Where clients' connections come from, and the ports that are taken.
LAN: Final = "lan_interfaces"
PORTS: Final = "intercept_ports"

# Locked clients: an element's timeout is what is left of the lock, none if endless; its comment the cause.
LOCKED: Final = {4: "locked4", 6: "locked6"}
# Locked clients that were lately let through to be told why, with the rate of each.
TALK: Final = {4: "talk4", 6: "talk6"}
# Whoever is never intercepted and never dropped.
TRUSTED_CLIENTS: Final = {4: "trusted_clients4", 6: "trusted_clients6"}
TRUSTED_SERVERS: Final = {4: "trusted_servers4", 6: "trusted_servers6"}
# Clients that are redirected while all others are TPROXYed, in mode tproxy,netfilter.
PRIVATE: Final = {4: "private4", 6: "private6"}
# Connections that are about to begin, by client and its port: their second packet may find no socket yet.
BEGINNING: Final = {4: "beginning4", 6: "beginning6"}
# Sets that the traffic or the lock mirror fills: their elements belong to no plan.
LIVELY: Final = frozenset({*LOCKED.values(), *TALK.values(), *BEGINNING.values()})

# Counters: what became of connections since the table was made.
INTERCEPTED: Final = "intercepted"
TRUSTED: Final = "trusted"
DROPPED_LOCKED: Final = "dropped_locked"
PASSED_BY: Final = "passed_by"
REFUSED: Final = "refused"
KEPT_OUT: Final = "kept_out"

# The mark of the routing protocol that our rules and routes bear, so that nobody's are taken for ours.
PROTOCOL: Final = 147
