"""The benchmark's harness works: each part gives its rows, of which none is without a figure."""

import json
import subprocess
import sys

import pytest

from bench.__main__ import PARTS
from lab.image import CHECKOUT

pytestmark = pytest.mark.lab


@pytest.mark.parametrize("part", PARTS)
def test_each_part_measures_something(part: str) -> None:
    command = [sys.executable, "-m", "bench", "--quick", "--share", "0.01", "--json", "--only", part]
    result = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=100)
    assert result.returncode in (0, 1), result.stderr  # 1: too slow, which so little work does not tell
    found = json.loads(result.stdout)
    assert found["rows"]
    assert all(len(row["rounds"]) == 1 for row in found["rows"])
    assert found["machine"]["HAProxy"][0].isdigit()
