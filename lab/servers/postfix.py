"""Postfix with all it offers in SMTP: PIPELINING, CHUNKING, 8BITMIME, SMTPUTF8, DSN, AUTH, STARTTLS, XCLIENT.

It takes mail for alice and bob at example.test, looks nothing up in the DNS and limits nobody.
"""

import os
from pathlib import Path

from lab.host import ACCOUNTS, Host
from lab.servers import certificate
from lab.servers.base import DOMAIN, MAILBOX_OWNER, PASSWORD, USERS, MailServer

QUEUES = (
    *("active", "bounce", "corrupt", "defer", "deferred", "flush"),
    *("hold", "incoming", "private", "saved", "trace"),
)

SERVICES = """
smtp       inet  n - n -    100 smtpd
postlog    unix-dgram n - n - 1 postlogd
pickup     unix  n - n 60   1   pickup
cleanup    unix  n - n -    0   cleanup
qmgr       unix  n - n 300  1   qmgr
tlsmgr     unix  - - n 1000? 1  tlsmgr
rewrite    unix  - - n -    -   trivial-rewrite
bounce     unix  - - n -    0   bounce
defer      unix  - - n -    0   bounce
trace      unix  - - n -    0   bounce
flush      unix  n - n 1000? 0  flush
proxymap   unix  - - n -    -   proxymap
showq      unix  n - n -    -   showq
error      unix  - - n -    -   error
retry      unix  - - n -    -   error
discard    unix  - - n -    -   discard
virtual    unix  - n n -    -   virtual
smtp       unix  - - n -    -   smtp
anvil      unix  - - n -    1   anvil
"""


class Postfix(MailServer):
    """A Postfix with its own queue and mailboxes; `options` are parameters of main.cf."""

    def __init__(
        self, host: Host, *, options: dict[str, str] | None = None, name: str = "postfix", number: int = 25
    ):
        super().__init__(host, name, number)
        self.options = options or {}
        self.etc = self.directory / "etc"

    def argv(self) -> list[str | Path]:
        """Write main.cf, master.cf, the queue's directories and the password data base."""
        self.etc.mkdir(exist_ok=True)
        self._make_queue()
        self._make_passwords()
        self.etc.joinpath("master.cf").write_text(SERVICES)
        parameters = self._parameters() | self.options
        main = self.etc / "main.cf"
        main.write_text("".join(f"{name} = {value}\n" for name, value in parameters.items()))
        os.utime(main, (0, 0))  # Postfix waits until a file is two seconds old, lest it be half written
        # master itself rather than the postfix command, whose checks of all files take longer than the start.
        return ["/usr/lib/postfix/sbin/master", "-c", self.etc, "-d"]

    def _parameters(self) -> dict[str, str]:
        pem, key = certificate.make(self.host, self.directory)
        mailboxes = ", ".join(f"{user}@{DOMAIN}={user}/" for user in USERS)
        return {
            "compatibility_level": "3.6",
            "queue_directory": str(self.directory / "queue"),
            "data_directory": str(self.directory / "data"),
            "maillog_file": str(self.log_file),
            "maillog_file_prefixes": str(self.directory),
            "myhostname": f"mail.{DOMAIN}",
            "mydestination": "",
            "mynetworks": "127.0.0.0/8",
            "inet_interfaces": f"{self.ipv4}, {self.ipv6}",
            "inet_protocols": "all",
            "smtpd_peername_lookup": "no",
            "disable_dns_lookups": "yes",
            "smtp_host_lookup": "native",
            "alias_maps": "",
            "alias_database": "",
            "local_recipient_maps": "",
            "virtual_mailbox_domains": DOMAIN,
            "virtual_mailbox_base": str(self.mail),
            "virtual_mailbox_maps": f"inline:{{ {mailboxes} }}",
            "virtual_uid_maps": f"static:{MAILBOX_OWNER}",
            "virtual_gid_maps": f"static:{MAILBOX_OWNER}",
            "virtual_mailbox_limit": "0",
            "mailbox_size_limit": "0",
            "message_size_limit": "2000000000",
            "smtpd_relay_restrictions": "permit_sasl_authenticated, reject_unauth_destination",
            "smtpd_client_connection_count_limit": "0",
            "smtpd_client_connection_rate_limit": "0",
            "smtpd_error_sleep_time": "0",
            "smtpd_forbid_bare_newline": "no",
            "smtpd_sasl_auth_enable": "yes",
            "smtpd_sasl_type": "cyrus",
            "smtpd_sasl_path": "smtpd",
            "smtpd_sasl_local_domain": DOMAIN,
            "smtpd_sasl_security_options": "noanonymous",
            "smtpd_tls_security_level": "may",
            "smtpd_tls_cert_file": str(pem),
            "smtpd_tls_key_file": str(key),
            "smtpd_authorized_xclient_hosts": "198.51.100.1, [2001:db8:25::1]",  # the router
            "smtputf8_enable": "yes",
        }

    def _make_queue(self) -> None:
        postfix, postdrop = ACCOUNTS["postfix"], ACCOUNTS["postdrop"]
        queue, data = self.directory / "queue", self.directory / "data"
        queue.mkdir(exist_ok=True)
        for path, group, mode in (
            (data, postfix, 0o700),
            *((queue / name, postfix, 0o700) for name in QUEUES),
            (queue / "maildrop", postdrop, 0o1730),
            (queue / "public", postdrop, 0o710),
            (queue / "pid", 0, 0o755),
        ):
            path.mkdir(exist_ok=True)
            os.chown(path, 0 if path.name == "pid" else postfix, group)
            path.chmod(mode)

    def _make_passwords(self) -> None:
        passwords = self.etc / "sasldb2"
        self.etc.joinpath("sasl").mkdir(exist_ok=True)  # Debian's Postfix looks for it there
        self.etc.joinpath("sasl", "smtpd.conf").write_text(
            "pwcheck_method: auxprop\nauxprop_plugin: sasldb\nmech_list: PLAIN LOGIN CRAM-MD5\n"
            f"sasldb_path: {passwords}\n"
        )
        for user in USERS:
            self.host.run(["saslpasswd2", "-p", "-c", "-f", passwords, "-u", DOMAIN, user], input=PASSWORD)
        os.chown(passwords, ACCOUNTS["postfix"], ACCOUNTS["postfix"])

    def reconfigure(self, options: dict[str, str]) -> None:
        """Replace the options and restart."""
        self.stop()
        self.options = options
        self.start()
