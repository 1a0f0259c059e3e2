"""The session's tests are run twice: on the sources, and on what mypyc makes of them."""

import os
from pathlib import Path

from appliance.proxy.session import server

CHECKOUT = Path(__file__).parents[3]


def test_the_build_under_test_is_the_one_that_was_asked_for() -> None:
    wanted = os.environ.get("GATEWAY_PATH")
    assert Path(server.__file__).is_relative_to(wanted or CHECKOUT / "appliance")
    assert Path(server.__file__).suffix == (".so" if wanted else ".py")
