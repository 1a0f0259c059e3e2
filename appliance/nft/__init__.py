"""The kernel's rules: which connections come to the gateway, which are dropped, which pass by.

`ruleset` turns a configuration into nftables JSON and imports nothing but the configuration and `names`; `routes`,
`sysctls` and `installer` talk to the kernel of the network namespace they run in. Called by `appliance.ctl` and,
for the lock sets, by the supervisor. Nothing here knows the proxy.
"""
