"""The configuration object: the option tables put together, with a value for each option.

Made by the parser, read by everything. It never reads files and never judges values: that is the parser's job
and the checks'.
"""

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from appliance.config.gateway import GatewayOptions, KernelOptions
from appliance.config.inspection import (
    CommandOptions,
    DnsblOptions,
    EarlytalkOptions,
    MangleOptions,
    RatelimitOptions,
    RegexOptions,
    ScannerOptions,
    SpfOptions,
)
from appliance.config.messages import MessageOptions
from appliance.config.network import SocketAddress
from appliance.config.option import Option
from appliance.config.options import (
    ActionOptions,
    AuthOptions,
    LimitOptions,
    LockOptions,
    LogOptions,
    MainOptions,
    MiscOptions,
    ModeOptions,
    ResourceOptions,
    SpoolOptions,
    StatusOptions,
    TimeoutOptions,
)

MKSD_SOCKET = SocketAddress(Path("/var/run/mksd/socket"))


class Config(
    MainOptions,
    ResourceOptions,
    ModeOptions,
    StatusOptions,
    LockOptions,
    ActionOptions,
    SpoolOptions,
    TimeoutOptions,
    AuthOptions,
    LimitOptions,
    MiscOptions,
    LogOptions,
    MangleOptions,
    ScannerOptions,
    DnsblOptions,
    SpfOptions,
    RegexOptions,
    EarlytalkOptions,
    RatelimitOptions,
    CommandOptions,
    GatewayOptions,
    KernelOptions,
    MessageOptions,
):
    """One value for each option, as an attribute of the option's name and type; it cannot be changed.

    `values` are those that a file sets, by name; all others have their defaults. `warnings` are sentences for
    the administrator about what was accepted but is hardly meant. Two configurations are equal when all
    values are; warnings do not count.
    """

    warnings: tuple[str, ...]

    def __init__(self, values: Mapping[str, object] | None = None, warnings: tuple[str, ...] = ()) -> None:
        given = dict(values or {})
        if given.get("proxy_name", "*") == "*":
            given["proxy_name"] = socket.gethostname() or "localhost"
        if given.get("antivirus_type") == "mksd":  # the two scanners have usual places of their own
            given.setdefault("antivirus_path", MKSD_SOCKET)
        defaults = {name: option.default for name, option in OPTIONS.items()}
        self.__dict__.update(defaults, **given, warnings=warnings)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a configuration cannot be changed: {name}")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Config):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in OPTIONS)

    __hash__ = None  # type: ignore[assignment]  # large, and nobody keeps it in a set

    def outside(self, path: Path) -> Path:
        """Give the place of a path of the workers, who live in chroot_path, for those who do not."""
        return self.chroot_path / path.relative_to("/") if self.chroot_path else path

    def written(self, name: str) -> str:
        """Give the value of the option `name` as a file would have it."""
        return OPTIONS[name].kind.write(getattr(self, name))

    def text(self) -> str:
        """Give the canonical file, every option on its line; it parses back to an equal configuration."""
        return "".join(f"{name} {self.written(name)}\n" for name in OPTIONS)


OPTIONS: Mapping[str, Option[Any]] = {
    name: option
    for section in Config.__bases__
    for name, option in vars(section).items()
    if isinstance(option, Option)
}
NAMES: Mapping[str, str] = {
    alias: name for name, option in OPTIONS.items() for alias in (name, *option.aliases)
}
