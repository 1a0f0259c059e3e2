"""One site for all tests of deployment, in the order of a machine's life; and how long each step took."""

import os
import threading
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from lab import image
from lab.clients import smtp_source
from lab.host import Host
from lab.machine import Site
from lab.process import LabError
from lab.run_directory import RunDirectory
from lab.servers import Postfix
from tests.deploy import scanners, times
from tests.deploy.administrator import Administrator

TIMES: list[tuple[str, float]] = []
# Another Debian release than this machine's to make the appliance of; and its Python.
SUITE = os.environ.get("APPLIANCE_SUITE", "")
PYTHON = {"": "", "bookworm": "3.11", "trixie": "3.13"}[SUITE]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the times be written to a page."""
    parser.addoption("--store-times", type=Path, metavar="PAGE", help="write the times of deployment to it")
    parser.addoption("--times-table", default="deploy", help="the table of that page which they belong to")


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config
) -> None:
    """Print the times of the steps, and store them where the options say so, if nothing failed."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, ())]
    reports.sort(key=lambda report: report.nodeid.partition("::")[0])  # which ran side by side
    found = [value for report in reports for name, value in report.user_properties if name == "time"]
    if found:
        terminalreporter.section("times of deployment")
        for what, seconds in found:
            terminalreporter.write_line(f"{seconds:6.1f} s  {what}")
    page = config.getoption("store_times", None)
    if page and not exitstatus:
        times.store(page, config.getoption("times_table"), found)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put the times of a test's steps into its report; let the machine say what happened when it fails."""
    report = yield
    if report.when == "call":
        report.user_properties += [("time", time) for time in TIMES]
        TIMES.clear()
    site = item.funcargs.get("site")
    if report.failed and isinstance(site, Site) and site.machine.running():
        log = site.machine.run(["journalctl", "--no-pager", "--lines=100"], check=False)
        report.sections.append(("the machine's journal", log.stdout))
    return report


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    with Site("deploy", SUITE) as site:
        scanners.give_signature(site.machine)
        site.machine.boot()
        yield site


@pytest.fixture(scope="session")
def workplace() -> Iterator[Host]:
    """A host with the tools of whoever maintains the package and the role."""
    run = RunDirectory("workplace")
    host = Host("workplace", run.path, image.require(image.WORKPLACE | image.PACKAGES))
    host.ready()
    yield host
    host.close()
    run.close()


@pytest.fixture(scope="session")
def postfix_server(site: Site) -> Postfix:
    return Postfix(site.mail).start()


@pytest.fixture
def postfix(postfix_server: Postfix) -> Postfix:
    """Postfix with empty mailboxes."""
    postfix_server.clear()
    return postfix_server


@pytest.fixture(scope="session")
def administrator(site: Site) -> Administrator:
    return Administrator(site, TIMES, PYTHON)


class Load(threading.Thread):
    """Mails that the client sends, ten at a time, each over a connection of its own, until `end`."""

    def __init__(self, site: Site, server: str):
        super().__init__()
        self._site, self._server = site, server
        self._ended = threading.Event()
        self.pause = 0.5  # seconds; the two processors are for the upgrade, too
        self.sent = 0
        self.failed: LabError | None = None

    def run(self) -> None:
        """Send; the first mail that is not accepted at once ends it."""
        while not self._ended.is_set():
            try:
                self.sent += smtp_source(self._site.client, self._server, messages=10, sessions=2).messages
                self._ended.wait(self.pause)
            except LabError as error:
                self.failed = error
                return

    def end(self) -> int:
        """Stop; give the number of mails sent. Raises LabError when one was refused."""
        self._ended.set()
        self.join()
        if self.failed:
            raise self.failed
        return self.sent


@pytest.fixture
def load(site: Site, postfix: Postfix) -> Iterator[Load]:
    load = Load(site, postfix.ipv4)
    load.start()
    yield load
    load.end()


@pytest.fixture
def helper(site: Site) -> Iterator[str]:
    """Give the name of the helper's service, which runs as docs/remote.md says."""
    unit, options = "appliance-helper", 'HELPER_OPTIONS="--gateway 192.0.2.9 --gateway 2001:db8:9::9"\n'
    site.machine.run(["tee", "/etc/default/appliance-helper"], input=options)
    site.machine.run(["install", "-Dm600", "/dev/stdin", "/etc/appliance-helper/secret"], input="7\n")
    site.machine.run(["systemctl", "start", unit])
    yield unit
    site.machine.run(["systemctl", "stop", unit])
    site.machine.run(["rm", "-r", "/etc/default/appliance-helper", "/etc/appliance-helper"])


@pytest.fixture(scope="session")
def releases(site: Site) -> Path:
    """Where the wheels of later versions go; on a path that all hosts share."""
    return site.directory / "later"
