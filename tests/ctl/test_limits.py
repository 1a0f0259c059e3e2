"""limits show, set and clear on a database, with no gateway in sight."""

import time

import pytest

from appliance.config import load
from appliance.proxy.quota import Limits, Record, Use
from appliance.proxy.records import Records, row_of
from tests.ctl.conftest import Tool


def use_up(tool: Tool, client: str, **used: int) -> None:
    config = load(tool.file)
    record = Record(client, Limits.of(config), time.time())
    for name, amount in used.items():
        record.add(Use[name.upper()], amount)
    with Records(config.ratelimit_path, create=True) as database:
        database.save([row_of(record)])


def test_what_a_client_has_used(tool: Tool) -> None:
    tool.write(ratelimit_recipients="100")
    use_up(tool, "192.0.2.7", recipients=100, bytes=5)
    found = tool("limits", "show", "::ffff:192.0.2.7", "--json").json
    assert (found["client"], found["personal"]) == ("192.0.2.7", False)
    assert found["limits"]["recipients"] == {"used": 100, "quota": 100, "tries": 100}
    assert found["until"] == pytest.approx(time.time() + 600, abs=5)
    out = tool("limits", "show", "192.0.2.7").out
    assert "the configured quotas" in out
    assert any(line.split() == ["recipients", "100", "100", "100", "spent"] for line in out.splitlines())


def test_quotas_of_its_own_come_and_go(tool: Tool) -> None:
    tool.write(ratelimit_bytes="1000")
    done = tool("limits", "set", "192.0.2.7", "recipients=500", "connections=0")
    assert done.code == 0
    assert "quotas of its own" in done.out
    found = tool("limits", "show", "192.0.2.7", "--json").json
    quotas = {name: limit["quota"] for name, limit in found["limits"].items() if limit["quota"]}
    assert (found["personal"], quotas) == (True, {"recipients": 500, "bytes": 1000})
    done = tool("limits", "clear", "192.0.2.7")
    assert "quotas of its own" in done.out
    found = tool("limits", "clear", "192.0.2.7", "--quotas", "--json").json
    assert (found["personal"], found["limits"]["recipients"]["quota"]) == (False, 0)


def test_a_cleared_client_begins_anew(tool: Tool) -> None:
    use_up(tool, "192.0.2.7", recipients=100)
    assert tool("limits", "clear", "192.0.2.7", "--json").json["limits"]["recipients"]["used"] == 0
    assert tool("limits", "show", "192.0.2.7", "--json").json["limits"]["recipients"]["used"] == 0


@pytest.mark.parametrize(
    "quota", ["recipients", "recipients=", "recipients=-1", "mails=5", "=5", "bytes=1e3", "bytes=\u0665"]
)
def test_no_quota(tool: Tool, quota: str) -> None:
    done = tool("limits", "set", "192.0.2.7", quota)
    assert done.code == 3
    assert "LIMIT=NUMBER, LIMIT one of connections, sessions" in done.err


def test_a_quota_of_its_own_is_bounded_like_the_configured_ones(tool: Tool) -> None:
    assert tool("limits", "set", "192.0.2.7", "helos=1000").code == 0
    done = tool("limits", "set", "192.0.2.7", "helos=1001")
    assert (done.code, done.out) == (3, "")
    assert 'helos: "1001" is too large; allowed is a whole number from 0 to 1000' in done.err


def test_nothing_to_show(tool: Tool) -> None:
    for command in ("show", "clear"):
        done = tool("limits", command, "192.0.2.7")
        assert done.code == 1
        assert "there is no record of 192.0.2.7" in done.err
    (tool.home / "limits" / "records.sqlite").write_bytes(b"garbage" * 1000)
    done = tool("limits", "show", "192.0.2.7")
    assert done.code == 1
    assert "records.sqlite: file is not a database; move" in done.err
    tool.write(ratelimit_period="0")
    assert "ratelimit_period is not set" in tool("limits", "show", "192.0.2.7").err
