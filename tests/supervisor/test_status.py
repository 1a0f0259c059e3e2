"""The forms of the status file and how it is put in its place."""

from pathlib import Path

import pytest

from appliance.proxy.scoreboard import Counter, Scoreboard
from appliance.supervisor.status import Facts, render, write
from appliance.supervisor.worker import Rows

ROW = [3, "data", "aA", 1_700_000_000, "10.0.0.5:1025", "192.0.2.1:25", 1, 100, 200, 7, "joe"]


def facts(sessions: list[tuple[int, Rows | None]] | None = None) -> Facts:
    board = Scoreboard.create(2)
    for counter in Counter:
        board.add(counter, 10 + counter)
    return Facts(
        version="1.2",
        started=1_700_000_000.0,
        reloaded=1_700_000_100.0,
        now=1_690_000_000.0,  # the clock was set back
        uptime=100_001.4,
        crashed=4,
        bugs=2,
        board=board,
        sessions=sessions or [],
    )


@pytest.mark.option("statefile_type")
def test_human(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    lines = render({"human"}, facts()).splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "Version", "Start time", "Restart time", "Dump time", "Uptime", "Children",
        "Found", "Requests", "Rejects", "Errors", "Auth",
    ]  # fmt: skip
    assert lines[0] == "Version:       1.2"
    assert lines[4] == "Uptime:        1 days 03:46:41"
    assert lines[5] == "Children:      10/30/4/2"
    assert lines[6] == "Found:         14/15/16/17/18/19"
    assert lines[8] == "Rejects:       20/21/22/23/24/25/26"


@pytest.mark.option("statefile_type")
def test_flat_has_a_name_and_a_value_in_each_line() -> None:
    found = dict(line.split(": ") for line in render({"flat"}, facts()).splitlines())
    assert found["time.start.unix"] == "1700000000"
    assert found["time.restart.unix"] == "1700000100"
    assert found["time.dump.unix"] == "1690000000"
    assert found["uptime.ticks"] == "100001"
    assert found["version"] == "1.2"
    assert [found[f"children.{name}"] for name in ("current", "max", "crashed", "bugs")] == [
        "10",
        "30",
        "4",
        "2",
    ]
    names = {
        "found": "viruses spams noauths spf regex earlytalk",
        "requests": "total direct empty",
        "rejects": "host ident lock dnsbl rate ratelimit other",
        "errors": "pipeline",
        "auth": "accepts rejects",
    }
    expected = [f"{group}.{name}" for group, words in names.items() for name in words.split()]
    assert list(found)[9:] == expected
    assert found["requests.total"] == "11"
    assert found["auth.rejects"] == "29"


@pytest.mark.option("statefile_type")
def test_slots_has_a_row_for_each_session_and_shows_who_does_not_answer() -> None:
    text = render({"slots"}, facts([(100, [ROW]), (101, None), (102, [ROW])]))
    header, first, stuck, second = text.splitlines()
    assert header == "slot pid state flags time source target trns cli_rx srv_rx kbps ident"
    assert first == "9 100 data aA 1700000000 10.0.0.5:1025 192.0.2.1:25 1 100 200 7 joe"
    assert stuck == "- 101 unanswered - - - - - - - - -"
    assert second.split()[0] == "11"


def test_what_a_worker_says_cannot_leave_its_column() -> None:
    rows: Rows = [["x", "a b\nc", "", None, "ż", 1.5, {}, "y" * 99], [], [1] * 99]
    lines = render({"slots"}, facts([(100, rows)])).splitlines()
    assert len(lines) == 4
    assert lines[1].split(" ") == ["x", "100", "a?b?c", "-", "-", "?", "1.5", "{}", "y" * 64, "-", "-", "-"]
    assert all(len(line.split(" ")) == 12 for line in lines)


@pytest.mark.option("statefile_type")
def test_forms_follow_each_other_in_ascii() -> None:
    text = render({"slots", "flat", "human"}, facts())
    assert text.index("Version:") < text.index("version: ") < text.index("slot pid")
    assert text.count("\n\n") == 2
    assert text.isascii()
    assert text.replace("\n", "").isprintable()


@pytest.mark.option("statefile_perm")
def test_the_file_is_replaced_with_exact_permissions(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write(path, 0o604, "one\n")
    old = path.open()
    write(path, 0o666, "two\n")
    assert old.read() == "one\n"
    assert path.read_text() == "two\n"
    assert path.stat().st_mode & 0o7777 == 0o666
    assert list(tmp_path.iterdir()) == [path]
    old.close()


def test_nothing_is_left_when_it_cannot_be_put_there(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    with pytest.raises(OSError, match="state"):
        write(tmp_path / "state", 0o600, "text")
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
