"""The mksd virus scanner: told a path on a UNIX stream socket, it answers with one line.

Selected by `antivirus_type mksd`; used through `appliance.proxy.scanners` alone.
"""

from appliance.config.network import SocketAddress
from appliance.proxy import scanners
from appliance.proxy.dialog import reach
from appliance.proxy.scanners import Finding, ScanError, State, printable
from appliance.proxy.spool import Spool

_LINE = 4096


class Scanner(scanners.Scanner):
    """mksd reads copies by their path, whatever `transfer` says, and must be allowed to."""

    option = "antivirus_path"
    needs_path = True

    def __init__(self, address: SocketAddress, timeout: float, transfer: str) -> None:
        del transfer  # there is but one way
        super().__init__(address, timeout)

    async def _scan(self, spool: Spool) -> Finding:
        if spool.path is None or "\n" in str(spool.path):
            raise ScanError("the message's copy has no name that mksd can be told")
        with await reach(self.address, _LINE) as mksd:
            await mksd.say(b"S%b\n" % bytes(spool.path))
            answer = await mksd.answer(b"\n")
        return _finding(answer)

    async def _ping(self) -> None:
        with await reach(self.address, _LINE):
            pass


def _finding(answer: bytes) -> Finding:
    if not answer.endswith(b"\n"):
        raise ScanError("mksd closed the connection before its answer was whole")
    word, _, rest = answer.decode("ascii", "replace").strip().partition(" ")
    if word in {"OK", "CLN", "DEL"}:
        return Finding(State.CLEAN)
    if word == "VIR":
        return Finding(State.FOUND, name=printable(rest.strip().partition(" ")[0]))
    raise ScanError(f"mksd answered {word} {rest}")
