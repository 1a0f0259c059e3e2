"""The table of options, the only place an option is described: type, default, other names, meaning.

One class is one section, named after it; `Config` in the package is made of them all, in the order in which
they stand here. The message texts are a section in `messages.py`. The parser, the dump and the documentation
read the table. Values are judged in `option.py`.
"""

from ipaddress import IPv4Address
from pathlib import Path

from appliance.config.network import IP, Port
from appliance.config.option import Bool, Enum, File, Flags, Float, Int, Maybe, Octal, Option, Text, UInt

ANY = IPv4Address("0.0.0.0")  # noqa: S104 - what the option means by default, not a socket
INT_MAX = 2**31 - 1  # of listen(2); in seconds, years for which a calendar has dates
RUN = Path("/var/run/smtp-gated")
SPOOL = Path("/var/spool/smtp-gated")

LOG_LEVELS = ("debug", "info", "notice", "warning", "err", "alert", "crit", "emerg")
SYSLOG_NUMBERS = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")
# fmt: off
FACILITIES = (
    "user", "mail", "daemon", "auth", "news", "authpriv",
    "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
)
MODES = (
    "fixed", "fixed+xclient", "remote", "remote-udp", "getsockname", "netfilter", "tproxy",
    "tproxy,netfilter", "ipfw", "ipfilter", "pf",
)
# fmt: on
PACKAGES = dict.fromkeys(("ipfw", "ipfilter", "pf"), "appliance-bsd")  # which bring modes of their own
EVENTS = ("virus", "spam", "maxhost", "maxident", "dnsbl", "spf", "regex", "earlytalk", "ratelimit")


def _account(kind: str) -> Text:
    return Text(kind, r"[A-Za-z0-9_.][A-Za-z0-9_.-]{0,31}\$?", "the name of an account", empty=True)


def _log_mask() -> Flags:
    return Flags("accepted", "rejected", "base64", nothing=("off", "no", "none"), mask=True)


class MainOptions:
    """The daemon itself."""

    proxy_name = Option(
        Text("STRING", r"[ -~]{1,255}", "a host name, or * for the name of this host"),
        "*",
        "The name the gateway gives itself in its replies and headers; * takes the name of this host.",
    )
    bind_address = Option(IP(), ANY, "The address to accept connections at.", restart=True, example="::")
    port = Option(Port(), 9199, "The TCP port to accept connections at.", restart=True)
    outgoing_addr = Option(
        IP(),
        ANY,
        "The source address of connections to mail servers; 0.0.0.0 leaves the choice to the kernel.",
        aliases=("source_addr",),
    )
    pidfile = Option(
        File(), RUN / "smtp-gated.pid", "Where the daemon's process number is written.", restart=True
    )
    chroot_path = Option(
        Maybe(File("PATH")),
        None,
        "The directory that becomes the root directory of the workers; all their paths begin there.",
        restart=True,
    )
    set_user = Option(
        _account("USER"), "", "The user the workers run as; never run them as root.", restart=True
    )
    set_group = Option(
        _account("GROUP"), "", "The group the workers run as; the user's own group when unset.", restart=True
    )
    priority = Option(
        Int(-20, 20),
        0,
        "The scheduling priority of the workers, as in nice(1); 0 leaves it alone.",
        restart=True,
    )
    connect_queue = Option(
        Int(0, INT_MAX),
        16,
        "How many connections the kernel keeps waiting until they are accepted; never fewer than 1024.",
    )
    enfile_sleep = Option(
        UInt(),
        5,
        "Seconds, 1 at least, in which nobody is accepted once the files a worker may open run out.",
    )
    on_takeover_cmds = Option(
        UInt(), 10, "How many commands a client may still give in a taken-over session."
    )
    buffer_size = Option(
        UInt(0, 1 << 24),
        1516,
        "How many bytes of a session may wait in each direction; never fewer than 65536 are allowed.",
    )
    pipeline_size = Option(UInt(16), 128, "How many commands may await their replies in a pipelined session.")
    pid_hash_size = Option(UInt(), 4096, "Once the size of a table of processes.", obsolete=True)
    host_hash_size = Option(UInt(), 4096, "Once the size of a table of clients.", obsolete=True)


class ResourceOptions:
    """Resource limits of the action script, in bytes.

    The gateway's own processes serve many sessions each, and bound their memory and files by other means:
    numbers made for a process of one session would end them all.
    """

    limit_core_size = Option(
        Int(-1), 67108864, "The largest core dump of the action script; -1 leaves the system's limit."
    )
    limit_virt_size = Option(
        Int(), 67108864, "The largest address space of the action script; 0 leaves the system's limit."
    )
    limit_data_size = Option(
        Int(), 67108864, "The most memory the action script may write to; 0 leaves the system's limit."
    )
    limit_fsize = Option(
        Int(), 104857600, "The largest file the action script may write; 0 leaves the system's limit."
    )


class ModeOptions:
    """How the mail server that a client meant to reach is found."""

    mode = Option(
        Enum(*MODES, empty=True),
        "",
        "How the destination of a connection is found; smtp-gated -V lists the modes that work here.",
        restart=True,
    )
    fixed_server = Option(Maybe(IP()), None, "The mail server of the fixed modes.", example="192.0.2.25")
    fixed_server_port = Option(Port(), 25, "The port of that mail server.")
    remote_port = Option(Port(), 114, "The port at which the client's router answers lookups.")
    remote_udp_retries = Option(
        Int(0), 3, "How many times a lookup over UDP is sent before it is given up; 0 is once."
    )
    remote_udp_secret = Option(UInt(0, 2**32 - 1), 0, "The secret that a lookup over UDP carries.")


