"""A self-signed certificate for the lab's mail servers. Valid nowhere else, gone with the run."""

from pathlib import Path

from lab.host import Host


def make(host: Host, directory: Path) -> tuple[Path, Path]:
    """Make a key and a certificate for mail.example.test in `directory`; give (certificate, key)."""
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    if not key.exists():
        request = "req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=mail.example.test"
        names = "subjectAltName=DNS:mail.example.test"
        host.run(["openssl", *request.split(), "-addext", names, "-keyout", key, "-out", certificate])
    return certificate, key
