"""Value types of the configuration language for what is asked in the DNS: lists of addresses, name servers.

Used by the option tables; `DnsList` is for the check that asks. Nothing here asks anybody.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from appliance.config.network import IP, Port, SocketAddress
from appliance.config.option import Kind, shown

Ranges = tuple[tuple[int, int], ...]

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_ZONE = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?", re.ASCII)
_ENTRY = re.compile(r"([^=*]*)(?:=([^*]*))?(?:\*(.*))?", re.DOTALL)
_OCTET = re.compile(r"([0-9]{1,3})|\[([0-9;.-]{1,128})\]", re.ASCII)
_RANGE = re.compile(r"([0-9]{1,3})(?:(?:-|\.\.)([0-9]{1,3}))?", re.ASCII)
_DECIMALS = 3  # of a weight
_WEIGHT = re.compile(rf"[+-]?[0-9]{{1,4}}(?:\.[0-9]{{1,{_DECIMALS}}})?", re.ASCII)
_LONGEST = 220  # characters of a zone; 63 more hold a reversed IPv6 address within the 253 of a name
_LOOPBACK = 127


@dataclass(frozen=True, slots=True)
class DnsList:
    """A list of addresses in the DNS: its `zone`, which of its `answers` count, and how much.

    `answers` has for each octet the ranges that it may lie in; none at all stands for every answer but those
    by which a list refuses to answer.
    """

    zone: str
    answers: tuple[Ranges, ...] = ()
    weight: float = 1

    def matches(self, answer: str) -> bool:
        """Tell whether an IPv4 address is an answer that counts; outside 127.0.0.0/8 none does."""
        octets = [int(octet) for octet in answer.split(".")]
        if not self.answers:
            return octets[0] == _LOOPBACK and not refuses(answer)
        return octets[0] == _LOOPBACK and all(
            any(low <= octet <= high for low, high in ranges)
            for octet, ranges in zip(octets, self.answers, strict=True)
        )

    def __str__(self) -> str:
        """Give the form that the file uses."""
        answers = "=" + ".".join(_written(ranges) for ranges in self.answers) if self.answers else ""
        weight = "" if self.weight == 1 else f"*{float(self.weight)!r}".removesuffix(".0")
        return self.zone + answers + weight


def refuses(answer: str) -> bool:
    """Tell whether a list refuses to answer, whomever it was asked for.

    In 127.255.255.0/24 Spamhaus tells name servers that are public, or ask too much, to stop:
    https://www.spamhaus.org/faqs/dnsbl-usage/
    """
    return answer.startswith("127.255.255.")


def together(lists: Iterable[DnsList]) -> float:
    """Give what lists weigh together, as on paper: 0.1 and 0.7 make 0.8, and nothing less."""
    return round(math.fsum(entry.weight for entry in lists), _DECIMALS)


def _written(ranges: Ranges) -> str:
    text = ";".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)
    return text if text.isdigit() else f"[{text}]"


class ListZone(Kind[DnsList]):
    """A list in the DNS; `weighted` ones may say how much they count."""

    word = "ZONE"

    def __init__(self, *, weighted: bool) -> None:
        self.weighted = weighted
        self.allowed = "a DNS zone, perhaps with the answers that count, as in list.example=127.0.0.[2-11;20]"
        if weighted:
            self.allowed += ", and how much, as in list.example*2"

    def read(self, text: str) -> DnsList:
        """Read a zone, answers and weight."""
        match = _ENTRY.fullmatch(text)
        zone = match[1].strip().lower() if match else ""
        if match is None or len(zone) > _LONGEST or _ZONE.fullmatch(zone) is None:
            raise ValueError(f"{shown(text)} does not begin with a zone")
        answers = () if match[2] is None else _answers(match[2].strip())
        if match[3] is None:
            return DnsList(zone.removesuffix("."), answers)
        weight = match[3].strip()
        if not self.weighted:
            raise ValueError(f"{shown(text)} has a weight, which counts nowhere")
        if _WEIGHT.fullmatch(weight) is None or not float(weight):
            raise ValueError(f"{shown(weight)} is no weight, which is a number up to 9999 and not 0")
        return DnsList(zone.removesuffix("."), answers, float(weight))


def _answers(text: str) -> tuple[Ranges, ...]:
    """Read four octets, each a number or ranges in brackets."""
    octets: list[Ranges] = []
    at = 0
    while match := _OCTET.match(text, at):
        octets.append(tuple(_range(part) for part in (match[1] or match[2]).split(";")))
        at = match.end()
        if at == len(text) or text[at] != "." or len(octets) == 4:
            break
        at += 1
    if at != len(text) or len(octets) != 4:
        raise ValueError(f"{shown(text)} is no answer of four octets such as 127.0.0.[2-11;20]")
    if not any(low <= _LOOPBACK <= high for low, high in octets[0]):
        raise ValueError(f"{shown(text)} can never match: answers of lists lie in 127.0.0.0/8")
    return tuple(octets)


def _range(text: str) -> tuple[int, int]:
    match = _RANGE.fullmatch(text)
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if not low <= high <= 255:
        raise ValueError(f"{shown(text)} is no number from 0 to 255, and no range of such")
    return low, high


class NameServer(Kind[SocketAddress]):
    """A DNS server: an address and perhaps a port."""

    word = "SERVER"
    allowed = (
        "an address, perhaps with a port: 192.0.2.53, 192.0.2.53:5353, 2001:db8::53, [2001:db8::53]:5353"
    )

    def read(self, text: str) -> SocketAddress:
        """Read an address, behind a colon the port; an IPv6 address stands in brackets then."""
        address, port = text, "53"
        if text.startswith("["):
            address, bracket, rest = text[1:].partition("]")
            if not bracket or rest[:1] not in ("", ":") or ":" not in address:
                raise ValueError(f"{shown(text)} is no server")
            port = rest[1:] if rest else port
        elif text.count(":") == 1:
            address, _, port = text.partition(":")
        return SocketAddress(None, str(IP().read(address)), Port().read(port))
