"""Starts that fail, each telling in one line what, where and what to do; reloads under load.

The real program on the loopback interface, with no lab. How it lives once it runs is in tests/supervisor.
"""

import os
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.scripted import ScriptedServer, Talk
from tests.supervisor.program import PROGRAM, Gateway, gateway_before, wait_until

pytestmark = pytest.mark.lab

# Still root by number, who may read a checkout in its home, but with none of its powers.
UNPRIVILEGED = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
BOTH = pytest.mark.parametrize("arguments", [["-f"], []], ids=["foreground", "background"])


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    server = ScriptedServer(socket.create_server(("127.0.0.1", 0)))
    yield server
    server.close()


@pytest.fixture
def gateway(server: ScriptedServer) -> Iterator[Gateway]:
    with gateway_before(server.address[1]) as made:
        made.home.chmod(0o777)  # some of these gateways are started by another user
        made.write(log_level="warning")
        yield made


def refused(gateway: Gateway, arguments: list[str], wrapper: list[str]) -> tuple[int, list[str]]:
    """Start a gateway that cannot; give the exit code and what was said."""
    command = [*wrapper, PROGRAM, *arguments, str(gateway.file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.stdout == ""
    assert gateway.pid() is None
    return done.returncode, [line.replace(str(gateway.home), "HOME") for line in done.stderr.splitlines()]


CONFIGURATION = {
    "an unknown option": (
        {"antivirus_pth": "/x"},
        r"unknown option \"antivirus_pth\"; did you mean antivirus_path\?",
    ),
    "a bad number": (
        {"max_per_host": "many"},
        r"option max_per_host: \"many\" is not a number; allowed is .*",
    ),
    "a bad address": (
        {"bind_address": "localhost"},
        r"option bind_address: .* is not an address; allowed is .*",
    ),
    "a bad choice": ({"on_failure": "shut"}, r"option on_failure: .* allowed is one of open closed"),
    "no value": ({"proxy_name": ""}, r"option proxy_name: .*"),
    "a mode of another system": (
        {"mode": "pf"},
        r"option mode: this system does not have the mode pf; it has .*",
    ),
}


@BOTH
@pytest.mark.parametrize("what", CONFIGURATION)
def test_a_configuration_error(gateway: Gateway, what: str, arguments: list[str]) -> None:
    options, words = CONFIGURATION[what]
    gateway.write(**options)
    code, said = refused(gateway, arguments, [])
    assert code == 2
    assert len(said) == 1
    line = list(gateway.options).index(next(iter(options))) + 1
    assert re.fullmatch(rf"smtp-gated: HOME/conf:{line}: {words}", said[0])


@BOTH
def test_a_missing_mode_and_its_missing_server(gateway: Gateway, arguments: list[str]) -> None:
    del gateway.options["fixed_server"]
    gateway.write()
    code, said = refused(gateway, arguments, [])
    assert (code, len(said)) == (2, 1)
    assert said[0].endswith(": option fixed_server: not set; mode fixed needs the address of the mail server")
    del gateway.options["mode"]
    gateway.write()
    code, said = refused(gateway, arguments, [])
    assert (code, len(said)) == (2, 1)
    assert said[0].startswith("smtp-gated: HOME/conf: option mode: not set; set mode to one of fixed ")


def test_all_errors_are_told_at_once(gateway: Gateway) -> None:
    gateway.write(port="0", workers="-3", modee="fixed", timeout_idle="soon")
    code, said = refused(gateway, ["-f"], [])
    assert code == 2
    assert [re.search(r"port|workers|modee|timeout_idle", line)[0] for line in said] == [  # type: ignore[index]
        *("port", "workers", "modee", "timeout_idle"),
    ]


@BOTH
def test_a_scanner_that_is_not_there(gateway: Gateway, arguments: list[str]) -> None:
    gateway.write(antivirus_type="clamd", antivirus_path=f"{gateway.home}/none")
    code, said = refused(gateway, arguments, [])
    assert (code, len(said)) == (1, 1)
    assert re.fullmatch(
        r"smtp-gated: no scanner at HOME/none \(.+\): start it, or correct antivirus_path", said[0]
    )


def test_a_scanner_that_is_not_there_is_no_hindrance_with_ignore_errors(gateway: Gateway) -> None:
    gateway.write(antivirus_type="clamd", antivirus_path=f"{gateway.home}/none", ignore_errors="yes")
    done = gateway.run()
    assert done.returncode == 0
    assert done.stderr.startswith(f"smtp-gated: warning: no scanner at {gateway.home}/none (")
    assert done.stderr.count("\n") == 1
    with Talk(gateway.connect()) as client:
        assert client.greet().begin().finish().startswith("250")


@pytest.mark.parametrize("permissions", [None, 0o600, 0o755])
def test_an_action_script_that_cannot_run_is_told_at_the_start(
    gateway: Gateway, permissions: int | None
) -> None:
    script = gateway.home / "script"
    if permissions:
        script.write_text("#!/bin/sh\n")
        script.chmod(permissions)
    gateway.write(action_script=str(script))
    done = gateway.run()
    assert done.returncode == 0
    assert done.stderr.count("\n") == (permissions != 0o755)
    if done.stderr:
        assert done.stderr.startswith(f"smtp-gated: warning: action_script {script}: no program that user ")


@BOTH
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"set_user": "nobdy"}, r"set_user nobdy: there is no such user; create it or name another"),
        ({"set_group": "nogrp"}, r"set_group nogrp: there is no such group; create it or name another"),
        (
            {"bind_address": "192.0.2.1"},
            r"bind_address 192\.0\.2\.1, port \d+: .+; no interface .*; change bind_address",
        ),
    ],
    ids=["user", "group", "address"],
)
def test_something_that_the_system_does_not_have(
    gateway: Gateway, options: dict[str, str], words: str, arguments: list[str]
) -> None:
    gateway.write(**options)
    code, said = refused(gateway, arguments, [])
    assert (code, len(said)) == (1, 1)
    assert re.fullmatch(f"smtp-gated: {words}", said[0])


