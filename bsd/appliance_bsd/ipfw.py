"""The address at which the connection was accepted, which a fwd rule of ipfw leaves as it is: mode ipfw."""

from appliance.proxy.lookup.getsockname import Getsockname


class Ipfw(Getsockname):
    """For connections that a fwd rule on this machine handed to the gateway."""
