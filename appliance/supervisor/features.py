"""What this gateway is and what it can do on this machine: the facts behind smtp-gated -v and -V.

Called by the command line and the status. Nothing is configured or started here.
"""

import functools
import importlib.metadata
import platform
import socket
from collections.abc import Iterator

from appliance.proxy import lookup


@functools.cache
def version() -> str:
    """Give the version of the package as it was asked first: an upgrade takes the files away that tell."""
    return importlib.metadata.version("smtp-gateway-appliance")


def features() -> Iterator[tuple[str, str]]:
    """Give name and value of each feature, in the order to print."""
    here = lookup.modes()
    yield "USE_NAT", " ".join(here)
    yield "TPROXY", _yes("tproxy" in here)
    yield "IPV6", _yes(_has_ipv6())
    yield "CLAMD", f"yes (pyclamd {importlib.metadata.version('pyclamd')})"
    yield "MKSD", "yes"
    yield "SPAMASSASSIN", f"yes (aiospamc {importlib.metadata.version('aiospamc')})"
    yield "UVLOOP", importlib.metadata.version("uvloop")
    yield "PYTHON", platform.python_version()
    yield "SYSTEM", f"{platform.system()} {platform.release()} {platform.machine()}"


def _yes(has: bool) -> str:
    return "yes" if has else "no"


def _has_ipv6() -> bool:
    """Say whether the kernel gives IPv6 sockets; Python's own flag tells only how Python was built."""
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_STREAM).close()
    except OSError:
        return False
    return True
