"""Commands: how a line from the client is read (RFC 5321 section 4.1.1). No state, no effects."""

import re
from typing import Final

LINE_MAX: Final = 2048
"""Longest line, CRLF included, of a command that is looked at."""

ANSWER_MAX: Final = 12288
"""Longest AUTH command or answer to its challenge (RFC 4954 section 4)."""

CHUNK_MAX: Final = 2**31 - 2**16
"""Longest chunk, with room for the gateway's header: Exim counts modulo 2**32 and would lose its place."""

# Quantifiers are possessive throughout: none ever tries a shorter match, so that no line costs more than its
# length.
_VERB: Final = rb"[ \t\v\f]*+([^ \t\v\f\0\r\n]*+)"
_VERB_BEHIND_CR: Final = rb"[ \t\v\f\r]*+([^ \t\v\f\0\r\n]*+)"

VERB: Final = {
    "reject": re.compile(_VERB),
    "normalise": re.compile(_VERB),
    "pass": re.compile(_VERB_BEHIND_CR),
}
"""The verb of a line, by `bare_newline`. White space around it is read as lenient servers read it, or one
could pass unseen."""

LINE: Final = {
    "reject": re.compile(_VERB + rb"[^\0\r\n]*+\r\n"),
    "normalise": re.compile(_VERB + rb"[^\0\r\n]*+(?:\r?\n|\r(?=[^\n]))"),
    "pass": re.compile(_VERB_BEHIND_CR + rb"[^\0\n]*+\n"),
}
"""One whole command line and its verb."""

UNCLEAN: Final = {
    "reject": re.compile(rb"[\0\r\n]"),
    "normalise": re.compile(rb"[\0\r\n]"),
    "pass": re.compile(rb"[\0\n]"),
}
"""Where a line ends, well or badly: a line end, or what may not stand inside a command."""

# Groups are atomic here: before Python 3.11.5 a possessive one goes on in the wrong place.
_QUOTED: Final = rb'"(?>(?:[^"\\]++|\\.)*)"'
_INSIDE: Final = rb'(?>(?:[^"<>]++|' + _QUOTED + rb")*)"
# Lenient servers let words stand before the angle brackets, and the brackets be doubled. Without any brackets
# around the address, those in a parameter do not count.
_BEFORE: Final = (
    rb'(?>(?:[^"< \t\v\f]++|[ \t\v\f]++(?>(?:(?:AUTH|ENVID|ORCPT)=[^ \t\v\f\r\n]*+)?)|'
    rb"%b|<(?=%b<))*)" % (_QUOTED, _INSIDE)
)
# As nearly everybody writes it, or else as somebody may.
_PATH: Final = re.compile(
    rb'[^:]*+:(?:<([^"<>]*+)>|%b<(%b)>|[ \t\v\f]*+([^ \t\v\f\r\n]*+))' % (_BEFORE, _INSIDE),
    re.IGNORECASE,
)
_PARENTHESIS: Final = 0x28  # a number is found faster than a byte string
_MARK: Final = re.compile(rb'\\.|["()]')  # what may begin or end a comment
_PART: Final = rb'(?>(?:[^":< \t\v\f\r\n]++|%b|<%b>|<)*)' % (_QUOTED, _INSIDE)
_GROUP: Final = re.compile(rb"[^:]*+:[ \t\v\f]*+((?>(?:%b:)+))(%b)" % (_PART, _PART))
_AROUND: Final = b" \t\v\f\r\n,;"  # what Postfix skips before and behind an address
_BDAT: Final = re.compile(rb"[ \t]*BDAT[ \t]+([0-9]{1,15})([ \t]+LAST)?[ \t]*[\r\n]*", re.IGNORECASE)


def path(line: bytes) -> bytes:
    """Give the address of a MAIL or RCPT line: what stands in angle brackets, or else the first word."""
    if _PARENTHESIS in line:
        line = _without_comments(line)
    group = _GROUP.match(line) if line.count(b":") > 1 else None
    if group and (b">" in group[1] or group[2].endswith(b";")):  # to Postfix <a@b>:c@d; is c@d
        return group[2].strip(b"<>" + _AROUND)
    found = _PATH.match(line)
    return found[found.lastindex or 0].strip(_AROUND) if found else b""


def _without_comments(line: bytes) -> bytes:
    """Leave out what stands in parentheses (RFC 5322 section 3.2.2), as Postfix and Exim do.

    To them `<a@b(x)>` is a@b, and so is `a@b(<c@d>)`. One that is not closed goes to the end, or to the last
    bracket.
    """
    kept, at, depth, quoted = b"", 0, 0, False
    for found in _MARK.finditer(line):
        mark = found[0]
        if mark == b'"':
            quoted = quoted != (depth == 0)  # in a comment it is a letter
        elif mark == b"(" and not quoted:
            if not depth:
                kept += line[at : found.start()]
            depth += 1
        elif mark == b")" and depth:
            depth -= 1
            at = found.end()
    return kept + (b">" * kept.count(b"<") if depth else line[at:])


def argument(line: bytes) -> bytes:
    """Give what stands behind the verb, without surrounding white space."""
    words = line.split(None, 1)
    return words[1].strip() if len(words) > 1 else b""


def chunk(line: bytes) -> tuple[int, bool] | None:
    """Read `BDAT size [LAST]` (RFC 3030): the size in bytes, whether it is the last.

    None when malformed or over CHUNK_MAX.
    """
    found = _BDAT.fullmatch(line)
    return (int(found[1]), bool(found[2])) if found and int(found[1]) <= CHUNK_MAX else None
