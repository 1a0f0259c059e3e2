"""The command line itself: shared options, exit codes, completion, and what is said when no gateway runs."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.config import OPTIONS
from appliance.ctl import ask
from appliance.supervisor.pidfile import PidFile
from tests.ctl.conftest import Tool

PROGRAM = str(Path(sys.executable).with_name("appliance-ctl"))
NEED_A_GATEWAY = (["sessions"], ["clients"], ["reload"], ["drain"], ["config", "diff"], ["top", "--json"])


@pytest.mark.parametrize("command", NEED_A_GATEWAY, ids=" ".join)
def test_what_needs_a_gateway_says_that_there_is_none(tool: Tool, command: list[str]) -> None:
    for done in (tool(*command), tool("--json", *command)):
        assert (done.code, done.out) == (4, "")
        assert (
            f"no gateway answers at control_socket {tool.home}/control of {tool.file}: start it" in done.err
        )


def test_a_gateway_that_runs_and_does_not_answer_is_told_apart(tool: Tool) -> None:
    held = PidFile(tool.home / "pid")
    child = os.fork()
    if child == 0:
        done = tool("sessions")
        os._exit(done.code == 4 and f"process {os.getppid()} runs, but nobody answers" in done.err)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    held.remove()


def test_no_control_socket(tool: Tool) -> None:
    tool.write(control_socket="")
    done = tool("sessions")
    assert done.code == 1  # which says nothing of whether one runs
    assert "has no control_socket: set one" in done.err
    assert "gateway   unknown: " in tool("status").out


def test_status_shows_what_is_known_without_a_gateway(tool: Tool) -> None:
    tool("lock", "192.0.2.7")
    done = tool("status")
    assert done.code == 4
    assert "DOWN: no gateway answers" in done.out
    assert f"1 in {tool.locks}" in done.out
    found = tool("status", "--json")
    assert found.code == 4
    assert (found.json["gateway"], found.json["locks"]["files"]) == (None, 1)


def test_explain_shows_what_is_known_without_a_gateway(tool: Tool) -> None:
    tool("lock", "192.0.2.7", "--for", "1h", "--why", "[red]\x1b[31m")
    done = tool("explain", "192.0.2.7")
    assert done.code == 0
    assert "192.0.2.7 is locked until" in done.out
    assert "ADMIN alice: [red]?[31m" in done.out
    assert "no gateway answers" in done.out
    assert done.out.splitlines()[-1].startswith("next      REFUSED: no gateway runs")
    found = tool("explain", "192.0.2.7", "--json").json
    assert (found["next"]["outcome"], found["gateway"], found["locks"][0]["exempt"]) == (
        "refused",
        None,
        False,
    )


@pytest.mark.parametrize(
    ("options", "outcome"),
    [
        ({"on_failure": "open"}, "passes by"),
        ({"on_failure": "closed"}, "refused"),
        ({"on_failure": "closed", "trusted_clients": "192.0.2.0/24"}, "passes by"),
    ],
)
def test_who_comes_by_the_kernel_has_other_ways(tool: Tool, options: dict[str, str], outcome: str) -> None:
    tool.write(mode="tproxy", **options)
    assert tool("explain", "192.0.2.7", "--json").json["next"]["outcome"] == outcome


def test_a_file_with_errors(tool: Tool) -> None:
    tool.write(lock_duration="soon", nonsense="1")
    for command in ("status", "locks", "config check", "config show", "sessions", "explain 192.0.2.1"):
        done = tool(*command.split())
        assert (done.code, done.out) == (2, "")
        assert f"{tool.file}:" in done.err


def test_config_check_and_show(tool: Tool) -> None:
    done = tool("config", "check")
    assert (done.code, done.err) == (0, "")
    assert f"{tool.file} can be used" in done.out
    assert tool("config", "check", "--json").json["file"] == str(tool.file)
    shown = tool("config", "show", "--json").json
    assert list(shown) == list(OPTIONS)
    assert shown["lock_path"] == str(tool.locks)
    text = tool("config", "show").out
    assert f"{'lock_path':<30} {tool.locks}\n" in text
    assert "msg_virus_locked" not in text
    assert "msg_virus_locked" in tool("config", "show", "--texts").out


def test_wrong_usage(tool: Tool) -> None:
    for words in (
        ["nonsense"],
        ["lock"],
        ["status", "--nonsense"],
        ["clients", "--by", "x\x1b"],
        ["top", "--every", "0"],
        ["top", "--json", "--every", "nan"],
    ):
        done = tool(*words)
        assert (done.code, done.out) == (3, ""), words
        assert done.err.startswith("appliance-ctl: ")
        assert "\x1b" not in done.err
        assert "env var" not in done.err
    done = tool("top")
    assert done.code == 3
    assert "top needs a terminal" in done.err


def test_what_is_wrong_with_a_command_leads_to_its_own_help(tool: Tool) -> None:
    assert tool("limits", "show").err.endswith("(see appliance-ctl limits show --help)\n")
    assert tool("nonsense").err.endswith("(see appliance-ctl --help)\n")
    for group in ("", "limits", "config"):
        helped, alone = (
            subprocess.run([PROGRAM, *group.split(), *words], capture_output=True, text=True)
            for words in (["--help"], [])
        )
        assert (alone.returncode, alone.stdout) == (3, "")
        assert alone.stderr == helped.stdout


def test_options_before_and_behind(tool: Tool) -> None:
    tool("lock", "192.0.2.7")
    found = [
        tool(*words).json
        for words in (("--json", "locks"), ("locks", "--json"), ("--json", "locks", "--json"))
    ]
    assert found[0] == found[1] == found[2]
    assert tool("--config", "/nonexistent", "locks", "--config", str(tool.file)).code == 0
    assert tool("locks", "--config", "/nonexistent").code == 2
    assert tool("config", "--json", "show").json == tool("--json", "config", "show").json
    assert tool("config", "--config", "/nonexistent", "show").code == 2


def test_letters_that_the_locale_lacks(tool: Tool) -> None:
    tool.write(abuse="zażółć@example.test")
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [PROGRAM, "--config", tool.file, "config", "show"], env=ascii_only, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "za\\u017c\\xf3\\u0142\\u0107@example.test\n" in done.stdout


def test_completion() -> None:
    asked = {"_APPLIANCE_CTL_COMPLETE": "complete_bash", "COMP_WORDS": "appliance-ctl lo", "COMP_CWORD": "1"}
    done = subprocess.run([PROGRAM], env=os.environ | asked, capture_output=True, text=True)
    assert done.stdout.split() == ["locks", "lock"]


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
@pytest.mark.parametrize("behind", [False, True])
def test_a_configuration_of_somebody_else(tool: Tool, behind: bool) -> None:
    closed = tool.home / "closed"
    closed.touch(0o600)
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        done = tool("locks", "--config", str(closed)) if behind else tool.of(closed, "locks")
        told = f"appliance-ctl: {closed}: cannot be read: Permission denied\n"
        os._exit((done.code, done.err) != (2, told))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_help_names_the_exit_codes(tool: Tool) -> None:
    done = tool("--help")
    assert done.code == 0
    assert "Exit codes: 0 done" in done.out


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "the gateway ended before it had answered"),
        (b"[" * 1900 + b"\n", "the gateway ended before it had answered"),
        (b"x" * 3000, "the gateway's answer has no end"),
        (b'{"error": "\\u001b[31m", "code": "busy"}\n', "the gateway refuses: ?[31m"),
        (b'{"error": "too many", "code": "busy"}\n', "the gateway refuses: too many"),
        (b'{"error": "too many"}\n', "the gateway does not tell code: it is of another version"),
        (b'{"columns": []}\n', "the gateway does not tell rows: it is of another version; restart it"),
        (None, "no answer within 0 s"),
    ],
)
def test_a_gateway_that_cannot_be_believed(
    tool: Tool, monkeypatch: pytest.MonkeyPatch, answer: bytes | None, said: str
) -> None:
    monkeypatch.setattr(ask, "_PATIENCE", 0.2)
    monkeypatch.setattr(ask, "_LONGEST_ANSWER", 2000)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tool.home / "control"))
        listening.listen()

        def answers() -> None:
            client, _ = listening.accept()
            with client, contextlib.suppress(OSError):
                client.recv(4096)
                if answer is None:
                    time.sleep(0.4)
                else:
                    client.sendall(answer)

        thread = threading.Thread(target=answers)
        thread.start()
        done = tool("sessions")
        thread.join()
    assert (done.code, done.out) == (1, "")
    assert said in done.err


@contextlib.contextmanager
def refusing(tool: Tool, code: str) -> Iterator[None]:
    """Have a gateway that refuses without having read what it is asked."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tool.home / "control"))
        listening.listen()

        def refuses() -> None:
            client, _ = listening.accept()
            with client:
                client.recv(1, socket.MSG_PEEK)
                client.sendall(json.dumps({"error": "not now", "code": code}).encode() + b"\n")

        thread = threading.Thread(target=refuses)
        thread.start()
        yield
        thread.join()


@pytest.mark.parametrize(("code", "status"), [("busy", 1), ("forbidden", 5)])
def test_a_gateway_that_refuses_is_not_taken_for_none(tool: Tool, code: str, status: int) -> None:
    tool.write(mode="tproxy", on_failure="open")
    with refusing(tool, code):
        done = tool("sessions")
        assert (done.code, done.err) == (status, "appliance-ctl: the gateway refuses: not now\n")
    (tool.home / "control").unlink()
    with refusing(tool, code):
        done = tool("status")
        assert done.code == status
        assert "gateway   unknown: the gateway refuses: not now\n" in done.out
        assert "mail passes by" not in done.out
    (tool.home / "control").unlink()
    with refusing(tool, code):
        assert tool("explain", "192.0.2.7", "--json").json["next"]["outcome"] == "unknown"
