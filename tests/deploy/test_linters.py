"""What the linters of Ansible and Vagrant say of the role and the Vagrantfile."""

import pytest

from lab.host import Host
from lab.image import CHECKOUT

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(600)]


def test_ansible_lint_finds_nothing_in_the_role(workplace: Host) -> None:
    command = (
        f"cd {CHECKOUT}/deploy/ansible && ansible-lint --offline --strict appliance.yml roles/smtp_appliance"
    )
    workplace.run(["sh", "-c", command], timeout=300)


def test_vagrant_finds_the_vagrantfile_valid(workplace: Host) -> None:
    # It keeps its state beside the file, which does not belong into the checkout.
    command = f"cp -r {CHECKOUT}/vagrant /tmp/vagrant && cd /tmp/vagrant && sh -n demo.sh && vagrant validate"
    said = workplace.run(
        ["sh", "-c", command], environment={"VAGRANT_DEFAULT_PROVIDER": "libvirt"}, timeout=120
    )
    assert said.stdout.endswith("Vagrantfile validated successfully.\n")
    playbooks = "ansible-lint --offline --strict router.yml mail.yml client.yml"
    workplace.run(["sh", "-c", f"cd {CHECKOUT}/vagrant && {playbooks}"], timeout=300)
