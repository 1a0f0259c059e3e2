"""appliance-ctl without a gateway: a configuration with directories of its own, and commands run in here."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from appliance.ctl.app import main


class Done(NamedTuple):
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Tool:
    """The command line with a configuration file in `home`; `options` are its lines."""

    def __init__(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.home, self.file = home, home / "conf"
        self.locks = home / "lock"
        self._capsys = capsys
        self.locks.mkdir()
        self.options = {
            "mode": "fixed",
            "fixed_server": "192.0.2.25",
            "pidfile": f"{home}/pid",
            "lock_path": str(self.locks),
            "control_socket": f"{home}/control",
            "ratelimit_path": f"{home}/limits",
            "ratelimit_period": "600",
        }
        self.write()

    def write(self, **options: str) -> None:
        self.options |= options
        self.file.write_text("".join(f"{name} {value}\n" for name, value in self.options.items()))

    def __call__(self, *arguments: str) -> Done:
        return self.of(self.file, *arguments)

    def of(self, file: Path, *arguments: str) -> Done:
        """Run a command with another configuration file."""
        self._capsys.readouterr()
        code = main(["--config", str(file), *arguments])
        out, err = self._capsys.readouterr()
        return Done(code, out, err)


@pytest.fixture
def tool(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Tool]:
    monkeypatch.setenv("SUDO_USER", "alice")
    with tempfile.TemporaryDirectory() as name:  # which, unlike tmp_path, other users can get at
        home = Path(name)
        home.chmod(0o755)
        (home / "limits").mkdir()
        yield Tool(home, capsys)
