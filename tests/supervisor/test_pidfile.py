"""The lock on the pid file, held by real processes."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.supervisor.errors import StartError
from appliance.supervisor.pidfile import PidFile, holder

HOLD = """
import pathlib, sys, time
from appliance.supervisor.pidfile import PidFile
PidFile(pathlib.Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pid"


@contextmanager
def gateway(path: Path) -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        try:
            yield process.pid
        finally:
            process.send_signal(signal.SIGKILL)


def test_the_holder_is_the_process_that_runs(path: Path) -> None:
    assert holder(path) is None
    with gateway(path) as pid:
        assert holder(path) == pid
        assert path.read_text() == f"{pid}\n"
        assert path.stat().st_mode & 0o777 == 0o644
    assert path.exists()
    assert holder(path) is None


def test_a_second_gateway_is_refused_and_changes_nothing(path: Path) -> None:
    with gateway(path) as pid:
        with pytest.raises(StartError, match=f"pidfile {path}: process {pid} is running with it"):
            PidFile(path)
        assert path.read_text() == f"{pid}\n"


def test_a_file_left_behind_is_no_hindrance(path: Path) -> None:
    path.write_text("1\nand more text of another time")
    pidfile = PidFile(path)
    assert path.read_text() == f"{os.getpid()}\n"
    pidfile.remove()
    assert not path.exists()
    with gateway(path):
        pass


def test_a_link_is_not_followed(path: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    path.symlink_to(tmp_path / "precious")
    with pytest.raises(StartError, match="pidfile"):
        PidFile(path)
    assert (tmp_path / "precious").read_text() == "precious"


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="No such file or directory; make its directory writable"):
        PidFile(tmp_path / "none" / "pid")
