"""8: quotas through the gateway, with Postfix behind it; records that outlive workers and restarts."""

import os
import pwd
import re
import shutil
import signal
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path

import pytest

from appliance.bpf.steering import worker_of
from appliance.config import Config
from appliance.proxy.quota import Limits, Use
from appliance.proxy.records import FILE, Records
from lab.gateway import PROGRAM, USER, Gateway, Options
from lab.host import Host
from lab.network import CLIENT4, Network
from lab.process import wait_until
from lab.servers import Postfix
from tests.lab.conftest import GatewayFactory
from tests.lab.raw import RawClient

pytestmark = pytest.mark.lab

OTHERS = [f"10.77.1.{number}" for number in range(20, 40)]


@pytest.fixture
def home(network: Network) -> Iterator[Path]:
    """A directory for records that gateways of one test share."""
    path = network.router.run_directory / "ratelimit"
    path.mkdir()
    os.chown(path, pwd.getpwnam(USER).pw_uid, 0)
    yield path
    shutil.rmtree(path)


class Limited:
    """Starts gateways with a period of an hour and the records in `home`, and clients to go through them."""

    def __init__(self, network: Network, postfix: Postfix, gateway: GatewayFactory, home: Path) -> None:
        self.host: Host = network.client
        self.server = postfix.ipv4
        self.home = home
        self._gateway = gateway

    def start(self, **options: str | int) -> Gateway:
        here: Options = {"ratelimit_path": str(self.home), "ratelimit_period": 3600, "lock_on": "never"}
        return self._gateway({**here, **options})

    def client(self, source: str = CLIENT4) -> RawClient:
        return RawClient(self.host, self.server, source=source)

    def greeting(self, source: str = CLIENT4) -> bytes:
        with self.client(source) as client:
            return client.reply()

    def begun(self, source: str = CLIENT4) -> RawClient:
        client = self.client(source)
        client.begin()
        return client

    def printed(self, gateway: Gateway, client: str = CLIENT4) -> dict[str, str]:
        """What smtp-gated -L prints."""
        out = gateway.host.run([PROGRAM, "-L", client, gateway.file]).stdout
        return dict(re.findall(r"^(\S+): (.*)$", out, re.MULTILINE))

    def wait_written(self, column: str, value: int, client: str = CLIENT4) -> None:
        """Wait until the database has a number."""
        wait_until(lambda: self.stored(column, client) == value, 3, f"{column} {value}")

    def stored(self, column: str, client: str = CLIENT4) -> int | None:
        with closing(sqlite3.connect(f"file:{self.home / FILE}?mode=ro", uri=True, timeout=5)) as database:
            row = database.execute(f"SELECT {column} FROM records WHERE client = ?", (client,)).fetchone()
        return row[0] if row else None


@pytest.fixture(scope="module", autouse=True)
def others(network: Network) -> None:
    for source in OTHERS:
        network.client.add_address(f"{source}/24")


@pytest.fixture
def limited(network: Network, postfix: Postfix, gateway: GatewayFactory, home: Path) -> Limited:
    return Limited(network, postfix, gateway, home)


@pytest.mark.option("ratelimit_connections", "ratelimit_period", "ratelimit_path", "msg_rate_reject")
def test_connections(limited: Limited) -> None:
    gateway = limited.start(ratelimit_connections=3, msg_rate_reject="too many today")
    assert [limited.greeting()[:3] for _ in range(3)] == [b"220"] * 3
    for _ in range(2):
        assert limited.greeting() == b"554 gw.example.test too many today\r\n"
    assert limited.greeting(OTHERS[0]).startswith(b"220")
    assert "Rejects:       0/0/0/0/2/0/0" in gateway.status()
    limited.wait_written("connections_tries", 5)
    shown = limited.printed(gateway)
    assert shown["client"] == CLIENT4
    assert [shown[f"connections.{what}"] for what in ("quota", "used", "tries")] == ["3", "3", "5"]
    assert limited.printed(gateway, f"/var/spool/old/{CLIENT4}") == shown
    assert gateway.wait_log(r"RATELIMIT:REFUSED src=10\.77\.1\.5:\d+, ident=, limit=connections, quota=3")


