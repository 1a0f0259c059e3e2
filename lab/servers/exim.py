"""Exim, as another reading of SMTP than Postfix's: takes mail for alice and bob at example.test."""

import os
from pathlib import Path

from lab.host import ACCOUNTS, Host
from lab.servers import certificate
from lab.servers.base import DOMAIN, MAILBOX_OWNER, USERS, MailServer

CONFIGURATION = """
primary_hostname = exim.{domain}
exim_user = Debian-exim
exim_group = Debian-exim
spool_directory = {directory}/spool
log_file_path = {directory}/log_%s
pid_file_path = {directory}/pid
local_interfaces = <; {ipv4} ; {ipv6}
tls_advertise_hosts = *
tls_certificate = {certificate}
tls_privatekey = {key}
host_lookup =
helo_lookup_domains =
rfc1413_query_timeout = 0s
chunking_advertise_hosts = *
smtp_accept_max = 0
queue_only_load = 1000
message_size_limit = 1900M
acl_smtp_rcpt = recipient
acl_smtp_data = accept
{options}

begin acl
recipient:
  accept domains = {domain}
         local_parts = {users}
  deny message = relay not permitted

begin routers
{routers}
mailbox:
  driver = accept
  transport = maildir

begin transports
outward:
  driver = smtp
  {outward}

maildir:
  driver = appendfile
  directory = {mail}/${{lookup{{$local_part}}lsearch{{{directory}/users}}}}
  maildir_format
  create_directory
  user = {owner}
  group = {owner}
"""


class Exim(MailServer):
    """An Exim with its own queue and mailboxes, one for each host.

    `routers` come before the mailboxes; their transport `outward` speaks SMTP.
    """

    def __init__(self, host: Host, *, routers: str = "", name: str = "exim", number: int = 26):
        super().__init__(host, name, number)
        self.routers = routers
        self.log_file = self.directory / "log_main"
        self.options = ""  # lines of the main section
        self.outward = ""  # a line for that transport

    def argv(self) -> list[str | Path]:
        """Write the configuration where Exim trusts it; with another it would not deliver as another user."""
        pem, key = certificate.make(self.host, self.directory)
        key.chmod(0o644)  # Exim reads it after giving up root's rights
        (self.directory / "users").write_text("".join(f"{user}: {user}\n" for user in USERS))
        self._give(self.directory)
        self.log_file.touch()
        self._give(self.log_file)
        spool = self.directory / "spool"
        spool.mkdir(exist_ok=True)
        self._give(spool)
        text = CONFIGURATION.format(
            domain=DOMAIN,
            users=" : ".join(USERS),
            owner=MAILBOX_OWNER,
            directory=self.directory,
            mail=self.mail,
            ipv4=self.ipv4,
            ipv6=self.ipv6,
            certificate=pem,
            key=key,
            options=self.options,
            outward=self.outward,
            routers=self.routers,
        )
        etc = self.host.root / "etc/exim4"
        etc.mkdir(exist_ok=True)
        (etc / "exim4.conf").write_text(text)
        return ["exim4", "-bdf", "-q1m"]

    def _give(self, path: Path) -> None:
        os.chown(path, ACCOUNTS["Debian-exim"], ACCOUNTS["Debian-exim"])
