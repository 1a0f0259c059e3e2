"""Which test proves which option: `python -m tests.options` writes docs/options.md and counts the proofs.

A test says what it proves with `@pytest.mark.option("name", ..)`. The table names every option of the
configuration with its type, default and meaning, and those tests. `make docs` calls this; a test holds the
table against what it would write.
"""

import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from appliance.config import OPTIONS

TABLE = Path(__file__).parents[1] / "docs" / "options.md"
TESTS = (TABLE.parents[1] / "tests", TABLE.parents[1] / "bsd" / "tests")

_HEAD = """# Options

Every option of the configuration file, in the order of `smtp-gated -T`, and the tests that prove what it
does. What the options mean in full stands in the manual page, `man -l man/smtp-gated.conf.5`. Made by
`make docs`; do not edit.

A default that is empty is shown as `""`. **R**: a reload does not change it. **O**: once
an option, kept so that old files can be read.
"""


def marked(items: Sequence[pytest.Item]) -> dict[str, list[str]]:
    """Read the marks of tests; give the names of those that prove each option, by option."""
    found: dict[str, set[str]] = {}
    for item in items:
        file, _, name = item.nodeid.removeprefix("tests/").partition("::")
        for mark in item.iter_markers("option"):
            for option in mark.args:
                found.setdefault(option, set()).add(f"{file}: {name.partition('[')[0]}")
    if unknown := sorted(set(found) - set(OPTIONS)):
        raise pytest.UsageError(f"marked as proven, but no options: {' '.join(unknown)}")
    return {name: sorted(tests) for name, tests in found.items()}


class _Collector:
    """Takes the tests before any is left out."""

    def __init__(self) -> None:
        self.proofs: dict[str, list[str]] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: Sequence[pytest.Item]) -> None:
        self.proofs = marked(items)


def proofs() -> dict[str, list[str]]:
    """Collect every test there is, those of the lab among them, and give what they prove."""
    collector = _Collector()
    quiet = [
        "--collect-only",
        "-qq",
        "--no-header",
        "--no-summary",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
    ]
    with Path("/dev/null").open("w") as nowhere, contextlib.redirect_stdout(nowhere):  # the list of tests
        code = pytest.main([*quiet, *map(str, TESTS)], plugins=[collector])
    if code:
        raise SystemExit(f"the tests could not be collected ({code!r}); pytest --collect-only tells why")
    return collector.proofs


def table(proven: Mapping[str, Sequence[str]]) -> str:
    """Give the text of docs/options.md."""
    lines = [_HEAD]
    section = ""
    for name, option in OPTIONS.items():
        if option.section != section:
            section = option.section
            lines += [
                f"\n## {section}\n",
                "| option | type | default | | meaning | proven by |",
                "|---|---|---|---|---|---|",
            ]
        flags = "R" * option.restart + "O" * option.obsolete
        default = option.kind.write(option.default) or '""'
        cells = (
            f"`{name}`",
            option.kind.word,
            f"`{default}`",
            flags,
            option.help,
            "<br>".join(proven.get(name, ())),
        )
        lines.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the table, and say how many options have a proof and which have none."""
    proven = proofs()
    TABLE.write_text(table(proven), encoding="utf-8")
    missing = [name for name in OPTIONS if name not in proven]
    if missing:
        print(f"options without a test: {' '.join(missing)}")
    print(f"options proven by a test: {len(OPTIONS) - len(missing)} of {len(OPTIONS)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
