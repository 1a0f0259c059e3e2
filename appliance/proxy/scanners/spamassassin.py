"""SpamAssassin's spamd, asked through aiospamc for a message's score.

Selected by `antispam_type spamassassin`; used through `appliance.proxy.scanners` alone.

aiospamc is trusted with the protocol: it writes requests and reads answers. The connection is ours, because
the library's own reads an answer of any size, is left open by a timeout, and costs a tenth of a second of
certificates for every message.
"""

import math
import os

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
    """What aiospamc sends a request through: the head is its, the message comes from the file `fd`."""

    def __init__(self, address: SocketAddress, fd: int = -1, size: int = 0) -> None:
        self._address = address
        self._fd = fd
        self._size = size

    async def request(self, head: bytes) -> bytes:
        """Send the request and return the answer, which ends where spamd closes the connection."""
        with await reach(self._address, _ANSWER) as spamd:
            await spamd.say(head)
            sent = 0
            while sent < self._size:
                piece = os.pread(self._fd, min(_PIECE, self._size - sent), sent)
                if not piece:
                    raise ScanError("the message's copy ends too early")
                await spamd.say(piece)
                sent += len(piece)
            spamd.finish()  # spamd waits for the rest of a last line without a newline
            return await spamd.answer()


class Scanner(scanners.Scanner):
    """spamd without TLS, as its default user. Its own threshold does not count."""

    option = "antispam_path"

    def __init__(self, address: SocketAddress, timeout: float, threshold: float) -> None:
        super().__init__(address, timeout)
        self._threshold = threshold

    async def _scan(self, spool: Spool) -> Finding:
        size = os.fstat(spool.fd).st_size
        request = Request("CHECK", headers={"Content-length": ContentLengthValue(length=size)})
        response = await Client(_Connection(self.address, spool.fd, size)).request(request)
        if "Spam" not in response.headers:
            raise ScanError("spamd answered without a score")
        score: float = response.headers["Spam"].score
        if not math.isfinite(score):  # a comparison with nan would let everything pass
            raise ScanError(f"spamd answered with the score {score}")
        return Finding(State.FOUND if score >= self._threshold else State.CLEAN, score=score)

    async def _ping(self) -> None:
        await Client(_Connection(self.address)).request(Request("PING"))
