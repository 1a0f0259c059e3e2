"""The sysctls that the mail's way depends on.

None has to be set: interception works whatever rp_filter, src_valid_mark, tcp_fwmark_accept and others say (a
lab test tries them). What passes by the gateway, though, passes only if this is a router at all. That is the
administrator's decision, so it is looked at and never changed. Called by the installer.
"""

from pathlib import Path

from appliance.config import Config
from appliance.nft.ruleset import intercepts

_PROC = Path("/proc/sys")
_FORWARDING = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}


def found(config: Config) -> dict[str, str]:
    """Give the values of what matters to a configuration, by name; what this kernel lacks is left out."""
    if not intercepts(config):
        return {}
    values: dict[str, str] = {}
    for name in _FORWARDING.values():
        path = _PROC / name.replace(".", "/")
        if path.exists():
            values[name] = path.read_text().strip()
    return values


def warnings(values: dict[str, str]) -> list[str]:
    """Tell what will not work with these values."""
    return [
        f"sysctl {name} is 0: mail of trusted clients, and of all while no gateway runs, does not pass"
        for name, value in values.items()
        if value == "0"
    ]


def drift(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """Tell which of them has been changed for the worse."""
    return [
        f"sysctl {name} was {value} and is {now[name]}: what passes by the gateway does not pass any more"
        for name, value in before.items()
        if name in now and now[name] == "0" and value != "0"
    ]
