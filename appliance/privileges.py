"""How a daemon gives up what it was started with: identity, groups, capabilities, and the way back to them.

A worker calls `drop` once, before it starts a thread (capabilities belong to threads) and before it reads a
byte from the network. The supervisor uses `identity` to tell whether the user exists, it and
appliance-ctl use `acting_as` to look and write with that user's rights. Nothing here asks for
more rights than the process has, and nothing is believed: what was given up is read back.
"""

import contextlib
import grp
import os
import pwd
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from appliance import process, seccomp

_HIGHEST = 0xFFFFFFFE  # the next one means "leave unchanged" to setresuid(2)


class PrivilegeError(Exception):
    """Says in one line what could not be given up, and what to do."""


class Identity(NamedTuple):
    """Whom to become; `name` is empty for a user known by number alone."""

    uid: int
    gid: int
    name: str


def identity(user: str, group: str) -> Identity:
    """Find a user and a group by name or number; empty: what the process is, or the user's own group.

    Raises PrivilegeError when there is none.
    """
    uid, gid, name = os.geteuid(), os.getegid(), ""
    if user:
        try:
            entry = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
            uid, gid, name = entry.pw_uid, entry.pw_gid, entry.pw_name
        except (KeyError, OverflowError):
            if not user.isdecimal() or not group:
                raise PrivilegeError(
                    f"set_user {user}: there is no such user; create it or name another"
                ) from None
            uid = int(user)
    if group:
        try:
            gid = int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
        except KeyError:
            raise PrivilegeError(
                f"set_group {group}: there is no such group; create it or name another"
            ) from None
    if max(uid, gid) > _HIGHEST:
        raise PrivilegeError(f"set_user {uid}, set_group {gid}: the highest number is {_HIGHEST}")
    return Identity(uid, gid, name)


@contextlib.contextmanager
def acting_as(owner: Identity) -> Iterator[None]:
    """Have the kernel judge by another user's rights, and files made be theirs; only root can become another.

    Anybody else is taken for the user already. Not for a process with threads.
    """
    if os.geteuid() != 0 or owner.uid == 0:
        yield
        return
    group, groups = os.getegid(), os.getgroups()
    try:
        os.setgroups(os.getgrouplist(owner.name, owner.gid) if owner.name else [owner.gid])
        os.setegid(owner.gid)
        os.seteuid(owner.uid)
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)


def drop(user: str, group: str, keep: int = 0, root: Path | None = None) -> None:
    """Become `user` and `group` for good, with the capabilities whose bits are to `keep`, shut up in `root`.

    Raw sockets cannot be made any more, whatever is kept, where the kernel has seccomp filters. User and
    group may be names or numbers; empty ones stay as they are, and even root is left without capabilities.
    Programs started later inherit nothing. Raises PrivilegeError when anything is left over.
    """
    if threading.active_count() > 1:
        raise PrivilegeError(
            "privileges cannot be dropped: a thread was started before; report this as a bug"
        )
    target = identity(user, group)
    groups = os.getgrouplist(target.name, target.gid) if target.name else []  # read before /etc is gone
    if keep & ~process.capabilities()[1] & 1 << process.CAP_NET_RAW:
        raise PrivilegeError("CAP_NET_RAW is missing, which tproxy modes need; start as root or grant it")
    dies_with_parent = process.death_signal()
    try:
        if keep:
            process.prctl(process.PR_SET_KEEPCAPS, 1)
        if root:
            os.chroot(root)
            os.chdir("/")
        _empty_bounding_set()
        _become(target, groups, changes_user=bool(user), changes_group=bool(user or group))
        process.set_capabilities(keep)
        process.prctl(process.PR_CAP_AMBIENT, process.PR_CAP_AMBIENT_CLEAR_ALL)
        process.prctl(process.PR_SET_KEEPCAPS, 0)
        process.prctl(process.PR_SET_NO_NEW_PRIVS, 1)
        seccomp.allow_plain_sockets_alone()
        process.prctl(process.PR_SET_DUMPABLE, 0)  # its memory holds people's mail: no core file, no ptrace
        process.prctl(process.PR_SET_PDEATHSIG, dies_with_parent)  # forgotten with the old identity
    except OSError as error:
        raise PrivilegeError(
            f"cannot become user {user or target.uid}, group {group or target.gid}"
            f"{f', in {root}' if root else ''}: {error.strerror}; "
            f"start as root, or leave set_user{', chroot_path' if root else ''} and set_group empty"
        ) from None
    _verify(target, keep)


def _become(target: Identity, groups: list[int], *, changes_user: bool, changes_group: bool) -> None:
    if os.getresuid() == (target.uid,) * 3 and os.getresgid() == (target.gid,) * 3 and target.uid:
        return  # started as that user: the groups are the ones it was given
    if changes_group:
        os.setgroups(groups or ([target.gid] if changes_user else [*os.getgroups(), target.gid]))
        os.setresgid(target.gid, target.gid, target.gid)
    if changes_user:
        os.setresuid(target.uid, target.uid, target.uid)


def _empty_bounding_set() -> None:
    for capability in range(process.CAP_LAST + 1):
        # EINVAL: beyond the last one this kernel knows. EPERM: not root, and then no_new_privs has to do.
        with contextlib.suppress(OSError):
            process.prctl(process.PR_CAPBSET_DROP, capability)


def _verify(target: Identity, keep: int) -> None:
    if os.getresuid() != (target.uid,) * 3 or os.getresgid() != (target.gid,) * 3:
        raise PrivilegeError(f"the identity is {os.getresuid()}, {os.getresgid()}, not what was asked for")
    if target.uid and process.capabilities() != (keep, keep, 0):
        raise PrivilegeError(f"capabilities {process.capabilities()} are left over; report this as a bug")
    if process.LINUX and not process.prctl(process.PR_GET_NO_NEW_PRIVS):
        raise PrivilegeError("no_new_privs did not take effect; this kernel is too old")
    if not target.uid:
        return
    with contextlib.suppress(OSError):
        os.setresuid(0, 0, 0)
        raise PrivilegeError("root could be had back after it was given up; report this as a bug")
