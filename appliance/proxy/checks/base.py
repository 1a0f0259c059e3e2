"""What a check is: the base class, for the modules beside this one."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable
from typing import ClassVar

from mypy_extensions import mypyc_attr

from appliance.config import Config
from appliance.proxy.service import Service
from appliance.proxy.session import Action, Gate, Verdict
from appliance.proxy.visit import Visit


def cut(address: bytes, length: int) -> bytes:
    """Give the first `length` characters of an address (email_length); with 0 all of it."""
    if not length or len(address) <= length:
        return address
    return address.decode("utf-8", "surrogateescape")[:length].encode("utf-8", "surrogateescape")


@mypyc_attr(allow_interpreted_subclasses=True)  # where it is machine code: those that ask the network are not
class Check(ABC):
    """One thing that is looked at, at one gate. Made once for each configuration."""

    gate: ClassVar[Gate]
    state: ClassVar[str] = ""  # what the status file calls a session that waits for this check, if it tells

    def __init__(self, service: Service) -> None:
        self._service = service
        self._config = service.config

    def _take_over(self, text: str) -> Verdict:
        """Refuse for good what the client said, and all that it may say afterwards."""
        return Verdict(Action.TAKEOVER, 550, "5.7.1", f"{self._config.proxy_name} {text}", text)

    @staticmethod
    @abstractmethod
    def wanted(config: Config) -> bool:
        """Tell whether a configuration has work for this check."""

    @abstractmethod
    def ask(self, visit: Visit, subject: bytes) -> Verdict | Awaitable[Verdict]:
        """Judge what stands at the gate (see `Gate` for the subject); a REPLY gate at once.

        What is awaited is bounded in time by the check itself. At CONNECT anything but PASS turns the client
        away with the verdict's text.
        """
