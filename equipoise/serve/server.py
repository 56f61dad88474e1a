"""What listens: a bound socket, and uvicorn with a limit that it lacks, on how long a connection may ask for nothing."""

from __future__ import annotations

import socket
import time
from typing import Any

import uvicorn

from equipoise.errors import must_be

IDLE_S = 15.0
"""Seconds after which a connection without a request is closed, be it silent or slow with its headers."""


class Server(uvicorn.Server):
    """Closes connections on which no request has begun for `idle_s`: uvicorn waits for headers for ever."""

    def __init__(self, config: uvicorn.Config, idle_s: float = IDLE_S) -> None:
        super().__init__(config)
        self.idle_s = idle_s
        self._idle: dict[Any, tuple[Any, float]] = {}

    async def on_tick(self, counter: int) -> bool:
        """Look at the connections; called ten times a second."""
        now, idle = time.monotonic(), dict[Any, tuple[Any, float]]()
        for each in self.server_state.connections:
            last = getattr(each, "cycle", None)  # its last request: another one than a moment ago where it came and went since
            if last is None or last.response_complete:
                was = self._idle.get(each, (None, now))
                idle[each] = was if was[0] is last else (last, now)
        self._idle = idle
        for each, (_, since) in idle.items():
            if now - since > self.idle_s:
                each.transport.close()
        return await super().on_tick(counter)


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that is bound.

    Raises:
        InputError: The address is no address of this machine, or the port is taken.
    """
    made = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        made = socket.socket(family, kind, protocol)  # named, or asyncio lets each answer wait 40 ms for more to send
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as error:
        if made is not None:
            made.close()
        raise must_be("port", "free on this machine's address", f"{host}:{port}", f"{error.strerror}: take another.") from error
    return made
