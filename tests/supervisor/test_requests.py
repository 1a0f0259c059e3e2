"""What is asked over the control socket: what is refused before any worker hears of it."""

import asyncio
from typing import cast

import pytest

from appliance.log import Log
from appliance.supervisor.control import Refused, Request
from appliance.supervisor.requests import Gateway, Requests


@pytest.mark.parametrize(
    "request_",
    [
        {"do": "nothing"},
        {"do": "clients", "by": "name"},
        *({"do": "clients", "most": most} for most in (0, -1, 1001, 1.5, True, "5", None)),
        {"do": "client", "address": "nobody"},
        {"do": "client"},
    ],
)
def test_what_makes_no_sense_is_refused(request_: Request) -> None:
    requests = Requests(cast("Gateway", None), cast("Log", None))
    with pytest.raises(Refused) as refused:
        asyncio.run(requests.answer(request_))
    assert refused.value.code == "usage"
