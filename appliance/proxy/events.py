"""Events: what a client did to be locked out for, and what follows, the lock file and the administrator's
script.

Checks and admission report events here; how a lock is kept is `locks.py`'s business, how the script runs
`action.py`'s.
"""

import time

from appliance.proxy.action import Event
from appliance.proxy.service import Service
from appliance.proxy.visit import Visit


def report(
    visit: Visit,
    name: str,
    found: str,
    cause: str,
    *,
    virus_name: str = "",
    spam_score: float = 0.0,
    spool_name: str = "",
) -> None:
    """A client did `found` (as the script is told), which is the event `name` of lock_on; `cause` goes into
    the lock.

    The script runs once for a lock, when it is made; where this event locks nobody, each time.
    """
    service, config = visit.service, visit.service.config
    lock_file = _lock(service, name, visit.client.address, visit.ident, cause)
    if lock_file is None or config.action_script is None:
        return
    session, target = visit.session, visit.target
    service.scripts.run(
        config.action_script,
        Event(
            proxy_name=config.proxy_name,
            found=found,
            virus_name=virus_name,
            spam_score=spam_score,
            source_ip=visit.client.address,
            source_port=visit.client.port,
            target_ip=target.address if target else "",
            target_port=target.port if target else 0,
            local_ip=visit.local.address,
            local_port=visit.local.port,
            ident=visit.ident,
            ident_count=service.clients.sessions(visit.client.address, visit.ident) if visit.ident else 0,
            helo=_text(session.helo) if session else "",
            mail_from=_text(session.mail_from) if session else "",
            rcpts_total=session.recipients if session else 0,
            size=session.message_size if session else 0,
            transaction=session.transactions if session else 0,
            auth=session.auth if session else 0,
            spool_name=spool_name,
            lock_file=lock_file,
            lock_duration=config.lock_duration,
            unixtime=int(visit.since),
        ),
        service.script_limits,
    )


def report_fanout(service: Service, address: str, servers: int) -> None:
    """A client addressed about that many mail servers, more than fanout_limit, as the gate counts them.

    There is no connection to tell of: the gate sees them from outside. The script runs if this locks.
    """
    config = service.config
    cause = f"FANOUT about {servers} mail servers in {config.fanout_period} s"
    lock_file = _lock(service, "fanout", address, "", cause)
    if lock_file and config.action_script:
        service.scripts.run(
            config.action_script,
            Event(
                proxy_name=config.proxy_name,
                found="FANOUT",
                source_ip=address,
                source_port=0,
                local_ip="",
                local_port=0,
                lock_file=lock_file,
                lock_duration=config.lock_duration,
                unixtime=int(time.time()),
            ),
            service.script_limits,
        )


def _lock(service: Service, name: str, address: str, ident: str, cause: str) -> str | None:
    """Lock a client out if the event `name` does that; give the file, "" if it does not, None if locked."""
    if not service.config.lock_duration or name not in service.config.lock_on:
        return ""
    try:
        made = service.locks.create(address, ident, cause)
    except OSError as error:
        service.log.err("LOCK:FAILED", src=address, why=error)
        made = None
    if made is None:
        return None
    service.log.notice("LOCK:CREATED", lock=made, src=address, ident=ident, cause=cause)
    return str(made)


def _text(said: bytes) -> str:
    return said.decode("utf-8", "replace")
