"""The table of options, continued: every text that mail users get to read.

See `options.py` for how the table works. A text follows the gateway's name in a reply, so it begins in lower
case; it says what happened and, where the user or an administrator can do something about it, what.
"""

from appliance.config.option import Message, Option, Text


class MessageOptions:
    """Texts for mail users."""

    locale = Option(
        Text("NAME", r"[!-~]{1,64}", "the name of a locale", empty=True),
        "",
        "The language of the system's error texts that follow the gateway's own; English when unset.",
        example="pl_PL.UTF-8",
    )
    msg_virus_found = Option(
        Message(),
        "this message carries a virus and was not delivered; please scan your computer before you send again",
        "A virus was found in the message; its name follows.",
    )
    msg_virus_no_more = Option(
        Message(),
        "a virus was found in this session; please end it",
        "The session goes on after a virus was found.",
    )
    msg_virus_locked = Option(
        Message(),
        "your mail is blocked for a while because of a virus or spam; please scan your computer",
        "The client is locked.",
        example="your computer sends viruses;\\nsee https://help.example.org/virus",
    )
    msg_spam_found = Option(
        Message(),
        "this message looks like spam and was not delivered; if it is not, please reword it",
        "A message is spam; its score follows.",
    )
    msg_unknown_virus = Option(
        Message(), "unknown virus", "Stands for the name of a virus that the scanner did not name."
    )
    msg_scanner_failed = Option(
        Message(),
        "the message could not be checked for viruses; please try again later",
        "A message could not be scanned.",
    )
    msg_malformed_ip = Option(
        Message(),
        "the address of your mail server was not understood; please try again later",
        "The answer of a remote lookup has no usable address.",
    )
    msg_cannot_connect = Option(
        Message(),
        "your mail server cannot be reached",
        "The mail server cannot be reached; address and reason follow.",
    )
    msg_spool_problem = Option(
        Message(),
        "the message could not be kept for checking; please try again later",
        "A copy of a message cannot be named or written.",
    )
    msg_spool_open_fail = Option(
        Message(),
        "the message could not be opened for checking; please try again later",
        "A copy of a message cannot be begun.",
    )
    msg_pipeline_full = Option(
        Message(),
        "too many commands at once; please wait for the replies",
        "The client sent too many commands without waiting.",
    )
    msg_lookup_failed = Option(
        Message(),
        "your mail server could not be found",
        "The destination of a connection cannot be found; the cause follows.",
    )
    msg_lookup_notfound = Option(
        Message(), "the router does not know this connection", "A remote lookup found nothing."
    )
    msg_lookup_timeout = Option(
        Message(), "the router did not answer in time", "A remote lookup got no answer."
    )
    msg_lookup_mismatch = Option(
        Message(),
        "the router's answer was not understood",
        "A remote lookup got an answer of another version or kind.",
    )
    msg_lookup_nomem = Option(
        Message(), "not enough memory to find your mail server", "There was no memory for a lookup."
    )
    msg_lookup_unknown = Option(
        Message(),
        "finding your mail server failed for an unknown reason",
        "A lookup broke down.",
    )
    msg_connect_timeout = Option(
        Message(),
        "your mail server does not answer",
        "The mail server took too long to accept a connection; its address follows.",
    )
    msg_connect_failed = Option(
        Message(),
        "the connection to your mail server failed",
        "The gateway could not even begin to connect; the server's address and the reason follow.",
    )
    msg_session_timeout = Option(
        Message(), "this session took too long; closing it", "A taken-over session lasted too long."
    )
    msg_sign_off = Option(
        Message(), "closing the connection, goodbye", "The reply to QUIT in a taken-over session."
    )
    msg_hello = Option(Message(), "at your service", "The reply to HELO and EHLO in a taken-over session.")
    msg_proto_error = Option(Message(), "that command does not belong here", "A command came out of order.")
    msg_transaction_failed = Option(
        Message(), "too many commands; please try again later", "Too many commands in a taken-over session."
    )
    msg_unimpl_command = Option(
        Message(), "that command is not available", "A command is not known, or not allowed."
    )
    msg_temp_unavail = Option(
        Message(),
        "the mail service is unavailable for the moment; please try again later",
        "A defect of the gateway keeps the client from its server.",
    )
    msg_max_reached = Option(
        Message(), "too many connections; please try again later", "max_connections is reached."
    )
    msg_max_per_host = Option(
        Message(),
        "too many connections from your address; please close some or try again later",
        "max_per_host is reached.",
    )
    msg_max_per_ident = Option(
        Message(),
        "too many connections of yours; please close some or try again later",
        "max_per_ident is reached.",
    )
    msg_system_load = Option(
        Message(), "the system is too busy; please try again later", "The load average is above max_load."
    )
    msg_nomem = Option(
        Message(), "not enough memory; please try again later", "There was no memory for a connection."
    )
    msg_unknown_scanner = Option(
        Message(),
        "no such scanner; please tell your network's administrator",
        "Once told that a scanner was configured which does not exist.",
        obsolete=True,
    )
    msg_auth_required = Option(
        Message(),
        "please turn on authentication (user name and password) for outgoing mail in your mail program",
        "auth_require demands that the client authenticates first.",
    )
    msg_loop_avoidance = Option(
        Message(),
        "this connection would go round in a circle; please check your mail program's server settings",
        "A connection would lead back to the gateway or the client.",
    )
    msg_size_limit = Option(
        Message(),
        "this message is too large; please send less or smaller attachments",
        "A message is larger than size_limit.",
    )
    msg_fixed_xclient_fail = Option(
        Message(),
        "the mail server is not ready for this gateway; please try again later",
        "The mail server did not accept XCLIENT.",
    )
    msg_dnsdb_reject = Option(
        Message(),
        "your address is on a block list",
        "A block list knows the client; the zone and its answer follow.",
    )
    msg_spf_reject = Option(
        Message(),
        "the sender's domain does not allow mail from this address (SPF)",
        "SPF does not allow the sender.",
    )
    msg_rate_reject = Option(
        Message(),
        "too many connections in a short time; please try again later",
        "A client made too many connections in a period.",
    )
    msg_ratelimit_error = Option(
        Message(),
        "your sending limits could not be checked; please try again later",
        "The client's record cannot be used.",
    )
    msg_ratelimit_messages = Option(
        Message(),
        "too many messages in a short time; please try again later",
        "A client sent too many messages in a period.",
    )
    msg_ratelimit_rcptto = Option(
        Message(),
        "too many recipients in a short time; please try again later",
        "A client named too many recipients in a period.",
    )
    msg_ratelimit_rcptto_rejects = Option(
        Message(),
        "too many of your recipients were refused; please check your address list",
        "A server refused too many recipients in a period.",
    )
    msg_ratelimit_helo = Option(
        Message(),
        "too many different names in HELO; please try again later",
        "A client used too many HELO names in a period.",
    )
    msg_ratelimit_mailfrom = Option(
        Message(),
        "too many different sender addresses; please try again later",
        "A client used too many senders in a period.",
    )
    msg_ratelimit_mailfrom_rejects = Option(
        Message(),
        "too many of your sender addresses were refused; please check your mail program's settings",
        "A server refused too many senders in a period.",
    )
    msg_ratelimit_auth_rejects = Option(
        Message(),
        "too many of your logins were refused; please check your user name and password",
        "A server refused too many logins in a period.",
    )
    msg_ratelimit_dst = Option(
        Message(),
        "too many different mail servers; please use the one of your provider",
        "A client used too many mail servers.",
    )
    msg_earlytalker = Option(
        Message(), "please wait for the greeting before you speak", "A client spoke before it was greeted."
    )
    msg_regex_helo = Option(
        Message(),
        "the name in HELO is not accepted here; please check your mail program's settings",
        "A pattern refuses the HELO name.",
    )
    msg_regex_mail_from = Option(
        Message(), "this sender address is not accepted here", "A pattern refuses the sender."
    )
    msg_regex_rcpt_to = Option(
        Message(),
        "this recipient address is not accepted here",
        "A pattern refuses the recipient.",
    )
