"""The command line as init scripts use it: what it prints where, and its exit codes."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from appliance.config import dump, parse
from appliance.proxy import lookup
from appliance.proxy.quota import Limits, Use
from appliance.proxy.records import Records
from appliance.supervisor import cli, features

PROGRAM = Path(sys.executable).with_name("smtp-gated")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "gate.conf"
    path.write_text("mode fixed\nfixed_server 192.0.2.1\npidfile /run/gate.pid\nport 0x20\n")
    return path


def run(*arguments: str | Path) -> tuple[int, str, str]:
    done = subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, timeout=30, check=False)
    return done.returncode, done.stdout, done.stderr


def test_one_value(file: Path) -> None:
    assert run("-C", "pidfile", file) == (0, "/run/gate.pid\n", "")
    assert run("-C", "earlytalker", file) == (0, "yes\n", "")


def test_a_value_of_an_option_that_is_not_there(file: Path) -> None:
    code, out, err = run("-C", "prot", file)
    assert (code, out) == (3, "")
    assert "did you mean port?" in err


def test_printing_the_configuration(file: Path) -> None:
    config = parse(file.read_text())
    assert run("-t", file) == (0, dump(config, messages=False), "")
    assert run("-T", file) == (0, dump(config, messages=True, modes=lookup.modes()), "")


def test_warnings_do_not_spoil_the_output(file: Path) -> None:
    with file.open("a") as more:
        more.write("port 33\n")
    code, out, err = run("-t", file)
    assert code == 0
    assert parse(out).port == 33
    assert err == f"smtp-gated: warning: {file}:5: option port: given before on line 4; this one counts\n"


@pytest.mark.parametrize("letter", ["-t", "-f", "-K", "-s"])
def test_a_bad_file(letter: str, file: Path) -> None:
    file.write_text("mode fixed\nprot 1\nport x\n")
    code, out, err = run(letter, file)
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        f'smtp-gated: {file}:2: unknown option "prot"; did you mean port?',
        f'smtp-gated: {file}:3: option port: "x" is not a number; allowed is a whole number from 1 to 65535',
    ]


@pytest.mark.parametrize("text", ["mode fixed\nfoo 1\n", None])
def test_all_options_are_listed_although_the_file_is_bad(file: Path, text: str | None) -> None:
    file.unlink()
    if text:
        file.write_text(text)
    code, out, err = run("-T", file)
    assert code == 2
    assert err.startswith(f"smtp-gated: {file}:")
    first, rest = out.split("\n", 1)
    assert first == "# The file cannot be used. These are the defaults."
    assert rest == dump(parse(""), messages=True, modes=lookup.modes())


def test_letters_that_the_locale_lacks(file: Path) -> None:
    with file.open("a") as more:
        more.write("abuse zażółć@example.test\n")
    done = subprocess.run(
        [PROGRAM, "-t", file], capture_output=True, timeout=30, env=os.environ | {"PYTHONIOENCODING": "ascii"}
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert parse(done.stdout.decode()) == parse(file.read_text())


def test_a_mode_that_is_not_here(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lookup, "entry_points", lambda **_: ())  # whatever is installed on this machine
    file.write_text("mode pf\n")
    assert cli.main(["-t", str(file)]) == 2
    err = capsys.readouterr().err
    assert f"{file}:1: option mode: this system does not have the mode pf; it has fixed " in err
    assert err.endswith("; install the package appliance-bsd to add it\n")


def test_no_file(tmp_path: Path) -> None:
    code, out, err = run("-t", tmp_path / "none")
    assert (code, out) == (2, "")
    assert err == f"smtp-gated: {tmp_path}/none: cannot be read: No such file or directory\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
@pytest.mark.parametrize("letter", ["-t", "-f", "-K"])
def test_a_file_of_somebody_else(letter: str, file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own are closed to other users
        Path(name).chmod(0o755)
        closed = Path(shutil.copy(file, name))
        closed.chmod(0o600)
        child = os.fork()
        if child == 0:  # nobody may be unable to start the program itself
            os.setuid(65534)
            code = cli.main([letter, str(closed)])
            sys.stderr.flush()
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    assert capfd.readouterr() == ("", f"smtp-gated: {closed}: cannot be read: Permission denied\n")


@pytest.mark.parametrize("arguments", [["-x"], ["-C"], ["-t", "-K"], ["-t", "a", "b"], ["--help"]])
def test_wrong_usage(arguments: list[str]) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (3, "")
    assert re.fullmatch(r"smtp-gated: .+ \(smtp-gated -h lists the options\)\n", err)


def test_help() -> None:
    code, out, err = run("-h")
    assert (code, err) == (10, "")
    assert re.findall(r"^  (-\w)(?: \w+)?  ", out, re.MULTILINE) == [
        f"-{letter}" for letter in "CfhKLrsStTvV"
    ]
    assert "/etc/smtp-gated.conf" in out


def test_version_and_features() -> None:
    code, version, err = run("-v")
    assert (code, err) == (0, "")
    assert re.fullmatch(r"smtp-gated \d+\.\d+\S*\n", version)
    code, out, err = run("-V")
    assert (code, err) == (0, "")
    first, *lines = out.splitlines(keepends=True)
    assert first == version
    found = dict(re.findall(r"^  (\w+) +: (.+)$", "".join(lines), re.MULTILINE))
    assert len(found) == len(lines)
    assert {"fixed", "getsockname"} <= set(found["USE_NAT"].split())
    assert lines[-1] == "  CONFIG_FILE      : /etc/smtp-gated.conf\n"
    assert {"PYTHON", "UVLOOP", "IPV6", "TPROXY", "CLAMD", "MKSD", "SPAMASSASSIN"} <= set(found)


def test_the_version_is_known_after_an_upgrade_took_the_files_away(monkeypatch: pytest.MonkeyPatch) -> None:
    before = features.version()
    monkeypatch.setattr(sys, "path", [])
    assert features.version() == before


def test_no_rate_limit_record(file: Path, tmp_path: Path) -> None:
    with file.open("a") as more:
        more.write(f"ratelimit_path {tmp_path}\n")
    code, out, err = run("-L", "192.0.2.7", file)
    assert (code, out, err) == (1, "", f"smtp-gated: {file}: ratelimit_period is not set\n")
    with file.open("a") as more:
        more.write("ratelimit_period 60\n")
    code, out, err = run("-L", "192.0.2.7", file)
    assert (code, out) == (1, "")
    assert err.startswith(f"smtp-gated: {tmp_path}/records.sqlite: unable to open database file; see that ")
    limits = Limits.of(parse("ratelimit_recipients 7"))
    with Records(tmp_path, create=True) as records:
        records.set_quotas("192.0.2.7", {Use.BYTES: 5}, limits)
    code, out, err = run("-L", "192.0.2.8", file)
    assert (code, out) == (1, "")
    assert err == f"smtp-gated: {tmp_path}/records.sqlite has no record of 192.0.2.8\n"
    code, out, err = run("-L", "/old/place/192.0.2.7", file)
    assert (code, err) == (0, "")
    assert "client: 192.0.2.7\n" in out
    assert "recipients.quota: 7\nrecipients.used: 0\nrecipients.tries: 0\nbytes.quota: 5\n" in out
