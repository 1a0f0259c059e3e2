"""The demonstration, python -m lab.demo: a lab, a gateway, a few mails, a table of what became of them.

Run by a person, and by the tests; `python -m lab` uses its lab. Exit status 1 if any row is not as expected.
"""

import re
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lab import router
from lab.clients import Dialogue, swaks
from lab.gateway import Gateway
from lab.image import ImageError
from lab.network import Network
from lab.process import LabError
from lab.samples import EICAR, GTUBE
from lab.servers import Clamd, Postfix, Spamd

FIRST, SIXTH = "10.77.1.11", "fd77:1::11"
INFECTED, SPAMMER, NEIGHBOUR = "10.77.1.13", "10.77.1.14", "10.77.1.15"
CLIENTS = (f"{FIRST}/24", f"{SIXTH}/64", f"{INFECTED}/24", f"{SPAMMER}/24", f"{NEIGHBOUR}/24")


@dataclass(frozen=True)
class Row:
    """One thing tried: what was expected, what happened, and whether the two agree."""

    tried: str
    expected: str
    happened: str
    as_expected: bool


class Demonstration:
    """The lab with a gateway in it, and the experiments."""

    def __init__(self, network: Network):
        self.network = network
        for address in CLIENTS:
            network.client.add_address(address)
        self.postfix = Postfix(network.mail)
        self.clamd = Clamd(network.router)
        self.spamd = Spamd(network.router)
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda server: server.start(), (self.postfix, self.clamd, self.spamd)))
        self.gateway = Gateway(
            network.router,
            {
                "mode": "tproxy",
                "lan_interfaces": "lan",
                "on_failure": "closed",
                "xdp": "off",
                "workers": 2,
                "antivirus_type": "clamd",
                "antivirus_path": str(self.clamd.socket),
                "antispam_type": "spamassassin",
                "antispam_path": str(self.spamd.socket),
                "spam_max_size": 1_000_000,
                "lock_on": "virus,spam",
            },
        ).start()
        router.install(network.router, self.gateway.file.read_text())

    def experiments(self) -> list[Callable[[], Row]]:
        """Give what is tried, in order."""
        return [
            lambda: self.clean("a clean mail over IPv4", FIRST),
            lambda: self.clean("a clean mail over IPv6", SIXTH),
            lambda: self.bad("a mail with the EICAR virus", INFECTED, EICAR),
            lambda: self.in_the_kernel(INFECTED, "VIRUS"),
            lambda: self.locked(INFECTED),
            lambda: self.lock_file(INFECTED, "VIRUS"),
            lambda: self.bad("a mail that is spam (GTUBE)", SPAMMER, GTUBE),
            lambda: self.lock_file(SPAMMER, "SPAM"),
            lambda: self.clean("a clean mail from their neighbour", NEIGHBOUR),
            self.status,
        ]

    def send(self, source: str, subject: str, body: str) -> Dialogue:
        """Send from one of the clients to the mail server, which is all the client knows of."""
        server = self.postfix.ipv6 if ":" in source else self.postfix.ipv4
        return swaks(self.network.client, server, source=source, subject=subject, body=body, timeout=30)

    def clean(self, what: str, source: str) -> Row:
        """A harmless mail arrives, and the server sees the client's own address."""
        subject = f"clean mail from {source}"
        sent = self.send(source, subject, "See you at noon.")
        expected = f"delivered; from {source} for Postfix; inspected"
        happened = answer(sent)
        if sent.accepted:
            message = self.postfix.mailbox("alice").wait(subject).decode()
            found = re.search(r"\(unknown \[(?:IPv6:)?([^]]+)\]\)", message)
            inspected = "inspected" if "X-NAT-Received:" in message else "not inspected"
            happened = f"delivered; from {found[1] if found else 'nobody'} for Postfix; {inspected}"
        return Row(f"{source} sends {what}", expected, happened, happened == expected)

    def bad(self, what: str, source: str, sample: str) -> Row:
        """A bad mail is refused while it is sent, and the server drops its part of it."""
        subject = f"bad mail from {source}"
        sent = self.send(source, subject, sample)
        time.sleep(0.5)  # a delivery would take a tenth of it
        delivered = len(self.postfix.mailbox("alice").find(subject))
        happened = f"{answer(sent)}; {delivered} in the mailbox"
        good = sent.refusal.startswith("550") and not delivered
        return Row(f"{source} sends {what}", "550; 0 in the mailbox", happened, good)

    def locked(self, source: str) -> Row:
        """The client that was caught is not even greeted."""
        sent = self.send(source, "again", "See you at noon.")
        good = not sent.accepted and sent.refusal.startswith("554")
        return Row(f"{source} connects again", "554", answer(sent), good)

    def in_the_kernel(self, source: str, cause: str) -> Row:
        """The kernel has the lock, too: of further connections it lets through `lock_talk` a minute."""
        told = self.network.router.run(["nft", "list", "set", "inet", "appliance", "locked4"]).stdout
        elements = " ".join(told.partition("elements =")[2].split()).strip(" {}").split(", ")
        happened = next(
            (element for element in elements if element.startswith(f"{source} ")), "not in the set"
        )
        good = " counter " in happened and f'comment "{cause}' in happened
        return Row(
            "nft list set inet appliance locked4", f'{source} counter .. comment "{cause} .."', happened, good
        )

    def lock_file(self, source: str, cause: str) -> Row:
        """The lock is a file that an administrator can read and remove."""
        file = self.gateway.locks / source
        happened = f"{file.name}: {file.read_text().splitlines()[0]}" if file.exists() else "no such file"
        return Row("ls, head -1 of the lock", f"{source}: {cause} ..", happened, cause in happened.upper())

    def status(self) -> Row:
        """The status file has counted both."""
        found = re.search(r"^Found: *(.*)$", self.gateway.status(), re.MULTILINE)
        happened = found[0] if found else "no line 'Found:'"
        return Row(
            "the status, viruses/spam/..",
            "Found: 1/1/..",
            happened,
            bool(found and found[1].startswith("1/1")),
        )


def answer(sent: Dialogue) -> str:
    """Say in a word how it ended: the refusal, acceptance, or the last that was heard."""
    return "accepted" if sent.accepted else sent.refusal or sent.transcript.strip().rpartition("\n")[2]


def main() -> int:
    """Build the lab, try everything, show the table; give the exit status."""
    console = Console(width=None if sys.stdout.isatty() else 132)
    begin = time.monotonic()
    console.print("client -- router with the gateway -- mail server, as namespaces of this machine ..")
    table = Table("tried", "expected", "happened", "")
    good = True
    try:
        with Network("demo") as network:
            demonstration = Demonstration(network)
            console.print(f"lab and gateway up after {time.monotonic() - begin:.1f} s; the mails ..")
            for experiment in demonstration.experiments():
                row = experiment()
                good &= row.as_expected
                verdict = "[green]ok[/]" if row.as_expected else "[bold red]NOT[/]"
                table.add_row(Text(row.tried), Text(row.expected), Text(row.happened), verdict)
    except (LabError, ImageError) as error:
        console.print(f"the lab failed: {error}", style="red", markup=False)
        return 1
    console.print(table)
    console.print(f"{time.monotonic() - begin:.1f} s; the lab is gone, nothing of it is left on this machine")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
