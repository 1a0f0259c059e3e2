"""The locks as a table of pf: whose address stands in it, pf drops before the gateway hears of it.

The lock directory is the truth; whoever watches it tells `PfTable`. A table has both families, and no times
or causes: a lock that is over has to be taken out. The rules that use the table are the administrator's.
"""

import ctypes
import errno
import os
from collections.abc import Iterable, Sequence
from typing import Final

from appliance.config import Address
from appliance_bsd.kernel import Device, pack, read_write
from appliance_bsd.pf_layout import INET, System, Table, TableAddress, TableRequest

TABLE: Final = "smtp_locked"

_ADD, _DELETE, _SET = (read_write("D", n, TableRequest) for n in (67, 68, 69))  # DIOCRADDADDRS ..
_AT_ONCE = 65535  # elements of one request, as FreeBSD has it unless net.pf.request_maxcount says otherwise


def open_table(system: System, name: str = TABLE) -> "PfTable":
    """Open pf for writing, which takes root; raises ValueError, for a name that pf cannot have, too."""
    if not 0 < len(name.encode()) < Table.name.size:  # a NUL ends it
        raise ValueError(f"--table {name}: a table of pf has a name of 1 to {Table.name.size - 1} bytes")
    return PfTable(Device("/dev/pf", os.O_RDWR), system, name)


class PfTable:
    """A table that holds locked addresses. Every method raises OSError, whose text says what to do."""

    def __init__(self, device: Device, system: System, name: str) -> None:
        self._device = device
        self._system = system
        self._name = name.encode()

    def add(self, address: Address) -> None:
        """Shut an address out."""
        self._ask(_ADD, self._elements([address]))

    def remove(self, address: Address) -> None:
        """Let an address in again; it need not be there."""
        self._ask(_DELETE, self._elements([address]))

    def replace(self, addresses: Iterable[Address]) -> None:
        """Shut out these addresses and no others.

        One step for pf, as long as there are no more of them than fit into one request.
        """
        wanted = list(dict.fromkeys(addresses))
        self._ask(_SET, self._elements(wanted[:_AT_ONCE]))
        for start in range(_AT_ONCE, len(wanted), _AT_ONCE):
            self._ask(_ADD, self._elements(wanted[start : start + _AT_ONCE]))

    def _elements(self, addresses: Sequence[Address]) -> ctypes.Array[TableAddress]:
        elements = (self._system.table_address * len(addresses))()
        for element, address in zip(elements, addresses, strict=True):
            element.address = pack(str(address))
            element.af = self._system.inet6 if address.version == 6 else INET
            element.net = address.max_prefixlen
        return elements

    def _ask(self, number: int, elements: ctypes.Array[TableAddress]) -> None:
        """Have pf do something with elements of the table."""
        request = TableRequest(
            buffer=ctypes.addressof(elements),
            esize=ctypes.sizeof(self._system.table_address),
            size=len(elements),
        )
        request.table.name = self._name
        try:
            self._device.ask(number, request)
        except OSError as error:
            name = self._name.decode()
            if error.errno == errno.ESRCH:
                advice = f'there is none; put "table <{name}> persist" into pf.conf and load it (pfctl -f)'
            elif error.errno == errno.ENOMEM:
                advice = "there is no room for more; see limit table-entries in pf.conf"
            else:
                advice = os.strerror(error.errno or 0)
            raise OSError(error.errno, f"pf table {name}: {advice}") from None
