"""A whole Debian machine between the lab's client and mail hosts: booted by systemd, entered by SSH.

    client eth0 ── bridge lan ── lan [ the machine ] wan ── bridge wan ── eth0 mail

`Site` is the counterpart of `lab.network.Network` whose router is a machine that starts bare. What makes the
appliance of it is applied from outside, over SSH from the client host, as an administrator would. The machine
is a systemd-nspawn container in the namespaces of a lab host of its own, which has the bridges; that host's
end is the machine's end. Nothing here knows what is installed on it.
"""

import contextlib
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from lab import image, machine_image
from lab.host import Host
from lab.network import CLIENT, CLIENT4, CLIENT6, MAIL, MAIL4, MAIL6, ROUTER4, ROUTER_LAN, ROUTER_WAN
from lab.process import LabError, Process, wait_until
from lab.run_directory import RunDirectory

CONTROL_GROUPS = Path("/sys/fs/cgroup")
GROUP_PREFIX = "appliance-lab-"
INTERFACE = """[Match]
Name={name}

[Network]
{addresses}
IPv6AcceptRA=no
"""
# Of systemd's own options for it, no release knows those of the other.
FORWARDING = "net.ipv4.ip_forward = 1\nnet.ipv6.conf.all.forwarding = 1\n"


class Machine:
    """The machine, off at first. `disk` is its root as seen from outside, `host` where its cables end.

    `patience` is how many times longer than usual everything on it may take.
    """

    patience = 1

    def __init__(self, host: Host, client: Host, bare: machine_image.MachineImage, key: Path):
        self.host = host
        self.client = client
        self.key = key
        self.disk = host.directory / "disk"
        self.packages = bare.packages
        self._group = CONTROL_GROUPS / f"{GROUP_PREFIX}{host.run_directory.name}"
        self._process: Process | None = None
        self._boots = 0
        host.run(["mount", "-t", "cgroup2", "cgroup2", CONTROL_GROUPS])
        subprocess.run(["cp", "-a", bare.root, self.disk], check=True, timeout=120)
        self._furnish()

    def _furnish(self) -> None:
        """Leave what an installation leaves: a name, interfaces, a source of packages, a key to get in."""
        etc = self.disk / "etc"
        (etc / "hostname").write_text("gateway\n")
        (etc / "hosts").write_text(
            "127.0.0.1 localhost\n::1 localhost\n127.0.1.1 gateway.example.test gateway\n"
        )
        (etc / "apt/sources.list").write_text("deb [trusted=yes] file:/srv/packages ./\n")
        (self.disk / "srv/packages").mkdir()
        for name, addresses in (("lan", ROUTER_LAN), ("wan", ROUTER_WAN)):
            lines = "\n".join(f"Address={address}" for address in addresses)
            (etc / f"systemd/network/{name}.network").write_text(INTERFACE.format(name=name, addresses=lines))
        (etc / "sysctl.d/router.conf").write_text(FORWARDING)
        for target, unit in (
            ("multi-user.target.wants", "systemd-networkd.service"),
            ("network-online.target.wants", "systemd-networkd-wait-online.service"),
        ):
            (etc / "systemd/system" / target).mkdir(exist_ok=True)
            (etc / "systemd/system" / target / unit).symlink_to(f"/lib/systemd/system/{unit}")
        keys = self.disk / "root/.ssh/authorized_keys"
        keys.parent.mkdir(mode=0o700, exist_ok=True)
        shutil.copy(self.key.with_suffix(".pub"), keys)

    def boot(self, timeout: float = 60) -> Self:
        """Switch it on and return when it has started all that it starts by itself."""
        timeout *= self.patience
        self._boots += 1
        self._process = self.start(f"console-{self._boots}")
        try:
            for name in ("lan", "wan"):
                self._plug_in(name, timeout)
            wait_until(lambda: not self.run(["true"], check=False).returncode, timeout, "SSH", 0.2)
            self.run(["systemctl", "is-system-running", "--wait"], check=False, timeout=60)
        except LabError as error:
            raise LabError(f"the machine does not start: {error}\n{self.console}") from None
        return self

    def start(self, log: str) -> Process:
        """Give it power: a program on `host` whose interfaces port-lan and port-wan are its cables' ends."""
        container = [
            *("systemd-nspawn", "--boot", "--quiet", "--register=no", "--keep-unit", "--private-network"),
            *(
                "--suppress-sync=yes",
                "--console=passive",
                "--resolv-conf=off",
                "--timezone=off",
                "--link-journal=no",
            ),
            *("--system-call-filter=bpf", "--capability=CAP_BPF,CAP_PERFMON"),  # a real machine has them
            *("--network-veth-extra=port-lan:lan", "--network-veth-extra=port-wan:wan"),
            *("--machine=gateway", f"--directory={self.disk}", f"--bind-ro={self.packages}:/srv/packages"),
        ]
        # A group of its own: the container makes others below it, whose names all containers share.
        join = f"mkdir -p {self._group} && echo $$ > {self._group}/cgroup.procs"
        return self.host.start(["sh", "-c", f"{join} && exec {shlex.join(container)}"], log=log)

    def _plug_in(self, name: str, timeout: float) -> None:
        with self.host.netlink() as netlink:
            port = f"port-{name}"
            wait_until(lambda: netlink.link_lookup(ifname=port) or not self.running(), timeout, port)
            if not self.running():
                raise LabError("it has ended")
            bridge, index = (netlink.link_lookup(ifname=each)[0] for each in (name, port))
            netlink.link("set", index=index, master=bridge, state="up")

    def running(self) -> bool:
        """Tell whether it is switched on."""
        return bool(self._process and self._process.running())

    @property
    def console(self) -> str:
        """The last lines of its console."""
        return self._process.tail() if self._process else ""

    def shell(self) -> list[str]:
        """Give the command that leads from the client host to root's shell on the machine."""
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": 5 * self.patience,
            "IdentityFile": self.key,
            "LogLevel": "ERROR",
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": "/dev/null",
        }
        return ["ssh", *(f"-o{name}={value}" for name, value in options.items()), f"root@{ROUTER4}"]

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        input: str | bytes = b"",  # noqa: A002 - the name subprocess.run has for it
        timeout: float = 30,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program on the machine to its end, as root; with `check` raise LabError if it fails."""
        command = [*self.shell(), "--", shlex.join(map(str, argv))]
        return self.client.run(command, input=input, timeout=timeout * self.patience, check=check)

    def power_off(self, timeout: float = 60) -> None:
        """Shut it down in good order. What is not on its disk is gone."""
        assert self._process
        self.run(["systemctl", "poweroff"], check=False)
        self._process.wait(timeout * self.patience)

    def reboot(self) -> Self:
        """Shut it down and switch it on again: another kernel's memory, as far as its network goes."""
        self.power_off()
        return self.boot()

    def close(self) -> None:
        """Pull the plug. May be called twice."""
        if self._process:
            self._process.kill()
            self._process = None


