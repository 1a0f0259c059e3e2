"""A worker by itself: how it ends."""

import contextlib
from pathlib import Path

import pytest

from tests.proxy.inside import Inside


@pytest.mark.parametrize("unread", [False, True], ids=["nothing unread", "an answer unread"])
def test_a_worker_ends_with_its_supervisor(tmp_path: Path, unread: bool) -> None:
    with contextlib.closing(Inside(tmp_path)) as worker:
        assert worker.abandon(unread=unread) == 0
