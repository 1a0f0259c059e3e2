"""The Debian package on a bare machine: by Debian's own tools, then by the role, and away again each time."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy import deb, dist
from lab.host import Host
from lab.machine import Machine, Site
from lab.machine_image import CACHE
from lab.network import CLIENT4, CLIENT6
from lab.servers import Postfix
from tests.deploy.administrator import Administrator
from tests.deploy.conftest import TIMES, Load
from tests.deploy.test_life import condition, delivered, main_process, session_to_its_end, state

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(600)]

CONFIGURATION = """\
mode tproxy
lan_interfaces lan
bind_address ::
set_user smtpgw
proxy_name gw.example.test
lock_talk 0
max_load 0
max_per_host 200
"""
INSTALL = ["apt-get", "install", "--yes", "--quiet", "--no-install-recommends"]


@pytest.fixture(scope="session")
def package() -> Path:
    return deb.build(dist.CHECKOUT / "dist", CACHE / "wheelhouse")


def other(package: Path, version: str, into: Path, *, broken: bool = False) -> Path:
    """Make the package of another version of it; one that is broken does not start."""
    own = package.name.split("_")[1]
    root = into / version
    subprocess.run(["dpkg-deb", "--raw-extract", package, root], check=True)
    releases = root / "opt/smtp-appliance/releases"
    (releases / own).rename(releases / version)
    (releases.parent / "current").unlink()
    (releases.parent / "current").symlink_to(f"releases/{version}")
    for directory in (root / "DEBIAN", releases / version / "bin"):
        for file in directory.iterdir():
            if not file.is_symlink():
                file.write_text(file.read_text().replace(own, version))
    if broken:
        (worker,) = releases.glob("*/lib/python3*/site-packages/appliance/proxy/worker.py")
        worker.write_text("raise SystemExit('this release is broken')\n")
    made = into / package.name.replace(f"_{own}_", f"_{version}_")
    subprocess.run(["dpkg-deb", "-Zgzip", "-z1", "--root-owner-group", "--build", root, made], check=True)
    shutil.rmtree(root)
    return made


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Site("package") as site:
        site.machine.boot()
        yield site


@pytest.fixture(scope="module")
def postfix_server(site: Site) -> Postfix:
    return Postfix(site.mail).start()


@pytest.fixture(scope="module")
def bare(site: Site) -> dict[str, str]:
    site.machine.run(["apt-get", "update", "--quiet"])
    return state(site.machine)


def is_bare(machine: Machine, bare: dict[str, str], but_for: str = "") -> None:
    now = state(machine)
    differences = {what: set(now[what].splitlines()) ^ set(bare[what].splitlines()) for what in bare}
    differences["files"] -= {but_for}
    assert not any(differences.values()), str(differences)


def release(machine: Machine) -> str:
    return machine.run(["readlink", "--canonicalize", "/opt/smtp-appliance/current"]).stdout.strip()


def test_lintian_finds_nothing_in_the_package(workplace: Host, package: Path) -> None:
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


def test_it_is_installed_and_started_by_hand(site: Site, package: Path, bare: dict[str, str]) -> None:
    assert "smtp-gated" not in bare["units"]
    machine = site.machine
    shutil.copy(package, machine.disk / "root")
    machine.run([*INSTALL, f"/root/{package.name}"], timeout=200)
    assert machine.run(["systemctl", "is-active", "smtp-gated"], check=False).stdout == "inactive\n"
    machine.run(["tee", "/etc/smtp-gated.conf"], input=CONFIGURATION)
    machine.run(["appliance-ctl", "config", "check"])
    machine.run(["systemctl", "enable", "--now", "smtp-gated-rules", "smtp-gated"], timeout=60)
    machine.run(["appliance-ctl", "status"])
    machine.run(["appliance-ctl", "check"])
    assert machine.run(["dpkg", "--verify", "smtp-gateway-appliance"]).stdout == ""


@pytest.mark.parametrize("source", [CLIENT4, CLIENT6])
def test_its_gateway_passes_mail_on_in_the_clients_name(site: Site, postfix: Postfix, source: str) -> None:
    message = delivered(site, postfix, source)
    assert f"[{'IPv6:' if ':' in source else ''}{source}]" in message
    assert "gw.example.test" in message


def test_another_version_of_it_refuses_nobody(site: Site, package: Path, load: Load, helper: str) -> None:
    machine = site.machine
    newer = other(package, "0.2.0", site.directory)
    shutil.copy(newer, machine.disk / "root")
    before, helping = main_process(machine), main_process(machine, helper)
    machine.run([*INSTALL, f"/root/{newer.name}"], timeout=200)
    assert load.end() > 0
    assert main_process(machine) != before
    assert main_process(machine, helper) not in ("0\n", helping)
    assert release(machine) == "/opt/smtp-appliance/releases/0.2.0"


def test_going_back_starts_a_gateway_that_the_other_version_ended(site: Site, package: Path) -> None:
    machine = site.machine
    machine.run(["tee", "/etc/smtp-gated.conf"], input=f"{CONFIGURATION}no_such_option 1\n")
    machine.run(["systemctl", "restart", "smtp-gated"], check=False)
    assert condition(machine) == "failed"
    machine.run(["tee", "/etc/smtp-gated.conf"], input=CONFIGURATION)
    machine.run([*INSTALL, "--allow-downgrades", f"/root/{package.name}"], timeout=200)
    assert condition(machine) == "active"


def test_purging_it_leaves_nothing(site: Site, postfix: Postfix, bare: dict[str, str]) -> None:
    purge = ["apt-get", "purge", "--yes", "--quiet", "--autoremove", "smtp-gateway-appliance"]
    with session_to_its_end(site, postfix):
        site.machine.run(purge, timeout=200)
    is_bare(site.machine, bare, "/opt 755 root ")  # dpkg takes an empty directory along that nobody else has
    assert "gw.example.test" not in delivered(site, postfix, CLIENT4)


def test_the_role_uses_it(site: Site, postfix: Postfix, package: Path, bare: dict[str, str]) -> None:
    administrator = Administrator(site, TIMES)
    administrator.succeed(
        "make a bare machine the appliance, from the package",
        deb=str(package),
        gate=False,
        proxy_name="gw.example.test",
        lock_talk=0,
        max_load=0,
    )
    assert "gw.example.test" in delivered(site, postfix, CLIENT4)
    good = dict(administrator.variables)
    broken = other(package, "0.3.0", site.directory, broken=True)
    outcome = administrator.apply("fail to upgrade the package, and go back", deb=str(broken))
    assert outcome.failed == 1
    assert "the release and configuration before run again" in outcome.output, outcome.output
    assert release(site.machine) == f"/opt/smtp-appliance/releases/{package.name.split('_')[1]}"
    assert "gw.example.test" in delivered(site, postfix, CLIENT4)
    for file, words in (
        ("", "gateway has the package already"),
        ("/none.deb", "there is no /none.deb on your side"),
    ):
        refused = administrator.apply("refuse another package", deb=file)
        assert (refused.failed, refused.changed) == (1, 0)
        assert words in refused.output
    administrator.variables = good
    assert administrator.succeed("run again, with the package").changed == 0
    administrator.succeed("remove the package", state="absent")
    is_bare(site.machine, bare)
