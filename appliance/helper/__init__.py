"""appliance-helper: the daemon on a router that tells gateways elsewhere where its clients' mail was to go.

The modes `remote` and `remote-udp` of a gateway ask it, by the protocols of `appliance.origin`. It knows what
the router's connection tracking knows, and tells it to the gateways it was told of, and to nobody else. It
knows nothing of SMTP.
"""
