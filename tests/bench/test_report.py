"""What the benchmark makes of its figures; the figures themselves are nobody's test."""

from collections import Counter
from ipaddress import IPv4Address

import pytest

from appliance.bpf.steering import worker_of
from bench import report
from bench.arena import Sample, Workload, balanced

WORKLOAD = Workload("small", 100, 2000, 4, kept=True)


def rounds(*rates: float) -> list[Sample]:
    return [Sample(rate, 50.0) for rate in rates]


@pytest.mark.parametrize(("gateway", "verdict"), [(70.0, "pass"), (69.0, "falls short")])
def test_the_gateway_alone_is_judged_by_the_bar(gateway: float, verdict: str) -> None:
    samples = {"direct": rounds(200.0), "HAProxy": rounds(100.0), "gateway": rounds(gateway)}
    lines = report.lines(WORKLOAD, samples)
    assert [line.verdict for line in lines] == ["", "", verdict]


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    """A round in which the machine was busy slows all contenders, and leaves the ratio alone."""
    samples = {
        "direct": rounds(400, 40, 400),
        "HAProxy": rounds(200, 20, 100),
        "gateway": rounds(100, 10, 90),
    }
    gateway = report.lines(WORKLOAD, samples)[2]
    assert (gateway.rate, gateway.to_haproxy, gateway.to_direct) == (90, 0.5, 0.25)
    assert gateway.spread == (10, 100)


def test_every_worker_owns_equally_many_clients() -> None:
    clients = balanced(IPv4Address("10.77.1.10"), 3, 2)
    assert len(set(clients)) == 6
    assert Counter(worker_of(client, 3) for client in clients) == {0: 2, 1: 2, 2: 2}
