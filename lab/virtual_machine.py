"""The lab's machine with its own kernel, Debian's, on an emulated processor.

Nearer to where the appliance will run than the container of `lab.machine`, and slower by far: the kernel's
headers are the kernel's own, and eBPF programs meet the kernel they are made for. There is no hardware
virtualisation in it, so that it runs where there is none. What does not need that kernel is done before, in
the container, on the same disk: installing under emulation would take an hour.
"""

from pathlib import Path
from typing import Self

from lab.machine import Machine
from lab.process import Process

SIZE = "6G"
LINK = """[Match]
MACAddress={address}

[Link]
Name={name}
"""
ADDRESSES = {"lan": "52:54:00:00:00:01", "wan": "52:54:00:00:00:02"}
# An emulated processor leaks nothing, and has nothing to spare.
KERNEL = "root=/dev/vda rw console=ttyS0 net.ifnames=0 quiet mitigations=off nokaslr audit=0"
NEEDLESS = (
    "apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service systemd-timesyncd.service"
)


class VirtualMachine(Machine):
    """A container at first; `change_over` makes a virtual machine of it, in which everything is slower."""

    _image: Path | None = None

    def change_over(self) -> Self:
        """Shut the container down; from now on the machine that boots from its disk is a virtual one."""
        self.power_off()
        etc = self.disk / "etc"
        for name, address in ADDRESSES.items():
            (etc / f"systemd/network/10-{name}.link").write_text(LINK.format(name=name, address=address))
        (etc / "fstab").write_text("")
        self._image = self.host.directory / "disk.img"
        self.host.run(["mke2fs", "-q", "-t", "ext4", "-d", self.disk, self._image, SIZE], timeout=300)
        self.patience = 10
        return self

    def start(self, log: str) -> Process:
        """Start the container, or the emulator."""
        if not self._image:
            return super().start(log)
        if not Path(self.host.root / "dev/net/tun").exists():
            self.host.run(["sh", "-c", "mkdir -p /dev/net && mknod /dev/net/tun c 10 200"])
        kernel, initrd = (next((self.disk / "boot").glob(f"{name}-*")) for name in ("vmlinuz", "initrd.img"))
        masks = " ".join(f"systemd.mask={unit}" for unit in NEEDLESS.split())
        command = [
            *("qemu-system-x86_64", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max", "-smp", "2"),
            *(
                "-m",
                "2048",
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-serial",
                "stdio",
                "-no-reboot",
            ),
            *("-kernel", kernel, "-initrd", initrd, "-append", f"{KERNEL} {masks}"),
            *("-drive", f"file={self._image},if=virtio,format=raw,cache=unsafe"),
            *("-device", "virtio-rng-pci"),
        ]
        for name, address in ADDRESSES.items():
            command += ["-netdev", f"tap,id={name},ifname=port-{name},script=no,downscript=no"]
            command += ["-device", f"virtio-net-pci,netdev={name},mac={address}"]
        return self.host.start(list(map(str, command)), log=log)
