"""Where a client is: its interface and its MAC address, as the kernel's neighbour table has them.

Commands that list clients call this. Who is behind another router is no neighbour.
"""

import contextlib

_REACHED = ~(0x20 | 0x40)  # neither failed nor one that needs no asking, such as multicast


def neighbours() -> dict[str, str]:
    """Give interface and MAC address of each neighbour, by address; nothing if the kernel does not tell."""
    from pyroute2 import IPRoute  # it takes its time, and most commands do without
    from pyroute2.netlink.exceptions import NetlinkError

    found: dict[str, str] = {}
    with contextlib.suppress(NetlinkError, OSError), IPRoute() as route:
        names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in route.get_links()}
        for entry in route.get_neighbours():
            address, mac = entry.get_attr("NDA_DST"), entry.get_attr("NDA_LLADDR")
            if address and mac and entry["state"] & _REACHED:
                found[address] = f"{names.get(entry['ifindex'], entry['ifindex'])} {mac}"
    return found
