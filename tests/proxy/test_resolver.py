"""The resolver: what it answers and keeps, who shares a question, what a dead server costs."""

import asyncio
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.config import SocketAddress
from appliance.proxy import resolver
from appliance.proxy.resolver import Resolver, ResolverError
from tests.proxy.checks.name_server import FAILURE, SILENCE, NameServer, name_server


@pytest.fixture
def names() -> Iterator[NameServer]:
    with name_server() as server:
        yield server


def ask(names: NameServer, *questions: tuple[str, str], timeout: float = 2) -> list[object]:
    """Ask one after the other, one resolver for all."""

    async def run() -> list[object]:
        asker = Resolver([names.address])
        return [await asker.ask(name, kind, timeout) for name, kind in questions]

    return asyncio.run(run())


def test_every_kind_of_record(names: NameServer) -> None:
    names.zone["host.test"] = [
        *(("A", "192.0.2.1"), ("AAAA", "2001:db8::1"), ("PTR", "other.test."), ("TXT", '"one" " two"')),
        *(("MX", "20 second.test."), ("MX", "10 first.test."), ("TXT", '"\\255"')),
    ]
    names.zone["alias.test"] = [("CNAME", "host.test.")]
    assert ask(names, *(("host.test", kind) for kind in ("A", "AAAA", "PTR", "MX"))) == [
        ("192.0.2.1",),
        ("2001:db8::1",),
        ("other.test",),
        ("first.test", "second.test"),
    ]
    assert set(*ask(names, ("host.test", "TXT"))) == {b"one two", b"\xff"}
    assert ask(names, ("alias.test", "A")) == [("192.0.2.1",)]


def test_large_answers_come_over_tcp(names: NameServer) -> None:
    names.zone["big.test"] = [("TXT", f'"{number}{"y" * 240}"') for number in range(20)]
    assert len(*ask(names, ("big.test", "TXT"))) == 20  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["none.test", "", ".", "a..test", "x" * 64 + ".test", "a." * 130 + "test"])
def test_no_such_name(names: NameServer, name: str) -> None:
    assert ask(names, (name, "A")) == [()]


def test_answers_are_kept_as_long_as_they_say(names: NameServer) -> None:
    names.zone["host.test"] = [("A", "192.0.2.1")]
    ask(names, *[("host.test", "A"), ("HOST.test", "A"), ("none.test", "A"), ("none.test", "A")])
    assert names.asked == {("host.test", "A"): 1, ("none.test", "A"): 1}
    names.asked.clear()
    names.ttl = names.negative_ttl = 0
    ask(names, *[("host.test", "A"), ("host.test", "A"), ("none.test", "A"), ("none.test", "A")])
    assert names.asked == {("host.test", "A"): 2, ("none.test", "A"): 2}


def test_what_has_expired_is_asked_for_again(names: NameServer) -> None:
    names.ttl = 1

    async def run() -> list[object]:
        asker = Resolver([names.address])
        names.zone["host.test"] = [("A", "192.0.2.1")]
        first = await asker.ask("host.test", "A", 2)
        names.zone["host.test"] = [("A", "192.0.2.2")]
        kept = await asker.ask("host.test", "A", 2)
        await asyncio.sleep(1.05)
        return [first, kept, await asker.ask("host.test", "A", 2)]

    assert asyncio.run(run()) == [("192.0.2.1",), ("192.0.2.1",), ("192.0.2.2",)]


def test_the_memory_is_bounded(names: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver, "KEPT", 2)
    names.zone["big.test"] = [("TXT", '"' + "x" * 250 + str(number) + '"') for number in range(9)]
    ask(names, *[(name, "TXT") for name in ("big.test", "big.test", "a", "b", "a", "c", "a", "b")])
    # Twice asked, twice over UDP and then over TCP; of the small ones the one least recently used is gone.
    assert names.asked.pop(("big.test", "TXT")) == 4
    assert names.asked == {("a", "TXT"): 1, ("b", "TXT"): 2, ("c", "TXT"): 1}


def test_askers_share_a_question_and_one_who_leaves_takes_nothing_along(names: NameServer) -> None:
    names.zone["host.test"] = [("A", "192.0.2.1")]

    async def run() -> list[object]:
        asker = Resolver([names.address])
        tasks = [asyncio.create_task(asker.ask("host.test", "A", 2)) for _ in range(20)]
        await asyncio.sleep(0)
        tasks.pop(0).cancel()
        return await asyncio.gather(*tasks)

    assert asyncio.run(run()) == [("192.0.2.1",)] * 19
    assert names.asked == {("host.test", "A"): 1}


