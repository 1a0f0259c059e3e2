"""The demonstration keeps its promise: clean mail passes, virus and spam are refused, senders locked."""

import pytest

from lab.demo import main

pytestmark = pytest.mark.lab


def test_every_row_of_the_demonstration_is_as_expected(capsys: pytest.CaptureFixture[str]) -> None:
    status = main()
    table = capsys.readouterr().out
    assert status == 0, table
    assert table.count(" ok ") == 10
