"""What is over is freed at once: however a session went, nothing of it is left for the cyclic collector."""

import asyncio
import contextlib
import gc
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvloop

from appliance.log import Log
from tests.lab.scripted import ScriptedServer, Talk
from tests.proxy.inside import Clamd, Spamd, serve
from tests.proxy.test_events import CLEAN, SCAN, SPAM, VIRUS
from tests.proxy.within import served, service

Way = Callable[[Talk, ScriptedServer], object]


def mails(client: Talk, _server: ScriptedServer) -> None:
    """Two mails, and a farewell."""
    client.greet()
    for _ in range(2):
        assert client.begin().finish(CLEAN).startswith("250")
    assert client.ask("QUIT").startswith("221")


def virus(client: Talk, _server: ScriptedServer) -> None:
    """Caught, and taken over until QUIT."""
    assert client.greet().begin().finish(VIRUS).startswith("550")
    assert client.ask("RSET").startswith("250")
    assert client.ask("QUIT").startswith("221")


def spam(client: Talk, _server: ScriptedServer) -> None:
    """Caught, and gone."""
    assert client.greet().begin().finish(SPAM).startswith("550")


def reset_in_a_message(client: Talk, _server: ScriptedServer) -> None:
    """The client dies."""
    client.greet().begin().send(b"Subject: x\r\n")
    client.reset()


def reset_in_a_scan(client: Talk, _server: ScriptedServer) -> None:
    """It dies while clamd thinks."""
    client.greet().begin().send(b"X-Virus: hang\r\n\r\n.\r\n")
    client.reset()


def server_gone(client: Talk, server: ScriptedServer) -> None:
    """The server dies at RCPT."""
    server.hooks["RCPT"] = Talk.reset
    client.greet().say("MAIL FROM:<a@client.test>", "RCPT TO:<b@example.test>")
    client.rest()


def no_server(client: Talk, _server: ScriptedServer) -> None:
    """There is none."""
    assert client.greet().ask("QUIT").startswith("221")


def direct(client: Talk, server: ScriptedServer) -> None:
    """Opaque from STARTTLS on, each side closing in turn."""

    def start(talk: Talk) -> bool:
        talk.say("220 go on")
        assert talk.socket.recv(100) == b"\x16secret"
        talk.send(b"\x17answer")
        raise EOFError

    server.hooks["STAR"] = start
    assert client.greet().ask("STARTTLS").startswith("220")
    client.send(b"\x16secret")
    assert client.rest() == b"\x17answer"


def locked(client: Talk, _server: ScriptedServer) -> None:
    """Turned away."""
    assert client.reply().startswith("554")


@contextlib.contextmanager
def collected() -> Iterator[list[object]]:
    """Give what only the collector finds, of what was made meanwhile."""
    found: list[object] = []
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield found
        gc.collect()
        found += gc.garbage
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@pytest.mark.parametrize(
    "way", [mails, virus, spam, reset_in_a_message, reset_in_a_scan, server_gone, no_server, direct, locked]
)
def test_nothing_of_a_session_waits_for_the_collector(tmp_path: Path, way: Way) -> None:
    server = ScriptedServer(socket.create_server(("127.0.0.1", 0)))
    scanners = [serve(tmp_path / "clamd", Clamd), serve(tmp_path / "spamd", Spamd)]
    options = {
        **SCAN,
        "mode": "fixed",
        "fixed_server": server.address[0],
        "fixed_server_port": server.address[1],
        "antivirus_path": tmp_path / "clamd",
        "antispam_path": tmp_path / "spamd",
        "spool_path": tmp_path,
        "lock_path": tmp_path,
        "max_load": 0,
        "spam_max_load": 0,
    }
    if way is no_server:
        server.close()
    if way is locked:
        (tmp_path / "127.0.0.1").touch()
    text = "".join(f"{name} {value}\n" for name, value in options.items())
    log = Log("crit", "daemon", stderr=False, path=str(tmp_path / "log"))
    by = service(text, log)

    async def serve_one() -> list[str]:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: pytest.fail(str(context)))
        over = asyncio.Event()
        with served(by, over.set) as address:

            def go() -> None:
                with Talk(socket.create_connection(address)) as client:
                    way(client, server)

            with collected() as garbage:
                await asyncio.gather(asyncio.to_thread(go), asyncio.wait_for(over.wait(), 10))
                await asyncio.sleep(0)
        return [type(each).__qualname__ for each in garbage if type(each).__module__.startswith("appliance")]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(serve_one()) == []
    if way is not no_server:
        server.close()
    for each in scanners:
        each.shutdown()
        each.server_close()