class Site:
    """A client, a bare machine and a mail server's host, wired; `machine` is off. `close` leaves nothing.

    `kind` is the machine's class, `kernel` says whether its root has Debian's own.
    """

    def __init__(
        self, name: str = "site", suite: str = "", *, kind: type[Machine] = Machine, kernel: bool = False
    ):
        if os.geteuid():
            raise LabError("the lab makes namespaces and mounts on the machine: run it as root")
        bare = machine_image.require(suite, kernel=kernel)
        images = image.require(image.WORKPLACE | image.PACKAGES | (image.EMULATOR if kernel else {}))
        self._directory = RunDirectory(name)
        self.directory = self._directory.path
        self.hosts: list[Host] = []
        self._machine: Machine | None = None
        try:
            for host in ("client", "machine", "mail"):
                self.hosts.append(Host(host, self.directory, images))
            self.client, wires, self.mail = self.hosts
            for each in self.hosts:
                each.ready()
            self._wire(wires)
            key = self.directory / "key"
            self.client.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key])
            self.machine = self._machine = kind(wires, self.client, bare, key)
        except BaseException:
            self.close()
            raise

    def _wire(self, wires: Host) -> None:
        for host, bridge, addresses, gateways, sources in (
            (self.client, "lan", CLIENT, ROUTER_LAN, (CLIENT4, CLIENT6)),
            (self.mail, "wan", MAIL, ROUTER_WAN, (MAIL4, MAIL6)),
        ):
            with wires.netlink() as netlink:
                netlink.link("add", ifname=bridge, kind="bridge")
                netlink.link(
                    "add", ifname="cable", kind="veth", peer={"ifname": "eth0", "net_ns_pid": host.pid}
                )
                index = netlink.link_lookup(ifname="cable")[0]
                master = netlink.link_lookup(ifname=bridge)[0]
                netlink.link("set", index=index, ifname=f"to-{host.name}", master=master)
            wires.link_up(bridge)
            wires.link_up(f"to-{host.name}")
            host.sysctl("net/ipv6/conf/eth0/accept_dad", "0")
            host.sysctl("net/ipv6/conf/eth0/accept_ra", "0")
            host.link_up("eth0")
            for address in addresses:
                host.add_address(address)
            with host.netlink() as netlink:
                for gateway, source in zip(gateways, sources, strict=False):
                    netlink.route("add", dst="default", gateway=gateway.partition("/")[0], prefsrc=source)

    def close(self) -> None:
        """End the machine and all hosts, and remove the run directory. May be called twice."""
        if self._machine:
            self._machine.close()
        for host in self.hosts:
            host.close()
        self._directory.close()
        _sweep_groups()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def _sweep_groups() -> None:
    """Remove the control groups of machines that are no more; the kernel refuses where one still runs."""
    find = f"find . -depth -path './{GROUP_PREFIX}*' -type d -exec rmdir {{}} + 2> /dev/null; true"
    mount = f"mount -t cgroup2 cgroup2 {CONTROL_GROUPS} && cd {CONTROL_GROUPS} && {find}"
    with contextlib.suppress(subprocess.SubprocessError):
        subprocess.run(["unshare", "--mount", "sh", "-c", mount], capture_output=True, timeout=10)
