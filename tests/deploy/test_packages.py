"""What Debian's own tools say of the package, the role and the Vagrantfile."""

from collections.abc import Iterator

import pytest

from deploy import deb
from lab import image
from lab.host import Host
from lab.image import CHECKOUT
from lab.run_directory import RunDirectory

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def workplace() -> Iterator[Host]:
    """A host with the tools of whoever maintains the package and the role."""
    run = RunDirectory("workplace")
    host = Host("workplace", run.path, image.require(image.WORKPLACE | image.PACKAGES))
    host.ready()
    yield host
    host.close()
    run.close()


def test_lintian_finds_nothing_in_the_package(workplace: Host) -> None:
    package = deb.build(workplace.run_directory / "dist")
    listing = workplace.run(["dpkg-deb", "--contents", package]).stdout
    for name in (
        "/opt/smtp-appliance/current",
        "/usr/bin/appliance-ctl",
        "/usr/lib/systemd/system/smtp-gated-rules.service",
        "/usr/share/man/man5/smtp-gated.conf.5.gz",
    ):
        assert f" .{name}" in listing
    command = ["lintian", "--allow-root", "--fail-on", "error,warning", str(package)]
    assert workplace.run(command, timeout=300).stdout == ""


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
