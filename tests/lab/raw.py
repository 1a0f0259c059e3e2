"""An SMTP client that says exactly the bytes a test gives it and hands back exactly what it hears.

For what no mail program would say, and for what every byte of the answer matters.
"""

import re
import ssl
import time
from typing import Self

from lab.host import Host

_WHOLE_REPLY = re.compile(rb"(?:\d{3}-[^\n]*\n)*\d{3}(?: [^\n]*)?\r\n")
QUEUED_AS = re.compile(rb"queued as (\w+)")


class RawClient:
    """A connection from a lab host to port 25 of a server, with the server's greeting still to be read."""

    def __init__(self, host: Host, server: str, *, source: str | None = None, port: int = 25):
        self.socket = host.connect((server, port), source=source, timeout=20)
        self._heard = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Say these bytes."""
        self.socket.sendall(data)

    def send_in_pieces(self, *pieces: bytes, pause: float = 0.01) -> None:
        """Say each piece in a segment of its own, `pause` seconds apart."""
        for piece in pieces:
            self.socket.sendall(piece)
            time.sleep(pause)

    def reply(self) -> bytes:
        """Hear one whole reply, all its lines; fewer bytes when the connection ends before."""
        while not (found := _WHOLE_REPLY.match(self._heard)):
            piece = self.socket.recv(65536)
            if not piece:
                heard, self._heard = self._heard, b""
                return heard
            self._heard += piece
        self._heard = self._heard[found.end() :]
        return found[0]

    def replies(self, count: int) -> list[bytes]:
        """Hear several replies."""
        return [self.reply() for _ in range(count)]

    def ask(self, line: bytes) -> bytes:
        """Say one line, without its CRLF, and hear the reply."""
        self.send(line + b"\r\n")
        return self.reply()

    def rest(self) -> bytes:
        """Hear everything up to the end of the connection."""
        try:
            while piece := self.socket.recv(65536):
                self._heard += piece
        except ConnectionResetError:
            pass
        heard, self._heard = self._heard, b""
        return heard

    def begin(self, name: bytes = b"client.test") -> bytes:
        """Hear the greeting, say EHLO, give its reply."""
        greeting = self.reply()
        assert greeting.startswith(b"220"), greeting
        return self.ask(b"EHLO " + name)

    def envelope(
        self, recipient: bytes = b"alice@example.test", sender: bytes = b"sender@client.test"
    ) -> None:
        """Begin a transaction whose sender and recipient the server takes."""
        for line in (b"MAIL FROM:<" + sender + b">", b"RCPT TO:<" + recipient + b">"):
            answer = self.ask(line)
            assert answer.startswith(b"250"), (line, answer)

    def data(self, content: bytes) -> bytes:
        """Say DATA and a content with its dots stuffed already; give the reply to its end."""
        answer = self.ask(b"DATA")
        assert answer.startswith(b"354"), answer
        self.send(content + (b"" if content.endswith(b"\r\n") else b"\r\n") + b".\r\n")
        return self.reply()

    def bdat(self, *chunks: bytes) -> list[bytes]:
        """Say a content in chunks, the last with LAST; give the reply to each."""
        answers = []
        for number, chunk in enumerate(chunks, 1):
            last = b" LAST" if number == len(chunks) else b""
            self.send(b"BDAT %d%s\r\n" % (len(chunk), last) + chunk)
            answers.append(self.reply())
        return answers

    def starttls(self) -> None:
        """Say STARTTLS and do the handshake, whoever's certificate it is."""
        answer = self.ask(b"STARTTLS")
        assert answer.startswith(b"220"), answer
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self.socket = context.wrap_socket(self.socket)


def queue_id(answer: bytes) -> str:
    """The name that Postfix gave to the message it just accepted."""
    found = QUEUED_AS.search(answer)
    assert answer.startswith(b"250 2.0.0 Ok: ") and found, answer
    return found[1].decode()