class StatusOptions:
    """The status file, written on signal USR1."""

    statefile = Option(File(), RUN / "state", "Where the status is written.", aliases=("dumpfile",))
    statefile_perm = Option(Octal(), 0o660, "The permissions of the status file.", aliases=("dumpfile_perm",))
    statefile_type = Option(
        Flags("human", "flat", "slots"),
        frozenset({"human", "slots"}),
        "The form of the status: human for readers, flat for programs, slots adds a row for each session.",
        example="flat,slots",
    )


class LockOptions:
    """Locks: clients that are refused for a while."""

    lock_on = Option(
        Flags(*EVENTS, "fanout", nothing=("never", "none", "off"), aliases={"earlytalker": "earlytalk"}),
        frozenset(EVENTS),
        "The events that lock a client out; spam is refused only if it stands here.",
        example="virus,spam",
    )
    lock_duration = Option(
        Int(-1, INT_MAX),
        3600,
        "How long a lock lasts, in seconds; 0 never locks, -1 locks until unlocked by hand.",
        example="86400",
    )
    lock_path = Option(File("PATH"), SPOOL / "lock", "The directory of the lock files.")
    lock_perm = Option(Octal(), 0o660, "The permissions of lock files.")


class ActionOptions:
    """The administrator's own program."""

    action_script = Option(
        Maybe(File()), None, "A program to run when a client is locked; what happened is in its environment."
    )


class SpoolOptions:
    """Copies of messages for the scanners."""

    spool_path = Option(
        File("PATH"),
        SPOOL / "msg",
        "The directory of copies that are files; a scanner by path must be able to read them.",
    )
    spool_perm = Option(Octal(), 0o660, "The permissions of the copies.")
    spool_leave_on = Option(
        Flags("error", "spam", "virus", "always", nothing=("never", "none", "off")),
        frozenset({"error"}),
        "When a copy is kept after the scan.",
        example="error,virus",
    )


class TimeoutOptions:
    """Patience, in seconds."""

    timeout_direct = Option(
        UInt(), 300, "The longest silence in a session that is relayed without inspection."
    )
    timeout_lookup = Option(UInt(), 10, "The wait for each answer of a remote lookup.")
    timeout_scanner = Option(UInt(), 30, "The wait for the virus scanner.")
    timeout_spam = Option(UInt(), 30, "The wait for the spam scanner.")
    timeout_dnsbl = Option(UInt(1, 300), 5, "The wait for the lists of dnsbl and dnswl.")
    timeout_spf = Option(UInt(1, 300), 20, "The wait for all that SPF has to ask about one sender.")
    timeout_session = Option(UInt(), 20, "The whole time that a taken-over session may last.")
    timeout_idle = Option(UInt(), 300, "The longest silence in an inspected session.")
    timeout_connect = Option(UInt(), 30, "The wait for a connection to the mail server.")


class AuthOptions:
    """What SMTP authentication changes."""

    auth_require = Option(
        Enum("no", "ifsupported", "mandatory"),
        "no",
        "Whether clients must authenticate before they send; ifsupported asks it where a server offers it.",
    )
    auth_skip = Option(
        Flags("direct", "antivir", "antispam", "dnsbl", "regex", nothing=("none", "off", "no")),
        frozenset(),
        "The checks that authenticated sessions are spared; direct stops all inspection.",
        example="antispam,dnsbl",
    )


class LimitOptions:
    """Limits; sizes in bytes."""

    max_connections = Option(UInt(), 64, "The most sessions at a time.", restart=True)
    max_per_host = Option(UInt(), 8, "The most sessions of one client at a time.")
    max_per_ident = Option(
        UInt(), 4, "The most sessions of one user of a client at a time, where the mode tells users apart."
    )
    max_load = Option(
        Float(), 2.0, "The load average above which new connections are refused; 0 never refuses."
    )
    size_limit = Option(UInt(), 0, "The largest message; 0 sets no limit.")
    scan_max_size = Option(UInt(), 10000000, "The largest message to scan for viruses; 0 scans none.")
    spam_max_size = Option(Int(), 0, "The largest message to scan for spam; 0 scans none.")
    spam_max_load = Option(
        Float(), 1.0, "The load average above which nothing is scanned for spam; 0 scans always."
    )
    spam_threshold = Option(Float(), 7.0, "The score from which a message is spam.")


class MiscOptions:
    """What fits nowhere else."""

    ignore_errors = Option(
        Bool(), False, "Let messages pass that could not be scanned, instead of refusing them."
    )


class LogOptions:
    """What is logged, how much of it, and where to."""

    log_helo = Option(Bool(), False, "Log the names that clients give in HELO and EHLO.")
    log_mail_from = Option(
        _log_mask(),
        frozenset(),
        "Which sender addresses to log, by the server's answer; base64 logs a digest instead.",
        example="rejected,base64",
    )
    log_rcpt_to = Option(
        _log_mask(),
        frozenset(),
        "Which recipient addresses to log, by the server's answer; base64 logs a digest instead.",
    )
    email_length = Option(
        UInt(), 64, "How many characters of an address are logged and checked; 0 is all of it."
    )
    log_level = Option(
        Enum(*LOG_LEVELS, aliases={str(number): level for number, level in enumerate(SYSLOG_NUMBERS)}),
        "debug",
        "The least important lines to log.",
        restart=True,
    )
    log_facility = Option(Enum(*FACILITIES), "daemon", "The facility that log lines carry.", restart=True)
    log_target = Option(
        Enum("syslog", "journal", "stderr"),
        "syslog",
        "Where the log goes: to syslog, to systemd's journal with each field apart, or to stderr alone.",
        restart=True,
    )
    log_format = Option(
        Enum("text", "json"), "text", "How a line is written: as text, or as one JSON object.", restart=True
    )
