"""The SMTP session between a client and its server, sans I/O: bytes in, effects out.

Nothing here knows sockets, files, time, an event loop or the configuration file, so that every byte sequence
can be tried in any split. The worker feeds a `Session` and carries out its `Effects`.
"""

from appliance.proxy.session.server import Session
from appliance.proxy.session.state import Phase
from appliance.proxy.session.verdict import PASS, Action, Effects, Gate, Settings, Texts, Verdict

__all__ = ["PASS", "Action", "Effects", "Gate", "Phase", "Session", "Settings", "Texts", "Verdict"]
