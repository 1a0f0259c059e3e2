"""What gateways and routers say to each other about connections: any bytes at all, and back and forth."""

import contextlib
import string
import struct
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from appliance import origin
from appliance.origin import Flow, Malformed, Mismatch, NotFound, Origin, Query

PORTS = st.integers(1, 65535)
IDENTS = st.text(string.ascii_letters + string.digits + "._@+=:/-")
U32 = st.integers(0, 2**32 - 1)


@st.composite
def questions(draw: st.DrawFn) -> tuple[Query, Origin]:
    """A query of either version, and what a helper may find."""
    addresses = draw(st.sampled_from([st.ip_addresses(v=4), st.ip_addresses(v=6)]))
    first, second, third = (draw(addresses) for _ in range(3))
    flow = Flow(first, draw(PORTS), second, draw(PORTS))
    ident = draw(IDENTS)[: 20 if first.version == 4 else 64]
    return Query(flow, draw(U32), draw(U32)), Origin(third, draw(PORTS), ident)


@given(questions())
def test_a_datagram_comes_back(question: tuple[Query, Origin]) -> None:
    query, found = question
    sent = origin.write_query(query)
    assert len(sent) == (66 if query.flow.source.version == 4 else 116)
    assert origin.read_query(sent) == query
    reply = origin.write_reply(query, found)
    assert len(reply) == len(sent)
    assert origin.read_reply(reply, query) == found
    assert origin.read_query(reply) is None
    nothing = origin.write_reply(query, None)
    assert len(nothing) == len(sent)
    with pytest.raises(NotFound):
        origin.read_reply(nothing, query)


@given(questions())
def test_a_line_comes_back(question: tuple[Query, Origin]) -> None:
    query, found = question
    asked = origin.write_query_line(query.flow)
    assert origin.read_query_line(asked) == (query.flow.source_port, query.flow.destination_port)
    line = origin.write_reply_line(query.flow, found)
    assert len(line) <= origin.LINE_MAX
    assert origin.read_reply_line(line, query.flow) == found
    with pytest.raises(NotFound):
        origin.read_reply_line(origin.write_reply_line(query.flow, None), query.flow)


@given(questions(), st.data())
def test_a_damaged_reply_is_never_taken_for_another(
    question: tuple[Query, Origin], data: st.DataObject
) -> None:
    """Whatever happens to its head or its length, what is read is what was sent, or nothing."""
    query, found = question
    reply = bytearray(origin.write_reply(query, found))
    if data.draw(st.booleans()):
        size = data.draw(st.integers(0, 200).filter(lambda size: size != len(reply)))
        reply = (reply + bytes(200))[:size]
    else:
        place = data.draw(st.sampled_from([*range(8), *range(12, 16)]))  # all of the head but the secret
        reply[place] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(NotFound, Mismatch):
        assert origin.read_reply(bytes(reply), query) in (None, found)


@given(st.binary(max_size=200), questions())
@example(b"", (Query(Flow(IPv4Address(1), 1, IPv4Address(2), 2), 0, 0), Origin(IPv4Address(3), 3, "")))
def test_any_bytes_are_read_without_harm(raw: bytes, question: tuple[Query, Origin]) -> None:
    query, _ = question
    assert origin.read_query(raw) is None or raw[:4] == b"RPHD"
    origin.read_query_line(raw)
    try:
        assert origin.read_reply(raw, query) is None or raw[:4] == b"RPHD"
    except (NotFound, Mismatch):
        assert raw[:4] == b"RPHD"
    ports = b"%d,%d:ORIGIN:" % (query.flow.source_port, query.flow.destination_port)
    for line in (raw, ports + raw):
        try:
            read = origin.read_reply_line(line, query.flow)
        except (NotFound, Mismatch, Malformed):
            continue
        assert len(read.ident) <= 64
        assert set(read.ident) <= set(string.ascii_letters + string.digits + "._@+=:/-")


HEAD = struct.pack("!IIIHH", 0x52504844, 0xC00C1E, 7, 0x0402, 1)


def test_a_query_byte_by_byte() -> None:
    """The old datagram, as programs that are out there write it."""
    flow = Flow(IPv4Address("192.0.2.2"), 40000, IPv4Address("198.51.100.9"), 9199)
    written = HEAD + bytes([192, 0, 2, 2, 198, 51, 100, 9]) + struct.pack("!HH", 40000, 9199) + bytes(38)
    assert origin.write_query(Query(flow, 0xC00C1E, 7)) == written
    assert origin.read_query(written) == Query(flow, 0xC00C1E, 7)
    mac = written[:-6] + b"\x02\x00\x00\x00\x00\x01"
    assert origin.read_query(mac) == Query(flow, 0xC00C1E, 7)
    for wrong in (
        written[:-1],
        written + b"\0",
        b"RPHE" + written[4:],
        written[:12] + b"\x04\x01" + written[14:],
        written[:14] + b"\x00\x02" + written[16:],
        written[:14] + b"\x00\x03" + written[16:],
    ):
        assert origin.read_query(wrong) is None


@pytest.mark.parametrize(
    "line",
    ["", "\r\n", "1\r\n", "1 , 2 , 3\r\n", "0 , 25", "65536 , 1", "-1 , 1", "1 , x", "1 , 2 \0", "²,1"],
)
def test_what_is_no_query_over_tcp(line: str) -> None:
    assert origin.read_query_line(line.encode()) is None


def test_ipv6_stands_in_brackets() -> None:
    flow = Flow(IPv6Address("2001:db8::2"), 40000, IPv6Address("2001:db8::9"), 9199)
    line = origin.write_reply_line(flow, Origin(IPv6Address("2001:db8:25::25"), 25, "fd77::1:5"))
    assert line == b"40000 , 9199 : ORIGIN : [2001:db8:25::25] : 25 : fd77::1:5\r\n"
    for wrong in (b"[192.0.2.1]", b"192.0.2.1", b"[fe80::1%eth0]", b"2001:db8::1", b"[2001:db8::1"):
        with pytest.raises((Malformed, Mismatch)):
            origin.read_reply_line(b"40000 , 9199 : ORIGIN : %s : 25 : x\r\n" % wrong, flow)
