"""The gate on the lab's router, for tests: up and down as an administrator does it, its maps from outside."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.bpf.locks import GateLocks
from appliance.bpf.pinned import PINS
from appliance.config import Config, load
from appliance.log import Log
from lab.gateway import Options
from lab.host import Host
from lab.image import CHECKOUT

PYTHON = CHECKOUT / ".venv" / "bin" / "python"


class RouterGate:
    """The gate of `router`: `file` is its configuration, `pins` leads to its maps from outside."""

    def __init__(self, router: Host, options: Options | None = None, xdp: str = "native") -> None:
        self.router = router
        self.file = router.run_directory / "gate.conf"
        self.pins = router.root / PINS.relative_to("/")
        self.options: Options = {"mode": "tproxy", "lan_interfaces": "lan", "xdp": xdp}
        self.options |= options or {}

    def write(self, **options: str | int) -> None:
        self.options |= options
        self.file.write_text("".join(f"{name} {value}\n" for name, value in self.options.items()))

    def config(self) -> Config:
        return load(self.file)

    def do(self, what: str, environment: dict[str, str] | None = None) -> list[str]:
        """Run a command on the router; give what it complains of."""
        command: list[str | Path] = [PYTHON, "-m", "appliance.bpf.gate", what, "--config", self.file]
        done = self.router.run(command, check=False, environment=environment)
        lines = done.stderr.splitlines()
        assert done.returncode == bool(lines), done.stderr
        return lines

    def link(self) -> str:
        """Tell how the kernel shows the interface."""
        return self.router.run(["ip", "-details", "link", "show", "dev", "lan"]).stdout


@contextmanager
def standing(router: Host, options: Options | None = None, xdp: str = "native") -> Iterator[RouterGate]:
    """Have a gate for a while."""
    gate = RouterGate(router, options, xdp)
    gate.write()
    try:
        complaints = gate.do("up")
        assert not complaints, complaints
        yield gate
    finally:
        assert gate.do("down") == []


def locks_of(gate: RouterGate) -> GateLocks:
    """Give the gate's locks, to be changed as the mirror does."""
    return GateLocks(Log("crit", "mail", stderr=False), gate.pins)
