"""One host of the lab: network, mount, UTS and PID namespaces, a root of its own laid over the machine's.

Made by `lab.network.Network`; tests and servers run programs on it and take sockets from it. Whatever happens
on a host stays there: files are written to a tmpfs layer, and all of it is gone when the lab's process ends,
however it ends. The run directory and the checkout are shared with the host and the other hosts at the same
paths.
"""

import contextlib
import os
import shlex
import signal
import socket
import subprocess
from collections.abc import Sequence
from ipaddress import ip_interface
from pathlib import Path
from threading import Lock
from typing import Any

from pyroute2 import NetNS

from lab.image import CHECKOUT
from lab.namespace import inside
from lab.process import LabError, Process, wait_until

IFA_F_NODAD = 2  # an IPv6 address is usable at once, without asking the neighbours for duplicates
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "PYTHONUNBUFFERED": "1",
}

# Accounts of the servers, with numbers that Debian leaves free. They exist on the lab's hosts alone.
ACCOUNTS = {
    "postfix": 61001,
    "postdrop": 61002,
    "Debian-exim": 61003,
    "opensmtpd": 61004,
    "opensmtpq": 61005,
    "clamav": 61006,
    "debian-spamd": 61007,
    "haproxy": 61008,
    "smtpgw": 61010,
    "alice": 61021,
    "bob": 61022,
}
OPERATORS = 61030  # the group whose members, alice here, may ask the gateway


