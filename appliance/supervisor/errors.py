"""The one way a start fails."""


class StartError(Exception):
    """Says in one line what keeps the gateway from starting, where, and what to do."""
