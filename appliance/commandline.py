"""What our commands have in common: help as plain text, which any terminal, pipe or page can show."""

from typing import Any

import click
import typer
import typer.core

# Typer escapes the brackets of `[default: 5]` for rich even where rich does not print them.
typer.core.rich = None  # type: ignore[assignment,attr-defined]
# In what is said of a wrong value it names an environment variable, None; no option of ours has one.
typer.core.TyperOption.get_error_hint = click.Parameter.get_error_hint  # type: ignore[method-assign]


def plain(*help_options: str, **settings: Any) -> typer.Typer:
    """Make an application with these options for its help; `settings` are typer's."""
    context = {"help_option_names": list(help_options), "max_content_width": 100}
    return typer.Typer(rich_markup_mode=None, context_settings=context, **settings)
