"""What benchmarks need: smtp-sink, which throws mail away, and HAProxy, a relay that looks at nothing."""

import contextlib
from pathlib import Path

from lab.host import Host
from lab.servers.base import MailServer, Server


class SmtpSink(MailServer):
    """smtp-sink on port 25 of one address, in `address`."""

    def __init__(self, host: Host, *, sessions: int = 1000):
        super().__init__(host, "sink", 28)
        self.sessions = sessions
        self.address = self.ipv4

    def argv(self) -> list[str | Path]:
        """Give the command: so many sessions at once need descriptors."""
        return [
            *("prlimit", f"--nofile={self.sessions + 3000}", "smtp-sink", "-u", "postfix"),
            *("-m", str(self.sessions), f"inet:[{self.address}]:25", "1024"),
        ]

    def serving(self) -> bool:
        """Tell whether the sink greets."""
        return self.greets(self.address)


class HAProxy(Server):
    """HAProxy in TCP mode on a port of its host, relaying to one server without looking at the bytes.

    `options` are lines of the section `defaults`.
    """

    def __init__(
        self,
        host: Host,
        target: tuple[str, int],
        *,
        port: int = 9199,
        threads: int = 2,
        options: tuple[str, ...] = (),
    ):
        super().__init__(host, "haproxy")
        self.options = options
        self.target, self.port, self.threads = target, port, threads

    def argv(self) -> list[str | Path]:
        """Write haproxy.cfg."""
        address, port = self.target
        configuration = self.directory / "haproxy.cfg"
        more = "".join(f"  {line}\n" for line in self.options)
        configuration.write_text(
            f"global\n  nbthread {self.threads}\n  maxconn 4096\n"
            "defaults\n  mode tcp\n  timeout connect 10s\n  timeout client 60s\n  timeout server 60s\n"
            f"{more}"
            f"listen relay\n  bind [::]:{self.port} v4v6\n  server mail [{address}]:{port}\n"
        )
        return ["haproxy", "-db", "-f", configuration]

    def serving(self) -> bool:
        """Tell whether the port is open."""
        with contextlib.suppress(OSError):
            return self.host.listening(self.port)
        return False
