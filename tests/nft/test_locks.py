"""The sets of locked clients against the real kernel, in a network namespace of their own."""

import subprocess
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from appliance.config import Address
from appliance.nft.locks import Lock, LockSets, NftError, NoTable, comment
from lab.namespace import inside

pytestmark = pytest.mark.lab

ONE, TWO, SIX = ip_address("192.0.2.1"), ip_address("192.0.2.2"), ip_address("2001:db8::1")
TABLE = """
    table inet appliance {
        set locked4 { type ipv4_addr; flags timeout; counter; }
        set locked6 { type ipv6_addr; flags timeout; counter; }
    }
"""


class Namespace:
    """A network namespace that lives as long as the process that holds it."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo; exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout
        self._holder.stdout.readline()
        self.path = Path(f"/proc/{self._holder.pid}/ns/net")

    def nft(self, text: str) -> str:
        command = ["nsenter", f"--net={self.path}", "nft", "-f", "-"]
        return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout

    def close(self) -> None:
        self._holder.communicate()


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    made = Namespace()
    yield made
    made.close()


@pytest.fixture
def sets(namespace: Namespace) -> Iterator[LockSets]:
    namespace.nft(TABLE)
    made = inside(namespace.path, LockSets)
    yield made
    made.close()


def shown(sets: LockSets) -> dict[Address, tuple[int | None, str]]:
    return {element.address: (element.remaining, element.comment) for element in sets.dump()}


def lasting(seconds: float, cause: str = "VIRUS Eicar") -> Lock:
    return Lock(time.time() + seconds, cause)


def test_elements_come_with_their_time_and_cause_and_go(sets: LockSets) -> None:
    sets.add({ONE: lasting(100), TWO: Lock(None, "SPAM"), SIX: lasting(0.2, "")})
    found = shown(sets)
    assert found[TWO] == (None, "SPAM")
    assert found[SIX] in ((1, ""), (0, ""))
    remaining, words = found[ONE]
    assert remaining in (99, 100)
    assert words == "VIRUS Eicar"
    sets.remove([ONE, SIX, ip_address("192.0.2.99")])
    assert set(shown(sets)) == {TWO}


def test_an_administrator_reads_the_sets_like_a_report(sets: LockSets, namespace: Namespace) -> None:
    sets.add({ONE: lasting(3600, "VIRUS Eicar-Test-Signature"), TWO: Lock(None, "SPAM 7.2")})
    report = namespace.nft("list set inet appliance locked4")
    assert '192.0.2.2 counter packets 0 bytes 0 comment "SPAM 7.2"' in report
    assert "192.0.2.1 counter packets 0 bytes 0 timeout 1h expires " in report
    assert 'comment "VIRUS Eicar-Test-Signature"' in report


@pytest.mark.parametrize(
    "cause",
    [
        "x" * 128,
        "x" * 500,
        'a "quoted" cause',
        "\x1b[31mred\x07\n10.0.0.1",
        "zażółć",
        "' } delete table inet x",
        "",
    ],
)
def test_any_cause_becomes_a_comment_that_nft_reads_back(
    sets: LockSets, namespace: Namespace, cause: str
) -> None:
    sets.add({ONE: Lock(None, cause)})
    assert shown(sets) == {ONE: (None, comment(cause))}
    assert len(comment(cause)) <= 128
    text = namespace.nft("list table inet appliance")
    namespace.nft("delete table inet appliance\n" + text)
    assert shown(sets) == {ONE: (None, comment(cause))}


def test_renewing_changes_end_and_cause(sets: LockSets) -> None:
    sets.add({ONE: lasting(100), TWO: lasting(100)})
    sets.renew({ONE: lasting(1000, "SPAM"), TWO: Lock(None, "SPAM"), SIX: Lock(None, "new")})
    found = shown(sets)
    assert found[ONE][0] in (999, 1000)
    assert found[ONE][1] == "SPAM"
    assert found[TWO] == (None, "SPAM")
    assert found[SIX] == (None, "new")


def test_an_element_ends_by_itself_and_its_removal_harms_no_other(sets: LockSets) -> None:
    sets.add({ONE: lasting(0.1), TWO: lasting(100)})
    time.sleep(1.2)
    assert set(shown(sets)) == {TWO}
    sets.remove([ONE, TWO])
    assert shown(sets) == {}


def test_replacing_keeps_what_is_right_with_its_counter(sets: LockSets, namespace: Namespace) -> None:
    namespace.nft(
        "add element inet appliance locked4 { "
        '192.0.2.1 counter packets 7 bytes 420 timeout 100s expires 100s comment "VIRUS Eicar", '
        '192.0.2.2 comment "stranger" }'
    )
    assert sets.replace({ONE: lasting(100), SIX: Lock(None, "SPAM")}) == (1, 1)
    found = {element.address: element for element in sets.dump()}
    assert set(found) == {ONE, SIX}
    assert (found[ONE].packets, found[ONE].bytes) == (7, 420)
    assert sets.replace({ONE: lasting(200), SIX: Lock(None, "other")}) == (2, 0)
    assert shown(sets)[SIX] == (None, "other")
    assert sets.replace({}) == (0, 2)
    assert shown(sets) == {}


def test_changes_by_others_are_noticed_and_own_ones_are_not(sets: LockSets, namespace: Namespace) -> None:
    assert sets.changed_by_others()
    sets.replace({ONE: lasting(100)})
    sets.add({TWO: lasting(100)})
    sets.remove([TWO])
    sets.renew({ONE: lasting(200)})
    assert not sets.changed_by_others()
    namespace.nft("flush set inet appliance locked4")
    sets.add({TWO: lasting(100)})
    assert sets.changed_by_others()
    assert sets.replace({ONE: lasting(200), TWO: lasting(100)}) == (1, 0)
    assert not sets.changed_by_others()


def test_without_a_table_everything_says_so(sets: LockSets, namespace: Namespace) -> None:
    sets.dump()
    namespace.nft("delete table inet appliance")
    with pytest.raises(NoTable):
        sets.add({ONE: lasting(100)})
    with pytest.raises(NoTable):
        sets.dump()
    assert not sets.changed_by_others()
    namespace.nft(TABLE)
    assert sets.changed_by_others()
    assert sets.replace({ONE: lasting(100)}) == (1, 0)


def test_a_set_that_was_made_for_something_else_is_refused(sets: LockSets, namespace: Namespace) -> None:
    namespace.nft(
        "delete table inet appliance\n"
        "table inet appliance { set locked4 { type ipv4_addr; }; set locked6 { type ipv6_addr; }; }"
    )
    with pytest.raises(NftError):
        sets.add({ONE: lasting(100)})
