"""The table of options and their proofs in docs/ is what the marks of the tests say."""

import subprocess
import sys

from tests.options import TABLE


def test_the_table_of_proofs_is_in_step() -> None:
    code = "import tests.options as o; print(o.table(o.proofs()), end='')"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=TABLE.parents[1])
    assert made.returncode == 0, made.stderr
    assert made.stdout == TABLE.read_text(encoding="utf-8"), "run make docs and commit docs/options.md"
