"""A network of hosts on one machine, with real mail servers, scanners and clients: see `lab.network`."""
