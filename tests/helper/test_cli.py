"""What the helper's command line refuses, and what it needs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from appliance.helper.cli import app


def run(*arguments: str, user: int | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "appliance.helper.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, user=user)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--gateway"),
        (["--gateway", "gw.test"], '--gateway: "gw.test" is not a network'),
        (["--gateway", "192.0.2.9/24"], "it has bits behind its mask"),
        (["--gateway", "::1", "--listen", "lan0"], '--listen: "lan0" is not an address'),
        (["--gateway", "::1", "--secret-file", "/nonexistent"], "No such file"),
        (["--gateway", "::1", "--port", "0"], "0 is not in the range"),
        (["--gateway", "::1", "--rate", "0"], "0 is not in the range"),
        (["--gateway", "::1", "--command", "name"], "absolute path"),
        (["--gateway", "::1", "--command", "/bin/x", "--names", "/x"], "not both"),
        (["--gateway", "::1", "--log-level", "loud"], "--log-level"),
        (["--gateway", "::1", "--log-target", "file"], "--log-target of syslog journal stderr"),
    ],
)
def test_wrong_usage(arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert words in " ".join(done.output.split())


@pytest.mark.parametrize("text", ["", "secret", "-1", "4294967296", "7\n8", "1" * 1000])
def test_a_secret_is_a_number(tmp_path: Path, text: str) -> None:
    (tmp_path / "secret").write_text(text)
    done = CliRunner().invoke(app, ["--gateway", "::1", "--secret-file", str(tmp_path / "secret")])
    assert done.exit_code == 2
    assert "a whole number from 0 to 4294967295" in " ".join(done.output.split())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_without_the_capability_it_does_not_start() -> None:
    done = run("--gateway", "::1", "--port", "51140", "--log-target", "stderr", user=65534)
    assert done.returncode == 1
    assert "appliance-helper: CAP_NET_ADMIN is missing" in done.stderr


def test_an_address_that_is_not_there() -> None:
    done = run("--gateway", "::1", "--listen", "192.0.2.77", "--port", "51140", "--log-target", "stderr")
    assert done.returncode == 1
    assert "port 51140 at 192.0.2.77: Cannot assign requested address" in done.stderr
    assert "Traceback" not in done.stderr
