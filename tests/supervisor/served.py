"""A server of the supervisor, served by an event loop in a thread, while a test is its client."""

import asyncio
import threading

from appliance.supervisor.control import ControlSocket
from appliance.supervisor.http import MetricsServer


class Served:
    """A server that is open from the beginning to `close`, which ends what still waits for its clients."""

    def __init__(self, server: ControlSocket | MetricsServer) -> None:
        self._server = server
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(server.open(), self._loop).result(10)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.01))
        self._loop.close()