def test_a_server_that_is_silent_costs_the_timeout_and_only_those_who_ask_it(names: NameServer) -> None:
    names.zone |= {"silent.test": SILENCE, "host.test": [("A", "192.0.2.1")]}

    async def run() -> float:
        asker = Resolver([names.address])
        begin = time.monotonic()
        silent = asyncio.create_task(asker.ask("silent.test", "A", 0.5))
        await asyncio.sleep(0.01)
        assert await asker.ask("host.test", "A", 0.5) == ("192.0.2.1",)
        assert not silent.done()
        with pytest.raises(TimeoutError):
            await silent
        return time.monotonic() - begin

    assert 0.4 < asyncio.run(run()) < 2


def test_failures_are_told_and_not_kept(names: NameServer) -> None:
    names.zone["broken.test"] = FAILURE
    with pytest.raises(ResolverError, match="SERVFAIL"):
        ask(names, ("broken.test", "A"))

    async def run() -> object:
        asker = Resolver([names.address])
        with pytest.raises(ResolverError):
            await asker.ask("broken.test", "A", 2)
        names.zone["broken.test"] = [("A", "192.0.2.1")]
        return await asker.ask("broken.test", "A", 2)

    assert asyncio.run(run()) == ("192.0.2.1",)


def test_the_next_server_is_asked_when_one_fails(names: NameServer) -> None:
    names.zone["host.test"] = [("A", "192.0.2.1")]

    async def run(broken: NameServer) -> object:
        return await Resolver([broken.address, names.address]).ask("host.test", "A", 2)

    with name_server() as broken:
        broken.zone["host.test"] = FAILURE
        assert asyncio.run(run(broken)) == ("192.0.2.1",)
        assert broken.asked


def test_a_server_that_does_not_understand_edns_is_asked_without(names: NameServer) -> None:
    names.edns = False
    names.zone["host.test"] = [("A", "192.0.2.1")]
    assert ask(names, ("host.test", "A"), ("none.test", "A")) == [("192.0.2.1",), ()]
    assert names.asked["host.test", "A"] == 2


@pytest.mark.parametrize("servers", [2, 3])
def test_the_next_server_is_asked_when_one_is_silent_however_short_the_time(
    names: NameServer, servers: int
) -> None:
    names.zone["host.test"] = [("A", "192.0.2.1")]
    with name_server() as silent:
        silent.zone["host.test"] = SILENCE
        asker = Resolver([silent.address] * (servers - 1) + [names.address])
        assert asyncio.run(asker.ask("host.test", "A", 1)) == ("192.0.2.1",)
        assert silent.asked["host.test", "A"] == servers - 1


def test_too_many_questions_fail_at_once(names: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver, "WAITING", 3)
    names.zone |= {f"{number}.test": SILENCE for number in range(4)}

    async def run() -> list[object]:
        asker = Resolver([names.address])
        tasks = [asyncio.create_task(asker.ask(f"{number}.test", "A", 0.3)) for number in range(4)]
        with pytest.raises(ResolverError, match="too many"):
            await tasks[3]
        assert not tasks[0].done()
        return await asyncio.gather(*tasks[:3], return_exceptions=True)

    assert [type(result) for result in asyncio.run(run())] == [TimeoutError] * 3


def test_the_systems_servers_are_asked_and_changes_noticed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A file cannot name a port, and so no server of a test: what is read is looked at."""
    file = tmp_path / "resolv.conf"
    monkeypatch.setattr(resolver, "_RESOLV_CONF", file)
    asker = Resolver()
    found = []
    two = "nameserver 192.0.2.53\nnameserver 192.0.2.54\n"
    for text in (
        None,
        "",
        f"{two}search test\n",
        f"search a..test\nnameserver bad\n{two}",
        "nameserver bad\n",
    ):
        if text is not None:
            file.write_text(text)
        found.append([str(server) for server in asker._current_stub().nameservers])
    both, local = ["192.0.2.53", "192.0.2.54"], ["127.0.0.1"]
    assert found == [local, local, both, both, local]


@pytest.mark.parametrize(("option", "seconds"), [("timeout:3", 3), ("timeout:0", 1), ("rotate", 2)])
def test_the_time_for_a_server_of_the_system(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, option: str, seconds: float
) -> None:
    monkeypatch.setattr(resolver, "_RESOLV_CONF", tmp_path / "resolv.conf")
    (tmp_path / "resolv.conf").write_text(f"options {option}\nnameserver 192.0.2.53\n")
    assert Resolver()._current_stub().timeout == seconds


def test_a_port_where_nobody_listens_is_no_answer() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        address = SocketAddress(None, "127.0.0.1", free.getsockname()[1])
    with pytest.raises((ResolverError, TimeoutError)):
        asyncio.run(Resolver([address]).ask("host.test", "A", 0.3))
