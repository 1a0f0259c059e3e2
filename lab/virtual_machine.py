"""The lab's machine as a virtual one: its own kernel, Debian's, on an emulated processor.

Slower than the container of `lab.machine` by far, and nearer to where the appliance will run: the kernel's
headers are the kernel's own, and eBPF programs meet the kernel they are made for. There is no hardware
virtualisation in it, so that it runs where there is none.
"""

from pathlib import Path

from lab.machine import Machine
from lab.process import Process

SIZE = "6G"
LINK = """[Match]
MACAddress={address}

[Link]
Name={name}
"""
ADDRESSES = {"lan": "52:54:00:00:00:01", "wan": "52:54:00:00:00:02"}


class VirtualMachine(Machine):
    """The machine in QEMU. What lies on `disk` when it first starts is on its own disk."""

    def start(self, log: str) -> Process:
        """Make the disk if there is none yet, and start the emulator."""
        image = self.host.directory / "disk.img"
        if not image.exists():
            self._prepare()
            self.host.run(["mke2fs", "-q", "-t", "ext4", "-d", self.disk, image, SIZE], timeout=120)
        if not Path(self.host.root / "dev/net/tun").exists():
            self.host.run(["sh", "-c", "mkdir -p /dev/net && mknod /dev/net/tun c 10 200"])
        kernel, initrd = (next((self.disk / "boot").glob(f"{name}-*")) for name in ("vmlinuz", "initrd.img"))
        command = [
            *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "2048"),
            *("-nographic", "-no-reboot", "-kernel", kernel, "-initrd", initrd),
            *("-append", "root=/dev/vda rw console=ttyS0 net.ifnames=0 quiet"),
            *("-drive", f"file={image},if=virtio,format=raw,cache=unsafe"),
            *(
                "-virtfs",
                f"local,path={self.packages},mount_tag=packages,security_model=none,readonly=on,multidevs=remap",
            ),
            *("-device", "virtio-rng-pci"),
        ]
        for name, address in ADDRESSES.items():
            command += ["-netdev", f"tap,id={name},ifname=port-{name},script=no,downscript=no"]
            command += ["-device", f"virtio-net-pci,netdev={name},mac={address}"]
        return self.host.start(list(map(str, command)), log=log)

    def _prepare(self) -> None:
        etc = self.disk / "etc"
        for name, address in ADDRESSES.items():
            (etc / f"systemd/network/10-{name}.link").write_text(LINK.format(name=name, address=address))
        (etc / "fstab").write_text("packages /srv/packages 9p trans=virtio,ro,nofail 0 0\n")
