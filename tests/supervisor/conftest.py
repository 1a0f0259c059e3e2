"""A gateway that is gone after the test, and the server behind it."""

import socketserver
import threading
from collections.abc import Iterator

import pytest

from tests.supervisor.program import Gateway, Server, gateway_before


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Server) as running:
        running.daemon_threads = True
        running.block_on_close = False
        thread = threading.Thread(target=running.serve_forever, args=(0.05,))
        thread.start()
        yield running.server_address[1]
        running.shutdown()
        thread.join()


@pytest.fixture
def gateway(server: int) -> Iterator[Gateway]:
    with gateway_before(server) as made:
        yield made
