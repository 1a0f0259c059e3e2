"""What stands for days of freshclam on the lab's machine: one signature, and clamd content with it."""

from lab.machine import Machine
from lab.samples import EICAR

WITHOUT_DATABASE = """[Unit]
# Debian's unit waits for the whole data base.
ConditionPathExistsGlob=
"""


def give_signature(machine: Machine) -> None:
    """Lay a signature where freshclam would, before anything is installed."""
    signatures = machine.disk / "var/lib/clamav"
    signatures.mkdir(parents=True, exist_ok=True)
    (signatures / "lab.ndb").write_text(f"Eicar-Test-Signature:0:*:{EICAR.encode().hex()}\n")
    for unit in ("clamav-daemon.service", "clamav-daemon.socket"):
        drop_in = machine.disk / "etc/systemd/system" / f"{unit}.d" / "lab.conf"
        drop_in.parent.mkdir(parents=True, exist_ok=True)
        drop_in.write_text(WITHOUT_DATABASE)
    # Debian 13 fetches the data base once when it is installed, which fails where there is no way to it.
    (machine.disk / "etc/systemd/system/clamav-freshclam-once.service").symlink_to("/dev/null")
