"""The names that the gateway uses in the kernel, shared by all who write there or read from there.

Constants only. Administrators type these names, so they stay as they are.
"""

from typing import Final

FAMILY: Final = "inet"
TABLE: Final = "appliance"

# Locked clients: an element's timeout is what is left of the lock (none for an endless one), its comment the cause.
LOCKED: Final = {4: "locked4", 6: "locked6"}
# Locked clients that were lately let through to be told why, with the rate of each.
TALK: Final = {4: "talk4", 6: "talk6"}
# Whoever is never intercepted and never dropped.
TRUSTED_CLIENTS: Final = {4: "trusted_clients4", 6: "trusted_clients6"}
TRUSTED_SERVERS: Final = {4: "trusted_servers4", 6: "trusted_servers6"}
# Clients that are translated and therefore redirected while all others are TPROXYed, in mode tproxy,netfilter.
PRIVATE: Final = {4: "private4", 6: "private6"}

# Counters by name: what the rules did since `up`.
INTERCEPTED: Final = "intercepted"
DROPPED_LOCKED: Final = "dropped_locked"
