"""The table of options and their proofs in docs/ is what the marks of the tests say."""

import subprocess
import sys

from appliance.config import OPTIONS
from tests.options import TABLE


def test_the_table_of_proofs_is_in_step() -> None:
    code = "import tests.options as o; print(o.table(o.proofs()), end='')"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=TABLE.parents[1])
    assert made.returncode == 0, made.stderr
    assert made.stdout == TABLE.read_text(encoding="utf-8"), "run make docs and commit docs/options.md"


def test_whoever_migrates_is_told_of_every_old_name() -> None:
    text = TABLE.with_name("migration.md").read_text(encoding="utf-8")
    aliases = {alias for option in OPTIONS.values() for alias in option.aliases}
    obsolete = {name for name, option in OPTIONS.items() if option.obsolete}
    assert {name for name in aliases | obsolete if f"`{name}`" not in text} == set()
