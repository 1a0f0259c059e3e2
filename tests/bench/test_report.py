"""What the benchmark makes of its figures; the figures themselves are nobody's test."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address
from pathlib import Path
from typing import cast
from xml.etree import ElementTree

import pytest

from appliance.bpf.steering import worker_of
from bench import mail, plot, report
from bench.arena import Arena
from bench.latency import middle_and_last
from bench.load import Contender, Sample, Workload, balanced
from bench.row import Effort, Row, figure

SLOW = Row("slow <mail>", "mails/s", "HAProxy", ((90.0, 100.0),), 1.0, note="a note")
LEAN = Row("idle", "kB", "HAProxy", ((5.0, 3.0), (7.0, 3.0), (6.0, 4.0)), 6.0, at_most=True, by_ratio=False)
MACHINE = {"kernel": "Linux"}


class FakeArena:
    """Measures what it is told to, and notes whom it measured."""

    clients = ("10.77.1.10",)

    def __init__(self, rates: Mapping[str, Sequence[float]]) -> None:
        self.direct, self.haproxy, self.gateway = (Contender(name, 0, ()) for name in rates)
        self._rates = {name: iter(each) for name, each in rates.items()}
        self.ran: list[str] = []

    def run(self, _workload: Workload, through: Contender) -> Sample:
        self.ran.append(through.name)
        return Sample(next(self._rates[through.name]), 50.0)


@pytest.mark.parametrize(
    ("mine", "at_most", "verdict"),
    [
        (100.0, False, "pass"),
        (99.0, False, "falls short"),
        (100.0, True, "pass"),
        (101.0, True, "falls short"),
    ],
)
def test_the_bar_itself_is_reached(mine: float, at_most: bool, verdict: str) -> None:
    assert Row("r", "s", "HAProxy", ((mine, 100.0),), 1.0, at_most).verdict == verdict


def test_the_round_of_the_median_ratio_is_shown() -> None:
    """A round in which the machine was busy slows all contenders, and leaves the ratio alone."""
    row = Row("r", "mails/s", "HAProxy", ((110, 200), (10, 20), (90, 100)), 1.0)
    assert (row.gateway, row.other, row.ratio) == (110, 200, 0.55)


def test_of_two_rounds_the_worse_is_shown() -> None:
    rounds = ((90.0, 100.0), (110.0, 100.0))
    assert Row("r", "mails/s", "HAProxy", rounds, 1.0).ratio == 0.9
    assert Row("r", "s", "HAProxy", rounds, 1.0, at_most=True).ratio == 1.1


def test_a_figure_of_its_own_is_judged_beside_what_others_have() -> None:
    assert (LEAN.judged, LEAN.verdict) == (6.0, "pass")
    assert LEAN.texts() == ("idle", "6.00 kB", "HAProxy 4.00", "1.50", "<= 6 kB", "pass")


@pytest.mark.parametrize(
    ("mine", "at_most", "told"),
    [(99.6, False, "0.99"), (100.4, True, "1.01"), (29, False, "0.29"), (129, True, "1.29")],
)
def test_no_ratio_seems_to_reach_its_bar_that_does_not(mine: float, at_most: bool, told: str) -> None:
    assert Row("r", "", "HAProxy", ((mine, 100.0),), 1.0, at_most=at_most).texts()[3] == told


def test_what_adds_nothing_makes_no_ratio() -> None:
    row = Row("r", "s", "HAProxy", ((5.0, -1.0),), 1.5, at_most=True)
    assert (row.verdict, row.texts()[3]) == ("falls short", "> 99")


def test_reach_grows_with_what_is_better() -> None:
    assert SLOW.reach == 0.9
    assert LEAN.reach == 1.0
    assert Row("r", "ms", "", ((50.0, 0.0),), 100.0, at_most=True, by_ratio=False).reach == 2.0
    assert Row("r", "", "", ((0.0, 0.0),), 0.0, at_most=True, by_ratio=False).reach == 1.0
    assert Row("r", "", "", ((1.0, 0.0),), 0.0, at_most=True, by_ratio=False).reach == 0.0


@pytest.mark.parametrize(("number", "text"), [(12345.6, "12,346"), (12.34, "12.3"), (-0.456, "-0.46")])
def test_figures_have_the_digits_that_mean_something(number: float, text: str) -> None:
    assert figure(number) == text


def test_a_share_is_one_at_least() -> None:
    effort = Effort(1, 0.01, print)
    assert (effort.of(1000), effort.of(10), effort.of(100, 4)) == (10, 1, 4)


def test_the_row_of_a_workload_is_measured_there_and_back_and_tells_what_it_cost() -> None:
    rates = {
        "direct": [400, 40, 400],
        "HAProxy": [200, 300, 20, 20, 200, 0],
        "gateway": [90, 160, 9, 11, 9, 91],
    }
    arena = FakeArena(rates)
    both = (arena.gateway, arena.haproxy)
    row = mail.compare(cast("Arena", arena), Effort(3, 1.0, lambda _: None), mail.WORKLOADS[0], both)
    assert arena.ran == ["gateway", "HAProxy", "HAProxy", "gateway"] * 3 + ["direct"] * 3
    assert row.rounds == ((125.0, 250.0), (10.0, 20.0), (50.0, 100.0))
    assert (row.ratio, row.verdict) == (0.5, "falls short")
    assert "50 µs a mail" in row.note
    assert "direct 400" in row.note


def test_one_slow_round_trip_in_a_hundred_is_the_last_percentile() -> None:
    assert middle_and_last([10.0] * 980 + [500.0] * 20) == (10.0, 500.0)


def test_the_page_has_every_row_and_its_plot(tmp_path: Path) -> None:
    report.store(tmp_path / "page.md", [SLOW, LEAN], 3, MACHINE)
    page = (tmp_path / "page.md").read_text()
    assert "| slow <mail> | 90.0 mails/s | HAProxy 100 | 0.90 | >= 1 | falls short | a note |" in page
    assert "(page.svg)" in page
    assert "3 rounds in one run" in page
    assert (tmp_path / "page.svg").exists()


def test_the_plot_is_an_image_with_a_bar_for_each_row() -> None:
    root = ElementTree.fromstring(plot.svg([SLOW, LEAN]))
    bars = [each for each in root.findall("{*}rect") if each.get("class") in ("pass", "short")]
    assert [bar.get("class") for bar in bars] == ["short", "pass"]
    assert float(bars[0].get("width", "")) < float(bars[1].get("width", ""))


def test_programs_get_the_same() -> None:
    found = json.loads(json.dumps(report.as_json([SLOW], 3, MACHINE)))
    assert (found["machine"], found["rounds"]) == (MACHINE, 3)
    (row,) = found["rows"]
    assert (row["name"], row["ratio"], row["bar"], row["verdict"]) == ("slow <mail>", 0.9, 1.0, "falls short")
    assert row["rounds"] == [[90.0, 100.0]]


def test_every_worker_owns_equally_many_clients() -> None:
    clients = balanced(IPv4Address("10.77.1.10"), 3, 2)
    assert len(set(clients)) == 6
    assert Counter(worker_of(client, 3) for client in clients) == {0: 2, 1: 2, 2: 2}
