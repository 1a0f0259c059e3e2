"""Where the benchmark takes place: one lab host with a mail sink, and HAProxy and the gateway when wanted.

Mail goes smtp-source -> contender -> smtp-sink over the loopback of one network namespace: no wire and no
other load, so what differs between contenders is the contender. Who has no turn sleeps.

The kernel steers a client to a gateway worker by its address, so one client would keep one worker busy. As
smtp-source cannot choose its source address, the host's own routing does it: a connection to one of a host's
own addresses comes from that same address. So the load is split among as many smtp-source processes as there
are addresses in `clients`, and each connects to an address of its own, where all contenders listen (they are
bound to every address). The addresses are picked so that each worker owns equally many. All contenders get
the same processes, addresses and sessions; HAProxy spreads connections over its threads by itself.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from typing import Self

from bench.load import Contender, Sample, Workload, balanced, contender, send
from lab import image
from lab.gateway import Gateway, Options
from lab.host import Host
from lab.process import LabError
from lab.run_directory import RunDirectory
from lab.servers import HAProxy, SmtpSink

WORKERS = 2  # of the gateway, and threads of HAProxy
CLIENTS_PER_WORKER = 2
FIRST_CLIENT = IPv4Address("10.77.1.10")
SESSIONS = 12_000  # at once, that a contender or the sink has to bear
SINK_PORT, HAPROXY_PORT, GATEWAY_PORT = 25, 9198, 9199

# Every check is on that asks nobody else: early talk, locks, patterns, sizes, and quotas that nobody reaches.
# connect_queue is as long as HAProxy's: from a short one the kernel drops clients that come all at once.
PLENTY = 1_000_000_000
OPTIONS: Options = {
    "mode": "fixed",
    "fixed_server_port": SINK_PORT,
    "port": GATEWAY_PORT,
    "workers": WORKERS,
    "log_level": "notice",
    "antivirus_type": "off",
    "antispam_type": "off",
    "earlytalk": "yes",
    "nat_header_type": "generic",
    "max_load": 0,
    "max_per_host": 0,
    "max_connections": SESSIONS,
    "connect_queue": 4096,
    "size_limit": PLENTY,
    "regex_enforce_helo": "^[][A-Za-z0-9.:-]+$",
    "regex_reject_mail_from": "@spam\\.test$",
    "regex_reject_rcpt_to": "[|!]",
    "ratelimit_period": 3600,
    **{f"ratelimit_{what}": PLENTY for what in ("connections", "sessions", "recipients", "bytes")},
    **{f"ratelimit_{what}_rejects": PLENTY for what in ("mailfrom", "rcptto", "auth")},
    **{f"ratelimit_{what}": 1000 for what in ("helos", "mailfroms", "destinations")},
}


class Arena:
    """The host with addresses and the sink, up and warm. `close` leaves nothing behind."""

    def __init__(self) -> None:
        if os.geteuid():
            raise LabError("the benchmark makes namespaces and mounts on the machine: run it as root")
        self._directory = RunDirectory("bench")
        self.host = Host("mail", self._directory.path, image.require())
        try:
            self.host.ready()
            self._address()
            sink = SmtpSink(self.host, sessions=SESSIONS)
            self.server, sink.address = sink.ipv4, "0.0.0.0"
            sink.start()
        except BaseException:
            self.close()
            raise
        self.direct = Contender("direct", SINK_PORT, ())

    def _address(self) -> None:
        """Give the host addresses, and ports enough for thousands of connections that have just ended."""
        with self.host.netlink() as netlink:
            netlink.link("add", ifname="eth0", kind="veth", peer={"ifname": "unused"})
        self.host.link_up("eth0")
        self.host.sysctl("net/ipv4/ip_local_port_range", "10000 65535")
        self.host.sysctl("net/ipv4/tcp_tw_reuse", "1")
        self.clients = [str(client) for client in balanced(FIRST_CLIENT, WORKERS, CLIENTS_PER_WORKER)]
        for client in self.clients:
            self.host.add_address(f"{client}/32")  # of a common network the first would speak for all
            with self.host.netlink() as netlink:
                (way,) = netlink.route("get", dst=client)
            if way.get("prefsrc") != client:
                raise LabError(f"connections to {client} would come from {way.get('prefsrc')}")

    @contextmanager
    def haproxy(self, server_port: int = SINK_PORT, *, options: tuple[str, ...] = ()) -> Iterator[Contender]:
        """Run HAProxy before a port of the host; `options` are lines of its section `defaults`."""
        server = (self.server, server_port)
        relay = HAProxy(self.host, server, port=HAPROXY_PORT, threads=WORKERS, options=options).start()
        assert relay.process
        try:
            yield Contender("HAProxy", HAPROXY_PORT, (relay.process.pid,))
        finally:
            relay.stop()

    @contextmanager
    def gateway(self, options: Options | None = None) -> Iterator[Contender]:
        """Run the gateway with these options besides the usual ones."""
        gateway = self.unstarted_gateway(options)
        try:
            yield contender(gateway.start())
        finally:
            gateway.close()

    def unstarted_gateway(self, options: Options | None = None) -> Gateway:
        """Give a gateway that has yet to be started, and closed in the end."""
        gateway = Gateway(self.host, OPTIONS | {"fixed_server": self.server} | (options or {}))
        gateway.options["ratelimit_path"] = str(gateway.directory / "ratelimit")
        return gateway

    def run(self, workload: Workload, through: Contender) -> Sample:
        """Send a workload through a contender; LabError if a single message was not accepted."""
        before = through.cpu()
        seconds = send(self.host, self.clients, through.port, workload)
        parts = len(self.clients)
        messages = workload.messages // parts * parts
        return Sample(messages / seconds, 1e6 * (through.cpu() - before) / messages)

    def close(self) -> None:
        """End everything. May be called twice."""
        self.host.close()
        self._directory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()
