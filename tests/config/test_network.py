"""Networks that many addresses are looked for in."""

from ipaddress import ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from appliance.config import Address, Network, Networks

# Few different bits, so that addresses are in networks, and networks in each other.
NUMBERS = st.sets(st.sampled_from((0, 1, 2, 8, 16, 24, 30, 31)), max_size=4).map(
    lambda found: sum(1 << n for n in found)
)


@st.composite
def addresses(draw: st.DrawFn) -> Address:
    number = draw(NUMBERS)
    return (
        ip_address(f"2001:db8::{number >> 16:x}:{number & 0xFFFF:x}")
        if draw(st.booleans())
        else ip_address(number)
    )


@st.composite
def networks(draw: st.DrawFn) -> Network:
    address = draw(addresses())
    return ip_network((address, draw(st.integers(0, address.max_prefixlen))), strict=False)


@given(st.lists(networks(), max_size=5), addresses())
def test_an_address_is_in_networks_if_it_is_in_one_of_them(found: list[Network], address: Address) -> None:
    assert (address in Networks(found)) is any(address in network for network in found)
