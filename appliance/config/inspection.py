"""The table of options, continued: what is done to mail and to those who send it.

See `options.py` for how the table works. Values are judged in `option.py`.
"""

from pathlib import Path

from appliance.config.dnsbl import ListZone
from appliance.config.network import IP, Socket, SocketAddress
from appliance.config.option import Bool, Enum, File, Float, Int, List, Maybe, Option, Text, UInt
from appliance.config.options import SPOOL
from appliance.config.regex import Regex


def _header() -> Text:
    return Text(
        "STRING", r"[!-9;-~]{1,64}", "the name of a header: letters, digits and - without blanks or a colon"
    )


class MangleOptions:
    """Headers put into messages."""

    nat_header = Option(
        _header(), "X-NAT-Received", "The header that tells the server where a message came from."
    )
    nat_header_type = Option(
        Enum(
            "none",
            "generic",
            "ip-only",
            aliases={"simple": "generic", "0": "none", "1": "generic", "2": "ip-only"},
        ),
        "generic",
        "What that header says: nothing at all, everything known, or the client's address alone.",
    )
    spool_header = Option(
        _header(), "X-Proxy-Spool-Info", "The header that tells scanners where a message came from."
    )
    abuse = Option(Text(empty=True), "", "An address for complaints, given in the generic header.")


class ScannerOptions:
    """Virus and spam scanners."""

    scanner_path = Option(Maybe(File()), None, "Once the path of a scanner.", obsolete=True)
    antivirus_type = Option(Enum("off", "clamd", "mksd"), "off", "The virus scanner.")
    antivirus_path = Option(
        Socket(),
        SocketAddress(Path("/var/run/clamav/clamd.ctl")),
        "Where the virus scanner listens.",
        example="127.0.0.1:3310",
    )
    antispam_type = Option(
        Enum("off", "spamassassin"), "off", "The spam scanner; spam_max_size must be set as well."
    )
    antispam_path = Option(
        Socket(),
        SocketAddress(Path("/var/run/spamd/spamd_socket")),
        "Where the spam scanner listens.",
        example="[::1]:783",
    )
    dspam_storage = Option(
        File("PATH"), SPOOL / "dspam", "Once the directory of another spam scanner.", obsolete=True
    )


class DnsblOptions:
    """Block lists in the DNS."""

    dnsbl = Option(
        List(ListZone(weighted=True), 32),
        (),
        "The zones to ask about each client; zone=127.0.0.[2-9;20] counts those answers only, zone*2 twice.",
        example="zen.dnsbl.example,bl.example.org",
    )
    dnswl = Option(
        List(ListZone(weighted=False), 32),
        (),
        "The zones of good clients, which pass whatever dnsbl says; written as there, without weights.",
    )
    dnsbl_threshold = Option(
        Float(), 1.0, "How much the zones that list a client must weigh together for it to be refused."
    )


class SpfOptions:
    """Sender Policy Framework."""

    spf = Option(
        Enum("none", "incoming", "outgoing", "fixed", aliases={"off": "none", "source": "incoming"}),
        "none",
        "Which address must be allowed to send: the client's, that of outgoing_addr, or spf_fixed_ip.",
    )
    spf_log_only = Option(Bool(), False, "Log what SPF says but refuse nothing.")
    spf_fixed_ip = Option(Maybe(IP()), None, "The address that spf fixed checks.")


class RegexOptions:
    """Patterns in RE2's syntax, searched for anywhere in what a client says unless anchored by ^ and $.

    Capitals count unless a pattern begins with (?i). An empty sender, as notices of failed delivery have it,
    is matched as an empty text.
    """

    regex_enforce_helo = Option(Regex(), "", "Refuse HELO and EHLO names that do not match.")
    regex_enforce_mail_from = Option(
        Regex(),
        "",
        "Refuse sender addresses that do not match.",
        example="@(example\\.org|example\\.net)$",
    )
    regex_enforce_rcpt_to = Option(Regex(), "", "Refuse recipient addresses that do not match.")
    regex_reject_helo = Option(Regex(), "", "Refuse HELO and EHLO names that match.", example="^localhost$")
    regex_reject_mail_from = Option(Regex(), "", "Refuse sender addresses that match.")
    regex_reject_rcpt_to = Option(Regex(), "", "Refuse recipient addresses that match.")


class EarlytalkOptions:
    """Clients that speak before they are greeted."""

    earlytalk = Option(
        Bool(),
        True,
        "Refuse clients that send anything before the server's greeting.",
        aliases=("earlytalker",),
    )


class RatelimitOptions:
    """Quotas of a client over a period; 0 sets no limit."""

    ratelimit_path = Option(
        File("PATH"), SPOOL / "ratelimit", "The directory of the database that keeps the clients' records."
    )
    ratelimit_period = Option(
        Int(),
        0,
        "The seconds after which counting starts anew; 0 turns rate limits off.",
        aliases=("ratelimit_expiration",),
    )
    ratelimit_dst_expiration = Option(
        Int(),
        -1,
        "The seconds for which a destination is remembered; negative sets no limit of destinations.",
    )
    ratelimit_generation = Option(
        UInt(),
        0,
        "The number of this set of quotas; records of a lower number take the quotas over.",
        example="20260131120000",
    )
    ratelimit_connections = Option(Int(), 0, "The connections in a period.")
    ratelimit_sessions = Option(Int(), 0, "The messages in a period.", aliases=("ratelimit_messages",))
    ratelimit_recipients = Option(Int(), 0, "The recipients in a period.")
    ratelimit_bytes = Option(Int(), 0, "The bytes of messages in a period.")
    ratelimit_mailfrom_rejects = Option(UInt(), 0, "The senders a server may refuse in a period.")
    ratelimit_rcptto_rejects = Option(UInt(), 0, "The recipients a server may refuse in a period.")
    ratelimit_auth_rejects = Option(UInt(), 0, "The logins a server may refuse in a period.")
    ratelimit_helos = Option(UInt(0, 1000), 0, "The different HELO and EHLO names in a period.")
    ratelimit_mailfroms = Option(UInt(0, 1000), 0, "The different sender addresses in a period.")
    ratelimit_destinations = Option(UInt(0, 1000), 0, "The different mail servers in a period.")


class CommandOptions:
    """Commands that are kept from the server."""

    forbid_starttls = Option(
        Bool(), False, "Neither offer nor accept STARTTLS, so that every session can be inspected."
    )
