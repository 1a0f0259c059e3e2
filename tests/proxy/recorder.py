"""Who is told what happens to streams, and remembers it."""

import asyncio
from collections.abc import Callable

from appliance.proxy.streams import Owner, Stream


class Recorder(Owner):
    """Keeps what it is told, of all its streams, in order; `answer` is what it says to what it hears."""

    def __init__(self, answer: Callable[[Stream, bytes], None] | None = None) -> None:
        self.answer = answer
        self.told: list[tuple[str, object]] = []
        self._news = asyncio.Event()

    def tell(self, kind: str, what: object) -> None:
        self.told.append((kind, what))
        self._news.set()

    def heard(self, stream: Stream, data: bytes) -> None:
        self.tell("heard", data)
        if self.answer:
            self.answer(stream, data)

    def carried(self, stream: Stream, count: int) -> None:  # noqa: ARG002
        self.tell("carried", count)

    def filled(self, stream: Stream, full: bool) -> None:  # noqa: ARG002
        self.tell("filled", full)

    def lingers(self, stream: Stream) -> None:
        self.tell("lingers", stream.waiting > 0)

    def parted(self, stream: Stream, error: OSError | None) -> None:  # noqa: ARG002
        self.tell("parted", type(error))

    def broken(self, error: Exception) -> None:
        self.tell("broken", str(error))

    def of(self, kind: str) -> list[object]:
        return [what for each, what in self.told if each == kind]

    def has_heard(self, words: bytes) -> bool:
        return b"".join(what for what in self.of("heard") if isinstance(what, bytes)) == words

    async def until(self, kind: str, count: int = 1) -> None:
        await self.wait(lambda: len(self.of(kind)) >= count)

    async def wait(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not true():
                self._news.clear()
                await self._news.wait()
