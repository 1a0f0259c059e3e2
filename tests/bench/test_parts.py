"""The parts of the benchmark that can be tried without a lab."""

import socket
import threading
import zipfile
from email import message_from_bytes
from io import BytesIO

import pytest

from bench import opaque, scans
from bench.row import there_and_back


def test_what_takes_turns_is_measured_there_and_back() -> None:
    order: list[str] = []

    def measure(name: str) -> float:
        order.append(name)
        return float(len(order))

    assert there_and_back(lambda: measure("a"), lambda: measure("b")) == [1 + 4, 2 + 3]
    assert order == ["a", "b", "b", "a"]


@pytest.mark.parametrize("size", [0, 1000, 1_000_000])
def test_opaque_bytes_are_counted_where_they_arrive(size: int) -> None:
    mine, other = socket.socketpair()
    server = threading.Thread(target=opaque.serve, args=(other,))
    server.start()
    opaque.converse(lambda: mine, size)
    server.join(5)
    assert not server.is_alive()


def test_a_client_that_loses_bytes_is_told() -> None:
    mine, other = socket.socketpair()
    with other:
        other.sendall(b"220 x\r\n250-x\r\n250 STARTTLS\r\n220 x\r\n999\r\n")
        with pytest.raises(ConnectionError, match="999"):
            opaque.converse(lambda: mine, 1000)


def test_the_message_to_scan_is_always_the_same_and_has_an_archive() -> None:
    message = scans.mail()
    assert message == scans.mail()
    assert 26_000 < len(message) < 30_000
    (archive,) = (part for part in message_from_bytes(message).walk() if part.get_filename())
    content = archive.get_payload(decode=True)
    assert isinstance(content, bytes)
    with zipfile.ZipFile(BytesIO(content)) as opened:
        assert opened.testzip() is None
        assert len(opened.read("report.txt")) == 14_000
