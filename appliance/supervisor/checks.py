"""What is looked at before the gateway starts, so that it starts well or says in one line what to do.

The supervisor calls these at a start, `obstacles` and `warnings` again at a reload. Directories that are only
missing are made here; nothing else is changed. What options have to do with each other is judged by
`appliance.config`.
"""

import asyncio
import contextlib
import errno
import functools
import os
import resource
import shlex
from collections.abc import Iterator
from pathlib import Path

from appliance import language, process
from appliance.config import Config, SocketAddress
from appliance.log import SOCKETS
from appliance.privileges import Identity, PrivilegeError, acting_as, identity
from appliance.proxy import scanners

_DESCRIPTORS = 64  # of a worker without sessions, generously
_DESCRIPTORS_OF_SESSION = 5  # client, server, copy, and a scanner's connection or a script's
_ANY_NUMBER = 1 << 32  # of sessions, where max_connections sets no limit
_READ_ONLY = os.strerror(errno.EROFS)
_NAME_IT = "; a unit of systemd has to name it in ReadWritePaths= (systemctl edit smtp-gated)"


def obstacles(config: Config) -> list[str]:
    """Say what would keep a gateway with this configuration from working, each thing in one line."""
    try:
        who = identity(config.set_user, config.set_group)
    except PrivilegeError as error:
        return [str(error)]
    found = [*_capabilities(config, who)]
    return found or [*_directories(config, who)]


def warnings(config: Config) -> list[str]:
    """Say what works, but hardly as it is meant."""
    found = []
    who = identity(config.set_user, config.set_group)
    if who.uid == 0:
        found.append("set_user: the workers run as root, which breaks locking; name another user")
    needed, allowed = descriptors(config), resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if config.max_connections and allowed != resource.RLIM_INFINITY and allowed < needed:
        found.append(
            f"max_connections {config.max_connections}: may need {needed} open files, of which the system "
            f"allows {allowed}; raise the hard limit (ulimit -Hn, LimitNOFILE=)"
        )
    if config.mode != "tproxy" and not process.owns(str(config.outgoing_addr)):
        found.append(
            f"outgoing_addr {config.outgoing_addr}: no address of this machine, so no mail server can be "
            "reached from it; name one that it has, or leave it out"
        )
    script = config.action_script
    if script and not _runnable(config.outside(script), who):
        found.append(
            f"action_script {script}: no program that {_name(who)} may run; no event will start it; "
            "correct its name or its permissions"
        )
    if not language.is_known(config.locale):
        found.append(f"locale {config.locale}: this system does not have it (locale -a lists them); unused")
    if config.log_target == "journal" and not Path(SOCKETS["journal"]).is_socket():
        found.append(f"log_target journal: nothing listens at {SOCKETS['journal']}; choose another target")
    return found


def _runnable(program: Path, who: Identity) -> bool:
    with acting_as(who):
        return os.path.isfile(program) and os.access(program, os.X_OK, effective_ids=True)  # noqa: PTH113


def descriptors(config: Config) -> int:
    """The most files a worker may have open, should all clients be its own."""
    return _DESCRIPTORS + _DESCRIPTORS_OF_SESSION * (config.max_connections or _ANY_NUMBER)


def absent_scanners(config: Config) -> tuple[list[str], list[str]]:
    """Ask the scanners whether they are there: obstacles to a start, and what is only worth a warning.

    Runs an event loop of its own, which ends the threads that look their names up.
    """
    return asyncio.run(_probe(config))


async def _probe(config: Config) -> tuple[list[str], list[str]]:
    virus, spam = scanners.configured(config, functools.partial(_reached, config))
    why_virus = virus and await virus.probe()
    why_spam = spam and await spam.probe()
    fatal = [why_virus] if why_virus and not config.ignore_errors else []
    return fatal, [why for why in (why_virus, why_spam) if why and why not in fatal]


def _reached(config: Config, address: SocketAddress) -> SocketAddress:
    return SocketAddress(config.outside(address.path)) if address.path else address


def _capabilities(config: Config, who: Identity) -> Iterator[str]:
    mine = process.capabilities()[0]
    if (who.uid, who.gid) != (os.geteuid(), os.getegid()) and not mine >> process.CAP_SETUID & 1:
        yield (
            f"set_user {config.set_user or who.uid}, set_group {config.set_group or who.gid}: "
            "only root can become another user; start as root, or leave both empty"
        )
    if config.chroot_path and not mine >> process.CAP_SYS_CHROOT & 1:
        yield f"chroot_path {config.chroot_path}: only root can do that; start as root, or leave it empty"
    if config.mode.startswith("tproxy") and not mine >> process.CAP_NET_RAW & 1:
        yield f"mode {config.mode}: needs CAP_NET_RAW; start as root, or choose another mode"


def _directories(config: Config, who: Identity) -> Iterator[str]:
    """Make what is missing, complain of what cannot be used; some are for the workers, some for us."""
    me = Identity(os.geteuid(), os.getegid(), "")
    wanted = [
        ("pidfile", config.pidfile.parent, me, 0o755),
        ("statefile", config.statefile.parent, me, 0o755),
        ("spool_path", config.outside(config.spool_path), who, 0o750),
    ]
    if config.lock_on and config.lock_duration:
        wanted.append(("lock_path", config.outside(config.lock_path), who, 0o750))
    if config.ratelimit_period > 0:
        wanted.append(("ratelimit_path", config.outside(config.ratelimit_path), who, 0o750))
    for option, path, owner, mode in wanted:
        try:
            complaint = _directory(path, owner, mode)
        except OSError as error:
            complaint = error.strerror
        if complaint:
            unit = _NAME_IT if complaint == _READ_ONLY else ""
            yield f"{option}: directory {path}: {complaint}; {_remedy(path, owner, mode)}{unit}"


def _directory(path: Path, owner: Identity, mode: int) -> str | None:
    """Make a directory whose parent is there, if need be; say what is wrong with it. Raises OSError."""
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode)
        path.chmod(mode)
        if os.geteuid() == 0:
            os.chown(path, owner.uid, owner.gid, follow_symlinks=False)
    if not path.is_dir():
        return "something else is in its place"
    with acting_as(owner):
        if os.access(path, os.W_OK | os.X_OK, effective_ids=True):
            return None
    return _READ_ONLY if os.statvfs(path).f_flag & os.ST_RDONLY else f"not writable for {_name(owner)}"


def _name(owner: Identity) -> str:
    return f"user {owner.name or owner.uid}"


def _remedy(path: Path, owner: Identity, mode: int) -> str:
    where = shlex.quote(str(path))
    return (
        f"name another, or run: install -d -o {owner.name or owner.uid} -g {owner.gid} -m {mode:04o} {where}"
    )
