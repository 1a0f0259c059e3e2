"""Times as people write and read them."""

import pytest

from appliance.ctl.base import CtlError
from appliance.ctl.times import duration, end, moment, size, span
from appliance.proxy.locks import FOREVER


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("30m", 1800),
        ("2h", 7200),
        ("1d12h", 129600),
        ("2w", 1209600),
        ("forever", FOREVER),
    ],
)
def test_a_duration(text: str, seconds: int) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "0", "h", "-5m", "1y", "2 h", "1.5h", "9999999999", "999999999w", "\u0661h"]
)
def test_no_duration(text: str) -> None:
    with pytest.raises(CtlError, match="is not a duration"):
        duration(text)


def test_what_people_read() -> None:
    assert [span(seconds) for seconds in (-1, 0, 59.9, 3600, 90061)] == ["0s", "0s", "59s", "1h", "1d1h"]
    assert [size(number) for number in (0, 999, 1000, 25_000_000)] == ["0 B", "999 B", "1 kB", "25 MB"]
    assert end(None) == "for ever"
    assert end(1e9).startswith("until 2001-09-0")


def test_a_date_beyond_all_calendars() -> None:
    assert moment(1e17) == "unix time 100000000000000000"
    assert end(-1e18) == "until unix time -1000000000000000000"
