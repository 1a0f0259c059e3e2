"""The benchmark: how much mail passes the gateway, next to a blind relay and to no relay at all.

`make bench` runs it. Nothing in the product uses it, and no test depends on its figures.
"""
