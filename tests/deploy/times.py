"""How long the steps of deployment took, in docs/install.md: no figure there is written by hand."""

from collections.abc import Sequence
from pathlib import Path

Times = Sequence[tuple[str, float]]


def store(page: Path, table: str, times: Times) -> None:
    """Put the times into a page, between the comments that name this table; ValueError if it has none."""
    begin, end = f"<!-- times: {table} -->\n", f"<!-- end: {table} -->\n"
    before, found, rest = page.read_text().partition(begin)
    _, ended, after = rest.partition(end)
    if not (found and ended):
        raise ValueError(f"{page} has no table {table}")
    lines = ["| step | seconds |", "|---|---|", *(f"| {what} | {seconds:.0f} |" for what, seconds in times)]
    page.write_text(before + begin + "\n" + "\n".join(lines) + "\n\n" + end + after)
