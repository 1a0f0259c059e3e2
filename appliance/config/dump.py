"""Configurations as people read them: what smtp-gated -t and -T print; files that the parser accepts."""

from collections.abc import Collection
from typing import Any

from appliance.config.config import OPTIONS, Config
from appliance.config.option import Enum, Flags, Option


def dump(config: Config, *, messages: bool, modes: Collection[str] | None = None) -> str:
    """Give every option by section; `messages` adds the texts for mail users and the words options allow.

    `modes` are those this system has, None for all there are.
    """
    lines: list[str] = []
    section = ""
    for name, option in OPTIONS.items():
        if option.section == "message" and not messages:
            continue
        if option.section != section:
            section = option.section
            lines += ["", f"# ---- {section}"]
        lines += _comments(option, modes if name == "mode" else None, words=messages)
        lines.append(f"{name:<30} {config.written(name)}")
    return "\n".join(lines[1:]) + "\n"


def _comments(option: Option[Any], here: Collection[str] | None, *, words: bool) -> list[str]:
    comments = []
    if option.obsolete:
        comments.append(f"# {option.name}: accepted for the sake of old files, without effect")
    if words and isinstance(option.kind, Enum):
        allowed = [word for word in option.kind.words if here is None or word in here]
        comments.append(f"# {option.name} [ one ]: {{ {' '.join(allowed)} }}")
    if words and isinstance(option.kind, Flags):
        allowed = [*option.kind.words, *option.kind.nothing[:1]]
        comments.append(f"# {option.name} [ multiple ]: {{ {' '.join(allowed)} }}")
    return comments
