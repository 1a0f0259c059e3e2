"""locks, lock and unlock on a lock directory, with no gateway in sight."""

import errno
import os
import time

import pytest

from appliance.proxy.locks import LockDirectory
from tests.ctl.conftest import Tool

OTHER = 12345  # another user than the gateway's


def gateway(tool: Tool, duration: int = 3600) -> LockDirectory:
    return LockDirectory(tool.locks, 0o660, duration, os.geteuid(), lambda _: None)


def row(tool: Tool, client: str) -> dict[str, object]:
    rows = [row for row in tool("locks", "--json").json["locks"] if row["client"] == client]
    assert len(rows) == 1
    return dict(rows[0])


def test_a_lock_by_hand_is_one_for_the_gateway_and_ends_when_it_was_told(tool: Tool) -> None:
    done = tool("lock", "192.0.2.7", "--for", "2h", "--why", "sends spam")
    assert (done.code, done.err) == (0, "")
    assert "192.0.2.7 is locked until 2" in done.out
    found = gateway(tool).find("192.0.2.7")
    assert found
    assert found.until == pytest.approx(time.time() + 7200, abs=5)
    assert (tool.locks / "192.0.2.7").read_text() == "ADMIN alice: sends spam\nlasts 7200\n"
    listed = row(tool, "192.0.2.7")
    assert (listed["why"], listed["by"], listed["until"]) == (
        "ADMIN alice: sends spam",
        "appliance-ctl",
        found.until,
    )
    table = tool("locks").out
    assert "192.0.2.7" in table
    assert "1h59m" in table


def test_a_lock_without_a_duration_lasts_as_configured(tool: Tool) -> None:
    tool.write(lock_duration="600")
    done = tool("lock", "2001:DB8:0::7", "--json")
    assert done.json["client"] == "2001:db8::7"
    assert done.json["until"] == pytest.approx(time.time() + 600, abs=5)
    assert (tool.locks / "2001:db8::7").read_text() == "ADMIN alice\n"
    assert tool("lock", "::ffff:192.0.2.9", "--for", "forever").out == "192.0.2.9 is locked for ever\n"
    assert row(tool, "192.0.2.9")["until"] is None


def test_locks_of_one_behind_an_address(tool: Tool) -> None:
    for client in ("192.0.2.7", "192.0.2.7-alice", "192.0.2.7-bob", "192.0.2.70"):
        assert tool("lock", client).code == 0
    assert tool("unlock", "192.0.2.7-alice", "--json").json == {"unlocked": ["192.0.2.7-alice"]}
    assert sorted(tool("unlock", "192.0.2.7", "--json").json["unlocked"]) == ["192.0.2.7", "192.0.2.7-bob"]
    assert [path.name for path in tool.locks.iterdir()] == ["192.0.2.70"]


