"""Asking the gateway that runs: one request on its control socket, one answer.

Every command that needs the daemon calls `ask`; what the requests are stands in `supervisor/requests.py`. The
answer is not trusted to be short or to come at all.
"""

import contextlib
import json
import socket
import struct
from typing import Any

from appliance.config import Config
from appliance.ctl.base import Code, Context, CtlError
from appliance.supervisor import pidfile
from appliance.supervisor.control import GROUP

_PATIENCE = 45.0  # seconds; the supervisor gives up earlier
_LONGEST_ANSWER = 32 << 20  # bytes
_TIME = struct.Struct("ll")
_CODES = {"forbidden": Code.FORBIDDEN, "usage": Code.BAD_USAGE}


def ask(context: Context, do: str, **more: object) -> dict[str, Any]:
    """Give the gateway's answer. Raises CtlError, with the code DOWN when there is no gateway to ask."""
    config = context.config()
    path = config.control_socket
    if path is None:
        raise CtlError(f"{context.config_path} has no control_socket: set one, and restart the gateway")
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            # A full queue is waited for by the kernel alone, and not where Python has set a timeout.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIME.pack(int(_PATIENCE), 0))
            sock.connect(str(path))
            sock.settimeout(_PATIENCE)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before it was asked
                sock.sendall(json.dumps({"do": do, **more}).encode() + b"\n")
            answer = _parsed(_line(sock))
    except (FileNotFoundError, ConnectionRefusedError):
        raise CtlError(_absence(config, context), Code.DOWN) from None
    except PermissionError:
        raise CtlError(
            f"control_socket {path}: only root and members of the group {GROUP} may ask the gateway; "
            f"run this as root, or have yourself added to the group (usermod -aG {GROUP} NAME)",
            Code.FORBIDDEN,
        ) from None
    except (TimeoutError, BlockingIOError):
        raise CtlError(f"control_socket {path}: no answer within {_PATIENCE:.0f} s; see the log") from None
    except OSError as error:
        raise CtlError(f"control_socket {path}: {error.strerror or error}; see the gateway's log") from None
    if "error" in answer:
        raise CtlError(f"the gateway refuses: {answer['error']}", _CODES.get(answer["code"], Code.FAILED))
    return answer


class _Answer(dict[str, Any]):
    """What the gateway tells; that of another release may tell something else."""

    def __missing__(self, key: str) -> Any:
        raise CtlError(f"the gateway does not tell {key}: it is of another version; restart it")


def _absence(config: Config, context: Context) -> str:
    """Say that nobody answers, and what that means."""
    where = f"control_socket {config.control_socket} of {context.config_path}"
    try:
        pid = pidfile.holder(config.pidfile)
    except OSError:
        pid = None
    if pid:
        return f"process {pid} runs, but nobody answers at {where}: see the log, or restart the gateway"
    return (
        f"no gateway answers at {where}: start it (systemctl start smtp-gated), or name its file by --config"
    )


def _line(sock: socket.socket) -> bytes:
    answer = bytearray()
    # Behind the line may be an error instead of an end, when the gateway has not read the request.
    while not answer.endswith(b"\n") and (piece := sock.recv(1 << 16)):
        answer += piece
        if len(answer) > _LONGEST_ANSWER:
            raise CtlError("the gateway's answer has no end; see its log")
    return bytes(answer)


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(line, object_hook=_Answer)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise CtlError("the gateway ended before it had answered; see its log")
    return answer