@pytest.mark.option("ratelimit_period")
def test_a_new_period_begins_anew(limited: Limited) -> None:
    limited.start(ratelimit_connections=1, ratelimit_period=2)
    assert limited.greeting().startswith(b"220")
    assert limited.greeting().startswith(b"554")
    time.sleep(2)
    assert limited.greeting().startswith(b"220")
    assert limited.greeting().startswith(b"554")


@pytest.mark.option("ratelimit_sessions", "msg_ratelimit_messages")
def test_messages(limited: Limited, postfix: Postfix) -> None:
    gateway = limited.start(ratelimit_sessions=2, msg_ratelimit_messages="enough mail")
    with limited.begun() as client:
        for number in range(2):
            client.envelope()
            assert client.data(b"Subject: number %d\r\n" % number).startswith(b"250")
        client.envelope()
        assert client.ask(b"DATA") == b"552 5.3.2 enough mail\r\n"
        assert client.bdat(b"Subject: three\r\n\r\n") == [b"552 5.3.2 enough mail\r\n"]
        assert client.ask(b"RSET").startswith(b"250")
        assert client.ask(b"NOOP").startswith(b"250")
    postfix.mailbox("alice").wait("number 1")
    assert "Rejects:       0/0/0/0/0/2/0" in gateway.status()


@pytest.mark.option("ratelimit_recipients", "msg_ratelimit_rcptto")
def test_recipients(limited: Limited) -> None:
    limited.start(ratelimit_recipients=2, msg_ratelimit_rcptto="enough recipients")
    with limited.begun() as client:
        client.send(b"MAIL FROM:<a@client.test>\r\n" + b"RCPT TO:<alice@example.test>\r\n" * 3 + b"DATA\r\n")
        answers = client.replies(5)
        assert [answer[:3] for answer in answers] == [b"250", b"250", b"250", b"552", b"354"]
        assert answers[3] == b"552 5.3.2 enough recipients\r\n"
        client.send(b"Subject: to two\r\n\r\n.\r\n")
        assert client.reply().startswith(b"250")


@pytest.mark.option("ratelimit_bytes")
@pytest.mark.parametrize("chunked", [False, True], ids=["DATA", "BDAT"])
def test_bytes(limited: Limited, chunked: bool) -> None:
    limited.start(ratelimit_bytes=1000)
    content = b"Subject: long\r\n\r\n" + b"x" * 700 + b"\r\n"
    with limited.begun() as client:
        for _ in range(2):
            client.envelope()
            answer = client.bdat(content)[-1] if chunked else client.data(content)
            assert answer.startswith(b"250")
        client.envelope()
        assert client.ask(b"DATA").startswith(b"552 5.3.2 ")
    limited.wait_written("bytes", 2 * len(content))


REJECTED = {
    "mailfrom": (b"MAIL FROM:<not an address>", b"501", Use.MAILFROM_REJECTS),
    "rcptto": (b"RCPT TO:<nobody@elsewhere.test>", b"554", Use.RCPTTO_REJECTS),
    "auth": (b"AUTH PLAIN AGFsaWNlAHdyb25n", b"535", Use.AUTH_REJECTS),
}


@pytest.mark.option(
    *(f"ratelimit_{name}_rejects" for name in REJECTED),
    *(f"msg_ratelimit_{name}_rejects" for name in REJECTED),
)
@pytest.mark.parametrize("name", REJECTED)
def test_what_the_server_rejects_is_an_event(limited: Limited, name: str) -> None:
    command, code, use = REJECTED[name]
    options: dict[str, str | int] = {
        f"ratelimit_{name}_rejects": 2,
        f"msg_ratelimit_{name}_rejects": "learn it",
        "lock_on": "ratelimit",
    }
    gateway = limited.start(**options)
    with limited.begun() as client:
        if name == "rcptto":
            assert client.ask(b"MAIL FROM:<a@client.test>").startswith(b"250")
        for _ in range(2):
            assert client.ask(command).startswith(code)
        assert client.ask(command) == b"550 5.7.1 gw.example.test learn it\r\n"
        assert client.ask(b"MAIL FROM:<a@client.test>") == b"451 4.3.2 gw.example.test learn it\r\n"
    cause = (gateway.locks / CLIENT4).read_text()
    assert cause == f"RATELIMIT_{use.name} more than 2 in 3600 seconds\n"
    assert limited.greeting().startswith(b"554")


