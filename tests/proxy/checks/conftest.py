"""A DNS server for each test."""

from collections.abc import Iterator

import pytest

from tests.proxy.checks.name_server import NameServer, name_server


@pytest.fixture
def names() -> Iterator[NameServer]:
    with name_server() as server:
        yield server
