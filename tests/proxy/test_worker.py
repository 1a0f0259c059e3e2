"""A worker by itself: how it ends."""

import contextlib
import sqlite3
import time
from pathlib import Path

import pytest

from tests.proxy.inside import Inside


@pytest.mark.parametrize("unread", [False, True], ids=["nothing unread", "an answer unread"])
def test_a_worker_ends_with_its_supervisor(tmp_path: Path, unread: bool) -> None:
    with contextlib.closing(Inside(tmp_path)) as worker:
        assert worker.abandon(unread=unread) == 0


def test_a_client_is_known_with_its_own_sessions_and_no_others(tmp_path: Path) -> None:
    with contextlib.closing(Inside(tmp_path)) as worker, worker.session("127.0.0.2"):
        (row,) = worker.known("127.0.0.2")["sessions"]
        assert (row[1], row[4].rpartition(":")[0]) == ("helo", "127.0.0.2")
        assert worker.known("127.0.0.1")["sessions"] == []  # the server, by its address


def test_a_locked_database_and_scripts_that_hang_are_waited_for_at_the_same_time(
    tmp_path: Path, script: Path
) -> None:
    script.write_text("#!/bin/sh\nexec sleep 8\n")
    options: dict[str, str | int] = {
        "ratelimit_period": 1000,
        "ratelimit_path": str(tmp_path),
        "action_script": str(script),
        "lock_on": "never",
        "regex_reject_mail_from": "bad",
    }
    with contextlib.closing(Inside(tmp_path, **options)) as worker:
        for _ in range(33):  # one more than run at once
            with worker.session() as client:
                assert client.ask("MAIL FROM:<bad@client.test>").startswith("550")
        time.sleep(0.7)  # until all is written
        with contextlib.closing(sqlite3.connect(tmp_path / "records.sqlite", isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            with worker.session() as client:
                client.ask("NOOP")
            began = time.monotonic()
            worker.tell("stop")
            worker.wait_log("RATELIMIT:FAILED writing")
            worker.wait_log("ACTION:DROPPED")
            assert time.monotonic() - began < 4.5  # the supervisor kills it after five
