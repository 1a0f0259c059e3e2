"""A gateway and mail servers that only say who they are, for tests of who comes to whom.

Used by the tests of the kernel's rules beside this.
"""

import itertools
import re
import select
import socket
import threading
from contextlib import suppress

from lab import router
from lab.host import Host
from lab.network import CLIENT4, CLIENT6, PUBLIC_CLIENT4, PUBLIC_CLIENT6, Network

TPROXY, REDIRECT, BOTH = "tproxy", "netfilter", "tproxy,netfilter"
MODES = (TPROXY, REDIRECT, BOTH)
SERVER4, SERVER6 = "198.51.100.45", "2001:db8:25::45"
PATHS = ((CLIENT4, SERVER4), (CLIENT6, SERVER6), (PUBLIC_CLIENT4, SERVER4), (PUBLIC_CLIENT6, SERVER6))
GATEWAY, SERVER, REFUSED, SILENT = "gateway", "server", "refused", "silent"


def listener(
    host: Host, port: int = 9199, address: str = "::", *, transparent: bool = False
) -> socket.socket:
    """Listen on every address of a host, or on one."""
    made = host.open_socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if transparent:  # IP_TRANSPARENT, IPV6_TRANSPARENT
        made.setsockopt(socket.SOL_IP, 19, 1)
        made.setsockopt(socket.IPPROTO_IPV6, 75, 1)
    made.bind((address, port))
    made.listen(200)
    return made


class Answering:
    """Says one word to whoever connects, and then what it hears."""

    def __init__(self, listening: socket.socket, word: str) -> None:
        self._listening, self._word = listening, word
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        peers: list[socket.socket] = []
        while not self._ended.is_set():
            for ready in select.select([self._listening, *peers], [], [], 0.02)[0]:
                if ready is self._listening:
                    peers.append(ready.accept()[0])
                    peers[-1].sendall(self._word.encode() + b"\n")
                elif not _echoed(ready):
                    peers.remove(ready)
                    ready.close()
        for peer in peers:
            peer.close()

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self._listening.close()


def _echoed(peer: socket.socket) -> bool:
    with suppress(OSError):
        if heard := peer.recv(4096):
            peer.sendall(heard)
            return True
    return False


def servers(network: Network) -> list[Answering]:
    """Have mail servers at addresses of their own."""
    for address in (f"{SERVER4}/24", f"{SERVER6}/64"):
        network.mail.add_address(address)
    places = itertools.product((SERVER4, SERVER6), (25, 587))
    return [Answering(listener(network.mail, port, address), SERVER) for address, port in places]


class Scene:
    """The lab with a mail server and a gateway that only say who they are."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.gateway: Answering | None = None
        self.servers = servers(network)

    def listen(self) -> None:
        """Have a gateway."""
        self.gateway = Answering(listener(self.network.router, transparent=True), GATEWAY)

    def kill(self) -> None:
        """Have none any more, nor its connections."""
        assert self.gateway
        self.gateway.close()
        self.gateway = None

    def install(self, mode: str, **options: object) -> None:
        lines = "".join(f"{name} {value}\n" for name, value in options.items())
        router.install(self.network.router, f"mode {mode}\nbind_address ::\n{lines}")

    def reach(self, source: str, target: str, port: int = 25, host: Host | None = None) -> str:
        """Tell who answers a connection."""
        try:
            with (host or self.network.client).connect(
                (target, port), source=source, timeout=1.5
            ) as connection:
                return connection.recv(100).decode().strip()
        except ConnectionRefusedError:
            return REFUSED
        except TimeoutError:
            return SILENT

    def nft(self, *words: str) -> str:
        return self.network.router.run(["nft", *words]).stdout

    def count(self, name: str) -> int:
        found = re.search(r"packets (\d+)", self.nft("list", "counter", "inet", "appliance", name))
        assert found
        return int(found[1])

    def close(self) -> None:
        if self.gateway:
            self.gateway.close()
        for server in self.servers:
            server.close()
        router.release(self.network.router)


def echo(connection: socket.socket, words: bytes) -> bytes:
    connection.settimeout(3)
    connection.sendall(words)
    heard = b""
    while not heard.endswith(words):
        piece = connection.recv(1000)
        assert piece, heard
        heard += piece
    return heard
