"""Giving up privileges, each time in a process of its own that then looks at itself."""

import json
import os
import pwd
import subprocess
import sys

import pytest

from appliance.privileges import Identity, PrivilegeError, identity

PROGRAM = """
import json, os, signal, subprocess, sys
from appliance import process
from appliance.privileges import PrivilegeError, drop
process.die_with_parent()
if sys.argv[2]:
    import pwd
    user = pwd.getpwnam(sys.argv[2])
    os.setgroups([])
    os.setresgid(*[user.pw_gid] * 3)
    os.setresuid(*[user.pw_uid] * 3)
try:
    drop(*json.loads(sys.argv[1]))
except PrivilegeError as error:
    print(json.dumps({"error": str(error)}))
    raise SystemExit
def capabilities(text):
    return {k: int(v, 16) for k, v in (l.split(":") for l in text.splitlines() if l.startswith("Cap"))}
child = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True).stdout
print(json.dumps({
    "ids": [*os.getresuid(), *os.getresgid()], "groups": os.getgroups(), "own": list(process.capabilities()),
    "child": capabilities(child), "no_new_privs": process.prctl(process.PR_GET_NO_NEW_PRIVS),
    "dumpable": process.prctl(3), "dies_with_parent": process.death_signal() == signal.SIGKILL,
    "bounding": sum(process.prctl(23, n) for n in range(40)),
}))
"""
NOBODY = pwd.getpwnam("nobody")
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
NET_RAW = 1 << 13


def drop(user: str, group: str, keep: int = 0, first: str = "") -> dict[str, object]:
    """Drop privileges in a process of its own, which has become the user `first` before."""
    arguments = [sys.executable, "-c", PROGRAM, json.dumps([user, group, keep]), first]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    found: dict[str, object] = json.loads(done.stdout)
    return found


@ROOT_ONLY
@pytest.mark.parametrize("keep", [0, NET_RAW])
@pytest.mark.parametrize("user", ["nobody", str(NOBODY.pw_uid)])
def test_root_becomes_an_unprivileged_user(user: str, keep: int) -> None:
    found = drop(user, "", keep)
    assert found["ids"] == [NOBODY.pw_uid] * 3 + [NOBODY.pw_gid] * 3
    assert found["groups"] == [NOBODY.pw_gid]
    assert found["own"] == [keep, keep, 0]
    assert found["child"] == {"CapInh": 0, "CapPrm": 0, "CapEff": 0, "CapBnd": 0, "CapAmb": 0}
    assert found["no_new_privs"] == 1
    assert found["bounding"] == found["dumpable"] == 0
    assert found["dies_with_parent"]


@ROOT_ONLY
def test_a_group_and_a_user_known_by_number_alone() -> None:
    found = drop("54321", "mail")
    assert found["ids"] == [54321] * 3 + [8] * 3
    assert found["groups"] == [8]


@ROOT_ONLY
def test_root_without_a_user_is_left_without_capabilities() -> None:
    found = drop("", "")
    assert found["ids"] == [0] * 6
    assert found["own"] == [0, 0, 0]
    assert found["child"] == {"CapInh": 0, "CapPrm": 0, "CapEff": 0, "CapBnd": 0, "CapAmb": 0}


@ROOT_ONLY
def test_a_user_stays_itself_and_cannot_become_another() -> None:
    assert drop("nobody", "", first="nobody")["ids"] == [NOBODY.pw_uid] * 3 + [NOBODY.pw_gid] * 3
    assert drop("", "", first="nobody")["own"] == [0, 0, 0]
    assert drop("mail", "", first="nobody")["error"] == (
        "cannot become user mail, group 8: Operation not permitted; "
        "start as root, or leave set_user and set_group empty"
    )
    assert "CAP_NET_RAW is missing" in str(drop("nobody", "", NET_RAW, first="nobody")["error"])


def test_who_is_meant() -> None:
    assert identity("", "") == Identity(os.geteuid(), os.getegid(), "")
    assert identity("nobody", "") == Identity(NOBODY.pw_uid, NOBODY.pw_gid, "nobody")
    assert identity("nobody", "mail") == Identity(NOBODY.pw_uid, 8, "nobody")
    assert identity("54321", "12345") == Identity(54321, 12345, "")


@pytest.mark.parametrize(
    ("user", "group", "words"),
    [
        ("no-such-user", "", "set_user no-such-user: there is no such user"),
        ("54321", "", "set_user 54321: there is no such user"),
        ("", "no-such-group", "set_group no-such-group: there is no such group"),
        ("4294967295", "0", "the highest number is 4294967294"),
    ],
)
def test_who_is_not_there(user: str, group: str, words: str) -> None:
    with pytest.raises(PrivilegeError, match=words):
        identity(user, group)
