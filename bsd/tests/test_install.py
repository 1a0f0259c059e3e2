"""Installing the distribution makes its modes appear in the gateway, and removing it makes them go."""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.lab

HERE = Path(__file__).parents[1]
PROGRAM = Path(sys.executable).with_name("smtp-gated")
MODES = ["ipfilter", "ipfw", "pf"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the distribution, built by this environment's own tools, from a copy of its source."""
    home = tmp_path_factory.mktemp("bsd")
    source = home / "source"
    shutil.copytree(
        HERE, source, ignore=shutil.ignore_patterns("tests", "build", "*.egg-info", "__pycache__")
    )
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--no-warn-script-location"]
    subprocess.run([*pip, *offline, "--target", home / "site", source], check=True, timeout=100)
    return home / "site"


def run(site: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run(
        [PROGRAM, *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def configured(home: Path, mode: str) -> Path:
    file = home / "gate.conf"
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    options = {"mode": mode, "workers": "1", "pidfile": home / "pid", "statefile": home / "state"}
    options |= {"spool_path": home / "spool", "lock_path": home / "lock", "log_target": "stderr"}
    options["control_socket"] = home / "control"
    options |= {"bind_address": "127.0.0.1", "port": str(port), "proxy_name": "gate.example"}
    file.write_text("".join(f"{name} {value}\n" for name, value in options.items()))
    return file


def modes(site: Path, form: str, *arguments: str | Path) -> set[str]:
    """Which of the modes are named on the line of this form."""
    done = run(site, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    (words,) = re.findall(form, done.stdout, re.MULTILINE)
    return set(words.split()) & set(MODES)


def is_installed() -> bool:
    """Whether the environment of the tests has it by itself."""
    search = "import importlib.metadata as m; print(*(d.name for d in m.distributions()))"
    found = subprocess.run(
        [sys.executable, "-c", search], capture_output=True, text=True, check=True, cwd="/"
    )
    return "appliance-bsd" in found.stdout.split()


def test_the_modes_appear(installed: Path, tmp_path: Path) -> None:
    file = tmp_path / "gate.conf"
    file.write_text("mode getsockname\n")
    before = set(MODES) if is_installed() else set()
    for letter, form in (("-V", r"^  USE_NAT +: (.*)"), ("-T", r"^# mode \[ one \]: \{ (.*) \}")):
        asked = [letter] if letter == "-V" else [letter, file]
        assert modes(tmp_path, form, *asked) == before
        assert modes(installed, form, *asked) == set(MODES)


@pytest.mark.option("mode")
@pytest.mark.parametrize("mode", MODES)
def test_a_file_may_have_the_modes(installed: Path, tmp_path: Path, mode: str) -> None:
    file = configured(tmp_path, mode)
    done = run(installed, "-T", file)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(rf"^mode +{mode}$", done.stdout, re.MULTILINE)


def test_a_gateway_whose_system_has_no_pf_says_so(installed: Path, tmp_path: Path) -> None:
    done = run(installed, "-f", configured(tmp_path, "pf"))
    assert done.returncode == 1
    assert (
        "smtp-gated: a worker did not start: mode pf: the system linux has no pf that the gateway knows; "
        "FreeBSD, OpenBSD and macOS have" in done.stderr
    )


def test_the_program_of_the_mirror_is_there(installed: Path) -> None:
    program = installed / "bin" / "appliance-pf-mirror"
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, program, "--help"], env=environment, capture_output=True, text=True, check=True
    )
    assert "--table" in done.stdout