@BOTH
def test_an_address_in_use(gateway: Gateway, arguments: list[str]) -> None:
    with socket.create_server(("127.0.0.1", int(gateway.options["port"]))):
        code, said = refused(gateway, arguments, [])
    assert (code, len(said)) == (1, 1)
    assert said[0].endswith("Address already in use; another program listens there; stop it or change port")


@BOTH
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"port": "26"}, r"bind_address .*, port 26: .*; ports below 1024 need root .*; .* or change port"),
        ({"mode": "tproxy"}, r"mode tproxy: needs CAP_NET_RAW; start as root, or choose another mode"),
        ({"set_user": "mail"}, r"set_user mail, .*: only root can .*; start as root, or leave both empty"),
    ],
    ids=["port", "tproxy", "user"],
)
@pytest.mark.option("set_user")
def test_what_only_root_may(
    gateway: Gateway, options: dict[str, str], words: str, arguments: list[str]
) -> None:
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 26 and "port" in options:
        pytest.skip("the kernel gives that port to everybody: net.ipv4.ip_unprivileged_port_start")
    gateway.options.pop("set_user", None)
    gateway.write(**options)
    code, said = refused(gateway, arguments, UNPRIVILEGED if os.geteuid() == 0 else [])
    errors = [line for line in said if "the workers run as root" not in line]
    assert (code, len(errors)) == (1, 1)
    assert re.fullmatch(f"smtp-gated: {words}", errors[0])


def test_what_only_reads_the_file_leaves_a_running_gateway_alone(gateway: Gateway) -> None:
    assert gateway.run().returncode == 0
    with Talk(gateway.connect()) as client:
        client.greet()
        for letter in ("-t", "-T", "-V", "-v"):
            assert gateway.run(letter).returncode == 0
        assert gateway.run("-C", "port").stdout == f"{gateway.options['port']}\n"
        assert gateway.run("-s").stdout.startswith("Version: ")
        assert client.begin().finish().startswith("250")
    assert gateway.run("-K").returncode == 0
    wait_until(lambda: gateway.pid() is None)


class Correspondent(threading.Thread):
    """A client that sends one mail after the other, each in a session of its own, until it is stopped."""

    def __init__(self, gateway: Gateway, source: str) -> None:
        super().__init__(daemon=True)
        self._gateway, self._source = gateway, source
        self.answers: list[str] = []
        self.stopped = False
        self.start()

    def run(self) -> None:
        while not self.stopped:
            try:
                with Talk(self._gateway.connect(self._source)) as client:
                    self.answers.append(client.greet().begin().finish())
                    client.ask("QUIT")
            except (OSError, EOFError, AssertionError) as error:
                self.answers.append(f"lost: {error!r}")


def test_reloads_under_load_lose_no_mail_and_sessions_keep_what_they_began_with(
    gateway: Gateway, server: ScriptedServer
) -> None:
    gateway.write(proxy_name="gw0.example.test", log_level="notice")
    gateway.start()
    load = [Correspondent(gateway, f"127.0.1.{number}") for number in range(1, 7)]
    old = Talk(gateway.connect()).greet()
    for number in range(1, 9):
        gateway.write(proxy_name=f"gw{number}.example.test", nat_header=f"X-Gate-{number}")
        assert gateway.run("-r").returncode == 0
        log = gateway.home / "log"
        wait_until(lambda: log.read_text().count("RELOAD:DONE") == number)  # noqa: B023
    with Talk(gateway.connect()) as new:
        # Each worker takes the new configuration when it gets to it; this client's has by the next session.
        wait_until(lambda: "X-Gate-8: from" in header_of_a_mail(gateway, server))
        assert new.greet().begin().finish().startswith("250")
    assert old.begin().finish("Subject: old session\r\n\r\nbody\r\n").startswith("250")
    old.close()
    for client in load:
        client.stopped = True
        client.join()
    answers = [answer for client in load for answer in client.answers]
    assert len(answers) > 100
    assert set(answers) == {"250 2.0.0 taken"}
    (late,) = (message for message in server.messages if "old session" in message)
    assert late.startswith("X-NAT-Received: ")
    assert "by gw0.example.test" in late
    names = {message.partition(":")[0] for message in server.messages}
    assert names <= {"X-NAT-Received", *(f"X-Gate-{number}" for number in range(1, 9))}


def header_of_a_mail(gateway: Gateway, server: ScriptedServer) -> str:
    """Send a mail in a session of its own; give the header that the gateway put in front."""
    with Talk(gateway.connect()) as client:
        assert client.greet().begin().finish("Subject: probe\r\n\r\n").startswith("250")
    return next(message for message in reversed(server.messages) if "probe" in message).partition("\n")[0]
