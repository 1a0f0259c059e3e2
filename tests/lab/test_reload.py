"""Reloads: what takes effect at once, what has to wait for a restart and is named, what changes nothing.

The real program on the loopback interface, but for the language of the system, which the lab's router gets.
"""

import json
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator

import pytest

from appliance.config import OPTIONS, load
from lab.network import Network
from lab.process import wait_until
from tests.lab.conftest import GatewayFactory
from tests.lab.scripted import ScriptedServer, Talk
from tests.supervisor.program import PROGRAM, Gateway, gateway_before

pytestmark = pytest.mark.lab

LATE = {
    "bind_address": "127.0.0.9",
    "port": "9",
    "pidfile": "/nonexistent/pid",
    "chroot_path": "/nonexistent",
    "set_user": "daemon",
    "set_group": "daemon",
    "priority": "7",
    "mode": "getsockname",
    "max_connections": "1",
    "log_level": "crit",
    "log_facility": "local3",
    "log_target": "stderr",
    "log_format": "json",
    "workers": "1",
    "control_socket": "/nonexistent/control",
    "metrics_listen": "127.0.0.1:9",
    "limit_core_size": "1000",
    "limit_virt_size": "1000",
    "limit_data_size": "1000",
    "limit_fsize": "1000",
}
"""Another value for each option that may need a restart."""


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    server = ScriptedServer(socket.create_server(("127.0.0.1", 0)))
    yield server
    server.close()


@pytest.fixture
def program(server: ScriptedServer) -> Iterator[Gateway]:
    with gateway_before(server.address[1]) as made:
        yield made


def reload(program: Gateway, **options: str) -> None:
    log = program.home / "log"
    before = log.read_text().count("RELOAD:DONE")
    program.write(**options)
    assert program.run("-r").returncode == 0
    wait_until(lambda: log.read_text().count("RELOAD:DONE") > before, 10, "a reload")


def test_what_needs_a_restart_is_named_and_waits(program: Gateway) -> None:
    late = [name for name, option in OPTIONS.items() if option.restart]
    assert set(late) <= set(LATE)
    program.start()
    pidfile = program.options["pidfile"]
    workers = program.workers()
    program.write(**{name: LATE[name] for name in late}, proxy_name="new.example.test")
    assert load(program.file)  # nothing wrong with any of it
    program.options["pidfile"] = pidfile
    program.signal(signal.SIGHUP)
    program.wait_log("RELOAD:DONE")
    log = (program.home / "log").read_text()
    named = log.partition("a restart is needed before these take effect: ")[2].partition("\n")[0]
    assert named.split() == late
    assert "{" not in log
    assert program.workers() == workers
    program.options["port"] = str(program.port)
    for _ in range(2):
        with Talk(program.connect()) as client:
            client.greet()


def test_a_file_that_works_only_after_a_restart_changes_nothing(program: Gateway) -> None:
    program.start()
    workers = program.workers()
    for name in ("fixed_server", "fixed_server_port"):
        del program.options[name]
    program.write(mode="getsockname", forbid_starttls="yes")
    assert load(program.file)  # nothing wrong with it
    program.signal(signal.SIGHUP)
    program.wait_log("RELOAD:REFUSED a restart is needed, until which the file does not fit these: mode\n")
    program.wait_log("RELOAD:REFUSED option fixed_server: not set; mode fixed needs ")
    with Talk(program.connect()) as client:
        assert client.greet().ask("STARTTLS").startswith("250")
    assert program.workers() == workers


@pytest.mark.option("proxy_name", "max_per_host", "forbid_starttls", "nat_header", "statefile")
def test_new_sessions_have_the_new_options_and_old_ones_theirs(
    program: Gateway, server: ScriptedServer
) -> None:
    program.start()
    old = Talk(program.connect()).greet()
    reload(
        program,
        proxy_name="new.example.test",
        nat_header="X-New",
        msg_unimpl_command="new words",
        forbid_starttls="yes",
        statefile=f"{program.home}/run/other",
        connect_queue="7",
    )
    assert program.run("-S").stdout == f"{program.home}/run/other\n"
    assert old.ask("STARTTLS").startswith("250")  # this server takes anything
    new = Talk(program.connect()).greet()
    assert new.ask("STARTTLS") == "502 5.5.1 new words"
    for talk in (old, new):
        assert talk.begin().finish().startswith("250")
        talk.close()
    first, second = server.messages
    assert first.startswith("X-NAT-Received: from")
    assert second.startswith("X-New: from")
    assert "by new.example.test" in second
    reload(program, max_per_host="1", lock_on="never")
    with Talk(program.connect()) as one, Talk(program.connect()) as two:
        one.greet()
        assert two.reply().startswith("554 new.example.test ")


