"""clamd with a data base of one signature, and spamd without network tests: both start within seconds."""

import contextlib
import os
import socket
from pathlib import Path

from lab.host import ACCOUNTS, Host
from lab.samples import EICAR
from lab.servers.base import Server


def _answers(path: Path, question: bytes, answer: bytes) -> bool:
    """Ask over a unix socket, which is visible from outside the host too."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(2)
        connection.connect(str(path))
        connection.sendall(question)
        return answer in connection.recv(512)
    return False


class Clamd(Server):
    """clamd on the unix socket `socket`; knows EICAR alone."""

    def __init__(self, host: Host, *, options: dict[str, str] | None = None, name: str = "clamd"):
        super().__init__(host, name)
        self.options = options or {}
        self.socket = self.directory / "socket"

    def argv(self) -> list[str | Path]:
        """Write clamd.conf and the signature."""
        signatures = self.directory / "signatures"
        signatures.mkdir(exist_ok=True)
        (signatures / "lab.ndb").write_text(f"Eicar-Test-Signature:0:*:{EICAR.encode().hex()}\n")
        options = {
            "Foreground": "yes",
            "LogTime": "yes",
            "LogClean": "yes",
            "DatabaseDirectory": str(signatures),
            "LocalSocket": str(self.socket),
            "LocalSocketMode": "666",
            "MaxThreads": "8",
            "MaxQueue": "64",
            "MaxConnectionQueueLength": "200",
            "StreamMaxLength": "1000M",
            "MaxScanSize": "1000M",
            "MaxFileSize": "1000M",
            "SelfCheck": "0",
            "Bytecode": "no",
        }
        configuration = self.directory / "clamd.conf"
        configuration.write_text(
            "".join(f"{name} {value}\n" for name, value in (options | self.options).items())
        )
        return ["clamd", "--config-file", configuration]

    def serving(self) -> bool:
        """Tell whether clamd answers PING."""
        return _answers(self.socket, b"PING\n", b"PONG")


class Spamd(Server):
    """spamd -L on the unix socket `socket`; scores GTUBE 1000."""

    ready_within = 40.0  # it compiles its rules with Perl

    def __init__(self, host: Host):
        super().__init__(host, "spamd")
        self.socket = self.directory / "socket"

    def argv(self) -> list[str | Path]:
        """Write local.cf, which leaves out what learns or writes files."""
        user = ACCOUNTS["debian-spamd"]
        os.chown(self.directory, user, user)
        site = self.directory / "site"
        site.mkdir(exist_ok=True)
        (site / "local.cf").write_text("use_bayes 0\nskip_rbl_checks 1\n")
        for file in ("init.pre", "v310.pre", "v320.pre"):
            with contextlib.suppress(FileNotFoundError):
                (site / file).write_text((self.host.root / "etc/spamassassin" / file).read_text())
        argv: list[str | Path] = ["spamd", "--local", "--nouser-config", "--syslog=stderr"]
        argv += ["--username=debian-spamd", "--max-children=2", "--min-children=2"]
        argv += [f"--siteconfigpath={site}", f"--helper-home-dir={self.directory}"]
        return [*argv, f"--socketpath={self.socket}", "--socketmode=0666"]

    def serving(self) -> bool:
        """Tell whether spamd answers PING."""
        return _answers(self.socket, b"PING SPAMC/1.5\r\n\r\n", b"PONG")
