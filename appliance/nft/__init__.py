"""The kernel's rules: which connections come to the gateway, which are dropped, which pass by.

`ruleset` turns a configuration into nftables JSON and asks nobody; `installer` makes the kernel agree with
it, in the network namespace it runs in. Called by `appliance.ctl`, and for the lock sets by the supervisor.
Nothing here knows the proxy.
"""
