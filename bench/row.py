"""A row of the benchmark's table: what was measured, beside what, and whether it reaches its bar.

Each part of the benchmark makes some; `report.py` and `plot.py` show them. No file, no process is known here.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

_NOTHING = 1e-9  # what a figure of nothing counts as where it divides
_MOST = 99  # a higher ratio is not worth its digits
REACH_MOST = 4.0  # times the bar; what is farther above it is shown so


@dataclass(frozen=True)
class Effort:
    """How much is done: `rounds` times everything, with `share` of the mail; `tell` hears of each step."""

    rounds: int
    share: float
    tell: Callable[[str], None]

    def of(self, number: int, least: int = 1) -> int:
        """Give the share of a number, `least` at least."""
        return max(round(number * self.share), least)


@dataclass(frozen=True)
class Row:
    """What each round gave: the gateway's figure and that of `against`, in `unit`.

    The bar is one for the ratio of the two, or for the gateway's figure where nothing is compared
    (`by_ratio` False); the figure judged has to be at least the bar, or with `at_most` no more than it.
    What is shown are the figures of one round, which share their noise.
    """

    name: str
    unit: str
    against: str
    rounds: tuple[tuple[float, float], ...]
    bar: float
    at_most: bool = False
    by_ratio: bool = True
    note: str = ""

    @property
    def middle(self) -> tuple[float, float]:
        """The round that is shown: the median of what is judged, of an even number the worse one."""
        ordered = sorted(self.rounds, key=self._judged)
        return ordered[(len(ordered) - (not self.at_most)) // 2]

    @property
    def gateway(self) -> float:
        """The gateway's figure."""
        return self.middle[0]

    @property
    def other(self) -> float:
        """The figure of what it is compared with."""
        return self.middle[1]

    @property
    def ratio(self) -> float:
        """How they compare."""
        return _ratio(self.middle)

    @property
    def judged(self) -> float:
        """The figure that the bar is for."""
        return self._judged(self.middle)

    def _judged(self, measured: tuple[float, float]) -> float:
        return _ratio(measured) if self.by_ratio else measured[0]

    @property
    def passes(self) -> bool:
        """Whether the gateway reaches the bar."""
        return self.judged <= self.bar if self.at_most else self.judged >= self.bar

    @property
    def verdict(self) -> str:
        """The same in words."""
        return "pass" if self.passes else "falls short"

    @property
    def reach(self) -> float:
        """How far it comes: 1 is the bar, more is better, whichever way the bar is meant."""
        if self.bar == 0 or self.judged <= 0:
            return REACH_MOST if self.passes and self.bar else float(self.passes)
        return min(self.bar / self.judged if self.at_most else self.judged / self.bar, REACH_MOST)

    def texts(self) -> tuple[str, ...]:
        """What, the gateway's figure, that of the other, the ratio, the bar and the verdict, to read."""
        compared = f"{self.against} {figure(self.other)}" if self.against else ""
        # Rounded away from the bar, lest one seem to reach it that does not.
        round_off, least = (math.ceil, -_NOTHING) if self.at_most else (math.floor, _NOTHING)
        hundredths = round_off(100 * self.ratio + least)
        ratio = "" if not self.against else f"{hundredths / 100:.2f}" if self.ratio < _MOST else f"> {_MOST}"
        bar = f"{'<=' if self.at_most else '>='} {self.bar:g}{'' if self.by_ratio else f' {self.unit}'}"
        mine = f"{figure(self.gateway)} {self.unit}".rstrip()
        return (self.name, mine, compared, ratio, bar.rstrip(), self.verdict)


def _ratio(measured: tuple[float, float]) -> float:
    mine, theirs = measured
    return mine / max(theirs, _NOTHING)


def there_and_back(*measures: Callable[[], float]) -> list[float]:
    """Measure each twice, in their order and back; give the sums. What drifts meanwhile drifts for all."""
    there = [measure() for measure in measures]
    back = [measure() for measure in reversed(measures)]
    return [first + second for first, second in zip(there, reversed(back), strict=True)]


def figure(number: float) -> str:
    """Write a figure with as many digits as mean something."""
    return f"{number:,.{0 if abs(number) >= 100 else 1 if abs(number) >= 10 else 2}f}"
