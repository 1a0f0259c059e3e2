"""unbound with zones of its own: what the lab's hosts can ask the DNS about. It asks nobody else."""

import contextlib
from pathlib import Path

from lab.host import Host
from lab.servers.base import Server

PORT = 53


class Unbound(Server):
    """unbound on 127.0.0.1 and ::1 of its host.

    `records` are lines of a zone file with full names; each of `zones` has those and nothing else. For names
    below those of `silent`, no answer is ever sent.
    """

    def __init__(
        self,
        host: Host,
        zones: tuple[str, ...],
        *,
        records: tuple[str, ...] = (),
        silent: tuple[str, ...] = (),
    ):
        super().__init__(host, "unbound")
        self.zones, self.records, self.silent = zones, records, silent
        self._file = self.directory / "unbound.conf"

    def argv(self) -> list[str | Path]:
        """Write unbound.conf."""
        self._write()
        return ["unbound", "-d", "-c", self._file]

    def _write(self) -> None:
        lines = [
            *("interface: 127.0.0.1", "interface: ::1", f"port: {PORT}", "num-threads: 1"),
            *("access-control: 127.0.0.0/8 allow", "access-control: ::1 allow"),
            *('username: ""', 'chroot: ""', 'pidfile: ""', f'directory: "{self.directory}"'),
            *("use-syslog: no", 'logfile: ""', "log-queries: yes", 'module-config: "iterator"'),
            *(f"local-zone: {zone}. static" for zone in self.zones),
            *(f"local-data: '{zone}. 2 IN SOA ns.{zone}. admin.{zone}. 1 60 60 60 2'" for zone in self.zones),
            *(f"local-zone: {name}. always_deny" for name in self.silent),
            *(f"local-data: '{record}'" for record in self.records),
        ]
        text = "server:\n" + "".join(f"  {line}\n" for line in lines)
        self._file.write_text(f"{text}remote-control:\n  control-enable: no\n")

    def change(self, *records: str) -> None:
        """Have other records from now on; started anew, as a second SIGHUP in a moment may end unbound."""
        self.records = records
        self.stop()
        self.start()

    def serving(self) -> bool:
        """Tell whether the port is open."""
        with contextlib.suppress(OSError):
            return self.host.listening(PORT)
        return False