class Host:
    """A running host. `root` leads to its files from outside; `pid` is its first process, for nsenter."""

    def __init__(self, name: str, run: Path, images: Sequence[Path]):
        """Begin to start the host `name`; it can be used after `ready`."""
        self.name = name
        self.run_directory = run
        self.directory = run / name
        self.logs = self.directory / "log"
        for path in (self.directory, self.directory / "root", self.directory / "etc", self.logs):
            path.mkdir(mode=0o755)
        self._write_etc()
        self._counter_lock, self._counter = Lock(), 0
        self._errors = self.logs / "holder"
        layers = ":".join(map(str, images))
        holder = [str(word) for word in (CHECKOUT / "lab" / "holder.sh", name, run, CHECKOUT, layers)]
        namespaces = ["--net", "--mount", "--uts", "--pid", "--fork", "--kill-child"]
        with self._errors.open("wb") as errors:
            self._unshare = subprocess.Popen(
                ["unshare", *namespaces, *holder],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=ENVIRONMENT,
                start_new_session=True,  # a person's ctrl-C is for the lab's process to handle
            )
        self.pid = 0
        self.root = Path("/")

    def _write_etc(self) -> None:
        passwd = _without_ours("/etc/passwd")
        group = _without_ours("/etc/group")
        for account, number in ACCOUNTS.items():
            passwd += f"{account}:x:{number}:{number}::/nonexistent:/usr/sbin/nologin\n"
            group += f"{account}:x:{number}:\n"
        group += f"appliance:x:{OPERATORS}:alice\n"
        etc = self.directory / "etc"
        (etc / "passwd").write_text(passwd)
        (etc / "group").write_text(group)
        (etc / "hostname").write_text(f"{self.name}\n")
        (etc / "hosts").write_text(
            f"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {self.name}.example.test {self.name}\n"
        )
        (etc / "resolv.conf").write_text("# no name server in the lab\n")
        (etc / "aliases").write_text("postmaster: alice\n")

    def ready(self, timeout: float = 10) -> None:
        """Wait until the host can be used; LabError tells what the kernel refuses."""
        output = self._unshare.stdout
        assert output
        os.set_blocking(output.fileno(), False)
        wait_until(lambda: output.read() or self._unshare.poll() is not None, timeout, f"host {self.name}")
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children")
        first = children.read_text().split() if self._unshare.poll() is None else []
        if not first:
            complaint = self._errors.read_text().strip().replace("\n", "; ")
            raise LabError(
                f"lab host {self.name}: the kernel gives no namespaces or no overlayfs to this user "
                f"(root, and overlay in /proc/filesystems are needed): {complaint}"
            )
        self.pid = int(first[0])
        self.root = Path(f"/proc/{self.pid}/root")
        self.link_up("lo")

    @property
    def shell(self) -> str:
        """The command that gives a person a shell on this host, in the checkout."""
        return f"nsenter --target {self.pid} --net --mount --uts --pid --wdns={CHECKOUT}"

    def command(self, argv: Sequence[str | Path]) -> list[str]:
        """Give the argument list that runs `argv` on this host, with the checkout as working directory."""
        return [*shlex.split(self.shell), "--", *map(str, argv)]

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        input: str | bytes = b"",  # noqa: A002 - the name subprocess.run has for it
        timeout: float = 30,
        check: bool = True,
        environment: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end, as root; give stdout and stderr apart. Killed after `timeout` seconds."""
        data = input.encode() if isinstance(input, str) else input
        process = subprocess.Popen(
            self.command(argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT | (environment or {}),
            start_new_session=True,
        )
        try:
            out, err = process.communicate(data, timeout)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate(timeout=5)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            text = (out + err).decode(errors="replace")
            raise LabError(
                f"{argv[0]} on {self.name} took longer than {timeout:g} s:\n{text[-4000:]}"
            ) from None
        result = subprocess.CompletedProcess(
            [str(word) for word in argv],
            process.returncode,
            out.decode(errors="replace"),
            err.decode(errors="replace"),
        )
        if check and result.returncode:
            text = (result.stdout + result.stderr)[-4000:]
            raise LabError(f"{' '.join(result.args)} on {self.name} exited with {result.returncode}:\n{text}")
        return result

    def start(
        self,
        argv: Sequence[str | Path],
        *,
        log: Path | str | None = None,
        environment: dict[str, str] | None = None,
    ) -> Process:
        """Start a program that stays. `log` takes its output: a path, or a name in the host's log folder."""
        with self._counter_lock:
            self._counter += 1
            name = log or f"{Path(argv[0]).name}-{self._counter}"
        # An absolute path given as `log` replaces the folder.
        return Process(self.command(argv), self.logs / name, environment=ENVIRONMENT | (environment or {}))

    def open_socket(self, family: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """Give a socket that lives in this host's network, for use by this process."""
        return inside(self.namespace, lambda: socket.socket(family, kind))

    def connect(
        self, address: tuple[str, int], *, source: str | None = None, timeout: float = 10
    ) -> socket.socket:
        """Connect over TCP from this host, from its address `source` if given; `timeout` stays set."""
        connection = self.open_socket(_family(address[0]))
        try:
            connection.settimeout(timeout)
            if source:
                connection.bind((source, 0))
            connection.connect(address)
        except OSError:
            connection.close()
            raise
        return connection

    def listen(self, address: tuple[str, int], *, backlog: int = 128) -> socket.socket:
        """Listen on a TCP address of this host, for a server scripted in a test; accept() waits 10 s."""
        listener = self.open_socket(_family(address[0]))
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(backlog)
        except OSError:
            listener.close()
            raise
        listener.settimeout(10)
        return listener

    @property
    def namespace(self) -> Path:
        """The host's network namespace, for `lab.namespace.inside`."""
        return Path(f"/proc/{self.pid}/ns/net")

    def netlink(self) -> Any:
        """Give a pyroute2 IPRoute that speaks to this host's kernel side; a context manager, to be closed."""
        return NetNS(str(self.namespace), flags=0)

    def add_address(self, address: str, interface: str = "eth0") -> None:
        """Add an address with its prefix length, as in 198.51.100.26/24, usable at once."""
        parsed = ip_interface(address)
        with self.netlink() as netlink:
            netlink.addr(
                "replace",
                index=netlink.link_lookup(ifname=interface)[0],
                address=str(parsed.ip),
                prefixlen=parsed.network.prefixlen,
                flags=IFA_F_NODAD if parsed.version == 6 else 0,
            )

    def link_up(self, interface: str) -> None:
        """Set an interface up."""
        with self.netlink() as netlink:
            netlink.link("set", index=netlink.link_lookup(ifname=interface)[0], state="up")

    def sysctl(self, name: str, value: str) -> None:
        """Set a network sysctl of this host, its name written with slashes: net/ipv4/ip_forward."""
        # /proc/sys/net shows the namespace of whoever looks, so the writer has to be inside.
        inside(self.namespace, lambda: Path("/proc/sys", name).write_text(value))

    def listening(self, port: int) -> bool:
        """Tell whether some program of this host listens on a TCP port, in either family."""
        wanted = f":{port:04X}"
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/{self.pid}/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[1].endswith(wanted) and fields[3] == "0A":
                    return True
        return False

    def close(self) -> None:
        """End the host and everything on it. May be called twice."""
        for pipe in (self._unshare.stdin, self._unshare.stdout):
            if pipe:
                pipe.close()
        try:
            self._unshare.wait(5)
        except subprocess.TimeoutExpired:
            self._unshare.kill()  # takes the first process along, and so the host
            self._unshare.wait(5)


def _family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _without_ours(file: str) -> str:
    """Give the machine's accounts, or groups, but for the lab's, which it may have with other numbers."""
    lines = Path(file).read_text().splitlines(keepends=True)
    return "".join(line for line in lines if line.partition(":")[0] not in (*ACCOUNTS, "appliance"))
