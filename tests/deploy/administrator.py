"""The administrator of the lab's machine: applies the role from the client host, and keeps the time."""

import json
import re
import shutil
import time
from dataclasses import dataclass
from typing import Any

from deploy import dist
from lab.image import CHECKOUT
from lab.machine import Site
from lab.machine_image import CACHE
from lab.network import ROUTER4
from lab.process import LabError

ANSIBLE = CHECKOUT / "deploy" / "ansible"
RECAP = re.compile(r"^gateway +: ok=(\d+) +changed=(\d+) +unreachable=(\d+) +failed=(\d+)", re.MULTILINE)


@dataclass(frozen=True)
class Outcome:
    """What a run of the playbook did."""

    changed: int
    failed: int
    output: str
    seconds: float

    def changes(self) -> list[str]:
        """Give the names of the tasks that changed something."""
        tasks = re.split(r"^TASK \[", self.output, flags=re.MULTILINE)[1:]
        return [task.partition("]")[0] for task in tasks if re.search(r"^changed: ", task, re.MULTILINE)]


class Administrator:
    """Somebody on the client host with the checkout, an inventory and a key to the machine."""

    def __init__(self, site: Site, times: list[tuple[str, float]], python: str = ""):
        self.site = site
        # A copy of their own: the checkout may be built anew while the machine lives.
        wheels = site.directory / "dist"
        wheels.mkdir()
        for path in dist.release(dist.CHECKOUT / "dist").glob(dist.WHEELS):
            shutil.copy(path, wheels)
        self.variables: dict[str, Any] = {
            "smtp_appliance_wheels": str(wheels),
            "smtp_appliance_wheelhouse": str(dist.wheelhouse(CACHE / f"wheelhouse{python}", python)),
            "smtp_appliance_lan_interfaces": "lan",
        }
        self.times = times
        self.patience = 400.0  # seconds for a run

    def apply(self, what: str, **variables: Any) -> Outcome:
        """Run the playbook with the role's variables, named without prefix; they stay for the next run."""
        self.variables |= {f"smtp_appliance_{name}": value for name, value in variables.items()}
        host = {
            "ansible_host": ROUTER4,
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(self.site.machine.key),
            "ansible_ssh_common_args": "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null",
        }
        inventory = self.site.directory / "inventory.json"
        hosts = {"appliance": {"hosts": {"gateway": host | self.variables}}}
        inventory.write_text(json.dumps({"all": {"children": hosts}}))
        begin = time.monotonic()
        done = self.site.client.run(
            ["ansible-playbook", "--inventory", inventory, ANSIBLE / "appliance.yml"],
            environment={
                "ANSIBLE_CONFIG": str(ANSIBLE / "ansible.cfg"),
                "ANSIBLE_NOCOLOR": "1",
            },
            timeout=self.patience,
            check=False,
        )
        seconds = time.monotonic() - begin
        recap = RECAP.search(done.stdout)
        if not recap or recap[3] != "0":
            raise LabError(f"ansible-playbook: {done.stdout[-4000:]}\n{done.stderr[-2000:]}")
        self.times.append((what, seconds))
        return Outcome(int(recap[2]), int(recap[4]), done.stdout, seconds)

    def succeed(self, what: str, **variables: Any) -> Outcome:
        """Run the playbook; LabError with its last words if a task fails."""
        outcome = self.apply(what, **variables)
        if outcome.failed:
            raise LabError(f"{what}: {outcome.output[-4000:]}")
        return outcome
