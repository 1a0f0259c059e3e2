"""One lab for the whole test session, its servers started when a test first asks for them."""

from collections.abc import Callable, Iterator

import pytest

from lab import router
from lab.gateway import Gateway, Options
from lab.kernel import Kernel
from lab.network import Network
from lab.servers import Clamd, Exim, OpenSMTPD, Postfix, Spamd
from tests.lab.scripted import ScriptedServer, server_on

GatewayFactory = Callable[[Options | None], Gateway]


@pytest.fixture(scope="session")
def network() -> Iterator[Network]:
    with Network("test") as network:
        yield network


@pytest.fixture(scope="session")
def postfix_server(network: Network) -> Postfix:
    return Postfix(network.mail).start()


@pytest.fixture
def postfix(postfix_server: Postfix) -> Postfix:
    """Postfix with empty mailboxes."""
    postfix_server.clear()
    return postfix_server


@pytest.fixture(scope="session")
def exim_server(network: Network) -> Exim:
    return Exim(network.mail).start()


@pytest.fixture
def exim(exim_server: Exim) -> Exim:
    """Exim with empty mailboxes."""
    exim_server.clear()
    return exim_server


@pytest.fixture(scope="session")
def opensmtpd_server(network: Network) -> OpenSMTPD:
    return OpenSMTPD(network.mail).start()


@pytest.fixture
def opensmtpd(opensmtpd_server: OpenSMTPD) -> OpenSMTPD:
    """OpenSMTPD with empty mailboxes."""
    opensmtpd_server.clear()
    return opensmtpd_server


@pytest.fixture(scope="session")
def clamd(network: Network) -> Clamd:
    return Clamd(network.router).start()


@pytest.fixture(scope="session")
def spamd(network: Network) -> Spamd:
    return Spamd(network.router).start()


@pytest.fixture
def gateway(network: Network) -> Iterator[GatewayFactory]:
    """Start gateways on the router, with their rules in the kernel: gateway({"mode": "netfilter"})."""
    started: list[Gateway] = []

    def start(options: Options | None = None) -> Gateway:
        new = Gateway(network.router, options)
        started.append(new)
        new.start()
        if new.options["mode"] in ("tproxy", "netfilter", "tproxy,netfilter"):
            router.install(network.router, new.file.read_text())
        return new

    yield start
    router.release(network.router)
    for each in started:
        each.close()


@pytest.fixture
def kernel(network: Network) -> Iterator[Kernel]:
    """The appliance's own rules on the router, which are gone after the test."""
    made = Kernel(network.router)
    yield made
    made.remove()
    made.close()


@pytest.fixture
def server(network: Network) -> Iterator[ScriptedServer]:
    """A mail server that does what the test wants; some files have one of their own."""
    server = server_on(network.mail, 48)
    yield server
    server.close()
