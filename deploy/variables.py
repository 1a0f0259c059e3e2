"""The role's variables, one for each option of the gateway, from the option table: `make docs` writes them.

Three files of the role: the variables with their meaning, the template of smtp-gated.conf, and what the role
has to know of the options. A test holds them against what this would write.
"""

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from appliance.config import OPTIONS
from appliance.config.option import Octal, Option

ROLE = Path(__file__).parent / "ansible" / "roles" / "smtp_appliance"
PREFIX = "smtp_appliance_"
HEADER = "# Made from the option table by `make docs`; not to be edited.\n"

WIDTH = 110

# A value is written as the file has it: yes and no, values with commas between, new lines folded.
MACRO = """\
{%- macro line(name, given) -%}
{%- set value = smtp_appliance_implied.get(name) if given is none else given -%}
{%- if value is not none -%}
{{ name }} {{ ('yes' if value else 'no') if value is boolean
  else value | replace('\\n', '\\\\n') if value is string
  else value | join(',') if value is iterable
  else value }}{{ '\\n' }}
{%- endif -%}
{%- endmacro -%}
"""


def files() -> dict[Path, str]:
    """Give the text of each file that is made from the table."""
    options = [option for option in OPTIONS.values() if not option.obsolete]
    return {
        ROLE / "defaults" / "main" / "options.yml": HEADER + "---\n" + "".join(_defaults(options)),
        ROLE / "vars" / "main" / "options.yml": HEADER + "---\n" + "".join(_facts(options)),
        ROLE / "templates" / "smtp-gated.conf.j2": MACRO
        + "# {{ ansible_managed }}\n"
        + "".join(_lines(options)),
    }


def _defaults(options: list[Option[Any]]) -> Iterator[str]:
    section = ""
    for option in options:
        if option.section != section:
            section = option.section
            yield f"\n# ---- {section}\n" if section != options[0].section else f"# ---- {section}\n"
        default = option.kind.write(option.default).replace("\n", " ")
        words = f"{option.help} Default: {default or 'nothing'}."
        yield "".join(f"# {line}\n" for line in textwrap.wrap(words, WIDTH - 2, break_long_words=False))
        yield f"{PREFIX}{option.name}:\n"


def _facts(options: list[Option[Any]]) -> Iterator[str]:
    for name, what, chosen in (
        ("options", "All options that the gateway knows.", options),
        ("restart_options", "Those that only a restart changes.", [o for o in options if o.restart]),
        ("octal_options", "Those whose values YAML takes for other numbers.", list(filter(_octal, options))),
    ):
        yield f"# {what}\n{PREFIX}{name}:\n"
        yield "".join(f"  - {option.name}\n" for option in chosen)


def _octal(option: Option[Any]) -> bool:
    return isinstance(option.kind, Octal)


def _lines(options: list[Option[Any]]) -> Iterator[str]:
    for option in options:
        yield f"{{{{ line('{option.name}', {PREFIX}{option.name}) -}}}}\n"


def main() -> int:
    """Write the files."""
    for path, text in files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
