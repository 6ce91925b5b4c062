"""A server that listens at a free port, and a client that goes away while it is answered."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import uvicorn


@contextmanager
def listening(app: Any) -> Iterator[int]:
    """Serve an application in another thread; yield its port."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


async def sent_until(response: Any, most: int) -> list[Any]:
    """Send a response to a client that goes away after so many messages. Returns those that were sent."""
    sent: list[Any] = []
    gone = anyio.Event()

    async def receive() -> dict[str, str]:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)
        if len(sent) == most:
            gone.set()

    await response({"type": "http", "method": "POST", "path": "/", "headers": []}, receive, send)
    return sent
