"""The destination as the client's own router knows it, asked over UDP: mode remote-udp."""

import asyncio
import errno
import os
import secrets
import socket

from appliance.origin import DATAGRAM_MAX, Flow, Origin, Query, read_reply, write_query
from appliance.proxy.lookup.remote import RemoteLookup

_LOST = {errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN}
"""What the network tells of a datagram; the next one may fare better, as when a helper starts again."""


class RemoteUdp(RemoteLookup):
    """One datagram each way, sent again while nothing comes back.

    Each lookup has a socket of its own, connected to the router: the kernel drops what comes from elsewhere,
    and its port is as hard to guess as the cookie. All that is sent has one cookie, so that a late answer to
    an earlier datagram serves as well.
    """

    async def _ask(self, flow: Flow) -> Origin:
        config = self._config
        query = Query(flow, secrets.randbits(32), config.remote_udp_secret)
        told = ""
        family = socket.AF_INET6 if flow.source.version == 6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as asking:
            asking.bind((str(flow.destination), 0))
            asking.connect((str(flow.source), config.remote_port))
            tries = max(config.remote_udp_retries, 1)
            for _ in range(tries):
                try:
                    async with asyncio.timeout(config.timeout_lookup or None):
                        told = _send(asking, write_query(query)) or told
                        while True:
                            try:
                                data = await asyncio.get_running_loop().sock_recv(asking, DATAGRAM_MAX + 1)
                            except OSError as error:
                                told = _lost(error)
                                continue
                            if origin := read_reply(data, query):
                                return origin
                except TimeoutError:
                    continue
        why = f" ({told})" if told else ""
        raise TimeoutError(
            f"no answer from port {config.remote_port} in {tries} times {config.timeout_lookup} s{why}"
        )


def _send(asking: socket.socket, data: bytes) -> str:
    try:
        asking.send(data)
    except OSError as error:  # perhaps of an earlier one
        return _lost(error)
    return ""


def _lost(error: OSError) -> str:
    if error.errno not in _LOST:
        raise error
    return os.strerror(error.errno)
