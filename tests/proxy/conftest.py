"""One worker for the tests of a file, which reconfigure it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.proxy.inside import Inside


@pytest.fixture(scope="module")
def inside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inside]:
    home = tmp_path_factory.mktemp("inside")
    made = Inside(home)
    yield made
    made.close()


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """An action script that writes what it is told into a file of its own beside it."""
    path = tmp_path / "script"
    path.write_text(
        '#!/bin/sh\ncd "${0%/*}"\n'
        '{ env; printf "ARGUMENTS="; printf "<%s>" "$@"; echo; } >new.$$\nmv new.$$ told.$$\n'
    )
    path.chmod(0o755)
    return path