def test_a_file_with_an_error_changes_nothing(program: Gateway) -> None:
    program.start()
    program.write(proxy_name="new.example.test", max_per_host="many", forbid_starttls="yes")
    program.signal(signal.SIGHUP)
    program.wait_log("RELOAD:REFUSED")
    assert "option max_per_host: " in (program.home / "log").read_text()
    with Talk(program.connect()) as client:
        assert client.greet().ask("STARTTLS").startswith("250")


@pytest.mark.option("log_target", "log_format")
def test_the_log_of_all_processes_is_in_the_wanted_form(program: Gateway) -> None:
    program.write(log_target="stderr", log_format="json", log_mail_from="accepted")
    with (program.home / "log").open("w") as log:
        program.process = subprocess.Popen([PROGRAM, "-f", program.file], stderr=log, text=True)
    program.wait_log('"event": "START"')
    with Talk(program.connect()) as client:
        assert client.greet().begin().finish().startswith("250")
    program.wait_log('"event": "CLOSE"')
    lines = [json.loads(line) for line in (program.home / "log").read_text().splitlines()]
    (close,) = (line for line in lines if line["event"] == "CLOSE")
    assert close["pid"] in program.workers()
    assert close["fields"]["by"] == "client"
    assert close["fields"]["trns"] == 1
    assert len([line for line in lines if line["event"] == "MAIL FROM 250<sender@client.test>"]) == 1


def catalogue(texts: dict[str, str]) -> bytes:
    """Write a catalogue of translations as gettext has them."""
    entries = [(b"", b"Content-Type: text/plain; charset=UTF-8\n")]
    entries += sorted((text.encode(), translated.encode()) for text, translated in texts.items())
    tables = 28 + 16 * len(entries)
    originals, translations, pool = b"", b"", b""
    for table in (0, 1):
        index = b""
        for entry in entries:
            index += struct.pack("<II", len(entry[table]), tables + len(pool))
            pool += entry[table] + b"\0"
        originals, translations = (index, b"") if table == 0 else (originals, index)
    head = struct.pack("<7I", 0x950412DE, 0, len(entries), 28, 28 + 8 * len(entries), 0, 0)
    return head + originals + translations + pool


@pytest.mark.option("locale", "msg_cannot_connect")
def test_the_systems_errors_speak_the_language_of_the_locale(
    network: Network, gateway: GatewayFactory
) -> None:
    root = network.router.root
    shutil.copytree(root / "usr/lib/locale/C.utf8", root / "usr/lib/locale/pl_PL.utf8")
    directory = root / "usr/share/locale/pl/LC_MESSAGES"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "libc.mo").write_bytes(catalogue({"Connection refused": "Połączenie odrzucone"}))
    network.mail.add_address("198.51.100.47/24")
    running = gateway({"msg_cannot_connect": "cannot connect", "locale": "xx_YY"})
    running.wait_log("locale xx_YY: this system does not have it")
    for name, reason in (
        ("xx_YY", "Connection refused"),
        ("pl_PL.UTF-8", "Połączenie odrzucone"),
        ("", "Connection refused"),
    ):
        running.reload({"locale": name})
        with Talk(network.client.connect(("198.51.100.47", 25))) as client:
            assert client.reply().startswith("220 gw.example.test ESMTP")
            answer = client.ask("MAIL FROM:<a@b>").encode("latin-1").decode()
        assert answer == f"451 gw.example.test cannot connect (198.51.100.47:25: {reason})"
    assert running.log.count("this system does not have it") == 2
