"""The table of pf: what the kernel is asked, and what stands in the table afterwards."""

import errno
import os
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import pytest

from appliance.config import Address
from appliance_bsd.pf_layout import SYSTEMS
from appliance_bsd.pf_table import TABLE, PfTable

A, B, C = map(ip_address, ("10.0.0.5", "2001:db8::5", "192.0.2.7"))


@pytest.fixture
def device(pf_tables: Callable[..., Any]) -> Any:
    return pf_tables(TABLE, "other")


@pytest.fixture
def table(device: Any, system: str) -> PfTable:
    return PfTable(device, SYSTEMS[system], TABLE)


def held(device: Any) -> set[Address]:
    """What stands in the table, read by other means."""
    return {
        ip_address(address[:4] if family == 2 else address) for address, family, _ in device.tables[TABLE]
    }


def test_an_address_is_added_and_removed(table: PfTable, device: Any) -> None:
    table.add(A)
    table.add(B)
    table.add(A)
    assert held(device) == {A, B}
    table.remove(A)
    table.remove(C)
    assert held(device) == {B}
    assert [request for request, _ in device.asked] == [0xC4504443] * 3 + [0xC4504444] * 2
    assert not device.tables["other"]


def test_all_are_replaced_in_one_step(table: PfTable, device: Any) -> None:
    table.replace([A, B])
    table.replace({B: (None, "VIRUS"), C: (1e9, "SPAM")})
    assert held(device) == {B, C}
    assert len(device.asked) == 2
    table.replace(())
    assert held(device) == set()


def test_more_than_a_request_takes(table: PfTable, device: Any) -> None:
    many = [ip_address(0x0A000000 + number) for number in range(device.AT_ONCE + 10)]
    table.replace([C])
    table.replace(many)
    assert held(device) == set(many)
    assert [request for request, _ in device.asked] == [0xC4504445, 0xC4504445, 0xC4504443]


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ESRCH, 'there is none; put "table <smtp_locked> persist" into pf.conf and load it (pfctl -f)'),
        (errno.ENOMEM, "there is no room for more; see limit table-entries in pf.conf"),
        (errno.EPERM, os.strerror(errno.EPERM)),
    ],
)
def test_what_pf_refuses(table: PfTable, device: Any, number: int, advice: str) -> None:
    device.refuses = number
    with pytest.raises(OSError, match="pf table smtp_locked") as caught:
        table.add(A)
    assert (caught.value.errno, caught.value.strerror) == (number, f"pf table smtp_locked: {advice}")


def test_a_table_that_pf_does_not_have(device: Any, system: str) -> None:
    with pytest.raises(OSError, match="there is none"):
        PfTable(device, SYSTEMS[system], "nowhere").replace([A])


def test_the_layout_of_another_system_is_refused(pf_tables: Callable[..., Any], system: str) -> None:
    other = "freebsd" if system == "openbsd" else "openbsd"
    with pytest.raises(OSError, match=os.strerror(errno.ENODEV)):
        PfTable(pf_tables(TABLE), SYSTEMS[other], TABLE).add(A)
