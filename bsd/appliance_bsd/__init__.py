"""What the gateway needs on BSD systems: modes pf, ipfilter and ipfw, and the locks as a table of pf.

The gateway finds these as entry points once the distribution is installed and imports nothing of it by name.
"""
