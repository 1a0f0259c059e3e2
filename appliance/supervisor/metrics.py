"""Metrics for Prometheus: what is measured, and the page that tells it.

`METRICS` is the whole list; docs/metrics.md is made from it. The supervisor serves the page by `http.py`. All
is read at the time of the request, from the scoreboard, the lock directory and what the scanners said lately.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from appliance.config import Config
from appliance.proxy.scoreboard import Counter, Scoreboard
from appliance.supervisor.features import version
from appliance.supervisor.worker import Rows

Samples = Iterable[tuple[tuple[str, ...], float]]


@dataclass(frozen=True)
class Facts:
    """What the page is made of. `scanners` is None while nobody can tell how they are."""

    config: Config
    board: Scoreboard
    workers: int
    crashed: int
    started: float
    reloaded: float
    ending: bool
    scanners: Rows | None


@dataclass(frozen=True)
class Measure:
    """A metric: its name without the prefix, what it tells, its labels, and how its samples are read."""

    name: str
    help: str
    read: Callable[[Facts], Samples]
    labels: tuple[str, ...] = ()
    gauge: bool = False

    @property
    def full_name(self) -> str:
        """The name as Prometheus has it."""
        return f"appliance_{self.name}" + ("" if self.gauge else "_total")

    def family(self, facts: Facts) -> Metric:
        """Give the metric with its samples."""
        kind = GaugeMetricFamily if self.gauge else CounterMetricFamily
        family = kind(f"appliance_{self.name}", self.help, labels=self.labels)
        for labels, value in self.read(facts):
            family.add_metric(labels, value)
        return family


def _counter(counter: Counter) -> Callable[[Facts], Samples]:
    return lambda facts: [((), facts.board.total(counter))]


def _counters(names: dict[str, Counter]) -> Callable[[Facts], Samples]:
    return lambda facts: [((name,), facts.board.total(counter)) for name, counter in names.items()]


def _one(read: Callable[[Facts], float]) -> Callable[[Facts], Samples]:
    return lambda facts: [((), read(facts))]


def _sessions(facts: Facts) -> Samples:
    return [((str(row),), facts.board.of(row, Counter.SESSIONS)) for row in range(facts.board.rows)]


def _scanners(facts: Facts) -> Samples:
    return [((str(name),), float(not trouble)) for name, _, trouble in facts.scanners or ()]


def _locks(facts: Facts) -> Samples:
    """Count the lock files by their names alone: there may be very many."""
    try:
        names = os.listdir(facts.config.outside(facts.config.lock_path))  # noqa: PTH208 - names, fast
    except OSError:
        return []
    return [((), sum(not name.startswith(".") for name in names))]


_FOUND = {
    "virus": Counter.VIRUSES,
    "spam": Counter.SPAMS,
    "noauth": Counter.NOAUTHS,
    "spf": Counter.SPF,
    "regex": Counter.REGEX,
    "earlytalk": Counter.EARLYTALK,
}
_REFUSED = {
    "host": Counter.REJECT_HOST,
    "ident": Counter.REJECT_IDENT,
    "lock": Counter.REJECT_LOCK,
    "dnsbl": Counter.REJECT_DNSBL,
    "rate": Counter.REJECT_RATE,
    "ratelimit": Counter.REJECT_RATELIMIT,
    "other": Counter.REJECT_OTHER,
}
_AUTH = {"accepted": Counter.AUTH_ACCEPTS, "refused": Counter.AUTH_REJECTS}

METRICS = (
    Measure(
        "info",
        "Always 1; the label is the gateway's version.",
        lambda _: [((version(),), 1)],
        ("version",),
        True,
    ),
    Measure("start_time_seconds", "Unix time of the start.", _one(lambda facts: facts.started), gauge=True),
    Measure(
        "reload_time_seconds",
        "Unix time at which the configuration was last taken over.",
        _one(lambda facts: facts.reloaded),
        gauge=True,
    ),
    Measure(
        "draining", "1 while no more connections are accepted.", _one(lambda facts: facts.ending), gauge=True
    ),
    Measure("workers", "Worker processes that are alive.", _one(lambda facts: facts.workers), gauge=True),
    Measure(
        "worker_crashes", "Workers that ended unasked and were replaced.", _one(lambda facts: facts.crashed)
    ),
    Measure("sessions", "Open sessions of each worker.", _sessions, ("worker",), True),
    Measure(
        "sessions_peak",
        "The most sessions that were open at once since the start.",
        _one(lambda facts: facts.board.peak()),
        gauge=True,
    ),
    Measure("connections", "Connections of clients.", _counter(Counter.REQUESTS)),
    Measure(
        "direct_sessions",
        "Sessions that were relayed without a look, such as encrypted ones.",
        _counter(Counter.DIRECT),
    ),
    Measure("empty_sessions", "Sessions whose client left without a command.", _counter(Counter.EMPTY)),
    Measure("messages", "Messages that were let through to their servers.", _counter(Counter.MESSAGES)),
    Measure(
        "found",
        f"What was found in sessions and messages: {', '.join(_FOUND)}.",
        _counters(_FOUND),
        ("what",),
    ),
    Measure(
        "refused",
        f"Connections and commands that were refused, because of {', '.join(_REFUSED)}.",
        _counters(_REFUSED),
        ("why",),
    ),
    Measure(
        "authentications",
        f"AUTH that servers have {' or '.join(_AUTH)}.",
        _counters(_AUTH),
        ("result",),
    ),
    Measure(
        "pipeline_errors",
        "Sessions with more unanswered commands than pipeline_size.",
        _counter(Counter.PIPELINE),
    ),
    Measure("locks", "Files in the lock directory.", _locks, gauge=True),
    Measure(
        "scanner_up",
        "1 if the scanner answers, 0 if it does not; absent while nobody can tell.",
        _scanners,
        ("scanner",),
        True,
    ),
)


class _Snapshot(Collector):
    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    def collect(self) -> Iterator[Metric]:
        """Give all metrics."""
        return (measure.family(self._facts) for measure in METRICS)


def page(facts: Facts) -> bytes:
    """Give the page in the text format of Prometheus."""
    return generate_latest(_Snapshot(facts))


def documentation() -> str:
    """Give the text of docs/metrics.md."""
    rows = (
        f"| `{measure.full_name}` | {'gauge' if measure.gauge else 'counter'} "
        f"| {', '.join(f'`{label}`' for label in measure.labels) or '-'} | {measure.help} |"
        for measure in METRICS
    )
    return "\n".join((_HEAD, "| metric | type | labels | meaning |", "|---|---|---|---|", *rows, ""))


_HEAD = """# Metrics

With `metrics_listen ADDRESS:PORT` the gateway serves these at `http://ADDRESS:PORT/metrics`, in the text
format of Prometheus. There is no password: listen at an address that only the monitoring can reach. Counters
begin at zero with the gateway and survive a worker's end. Made by `make docs`; do not edit.
"""
