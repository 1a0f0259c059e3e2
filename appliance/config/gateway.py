"""The table of options, concluded: what the manual of the old daemon did not have.

See `options.py` for how the table works. Values are judged in `option.py`.
"""

from pathlib import Path

from appliance.config.dnsbl import NameServer
from appliance.config.network import Net, Nets, Port, Socket
from appliance.config.option import Enum, File, List, Maybe, Option, Text, UInt, Workers


class GatewayOptions:
    """The gateway's own: how it works inside."""

    workers = Option(
        Workers(),
        0,
        "How many processes share the clients; auto, 0 in programs, is one for each processor.",
        restart=True,
    )
    bare_newline = Option(
        Enum("reject", "normalise", "pass"),
        "reject",
        "What becomes of a message with CR or LF standing alone, which can smuggle in a second message.",
    )
    antivirus_transfer = Option(
        Enum("path", "stream", "fd"),
        "path",
        "How clamd gets a message: by the path of its copy, through the socket, or as an open file.",
    )
    dns_servers = Option(
        List(NameServer(), 8),
        (),
        "The DNS servers to ask, in this order; those of /etc/resolv.conf when unset.",
        example="127.0.0.1",
    )
    remote_routers = Option(
        List(Net(), 1024),
        (),
        "The routers that remote lookups may ask, and so connections may come from; any when unset.",
        example="192.0.2.1,192.0.2.2,2001:db8::1",
    )
    control_socket = Option(
        Maybe(File()),
        Path("/run/smtp-gated/control"),
        "The socket that accepts the requests of appliance-ctl.",
        restart=True,
    )
    metrics_listen = Option(
        Maybe(Socket()),
        None,
        "Where metrics are served over HTTP, at /metrics; nowhere when unset.",
        restart=True,
        example="127.0.0.1:9925",
    )


class KernelOptions:
    """What the kernel is told: which connections come to the gateway, and which never do."""

    lan_interfaces = Option(
        List(Text("INTERFACE", r"[A-Za-z0-9_.@-]{1,15}", "the name of a network interface"), 64),
        (),
        "The interfaces that clients' connections arrive at.",
        example="lan0,wlan0",
    )
    intercept_ports = Option(
        List(Port(), 64), (25,), "The ports whose connections are taken; never 465, which is TLS at once."
    )
    trusted_clients = Option(
        Nets(16384),
        (),
        "The clients whose connections are never taken, and who are never locked.",
        example="10.0.0.7,10.0.0.20-10.0.0.29,2001:db8::/48",
    )
    trusted_servers = Option(
        Nets(16384),
        (),
        "The servers to which connections are never taken.",
        example="192.0.2.25",
    )
    on_failure = Option(
        Enum("open", "closed"),
        "open",
        "Whether mail passes by or is refused while no gateway runs.",
    )
    lock_talk = Option(UInt(), 10, "How many connections a minute a locked client may make to be told why.")
    fwmark = Option(UInt(1, 2**32 - 1), 1, "The mark of packets that are routed to the gateway.")
    route_table = Option(UInt(1, 2**32 - 1), 100, "The routing table that brings them there.")
    xdp = Option(
        Enum("auto", "native", "generic", "off"),
        "auto",
        "Where the gate drops locked clients: in the driver, in the stack, where it can (auto), or nowhere.",
    )
    fanout_limit = Option(
        UInt(1, 3000),
        100,
        "How many mail servers a client may address in fanout_period before lock_on fanout locks it.",
    )
    fanout_period = Option(UInt(1, 604800), 3600, "The period of fanout_limit, in seconds.")
