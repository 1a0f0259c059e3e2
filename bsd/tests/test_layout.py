"""The structures as the systems' headers have them: sizes, offsets and the numbers of requests."""

import ctypes

import pytest

from appliance_bsd import ipfilter, kernel, pf_layout
from appliance_bsd.pf_layout import SYSTEMS, NatLook, TableAddress, TableRequest

Offsets = dict[str, int]


def offsets(structure: type[ctypes.Structure]) -> Offsets:
    """Where each field begins, but for padding."""
    return {
        name: getattr(structure, name).offset
        for name, *_ in structure._fields_
        if "rest" not in name and name != "padding"
    }


ADDRESSES = {"saddr": 0, "daddr": 16, "rsaddr": 32, "rdaddr": 48}
NATLOOK: dict[str, tuple[int, int, Offsets]] = {
    "freebsd": (
        76,
        0xC04C4417,
        {"sport": 64, "dport": 66, "rsport": 68, "rdport": 70, "af": 72, "proto": 73, "direction": 74},
    ),
    "openbsd": (
        80,
        0xC0504417,
        {"rdomain": 64, "rrdomain": 66, "sport": 68, "dport": 70, "rsport": 72, "rdport": 74}
        | {"af": 76, "proto": 77, "direction": 78},
    ),
    "darwin": (
        84,
        0xC0544417,
        {"sport": 64, "dport": 68, "rsport": 72, "rdport": 76}
        | {"af": 80, "proto": 81, "proto_variant": 82, "direction": 83},
    ),
}
PLAIN = (20, {"address": 0, "af": 16, "net": 17, "negated": 18, "feedback": 19})
TABLE_ADDRESS: dict[str, tuple[int, Offsets]] = {
    "freebsd": PLAIN,
    "openbsd": (
        52,
        {"address": 0, "interface": 16, "states": 32, "weight": 36}
        | {"af": 38, "net": 39, "negated": 40, "feedback": 41, "type": 42},
    ),
    "darwin": PLAIN,
}


def test_every_system_is_looked_at() -> None:
    assert set(NATLOOK) == set(TABLE_ADDRESS) == set(SYSTEMS)


def test_natlook(system: str) -> None:
    structure: type[NatLook] = SYSTEMS[system].natlook
    size, number, where = NATLOOK[system]
    assert ctypes.sizeof(structure) == size
    assert kernel.read_write("D", 23, structure) == number
    assert offsets(structure) == ADDRESSES | where


def test_an_address_of_a_table(system: str) -> None:
    structure: type[TableAddress] = SYSTEMS[system].table_address
    assert (ctypes.sizeof(structure), offsets(structure)) == TABLE_ADDRESS[system]


def test_a_request_for_a_table() -> None:
    assert ctypes.sizeof(pf_layout.Table) == 1064
    assert offsets(pf_layout.Table) == {"anchor": 0, "name": 1024, "flags": 1056, "feedback": 1060}
    assert ctypes.sizeof(TableRequest) == 1104
    words = ("esize", "size", "size2", "nadd", "ndel", "nchange", "flags", "ticket")
    assert offsets(TableRequest) == {"table": 0, "buffer": 1064} | dict(
        zip(words, range(1072, 1104, 4), strict=True)
    )
    assert [kernel.read_write("D", number, TableRequest) for number in (67, 68, 69, 70)] == [
        0xC4504443,
        0xC4504444,
        0xC4504445,
        0xC4504446,
    ]


def test_ipfilter() -> None:
    assert ctypes.sizeof(ipfilter.Request) == 56
    assert offsets(ipfilter.Request) == {
        "rev": 0,
        "size": 4,
        "ptr": 8,
        "type": 16,
        "offset": 20,
        "retval": 24,
    }
    assert kernel.read_write("r", 63, ipfilter.Request) == 0xC038723F
    assert ctypes.sizeof(ipfilter.NatLookup) == 64
    words = {"inip": 0, "outip": 16, "realip": 32, "v": 48, "flags": 52}
    assert offsets(ipfilter.NatLookup) == words | {"inport": 56, "outport": 58, "realport": 60}


@pytest.mark.parametrize(
    ("platform", "name", "inet6"),
    [("freebsd14", "freebsd", 28), ("openbsd7", "openbsd", 24), ("darwin", "darwin", 30)],
)
def test_a_system_is_known_by_its_name(platform: str, name: str, inet6: int) -> None:
    assert pf_layout.system(platform) is SYSTEMS[name]
    assert SYSTEMS[name].inet6 == inet6


def test_a_system_without_pf() -> None:
    with pytest.raises(ValueError, match="the system linux has no pf that the gateway knows"):
        pf_layout.system("linux")
