"""The listening sockets, one for each worker, made and held by the supervisor.

Because the supervisor keeps them, connections wait in the kernel while a worker starts again; because systemd
keeps them, too, while the supervisor does. The kernel gives each client to one of them (see
`appliance.bpf.steering`). Nothing here accepts a connection.
"""

import contextlib
import errno
import os
import socket
import sys

from appliance.bpf import steering
from appliance.config import Config
from appliance.notify import forget, keep, kept, settle
from appliance.proxy.doorway import queue_length
from appliance.supervisor.errors import StartError

_NO_BOTH = (OSError,) if sys.platform.startswith("openbsd") else ()  # its IPv6 sockets never take IPv4

_ADVICE = {
    errno.EADDRINUSE: "another program listens there; stop it or change port",
    errno.EADDRNOTAVAIL: "no interface of this host has the address; change bind_address",
    errno.EACCES: "ports below 1024 need root or CAP_NET_BIND_SERVICE; start as root or change port",
    errno.EPERM: "transparent modes need CAP_NET_ADMIN or CAP_NET_RAW; start as root or change mode",
    errno.EAFNOSUPPORT: "this host has no IPv6; change bind_address",
}


def open_listeners(config: Config, count: int) -> list[socket.socket]:
    """Listen `count` times at bind_address and port, for the worker of each index. Raises StartError.

    Those of the process before this one go on, with the connections that wait there, when they are the same.
    """
    if count > 1 and not steering.AVAILABLE:
        raise StartError(f"workers {count}: this system cannot keep a client with one worker; set it to 1")
    listeners = _kept(config, count)
    try:
        if not listeners:
            # The kernel lets every socket of this user into a group: only a socket outside of one can tell
            # that the port is taken.
            _bound(config, grouped=False).close()
            for index in range(count):
                listeners.append(_bound(config, grouped=True))
                keep(_name(config, index, count), listeners[-1].fileno())
        for listener in listeners:
            listener.listen(queue_length(config))
        if count > 1:
            steering.attach(listeners[0], count)
    except OSError as error:
        for listener in listeners:
            listener.close()
        advice = _ADVICE.get(error.errno or 0, "change bind_address or port")
        raise StartError(
            f"bind_address {config.bind_address}, port {config.port}: {error.strerror}; {advice}"
        ) from None
    return listeners


def let_go(config: Config, count: int) -> None:
    """Have systemd keep none of the listeners: clients would wait there for nobody."""
    forget(_name(config, index, count) for index in range(count))


def _name(config: Config, index: int, count: int) -> str:
    """What systemd calls a listener; one of another name would serve another configuration."""
    kind = "transparent" if _transparent(config) else "plain"
    address = str(config.bind_address).replace(":", "_")
    return f"{kind}-{address}-{config.port}-worker-{index}-of-{count}"


def _transparent(config: Config) -> bool:
    """Tell whether the kernel's rules have to find the listener: they see none but transparent ones."""
    return config.mode == "netfilter" or config.mode.startswith("tproxy")


def _needless(config: Config) -> tuple[type[OSError], ...]:
    """Give the errors that do no harm: redirection by rules that ask nobody works without being found."""
    asked = config.lan_interfaces and config.on_failure == "open"
    return (PermissionError,) if config.mode == "netfilter" and not asked else ()


def _kept(config: Config, count: int) -> list[socket.socket]:
    """Give all the listeners that systemd kept, by index, or close and forget what does not fit."""
    found = kept()
    wanted = [_name(config, index, count) for index in range(count)]
    if sorted(name for name, _ in found) == sorted(wanted):
        descriptors = dict(found)
        listeners = [socket.socket(fileno=descriptors[name]) for name in wanted]
        for listener in listeners:
            listener.setblocking(False)
        return listeners
    for _, descriptor in found:
        os.close(descriptor)
    if found:
        forget(name for name, _ in found)
        settle()
    return []


def _bound(config: Config, *, grouped: bool) -> socket.socket:
    address = config.bind_address
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if grouped:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if address.version == 6:
            with contextlib.suppress(*_NO_BOTH):
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        if _transparent(config):
            with contextlib.suppress(*_needless(config)):
                listener.setsockopt(socket.IPPROTO_IP, socket.IP_TRANSPARENT, 1)  # for IPv6, too
        listener.bind((str(address), config.port))
    except OSError:
        listener.close()
        raise
    return listener
