"""The installer against the real kernel, in network namespaces that are made for a test and go with it."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.config import parse
from appliance.nft import kernel, routes, ruleset, text
from appliance.nft.installer import Installer, Refused
from appliance.nft.kernel import KernelError
from appliance.nft.table import Table, steps
from tests.nft.machine import BOTH, NETFILTER, TPROXY, as_router, run, traces
from tests.nft.test_ruleset import CONFIGURATIONS

pytestmark = pytest.mark.lab

FIXED = CONFIGURATIONS["fixed"]


@pytest.mark.parametrize("configuration", [TPROXY, BOTH, NETFILTER, FIXED])
def test_up_twice_changes_nothing_and_down_leaves_no_trace(tmp_path: Path, configuration: str) -> None:
    def work() -> None:
        before = traces()
        installer = Installer(parse(configuration), directory=tmp_path)
        assert installer.check()
        assert not installer.plan().empty
        assert traces() == before  # looking changes nothing
        assert not installer.up().empty
        assert installer.check() == []
        there = traces()
        second = installer.up()
        assert second.empty
        assert (second.commands, second.difference) == ([], [])
        assert traces() == there
        installer.down()
        assert traces() == before
        assert installer.down().empty
        assert list(tmp_path.iterdir()) == []

    as_router(work)


def test_flushed_rules_come_back_while_an_interface_is_away(tmp_path: Path) -> None:
    def work() -> None:
        installer = Installer(parse(TPROXY), directory=tmp_path)
        installer.up()
        run("ip", "link", "del", "lan")
        with pytest.raises(Refused, match="no interface lan"):  # the file may have it wrong
            installer.up()
        run("nft", "flush", "ruleset")
        installer.up()
        assert "table inet appliance" in run("nft", "list", "ruleset")
        installer.down()
        with pytest.raises(Refused, match="no interface lan"):
            installer.up()

    as_router(work)


def test_flushed_rules_come_back_while_nothing_can_be_written(tmp_path: Path) -> None:
    def work() -> None:
        installer = Installer(parse(TPROXY), directory=tmp_path)
        installer.up()
        (state,) = tmp_path.iterdir()
        state.with_suffix(".new").mkdir()  # in the way of whatever is written, as a full disk would be
        run("nft", "flush", "ruleset")
        installer.up()
        assert installer.check() == []
        Installer(parse(BOTH), directory=tmp_path).up()
        assert Installer(parse(BOTH), directory=tmp_path).check() == []

    as_router(work)


@pytest.mark.option("fwmark", "route_table")
def test_other_mark_and_table(tmp_path: Path) -> None:
    def work() -> None:
        before = traces()
        Installer(parse(TPROXY), directory=tmp_path).up()
        Installer(parse(TPROXY + "fwmark 0x70\nroute_table 1000\n"), directory=tmp_path).up()
        assert "fwmark 0x70 lookup 1000" in run("ip", "rule")
        assert "fwmark 0x1 " not in run("ip", "rule")
        assert run("ip", "-6", "route", "show", "table", "1000").startswith("local default dev lo")
        assert run("ip", "route", "show", "table", "all").count("default") == 2  # IPv4 and IPv6
        assert "meta mark set 0x00000070" in run("nft", "list", "ruleset")
        Installer(parse(""), directory=tmp_path).down()  # whatever the configuration says by then
        assert traces() == before

    as_router(work)


def test_a_new_configuration_keeps_locks_and_counters(tmp_path: Path) -> None:
    def work() -> None:
        Installer(parse(TPROXY), directory=tmp_path).up()
        element = '{ 10.0.0.66 counter packets 7 bytes 420 timeout 1h comment "VIRUS" }'
        run("nft", "add", "element", "inet", "appliance", "locked4", element)
        done = Installer(parse(BOTH + "lock_talk 0\n"), directory=tmp_path).up()
        assert any("lan.5" in line for line in done.difference)
        listed = run("nft", "list", "set", "inet", "appliance", "locked4")
        assert "10.0.0.66 counter packets 7 bytes 420 timeout 1h" in listed
        assert 'comment "VIRUS"' in listed
        assert Installer(parse(BOTH + "lock_talk 0\n"), directory=tmp_path).check() == []

    as_router(work)


def test_an_element_that_stays_is_not_touched(tmp_path: Path) -> None:
    def work() -> None:
        few = f"{TPROXY}trusted_servers 192.0.2.1,198.51.100.0/24,203.0.113.7-203.0.113.9\n"
        Installer(parse(few), directory=tmp_path).up()
        more = (
            few.replace("192.0.2.1,", "").replace("lan_interfaces lan", "lan_interfaces lan,lan.5")
            + "fwmark 5\n"
        )
        commands = Installer(parse(more), directory=tmp_path).plan().commands
        told = [
            (verb, about["element"])
            for each in commands
            for verb, about in each.items()
            if "element" in about
        ]
        assert [(verb, about["name"], about["elem"]) for verb, about in told] == [
            ("add", "lan_interfaces", ["lan.5"]),
            ("delete", "trusted_servers4", ["192.0.2.1"]),
        ]
        assert not [each for each in commands if "set" in each.get("flush", ())]
        Installer(parse(more), directory=tmp_path).up()
        assert Installer(parse(more), directory=tmp_path).check() == []

    as_router(work)


def test_fifty_thousand_locks_are_kept_and_hold_nobody_up(tmp_path: Path) -> None:
    def work() -> None:
        Installer(parse(TPROXY), directory=tmp_path).up()
        place = {"family": "inet", "table": "appliance", "name": "locked4"}
        addresses = [f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}" for n in range(50_000)]
        kernel.transact([{"add": {"element": place | {"elem": addresses}}}])
        begin = time.monotonic()
        assert not Installer(parse(BOTH), directory=tmp_path).up().empty
        assert Installer(parse(BOTH), directory=tmp_path).check() == []
        assert time.monotonic() - begin < 1.5  # listing them takes longer
        listed = kernel.transact([{"list": {"set": place}}])
        assert len(listed[0]["set"]["elem"]) == len(addresses)

    as_router(work)


def test_a_router_that_knows_the_ways_of_the_internet_is_not_held_up(tmp_path: Path) -> None:
    """To read all its routes takes minutes."""

    def work() -> None:
        ways = (f"route add {20 + (n >> 16)}.{n >> 8 & 255}.{n & 255}.0/24 dev lan\n" for n in range(40_000))
        run("ip", "-batch", "-", data="".join(ways))
        installer = Installer(parse(TPROXY), directory=tmp_path)
        begin = time.monotonic()
        installer.up()
        assert installer.check() == []
        assert time.monotonic() - begin < 10

    as_router(work)


options = st.fixed_dictionaries(
    {
        "mode": st.sampled_from(["tproxy", "netfilter", "tproxy,netfilter", "fixed"]),
        "bind_address": st.sampled_from(["::", "0.0.0.0", "192.0.2.7", "2001:db8::7"]),
        "lan_interfaces": st.sampled_from(["lan", "lan,lan.5,wlan0"]),
        "intercept_ports": st.sampled_from(["25", "25,465,587"]),
        "trusted_clients": st.sampled_from(["", "10.0.0.1", "10.0.0.0/24,10.0.1.3-10.0.1.99,fd00::/8"]),
        "trusted_servers": st.sampled_from(["", "192.0.2.25,192.0.2.26,::/0"]),
        "on_failure": st.sampled_from(["open", "closed"]),
        "lock_talk": st.integers(0, 100).map(str),
        "fwmark": st.sampled_from(["1", "4294967295"]),
        "port": st.sampled_from(["9199", "25"]),
    }
).map(
    lambda values: "".join(f"{name} {value}\n" for name, value in values.items()) + "fixed_server fd00::1\n"
)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(options, options)
def test_one_transaction_leads_from_any_configuration_to_any_other_and_back(first: str, second: str) -> None:
    tables = [Table.find(kernel.as_kernel_tells(ruleset.build(parse(each)))) for each in (first, second)]

    def work() -> None:
        for before, after in ((None, tables[0]), tables, tables[::-1], (tables[0], None)):
            if commands := steps(before, after):
                kernel.transact(commands)
            assert Table.find(kernel.ruleset()) == after
            assert steps(after, after) == []

    kernel.elsewhere(work)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_readable_text_is_what_the_kernel_tells(name: str) -> None:
    """What a person approves of is what will be there; but nft forgets the comments of sets."""
    config = parse(CONFIGURATIONS[name])
    told = Table.find(kernel.as_kernel_tells(ruleset.build(config)))
    planned = text.lines(ruleset.table(config), told)
    assert [line for line in planned if not line.startswith("        comment")] == [
        line for line in text.lines(told) if not line.startswith("        comment")
    ]


def test_a_machine_without_names_of_protocols_and_services_takes_the_same_rules() -> None:
    """A small Debian machine has no /etc/protocols, nor /etc/services: they come with netbase."""
    program = (
        "from appliance.config import parse\n"
        "from appliance.nft import kernel, ruleset\n"
        "from tests.nft.test_ruleset import CONFIGURATIONS\n"
        "told = [kernel.as_kernel_tells(ruleset.build(parse(each))) for each in CONFIGURATIONS.values()]\n"
        "print(hash(str(told)))\n"
    )
    hide = (
        "for each in protocols services; do ! [ -e /etc/$each ] || mount --bind /dev/null /etc/$each; done; "
    )
    answers = [
        subprocess.run(
            ["unshare", "--mount", "sh", "-c", f'{prepare}exec "$0" -c "$1"', sys.executable, program],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": "0", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        ).stdout
        for prepare in ("", hide)
    ]
    assert answers[0] == answers[1]


def test_at_the_start_of_a_machine_interfaces_may_be_missing(tmp_path: Path) -> None:
    def work() -> None:
        config = parse("mode tproxy\nlan_interfaces ppp0\n")
        Installer(config, directory=tmp_path, early=True).up()
        assert "ppp0" in run("nft", "list", "ruleset")

    as_router(work)


def test_what_the_kernel_refuses_of_many_rules_is_said_once() -> None:
    """As when it lacks a module."""
    rule = {"family": "inet", "table": "none", "chain": "none", "expr": [{"accept": None}]}
    with pytest.raises(KernelError, match=r"^Could not process rule: No such file or directory$"):
        kernel.elsewhere(lambda: kernel.transact([{"add": {"rule": rule}}] * 3))


def fill_hooks() -> None:
    """The kernel takes 1024 chains at a hook, and no more."""
    chain = {"family": "inet", "table": "many", "type": "filter", "hook": "prerouting", "prio": 5}
    kernel.transact([{"add": {"table": {"family": "inet", "name": "many"}}}])
    kernel.transact([{"add": {"chain": chain | {"name": f"c{number}"}}} for number in range(1020)])


@pytest.mark.parametrize("before_it", [None, TPROXY])
def test_when_the_transaction_fails_nothing_has_changed(tmp_path: Path, before_it: str | None) -> None:
    """Sysctls and routes are done by then, and there is no room for all chains."""

    def work() -> None:
        if before_it:
            Installer(parse(before_it), directory=tmp_path).up()
        fill_hooks()
        before, known = traces(), [file.read_text() for file in tmp_path.iterdir()]
        with pytest.raises(KernelError, match="Argument list too long"):
            Installer(parse(BOTH + "fwmark 7\n"), directory=tmp_path).up()
        assert traces() == before
        assert [file.read_text() for file in tmp_path.iterdir()] == known

    as_router(work)


def test_when_a_route_fails_all_is_as_it_was(tmp_path: Path) -> None:
    """The mark leads into a new table, but loopback is down: the second route cannot be made."""

    def work() -> None:
        Installer(parse(TPROXY), directory=tmp_path).up()
        run("ip", "link", "set", "lo", "down")
        before, known = traces(), [file.read_text() for file in tmp_path.iterdir()]
        with pytest.raises(OSError, match="add ip -6 route"):
            Installer(parse(TPROXY + "route_table 77\nfwmark 9\n"), directory=tmp_path).up()
        assert traces() == before
        assert [file.read_text() for file in tmp_path.iterdir()] == known

    as_router(work)


def test_when_the_last_step_fails_the_table_is_as_it_was_with_its_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work() -> None:
        Installer(parse(TPROXY), directory=tmp_path).up()
        run("nft", "add", "element", "inet", "appliance", "locked4", "{ 10.0.0.66 }")
        before = traces()
        with monkeypatch.context() as patch:
            patch.setattr(routes, "remove", refuse_once())
            with pytest.raises(OSError, match="No space"):
                Installer(parse(BOTH + "fwmark 9\n"), directory=tmp_path).up()
        assert traces() == before

    def refuse_once() -> Callable[[routes.Entry], None]:
        """The kernel has no reason to keep a rule that is ours, so one is made up here."""
        remove, asked = routes.remove, []

        def refusing(entry: routes.Entry) -> None:
            asked.append(entry)
            if len(asked) == 2:
                raise OSError(28, "No space")
            remove(entry)

        return refusing

    as_router(work)


def test_two_namespaces_at_once_and_installers_that_meet(tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def one(configuration: str) -> None:
        def work() -> None:
            before = traces()
            installer = Installer(parse(configuration), directory=tmp_path)
            for _ in range(3):
                installer.up()
                assert installer.check() == []
                installer.down()
            assert traces() == before

        try:
            as_router(work)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(each,)) for each in (TPROXY, BOTH)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert list(tmp_path.iterdir()) == []


def test_commands(tmp_path: Path) -> None:
    """The same by appliance-ctl, as a person and as a program reads it."""
    file = tmp_path / "smtp-gated.conf"
    file.write_text(TPROXY + "xdp off\n")

    def ctl(*words: str) -> tuple[int, str]:
        program = Path(sys.executable).with_name("appliance-ctl")
        command = [*own_run(tmp_path), program, "--config", file, *words]
        done = subprocess.run(command, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    def work() -> None:
        status, said = ctl("plan")
        assert (status, "would change: 0" in said) == (0, False)
        assert "+        iifname @lan_interfaces tcp dport @intercept_ports" in said
        assert "table inet appliance" not in run("nft", "list", "ruleset")
        assert ctl("check")[0] == 1
        assert ctl("up")[0] == 0
        status, said = ctl("check")
        assert (status, said.splitlines()[0]) == (0, "the kernel is as planned")
        assert "up already" in ctl("up")[1]
        assert "up already" in ctl("plan")[1]
        run("nft", "flush", "chain", "inet", "appliance", "mail")
        status, said = ctl("--json", "check")
        assert status == 1
        assert len(json.loads(said)["differences"]) == 9
        assert json.loads(ctl("--json", "plan")[1])["commands"]
        assert ctl("up")[0] == 0
        file.write_text("nonsense 1\n")  # which must not keep anybody from taking the rules away
        assert ctl("down")[0] == 0
        assert "not up" in ctl("down")[1]
        file.write_text(TPROXY + "xdp off\nlan_interfaces nowhere\n")
        status, said = ctl("up")
        assert status == 1
        assert "this cannot work: lan_interfaces: there is no interface nowhere here" in said

    as_router(work)


def own_run(directory: Path) -> list[str | Path]:
    """Give words before a command that has a /run of its own, where its state is in this directory."""
    state = "/run/smtp-gated-rules"
    script = f'mount -t tmpfs run /run && mkdir {state} && mount --bind "$0" {state} && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, directory]
