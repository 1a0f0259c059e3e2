"""The configuration language: one table of options, its value types, the parser, the checks and the dump.

Everything else imports from here. The tables are `options.py`, `inspection.py`, `gateway.py` and
`messages.py`.
"""

from appliance.config.config import NAMES, OPTIONS, Config
from appliance.config.dnsbl import DnsList
from appliance.config.dump import dump
from appliance.config.network import Address, Network, Networks, SocketAddress
from appliance.config.parser import DEFAULT_FILE, ConfigError, Problem, load, nearest, parse

__all__ = [
    "DEFAULT_FILE",
    "NAMES",
    "OPTIONS",
    "Address",
    "Config",
    "ConfigError",
    "DnsList",
    "Network",
    "Networks",
    "Problem",
    "SocketAddress",
    "dump",
    "load",
    "nearest",
    "parse",
]
