"""Deadlines of many connections, kept by one timer."""

import asyncio

import pytest

from appliance.proxy.deadlines import GRAIN, Deadlines


class Waiting:
    def __init__(self, deadlines: Deadlines, again: float = 0.0) -> None:
        self.rung: list[float] = []
        self._deadlines = deadlines
        self._again = again

    def ring(self) -> None:
        self.rung.append(asyncio.get_running_loop().time())
        if self._again and len(self.rung) == 1:
            self._deadlines.set(self, self._again)


def test_everybody_is_rung_once_and_in_time() -> None:
    async def scene() -> None:
        deadlines = Deadlines()
        begin = asyncio.get_running_loop().time()
        waits = [0.0, 0.05, 0.12, 0.3, 0.3, 0.31]
        waiting = [Waiting(deadlines) for _ in waits]
        for who, seconds in zip(waiting, waits, strict=True):
            deadlines.set(who, seconds)
        await asyncio.sleep(0.31 + 4 * GRAIN)
        for who, seconds in zip(waiting, waits, strict=True):
            (rung,) = who.rung
            assert seconds <= rung - begin

    asyncio.run(scene())


def test_who_is_cleared_is_not_rung_and_may_be_set_anew() -> None:
    async def scene() -> None:
        deadlines = Deadlines()
        cleared, moved = Waiting(deadlines), Waiting(deadlines)
        deadlines.clear(cleared, deadlines.set(cleared, 0.1))
        deadlines.clear(moved, deadlines.set(moved, 0.1))
        deadlines.set(moved, 0.4)
        await asyncio.sleep(0.1 + 2 * GRAIN)
        assert (cleared.rung, moved.rung) == ([], [])
        await asyncio.sleep(0.3 + GRAIN)
        assert (len(cleared.rung), len(moved.rung)) == (0, 1)

    asyncio.run(scene())


@pytest.mark.parametrize("again", [GRAIN / 10, 2 * GRAIN])
def test_who_is_rung_may_wait_again_even_after_all_was_quiet(again: float) -> None:
    async def scene() -> None:
        deadlines = Deadlines()
        who = Waiting(deadlines, again)
        deadlines.set(who, 0.0)
        await asyncio.sleep(again + 5 * GRAIN)
        assert len(who.rung) == 2
        late = Waiting(deadlines)  # the timer has stopped meanwhile, and starts for this one
        deadlines.set(late, 0.0)
        await asyncio.sleep(3 * GRAIN)
        assert len(late.rung) == 1

    asyncio.run(scene())
