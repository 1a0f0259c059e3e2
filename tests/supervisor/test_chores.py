"""What the supervisor does beside its workers survives its own defects."""

import asyncio
from unittest.mock import Mock

import pytest

from appliance.log import Log
from appliance.supervisor import daemon


def test_a_chore_that_a_defect_ends_is_told_of_and_begun_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "_AGAIN", 0)
    log, errors = Mock(Log), [ValueError("one"), TypeError("two")]
    left = errors.copy()

    async def chore() -> None:
        if left:
            raise left.pop(0)

    asyncio.run(daemon.kept_up(chore, log))
    assert [call.args[1] for call in log.bug.call_args_list] == errors
