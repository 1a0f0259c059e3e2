"""Modes pf, ipfilter and ipfw: what the kernel is asked, and what becomes of its answer."""

import errno
import os
import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.config import parse
from appliance.proxy.lookup import Endpoint, Lookup, LookupFailure, Route
from appliance_bsd.ipfilter import Ipfilter
from appliance_bsd.ipfw import Ipfw
from appliance_bsd.kernel import Device
from appliance_bsd.pf import Pf
from appliance_bsd.pf_layout import SYSTEMS

CONFIG = parse("msg_lookup_notfound nobody knows it")
FOUR = (("10.1.2.3", 40000), ("127.0.0.1", 9199), ("192.0.2.25", 25))
SIX = (("2001:db8::5", 50000), ("2001:db8::1", 9199), ("2001:db8:ff::25", 587))


def find(lookup: Lookup, client: tuple[str, int], local: tuple[str, int]) -> Route:
    with socket.socket() as accepted:
        route = lookup.known(accepted, Endpoint(*client), Endpoint(*local))
    assert route
    return route


@pytest.fixture(params=["pf", "ipfilter"])
def translated(
    request: pytest.FixtureRequest, system: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[Lookup, Device]:
    """A mode and its device, which knows two connections."""
    monkeypatch.setattr(Pf, "_system", SYSTEMS[system], raising=False)
    mode: type[Lookup] = Pf if request.param == "pf" else Ipfilter
    make = request.getfixturevalue("pf_states" if request.param == "pf" else "ipnat")
    device = make(FOUR, SIX)
    monkeypatch.setattr(mode, "_device", device, raising=False)
    return mode(CONFIG), device


@pytest.mark.option("mode")
@pytest.mark.parametrize("state", [FOUR, SIX], ids=["IPv4", "IPv6"])
def test_the_destination_is_found(
    translated: tuple[Lookup, Device], state: tuple[tuple[str, int], ...]
) -> None:
    client, local, destination = state
    assert find(translated[0], client, local) == Route(Endpoint(*destination))


def test_the_interface_of_a_link_local_address_is_no_part_of_it(
    pf_states: Callable[..., Device], system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pf, "_system", SYSTEMS[system], raising=False)
    local, destination = ("fe80::1", 9199), ("2001:db8::25", 25)
    monkeypatch.setattr(Pf, "_device", pf_states((("fe80::5", 1), local, destination)), raising=False)
    assert find(Pf(CONFIG), ("fe80::5%em0", 1), ("fe80::1%em0", 9199)) == Route(Endpoint(*destination))


@pytest.mark.option("msg_lookup_notfound")
@pytest.mark.parametrize(
    ("client", "local"),
    [
        (("10.1.2.3", 40001), FOUR[1]),
        (("10.1.2.4", 40000), FOUR[1]),
        (FOUR[0], ("127.0.0.1", 9198)),
        (("2001:db8::6", 50000), SIX[1]),
    ],
)
def test_no_state(translated: tuple[Lookup, Device], client: tuple[str, int], local: tuple[str, int]) -> None:
    with pytest.raises(LookupFailure, match=r"^nobody knows it$"):
        find(translated[0], client, local)


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOMEM, errno.ENODEV])
def test_another_failure_is_told_as_it_is(translated: tuple[Lookup, Device], number: int) -> None:
    lookup, device = translated
    device.refuses = number  # type: ignore[attr-defined]
    with pytest.raises(OSError, match=re.escape(os.strerror(number))) as caught:
        find(lookup, FOUR[0], FOUR[1])
    assert caught.value.errno == number


def test_ipfw_leaves_the_destination_as_it_is() -> None:
    assert find(Ipfw(CONFIG), FOUR[0], ("192.0.2.25", 25)) == Route(Endpoint("192.0.2.25", 25))
    assert find(Ipfw(CONFIG), SIX[0], ("2001:db8::25", 25)) == Route(Endpoint("2001:db8::25", 25))
    Ipfw.prepare()


@pytest.mark.parametrize(("mode", "device"), [(Pf, "/dev/pf"), (Ipfilter, "/dev/ipnat")])
def test_a_device_that_is_missing(mode: type[Lookup], device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "freebsd14")
    with pytest.raises(ValueError, match=r"kldload") as caught:
        mode.prepare()
    assert str(caught.value) == (
        f"mode {mode.__name__.lower()}: {device}: No such file or directory; "
        "is it in this kernel? load its module before the gateway starts (kldload)"
    )


def test_a_system_without_pf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(ValueError, match=r"^mode pf: the system linux has no pf"):
        Pf.prepare()


def test_no_permission(tmp_path: Path) -> None:
    device = tmp_path / "pf"
    device.touch(0)
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(
            ValueError, match="Permission denied; start as root, or let the user that starts"
        ) as caught:
            Device(str(device), os.O_RDWR)
    finally:
        os.seteuid(before)
    assert str(caught.value).startswith(f"{device}: ")


def test_a_device_that_does_not_understand() -> None:
    device = Device("/dev/null", os.O_RDWR)
    with pytest.raises(OSError, match=os.strerror(errno.ENOTTY)):
        device.ask(0xC04C4417, SYSTEMS["freebsd"].natlook())
