"""SpamAssassin's spamd, asked through aiospamc for a message's score.

Selected by `antispam_type spamassassin`; used through `appliance.proxy.scanners` alone.

aiospamc is trusted with the protocol: it writes requests and reads answers. The connection is ours, because
the library's own reads an answer of any size, is left open by a timeout, and costs a tenth of a second of
certificates for every message.
"""

import math

from aiospamc.client import Client  # type: ignore[import-untyped]
from aiospamc.header_values import ContentLengthValue  # type: ignore[import-untyped]
from aiospamc.requests import Request  # type: ignore[import-untyped]

from appliance.config.network import SocketAddress
from appliance.proxy import scanners
from appliance.proxy.dialog import reach
from appliance.proxy.scanners import Finding, ScanError, State
from appliance.proxy.spool import Spool

_ANSWER = 8192
_PIECE = 65536


class _Connection:
    """What aiospamc sends a request through: the head is its, the message comes from its `copy`."""

    def __init__(self, address: SocketAddress, copy: Spool | None = None) -> None:
        self._address = address
        self._copy = copy

    async def request(self, head: bytes) -> bytes:
        """Send the request and return the answer, which ends where spamd closes the connection."""
        with await reach(self._address, _ANSWER) as spamd:
            await spamd.say(head)
            size = self._copy.length if self._copy else 0
            for at in range(0, size, _PIECE):
                assert self._copy
                await spamd.say(self._copy.read(at, min(_PIECE, size - at)))
            spamd.finish()  # spamd waits for the rest of a last line without a newline
            return await spamd.answer()


class Scanner(scanners.Scanner):
    """spamd without TLS, as its default user. Its own threshold does not count."""

    option = "antispam_path"

    def __init__(self, address: SocketAddress, timeout: float, threshold: float) -> None:
        super().__init__(address, timeout)
        self._threshold = threshold

    async def _scan(self, spool: Spool) -> Finding:
        request = Request("CHECK", headers={"Content-length": ContentLengthValue(length=spool.length)})
        response = await Client(_Connection(self.address, spool)).request(request)
        if "Spam" not in response.headers:
            raise ScanError("spamd answered without a score")
        score: float = response.headers["Spam"].score + 0.0  # most mail has the score -0.0
        if not math.isfinite(score):  # a comparison with nan would let everything pass
            raise ScanError(f"spamd answered with the score {score}")
        return Finding(State.FOUND if score >= self._threshold else State.CLEAN, score=score)

    async def _ping(self) -> None:
        await Client(_Connection(self.address)).request(Request("PING"))
