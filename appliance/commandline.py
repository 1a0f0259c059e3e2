"""What our commands have in common: help as plain text, and output that arrives, or else an error tells."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any

import click
import typer
import typer.core

# Typer escapes the brackets of `[default: 5]` for rich even where rich does not print them.
typer.core.rich = None  # type: ignore[assignment,attr-defined]
# In what is said of a wrong value it names an environment variable, None; no option of ours has one.
typer.core.TyperOption.get_error_hint = click.Parameter.get_error_hint  # type: ignore[method-assign]


def bear_all_letters(encoding: str | None = None) -> None:
    """Let standard output take letters that the locale lacks; with `encoding`, as they are in that."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding=encoding, errors="backslashreplace")


@contextlib.contextmanager
def delivered() -> Iterator[None]:
    """See to it that what is printed meanwhile is written; raises OSError when it cannot be."""
    try:
        yield
        if sys.stdout:  # None where it was closed from the begin
            sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # where what is left goes at our end
        raise


def plain(*help_options: str, **settings: Any) -> typer.Typer:
    """Make an application with these options for its help; `settings` are typer's."""
    context = {"help_option_names": list(help_options), "max_content_width": 100}
    return typer.Typer(rich_markup_mode=None, context_settings=context, **settings)
