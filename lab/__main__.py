"""python -m lab: a lab with a gateway, Postfix and scanners to walk about in, until ctrl-C."""

import signal
import sys

from lab.demo import Demonstration
from lab.image import ImageError
from lab.network import Network
from lab.process import LabError

ENDS = {signal.SIGINT, signal.SIGTERM}

try:
    with Network() as network:
        demonstration = Demonstration(network)
        for host in network.hosts:
            print(f"{host.name:8} {host.shell}")
        print(
            f"mail     swaks --server {demonstration.postfix.ipv4} --to alice@example.test   (on the client)"
        )
        file = demonstration.gateway.file
        print(f"tool     .venv/bin/appliance-ctl --config {file} status   (on the router)")
        print(f"files    {network.directory}")
        print("ctrl-C ends it", flush=True)
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)  # no handler, which processes begun here would inherit
        signal.sigwait(ENDS)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDS)
except KeyboardInterrupt:
    pass
except (LabError, ImageError) as error:
    sys.exit(str(error))