@pytest.mark.option("ratelimit_helos", "msg_ratelimit_helo")
def test_names_in_helo(limited: Limited) -> None:
    limited.start(
        ratelimit_helos=2, msg_ratelimit_helo="who are you", regex_reject_helo="spam", email_length=1
    )
    for name in (b"spam.test", b"spam2.test"):  # a name that a pattern refuses is not counted
        with limited.client() as client:
            assert client.reply().startswith(b"220")
            assert b"who are you" not in client.ask(b"HELO " + name)
    with limited.client() as client:
        assert client.reply().startswith(b"220")
        for name in (b"one.test", b"ONE.test", b"two.test", b"one.test"):
            assert client.ask(b"EHLO " + name).startswith(b"250")
        assert client.ask(b"HELO three.test") == b"550 5.7.1 gw.example.test who are you\r\n"
        assert client.ask(b"MAIL FROM:<a@b.test>").startswith(b"451 4.3.2 ")
    limited.begun().socket.close()


@pytest.mark.option("ratelimit_mailfroms", "msg_ratelimit_mailfrom")
def test_sender_addresses(limited: Limited) -> None:
    limited.start(ratelimit_mailfroms=2, msg_ratelimit_mailfrom="one mask too many")
    with limited.begun() as client:
        for name in (b"a@client.test", b"", b"a@client.test"):
            assert client.ask(b"MAIL FROM:<" + name + b">").startswith(b"250")
            assert client.ask(b"RSET").startswith(b"250")
        assert client.ask(b"MAIL FROM:<b@client.test>") == b"550 5.7.1 gw.example.test one mask too many\r\n"


@pytest.mark.option("ratelimit_destinations", "msg_ratelimit_dst")
def test_destinations_in_a_period(limited: Limited) -> None:
    gateway = limited.start(ratelimit_destinations=2, msg_ratelimit_dst="stay at home", timeout_connect=1)
    assert limited.greeting().startswith(b"220")
    heard = []
    for server in ("198.51.100.77", "198.51.100.78"):  # nobody is there, which counts as well
        with RawClient(limited.host, server) as client:
            heard.append(client.reply())
    assert heard == [b"220 gw.example.test ESMTP\r\n", b"554 gw.example.test stay at home\r\n"]
    assert limited.greeting().startswith(b"220")
    assert "Rejects:       0/0/0/0/0/1/0" in gateway.status()


@pytest.mark.option("ratelimit_dst_expiration", "msg_ratelimit_dst")
def test_destinations_remembered(limited: Limited) -> None:
    limited.start(ratelimit_dst_expiration=3600, msg_ratelimit_dst="stay at home", timeout_connect=1)

    def heard(number: int) -> bytes:
        with RawClient(limited.host, f"198.51.100.{100 + number}") as client:
            return client.reply()

    with ThreadPoolExecutor(64) as pool:
        assert {answer[:3] for answer in pool.map(heard, range(64))} == {b"220"}
    assert heard(64) == b"554 gw.example.test stay at home\r\n"
    assert heard(63).startswith(b"220")


@pytest.mark.option("ratelimit_generation")
def test_a_reload_with_a_higher_generation_brings_its_quotas(limited: Limited) -> None:
    gateway = limited.start(ratelimit_connections=2, ratelimit_generation=20260101000000)
    assert [limited.greeting()[:3] for _ in range(3)] == [b"220", b"220", b"554"]
    gateway.reload({"ratelimit_connections": 3})
    assert limited.greeting().startswith(b"554")
    gateway.reload({"ratelimit_generation": 20260101000001})
    assert [limited.greeting()[:3] for _ in range(2)] == [b"220", b"554"]


