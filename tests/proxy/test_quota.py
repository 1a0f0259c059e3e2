"""8: windows, quotas and what is kept of names, with a clock that the test turns."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.config import Config
from appliance.proxy.quota import NAMED, REMEMBERED, Limits, Record, Use, stands_in

CLIENT = "192.0.2.7"
START = 1_000_000.0


def limits(
    quota: int = 0, *, period: int = 60, generation: int = 1, expiration: int = -1, **quotas: int
) -> Limits:
    return Limits(period, generation, expiration, tuple(quotas.get(use.word, quota) for use in Use))


def test_limits_come_from_the_options() -> None:
    values = {f"ratelimit_{use.word}": int(use) + 1 for use in Use}
    config = Config({**values, "ratelimit_period": 60, "ratelimit_generation": 7, "ratelimit_bytes": -5})
    assert Limits.of(config) == Limits(60, 7, -1, (1, 2, 3, 0, 5, 6, 7, 8, 9, 10))


@pytest.mark.parametrize("use", set(Use) - set(NAMED))
def test_what_would_pass_the_quota_is_refused_and_not_added(use: Use) -> None:
    record = Record(CLIENT, limits(5), START)
    assert record.spend(use, 3)
    assert not record.spend(use, 3)
    assert record.spend(use, 2)
    assert record.exhausted(use)
    assert not record.spend(use)
    assert (record.used[use], record.tries[use]) == (5, 9)


def test_no_quota_is_no_limit_but_counted() -> None:
    record = Record(CLIENT, limits(0), START)
    assert record.spend(Use.BYTES, 10**15)
    assert not record.exhausted(Use.BYTES)
    assert record.used[Use.BYTES] == record.tries[Use.BYTES] == 10**15


def test_what_has_happened_is_added_in_any_case() -> None:
    record = Record(CLIENT, limits(10), START)
    record.add(Use.BYTES, 100)
    assert record.used[Use.BYTES] == 100
    assert record.exhausted(Use.BYTES)


@given(
    st.lists(st.tuples(st.floats(0, 100), st.integers(1, 4)), max_size=60),
    st.integers(1, 50),
    st.integers(0, 6),
)
def test_windows_are_those_of_a_plain_account(
    steps: list[tuple[float, int]], period: int, quota: int
) -> None:
    given_limits = limits(quota, period=period)
    record = Record(CLIENT, given_limits, START)
    began, used, tries, now = START, 0, 0, START
    for pause, amount in steps:
        now += pause
        if now - began >= period:
            began, used, tries = now, 0, 0
        fits = not quota or used + amount <= quota
        used, tries = used + amount * fits, tries + amount
        record.refresh(given_limits, now)
        assert record.spend(Use.RECIPIENTS, amount) == fits
        assert (record.cleared, record.used[Use.RECIPIENTS], record.tries[Use.RECIPIENTS]) == (
            began,
            used,
            tries,
        )


@given(st.lists(st.floats(-1e9, 1e9), max_size=20))
def test_a_clock_that_jumps_never_makes_a_period_longer(jumps: list[float]) -> None:
    record = Record(CLIENT, limits(1, period=60), START)
    now = START
    for jump in jumps:
        now += jump
        record.refresh(limits(1, period=60), now)
        assert now - 60 < record.cleared <= now
    record.refresh(limits(1, period=60), now + 60)
    assert record.spend(Use.CONNECTIONS)


def test_quotas_are_taken_over_with_a_higher_generation_alone() -> None:
    record = Record(CLIENT, limits(5, generation=3), START)
    record.spend(Use.CONNECTIONS, 4)
    for generation in (1, 2, 3):
        record.refresh(limits(9, generation=generation), START + 1)
        assert record.quotas == (5,) * len(Use)
    record.refresh(limits(4, generation=4), START + 1)
    assert (record.quotas, record.generation) == ((4,) * len(Use), 4)
    assert record.used[Use.CONNECTIONS] == 4  # counting goes on
    assert not record.spend(Use.CONNECTIONS)


def test_a_new_period_keeps_quotas_until_the_record_is_forgotten() -> None:
    record = Record(CLIENT, limits(5), START)
    record.refresh(limits(9), START + 60)
    assert record.quotas[0] == 5
    record.refresh(limits(9), START + 60 + 120)
    assert record.quotas[0] == 9


def test_a_personal_quota_is_never_forgotten() -> None:
    record = Record(CLIENT, limits(5, generation=100), START)
    record.refresh(limits(9, generation=99), START + 1e8)
    assert record.quotas[0] == 5


@pytest.mark.parametrize("use", NAMED)
@given(names=st.lists(st.binary(max_size=3), max_size=60), quota=st.integers(0, 5))
def test_names_cost_once_and_take_bounded_memory(use: Use, names: list[bytes], quota: int) -> None:
    record = Record(CLIENT, limits(quota), START)
    seen: set[bytes] = set()
    for name in names:
        fits = not quota or name in seen or len(seen) < quota
        if fits:
            seen.add(name)
        assert record.spend_name(use, name) == fits
        assert sum(map(len, record.names)) <= 8 * quota
    assert record.tries[use] == len(names)
    assert record.used[use] == (len(seen) if quota else 0)
    record.refresh(limits(quota), START + 60)
    assert not any(record.names)


def test_a_digest_is_found_where_one_begins_and_nowhere_else() -> None:
    record = Record(CLIENT, limits(1000), START)
    names = [b"%d" % number for number in range(1000)]
    assert all(record.spend_name(Use.HELOS, name) for name in names)
    digests = record.names[NAMED.index(Use.HELOS)]
    assert stands_in(digests[800:808], digests)
    assert not stands_in(digests[4:12], digests)
    assert stands_in(digests[4:12], digests + digests[4:12])


def test_destinations_give_way_when_they_are_old() -> None:
    record = Record(CLIENT, limits(), START)
    for number in range(REMEMBERED):
        assert record.remember(b"%d" % number, START + number, 100)
    assert not record.remember(b"new", START + 100, 100)  # the oldest is exactly that old
    assert record.remember(b"0", START + 100, 100)
    assert not record.remember(b"new", START + 101, 100)  # number 1 is the oldest now
    assert record.remember(b"new", START + 102, 100)
    assert record.destinations == REMEMBERED
    assert not record.remember(b"1", START + 102, 100)


@given(st.lists(st.tuples(st.integers(-50, 50), st.integers(0, 200)), max_size=200), st.integers(0, 30))
def test_destinations_take_bounded_memory(steps: list[tuple[int, int]], expiration: int) -> None:
    record = Record(CLIENT, limits(), START)
    now = START
    for pause, destination in steps:
        now += pause
        record.remember(b"%d" % destination, now, expiration)
        assert record.destinations <= REMEMBERED
    for destination in range(1000, 1000 + REMEMBERED):  # whatever the clock did, they all give way in the end
        assert record.remember(b"%d" % destination, now + expiration + 1, expiration)


def test_an_edit_brings_quotas_and_a_clearing() -> None:
    record, edited = Record(CLIENT, limits(5), START), Record(CLIENT, limits(50, generation=9), START)
    record.spend(Use.BYTES, 3)
    edited.edited = 12
    record.adopt(edited)
    assert (record.edited, record.generation, record.quotas[0], record.used[Use.BYTES]) == (12, 9, 50, 3)
    edited.clear(START + 1)
    record.adopt(edited)
    assert (record.cleared, record.used[Use.BYTES]) == (START + 1, 0)
