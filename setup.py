"""Builds the package: with SMTP_GATEWAY_COMPILE=1, the modules that all mail passes through as machine code.

mypyc translates them as they stand, with the types that mypy has checked, so that there is one source and one
behaviour. What else there is to say about the package stands in pyproject.toml.
"""

import os

from setuptools import setup

COMPILED = [
    "appliance/proxy/session/client.py",
    "appliance/proxy/session/command.py",
    "appliance/proxy/session/content.py",
    "appliance/proxy/session/message.py",
    "appliance/proxy/session/reply.py",
    "appliance/proxy/session/server.py",
    "appliance/proxy/session/state.py",
    "appliance/proxy/session/takeover.py",
    "appliance/proxy/session/verdict.py",
    "appliance/proxy/session/xclient.py",
    "appliance/log.py",
    "appliance/proxy/admission.py",
    "appliance/proxy/checks/__init__.py",
    "appliance/proxy/checks/auth.py",
    "appliance/proxy/checks/base.py",
    "appliance/proxy/checks/earlytalk.py",
    "appliance/proxy/checks/journal.py",
    "appliance/proxy/checks/loop.py",
    "appliance/proxy/checks/ratelimit.py",
    "appliance/proxy/checks/regex.py",
    "appliance/proxy/clients.py",
    "appliance/proxy/connection.py",
    "appliance/proxy/deadlines.py",
    "appliance/proxy/dialog.py",
    "appliance/proxy/doorway.py",
    "appliance/proxy/inspection.py",
    "appliance/proxy/ledger.py",
    "appliance/proxy/locks.py",
    "appliance/proxy/message.py",
    "appliance/proxy/quota.py",
    "appliance/proxy/relay.py",
    "appliance/proxy/scoreboard.py",
    "appliance/proxy/service.py",
    "appliance/proxy/spool.py",
    "appliance/proxy/streams.py",
    "appliance/proxy/talkers.py",
    "appliance/proxy/visit.py",
]

extensions = []
if os.environ.get("SMTP_GATEWAY_COMPILE") == "1":
    from mypyc.build import mypycify

    extensions = mypycify(COMPILED, opt_level="3", debug_level="0")

setup(ext_modules=extensions)
