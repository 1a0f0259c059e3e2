"""The demonstration keeps its promise: clean mail passes, virus and spam are refused, senders locked."""

import itertools
import re
import signal
import subprocess
import sys

import pytest

from lab.demo import main
from lab.image import CHECKOUT

pytestmark = pytest.mark.lab


def test_every_row_of_the_demonstration_is_as_expected(capsys: pytest.CaptureFixture[str]) -> None:
    status = main()
    table = capsys.readouterr().out
    assert status == 0, table
    assert table.count(" ok ") == 10


def test_the_tool_works_where_one_may_walk_about() -> None:
    walk = subprocess.Popen([sys.executable, "-m", "lab"], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True)
    try:
        assert walk.stdout
        told = "".join(itertools.takewhile(lambda line: not line.startswith("ctrl-C"), walk.stdout))
        router, tool = (
            re.search(rf"^{name} +(.*?)(?: status)?(?: +\(.*)?$", told, re.MULTILINE)
            for name in ("router", "tool")
        )
        assert router and tool
        for command, words in (
            ("status", "rules are up"),
            ("check", "the kernel is as planned"),
            ("plan", "nothing would change"),
        ):
            done = subprocess.run(
                [*router[1].split(), *tool[1].split(), command],
                cwd=CHECKOUT,
                capture_output=True,
                text=True,
            )
            assert (done.returncode, done.stderr) == (0, "")
            assert words in done.stdout
    finally:
        walk.send_signal(signal.SIGINT)
        walk.communicate(timeout=30)
