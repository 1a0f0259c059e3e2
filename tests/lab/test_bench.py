"""The benchmark's harness works: a few mails pass each contender in each workload. Nothing is timed."""

import json
import subprocess
import sys

import pytest

from lab.image import CHECKOUT

pytestmark = pytest.mark.lab


def test_mail_passes_all_contenders_in_all_workloads() -> None:
    command = [sys.executable, "-m", "bench", "--quick", "--share", "0.01", "--json"]
    result = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=100)
    assert result.returncode in (0, 1), result.stderr  # 1: too slow, which so few mails do not tell
    found = json.loads(result.stdout)
    assert {line["contender"] for line in found["results"]} == {"direct", "HAProxy", "gateway"}
    assert len({line["workload"] for line in found["results"]}) == 3
    assert len(found["results"]) == 9
    assert all(line["rate"] > 0 for line in found["results"])
    assert found["machine"]["HAProxy"][0].isdigit()
