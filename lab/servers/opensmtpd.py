"""OpenSMTPD, a third reading of SMTP: takes mail for alice and bob at example.test.

It offers no STARTTLS: with OpenSSL 3 Debian 12's fails in the handshake.
"""

from pathlib import Path

from lab.host import Host
from lab.servers.base import DOMAIN, USERS, MailServer

CONFIGURATION = """
smtp max-message-size "1G"
table users {{ {users} }}
listen on {ipv4} port 25 hostname opensmtpd.{domain}
listen on {ipv6} port 25 hostname opensmtpd.{domain}
action "deliver" maildir "{mail}/%{{rcpt.user}}" user alice
match from any for domain "{domain}" rcpt-to <users> action "deliver"
"""


class OpenSMTPD(MailServer):
    """An OpenSMTPD with its own mailboxes, one for each host."""

    def __init__(self, host: Host):
        super().__init__(host, "opensmtpd", 27)

    def argv(self) -> list[str | Path]:
        """Write smtpd.conf; the queue is in the place that is compiled in."""
        spool = self.host.root / "var/spool/smtpd"
        spool.mkdir(mode=0o711, exist_ok=True)
        spool.chmod(0o711)
        configuration = self.directory / "smtpd.conf"
        configuration.write_text(
            CONFIGURATION.format(
                users=", ".join(f'"{user}@{DOMAIN}"' for user in USERS),
                ipv4=self.ipv4,
                ipv6=self.ipv6,
                domain=DOMAIN,
                mail=self.mail,
            )
        )
        return ["smtpd", "-d", "-f", configuration]
