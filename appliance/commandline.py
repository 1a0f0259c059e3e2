"""What our commands have in common: help as plain text, which any terminal, pipe or page can show."""

from typing import Any

import typer
import typer.core

# Typer escapes the brackets of `[default: 5]` for rich even where rich does not print them.
typer.core.rich = None  # type: ignore[assignment,attr-defined]


def plain(*help_options: str, **settings: Any) -> typer.Typer:
    """Make an application with these options for its help; `settings` are typer's."""
    context = {"help_option_names": list(help_options), "max_content_width": 100}
    return typer.Typer(rich_markup_mode=None, context_settings=context, **settings)
