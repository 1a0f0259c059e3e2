"""The table of options and their proofs in docs/ is what the marks of the tests say."""

import subprocess
import sys

import pytest

from appliance.config import OPTIONS
from tests.conftest import FILES, PROOFS
from tests.options import TABLE, TESTS, table


def test_the_table_of_proofs_is_in_step(pytestconfig: pytest.Config) -> None:
    files = {path.name for tests in TESTS for path in tests.rglob("test_*.py")}
    if pytestconfig.stash[FILES] == files:
        proven = pytestconfig.stash[PROOFS]
        made = table(proven)
    else:  # only some tests were asked for
        code = "import tests.options as o; print(o.table(o.proofs()), end='')"
        command = [sys.executable, "-c", code]
        made = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, cwd=TABLE.parents[1]
        ).stdout
    assert made == TABLE.read_text(encoding="utf-8"), "run make docs and commit docs/options.md"


def test_whoever_migrates_is_told_of_every_old_name() -> None:
    text = TABLE.with_name("migration.md").read_text(encoding="utf-8")
    aliases = {alias for option in OPTIONS.values() for alias in option.aliases}
    obsolete = {name for name, option in OPTIONS.items() if option.obsolete}
    assert {name for name in aliases | obsolete if f"`{name}`" not in text} == set()
