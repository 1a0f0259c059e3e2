"""Real servers on lab hosts: mail servers with mailboxes, scanners, a sink, a blind relay."""

from lab.servers.base import DOMAIN, PASSWORD, Mailbox, MailServer, Server
from lab.servers.exim import Exim
from lab.servers.opensmtpd import OpenSMTPD
from lab.servers.postfix import Postfix
from lab.servers.scanners import Clamd, Spamd
from lab.servers.sink import HAProxy, SmtpSink
from lab.servers.unbound import Unbound

__all__ = [
    "DOMAIN",
    "PASSWORD",
    "Clamd",
    "Exim",
    "HAProxy",
    "MailServer",
    "Mailbox",
    "OpenSMTPD",
    "Postfix",
    "Server",
    "SmtpSink",
    "Spamd",
    "Unbound",
]
