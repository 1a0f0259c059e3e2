"""What options have to do with each other: rules that no value can break by itself.

Called by the parser once every line is read. Nothing here looks at the machine: which modes it has is handed
in.
"""

import re
from collections.abc import Collection, Iterator

from appliance.config.config import OPTIONS, Config
from appliance.config.dnsbl import together
from appliance.config.options import MODES, PACKAGES
from appliance.config.regex import Regex

_TLS_PORT = 465  # of submissions (RFC 8314), where servers do not speak first


def errors(config: Config, modes: Collection[str] | None, *, complete: bool) -> Iterator[tuple[str, str]]:
    """Give the option and the complaint for everything that cannot work.

    `modes` are those this system has, None if that is not to be judged. `complete` demands what a running
    gateway needs.
    """
    here = " ".join(mode for mode in MODES if modes is None or mode in modes)
    if not config.mode and complete:
        yield "mode", f"not set; set mode to one of {here}"
    if config.mode and modes is not None and config.mode not in modes:
        remedy = f"; install the package {PACKAGES[config.mode]} to add it" if config.mode in PACKAGES else ""
        yield "mode", f"this system does not have the mode {config.mode}; it has {here}{remedy}"
    if config.mode in ("fixed", "fixed+xclient"):
        yield from _fixed(config)
    if config.spf == "fixed" and config.spf_fixed_ip is None:
        yield "spf_fixed_ip", "not set; spf fixed needs the address to check"
    if config.dnsbl_threshold <= 0:
        yield "dnsbl_threshold", "not above 0; set it to the weight that refuses a client, such as 1"
    if config.antivirus_path.path is None:
        yield from _no_unix_socket(config)


def _fixed(config: Config) -> Iterator[tuple[str, str]]:
    server = config.fixed_server
    if server is None:
        yield "fixed_server", f"not set; mode {config.mode} needs the address of the mail server"
        return
    local = server.is_loopback or server.is_unspecified  # to connect there is to connect to this machine
    mine = server == config.bind_address or (config.bind_address.is_unspecified and local)
    if mine and config.fixed_server_port == config.port:
        yield "fixed_server", "leads back to the gateway itself; set the address and port of the mail server"


def _no_unix_socket(config: Config) -> Iterator[tuple[str, str]]:
    if config.antivirus_type == "mksd":
        yield "antivirus_path", "mksd listens at a UNIX socket only; set its absolute path"
    elif config.antivirus_type == "clamd" and config.antivirus_transfer == "fd":
        yield "antivirus_transfer", "open files need a UNIX socket; set antivirus_path to one, or use stream"


def warnings(config: Config) -> Iterator[tuple[str, str]]:
    """Give the option and the complaint for everything that works, but hardly as it is meant."""
    if config.antispam_type != "off" and config.spam_max_size <= 0:
        yield "antispam_type", "spam_max_size is 0, so nothing is scanned for spam"
    if config.antivirus_type != "off" and config.scan_max_size == 0:
        yield "antivirus_type", "scan_max_size is 0, so nothing is scanned for viruses"
    if config.chroot_path and (
        config.antivirus_type == "mksd"
        or (config.antivirus_type == "clamd" and config.antivirus_transfer == "path")
    ):
        how = "run it in there, too" + (
            ", or set antivirus_transfer to fd" if config.antivirus_type == "clamd" else ""
        )
        yield "chroot_path", f"the virus scanner is told paths as they are in there; {how}"
    if config.mode.startswith("remote") and not config.remote_routers:
        yield "remote_routers", "not set, so whoever reaches the gateway is asked where its mail shall go"
    idle = config.auth_skip - {"direct", "dnsbl"}  # without dnsbl clients are asked about when they connect
    if "direct" in config.auth_skip and idle:
        yield "auth_skip", f"direct stops all inspection; {', '.join(sorted(idle))} beside it: no effect"
    yield from _kernel(config)
    yield from _idle_quotas(config)
    at_most = together(entry for entry in config.dnsbl if entry.weight > 0)
    if config.dnsbl and at_most < config.dnsbl_threshold:
        yield "dnsbl_threshold", "more than all zones of dnsbl weigh together, so they refuse nobody"
    if config.dnswl and not config.dnsbl:
        yield "dnswl", "dnsbl is not set, so there is nothing to spare its clients"
    yield from _other_meanings(config)


def _kernel(config: Config) -> Iterator[tuple[str, str]]:
    """What the kernel leads to the gateway, or counts for it."""
    if "fanout" in config.lock_on and config.xdp == "off":
        yield "lock_on", "fanout is found by the gate alone, and xdp is off"
    elif "fanout" in config.lock_on and not config.lan_interfaces:
        yield "lock_on", "fanout is found on lan_interfaces alone, and none is set"
    if _TLS_PORT in config.intercept_ports:
        why = "TLS from the first byte, so its clients are refused, and locked as early talkers; leave it out"
        yield "intercept_ports", f"{_TLS_PORT} is {why}"


def _idle_quotas(config: Config) -> Iterator[tuple[str, str]]:
    if config.ratelimit_period <= 0:
        for name in OPTIONS:
            rest = name.removeprefix("ratelimit_")
            limits = rest != name and rest not in ("path", "period", "generation")
            if limits and getattr(config, name) > (-1 if rest == "dst_expiration" else 0):
                yield name, "ratelimit_period is 0, so nothing is limited"


def _other_meanings(config: Config) -> Iterator[tuple[str, str]]:
    """What old files, or files for later versions, mean by it is not what it does."""
    if config.nat_header in ("none", "simple", "generic", "ip-only"):
        yield "nat_header", "names the header; what it says is set by nat_header_type"
    for name, option in OPTIONS.items():
        value = getattr(config, name)
        if isinstance(option.kind, Regex) and re.search(r"\\[<>]", value):
            yield name, r"\< and \> mean the characters themselves; write \b for the edge of a word"