@pytest.mark.option("ratelimit_path")
def test_a_restart_brings_the_counts_back(limited: Limited) -> None:
    gateway = limited.start(ratelimit_connections=2)
    assert limited.greeting().startswith(b"220")
    assert gateway.terminate() == 0
    assert limited.stored("connections") == 1  # written at the end, however soon that came
    gateway.start()
    assert [limited.greeting()[:3] for _ in range(2)] == [b"220", b"554"]


@pytest.mark.option("ratelimit_path")
def test_a_killed_worker_forgets_less_than_a_second(limited: Limited) -> None:
    gateway = limited.start(ratelimit_connections=2)
    mine = worker_of(ip_address(CLIENT4), 2)
    assert [limited.greeting()[:3] for _ in range(2)] == [b"220"] * 2
    time.sleep(1)
    os.kill(gateway.workers()[mine], signal.SIGKILL)
    assert limited.greeting().startswith(b"554")


def test_two_workers_write_one_database(limited: Limited) -> None:
    gateway = limited.start(ratelimit_connections=5)
    assert {worker_of(ip_address(source), 2) for source in OTHERS} == {0, 1}
    with ThreadPoolExecutor(len(OTHERS)) as pool:
        for _ in range(6):
            list(pool.map(limited.greeting, OTHERS))
    for source in OTHERS:
        limited.wait_written("connections", 5, source)
        limited.wait_written("connections_tries", 6, source)
    assert "RATELIMIT:FAILED" not in gateway.log


def test_quotas_set_from_outside(limited: Limited) -> None:
    limited.start(ratelimit_connections=1)
    limits = Limits.of(Config({"ratelimit_connections": 1, "ratelimit_period": 3600}))
    assert [limited.greeting()[:3] for _ in range(2)] == [b"220", b"554"]
    with Records(limited.home) as records:
        records.set_quotas(CLIENT4, {Use.CONNECTIONS: 3}, limits)
        time.sleep(1)
        assert [limited.greeting()[:3] for _ in range(3)] == [b"220", b"220", b"554"]
        records.clear(CLIENT4)
        time.sleep(1)
        assert [limited.greeting()[:3] for _ in range(4)] == [b"220"] * 3 + [b"554"]
        records.drop_quotas(CLIENT4)
        time.sleep(1)
        assert limited.greeting().startswith(b"554")


@pytest.mark.option("msg_ratelimit_error", "ignore_errors")
@pytest.mark.parametrize(("ignore", "heard"), [("no", b"554 gw.example.test no books\r\n"), ("yes", b"220")])
def test_a_database_that_is_none(limited: Limited, ignore: str, heard: bytes) -> None:
    (limited.home / FILE).write_bytes(b"this is no database\n" * 500)
    gateway = limited.start(ratelimit_connections=2, msg_ratelimit_error="no books", ignore_errors=ignore)
    assert limited.greeting().startswith(heard)
    assert limited.greeting().startswith(heard)
    assert limited.greeting().startswith(b"554")  # quotas hold all the same
    assert len(re.findall("RATELIMIT:FAILED reading", gateway.log)) == 1
    assert "move " in gateway.log
    (limited.home / FILE).unlink()
    assert limited.greeting().startswith(b"554" if ignore == "yes" else b"220")
    assert gateway.wait_log("RATELIMIT:RESTORED reading")


def test_a_full_disk_stops_no_mail_of_known_clients(limited: Limited, network: Network) -> None:
    network.router.run(["mount", "-t", "tmpfs", "-o", "size=256k,mode=0777", "none", str(limited.home)])
    try:
        gateway = limited.start(ratelimit_connections=4)
        assert limited.greeting().startswith(b"220")
        network.router.run(["dd", "if=/dev/zero", f"of={limited.home}/filler", "bs=1k"], check=False)
        assert limited.greeting().startswith(b"220")
        gateway.wait_log("RATELIMIT:FAILED writing .*make room")
        assert [limited.greeting()[:3] for _ in range(3)] == [b"220", b"220", b"554"]
        network.router.run(["rm", f"{limited.home}/filler"])
        gateway.wait_log("RATELIMIT:RESTORED writing")
        assert limited.printed(gateway)["connections.tries"] == "5"
        gateway.close()
    finally:
        network.router.run(["umount", "-l", str(limited.home)])