def test_a_narrow_terminal_shows_whole_addresses_and_causes(
    tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = "2001:db8:1234:5678:9abc:def0:1234:5678-somebody"
    tool("lock", client, "--why", "an open proxy, as the night shift has found")
    monkeypatch.setenv("FORCE_COLOR", "1")  # which makes a terminal of any output
    monkeypatch.setenv("COLUMNS", "80")
    shown = tool("locks").out
    assert client in shown
    assert "appliance-ctl" in shown
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown
    for word in ("LEFT", "59m59s", "shift"):
        assert word in shown


def test_whoever_is_locked_is_not_locked_again(tool: Tool) -> None:
    tool("lock", "192.0.2.7")
    done = tool("lock", "192.0.2.7", "--for", "1w")
    assert (done.code, done.out) == (1, "")
    assert "192.0.2.7 is locked already, until" in done.err
    assert "unlock it first" in done.err


@pytest.mark.option("trusted_clients")
def test_a_trusted_client_is_never_locked(tool: Tool) -> None:
    tool.write(trusted_clients="192.0.2.0/28,2001:db8::/48")
    for client in ("192.0.2.7", "192.0.2.7-ident", "::ffff:192.0.2.7", "2001:db8::1"):
        done = tool("lock", client)
        assert done.code == 1
        assert "is trusted and never locked" in done.err
    assert "out of trusted_clients" in done.err
    assert not any(tool.locks.iterdir())
    assert tool("lock", "192.0.2.16").code == 0


@pytest.mark.option("trusted_clients")
def test_a_client_that_is_trusted_since_it_was_locked_is_shown_as_exempt(tool: Tool) -> None:
    for client in ("192.0.2.7", "192.0.2.8"):
        assert tool("lock", client, "--for", "forever").code == 0
    tool.write(trusted_clients="192.0.2.7")
    assert row(tool, "192.0.2.7")["by"] == "exemption"
    assert row(tool, "192.0.2.8")["by"] == "appliance-ctl"
    assert "192.0.2.7 is exempt from locks" in tool("explain", "192.0.2.7").out
    assert tool("unlock", "192.0.2.7").out == "unlocked: 192.0.2.7\n"
    assert [path.name for path in tool.locks.iterdir()] == ["192.0.2.8"]


def test_names_that_the_gateway_does_not_look_for_are_no_locks(tool: Tool) -> None:
    for name in (
        "2001:DB8::7",
        "2001:db8:0::7",
        "::ffff:192.0.2.7",
        "fe80::1%lan",
        "192.0.2.7_x",
        "192.0.2.07",
    ):
        (tool.locks / name).write_text("CAUSE\n")
    (tool.locks / "2001:db8::8-joe").write_text("CAUSE\n")
    assert [row["client"] for row in tool("locks", "--json").json["locks"]] == ["2001:db8::8-joe"]
    assert tool("status", "--json").json["locks"]["files"] == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_an_exemption_is_shown_and_respected(tool: Tool) -> None:
    path = tool.locks / "192.0.2.7"
    path.write_text("the printer\n")
    os.chown(path, OTHER, OTHER)
    assert (row(tool, "192.0.2.7")["by"], row(tool, "192.0.2.7")["why"]) == ("exemption", "the printer")
    done = tool("lock", "192.0.2.7")
    assert done.code == 1
    assert f"192.0.2.7 is exempt: {path} belongs to another user" in done.err
    assert "exempts it" in tool("unlock", "192.0.2.7").err
    assert tool("unlock", "--all").code == 0
    assert path.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is refused by nobody")
def test_nothing_is_written_with_more_rights_than_the_gateways_user_has(tool: Tool) -> None:
    tool.write(set_user="nobody", set_group="nogroup")
    tool.locks.chmod(0o700)
    done = tool("lock", "192.0.2.7")
    assert done.code == 1
    assert "Permission denied" in done.err
    os.chown(tool.locks, 65534, 65534)
    assert tool("lock", "192.0.2.7").code == 0
    assert (tool.locks / "192.0.2.7").stat().st_uid == 65534
    assert os.geteuid() == 0


def test_what_is_not_locked_and_what_is_no_client(tool: Tool) -> None:
    done = tool("unlock", "192.0.2.7")
    assert (done.code, done.err) == (
        1,
        "appliance-ctl: 192.0.2.7 is not locked (appliance-ctl locks lists who is)\n",
    )
    assert tool("unlock", "--all").out == "unlocked: nobody was locked\n"
    for words in (
        ("unlock",),
        ("unlock", "192.0.2.7", "--all"),
        ("lock", "example.test"),
        ("lock", "../../etc"),
    ):
        assert tool(*words).code == 3, words
    for address in ("0.0.0.0", "255.255.255.255", "224.0.0.1", "::"):
        assert tool("lock", address).code == 3
    assert not any(tool.locks.iterdir())


def test_a_client_is_known_without_its_zone(tool: Tool) -> None:
    for words in (("lock", "fe80::1%lan"), ("unlock", "fe80::1%br-lan"), ("explain", "fe80::1%lan-bob")):
        done = tool(*words)
        assert done.code == 3, words
        assert "known by its address alone" in done.err
    assert not any(tool.locks.iterdir())


def test_a_full_disk_is_told(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("appliance.proxy.locks.os.write", full)
    done = tool("lock", "192.0.2.7")
    assert (done.code, done.err) == (1, "appliance-ctl: cannot lock a client: No space left on device\n")
    assert not any(tool.locks.iterdir())


def test_a_missing_directory_is_told(tool: Tool) -> None:
    tool.locks.rmdir()
    done = tool("lock", "192.0.2.7")
    told = f"appliance-ctl: {tool.locks}: No such file or directory; look after {tool.locks}\n"
    assert (done.code, done.err) == (1, told)


@pytest.mark.option("lock_duration")
def test_locking_that_is_off_is_told(tool: Tool) -> None:
    tool.write(lock_duration="0")
    done = tool("lock", "192.0.2.7", "--for", "2h")
    assert done.code == 1
    assert "lock_duration is 0" in done.err


def test_hostile_causes_and_names_are_shown_without_harm(tool: Tool) -> None:
    (tool.locks / "192.0.2.7").write_bytes(b"\x1b]0;pwned\x07[bold red]VIRUS[/bold red] :smile:\nlasts 5\n")
    (tool.locks / "192.0.2.8-\x1b[31m\u202e").write_text("x\x9b31m" * 300)
    (tool.locks / "notes").write_text("for me\n")
    for done in (tool("locks"), tool("locks", "--json")):
        assert done.code == 0
        assert not {char for char in done.out if not char.isprintable() and char != "\n"}
        assert "[bold red]VIRUS[/bold red] :smile:" in done.out
        assert "notes" not in done.out
    assert tool("unlock", "--all").code == 0
    assert [path.name for path in tool.locks.iterdir()] == ["notes"]


def test_the_latest_locks_are_shown_and_more_are_told_of(tool: Tool) -> None:
    for number in range(30):
        (tool.locks / f"192.0.2.{number}").write_text("CAUSE\n")
    assert len(tool("locks", "--json").json["locks"]) == 30
    lines = tool("locks", "--most", "10").out.splitlines()
    assert "the latest 10 of 30 (--most shows more)" in lines
    assert sum(line.startswith("192.0.2.") for line in lines) == 10
    assert "--most" not in tool("locks", "--most", "30").out
    assert tool("unlock", "--all").out == "unlocked: 30 clients\n"
    assert not any(tool.locks.iterdir())
