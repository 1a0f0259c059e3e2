"""The destination before a REDIRECT or DNAT rule changed it, from connection tracking: mode netfilter."""

import socket
import struct

from appliance.proxy.lookup import Endpoint, Lookup, LookupFailure, Route

_SO_ORIGINAL_DST = 80  # linux/netfilter_ipv4.h; IP6T_SO_ORIGINAL_DST has the same number
_SOCKADDR_IN = struct.Struct("!2xH4s8x")
_SOCKADDR_IN6 = struct.Struct("!2xH4x16s4x")


class Netfilter(Lookup):
    """For connections that a nat rule on this machine handed to the gateway.

    They are transparent as their listener is, which has to be found, but must not be: of a client's further
    connection from the same port, to another server, the kernel would take packets for theirs. It finds that
    out when the client's port is translated, too, but believes a transparent socket to be meant
    (`nf_nat_ipv4_local_in`).
    """

    def known(self, accepted: socket.socket, client: Endpoint, local: Endpoint) -> Route:  # noqa: ARG002
        """Ask the kernel for the original destination; raises LookupFailure."""
        try:
            accepted.setsockopt(socket.IPPROTO_IP, socket.IP_TRANSPARENT, 0)
            if ":" in client.address:
                raw = accepted.getsockopt(socket.IPPROTO_IPV6, _SO_ORIGINAL_DST, _SOCKADDR_IN6.size)
                port, address = _SOCKADDR_IN6.unpack(raw)
                return Route(Endpoint(socket.inet_ntop(socket.AF_INET6, address), port))
            raw = accepted.getsockopt(socket.IPPROTO_IP, _SO_ORIGINAL_DST, _SOCKADDR_IN.size)
            port, address = _SOCKADDR_IN.unpack(raw)
            return Route(Endpoint(socket.inet_ntop(socket.AF_INET, address), port))
        except OSError as error:
            raise LookupFailure(
                f"connection tracking has no original destination ({error.strerror})"
            ) from None
