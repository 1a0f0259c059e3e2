"""What holds for every test: under CI a skipped test fails the run, so that nothing hides a failure.

Marks that say which options a test proves are read before any test is left out.
"""

import os
from collections.abc import Sequence

import pytest

from tests.options import marked

PROOFS = pytest.StashKey[dict[str, list[str]]]()
FILES = pytest.StashKey[set[str]]()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: Sequence[pytest.Item]) -> None:
    config.stash[PROOFS] = marked(items)
    config.stash[FILES] = {item.path.name for item in items}


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if os.environ.get("CI") and exitstatus == pytest.ExitCode.OK:
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        if reporter and reporter.stats.get("skipped"):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
