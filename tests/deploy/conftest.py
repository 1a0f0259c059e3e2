"""One site for all tests of deployment; each test finds the machine as the one before has left it."""

from collections.abc import Iterator

import pytest

from lab.machine import Site


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    with Site("deploy") as site:
        site.machine.boot()
        yield site
