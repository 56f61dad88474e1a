"""What listens: a bound socket, and uvicorn with limits that it lacks, on a request's head and on how long none may come."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol
from uvicorn.protocols.http.h11_impl import H11Protocol

from equipoise.errors import must_be

LOGGING = None
"""Uvicorn's configuration of the log. With its own it would close all handlers of the process, and some close their streams."""

IDLE_S = 15.0
"""Seconds after which a connection without a request is closed, be it silent or slow with its headers."""

HEAD_BYTES, PIECE = 2**16, 2**14
"""Bytes of a request's address and headers, or of what stands around its chunks; and of what is taken in between two looks."""
REFUSED = b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class Joined:
    """A transport that sends the head of an answer with what follows it, where each alone would be a call and a packet.

    Attributes:
        held: What came and is not looked at yet; nothing more is read before it is.
    """

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._soon, self._head, self.held = transport, loop.call_soon, b"", b""
        self.is_closing = transport.is_closing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Keep a head back until the next write, or a moment where none follows."""
        if self._head:
            data, self._head = self._head + data, b""
        elif data.startswith(b"HTTP/"):
            self._head = data
            self._soon(self._flush)
            return
        self._send(data)

    def resume_reading(self) -> None:
        """Read on, unless something is held: uvicorn asks for it at each answer, however many requests wait behind that."""
        if not self.held and not self.is_closing():
            self._transport.resume_reading()

    def close(self) -> None:
        """Send what is kept back, and close."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._send(head)

    def _send(self, data: bytes) -> None:
        if not self.is_closing():  # the client hung up: nobody hears it, and uvloop would raise
            self._transport.write(data)


def capped(http: type[asyncio.Protocol] | None = None) -> type[asyncio.Protocol]:
    """Return uvicorn's class for a connection with a limit on the bytes of a head and on requests behind one that is not
    answered, both of which it gathers without end.

    Args:
        http: Of its classes, the one to limit; None takes the one that it would take.
    """
    base: Any = AutoHTTPProtocol if http is None else http

    class InPieces(base):  # type: ignore[misc]
        """Looks at what comes a piece at a time, as a read may hold a quarter of a megabyte; at none while a request waits."""

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(Joined(transport, self.loop))

        def data_received(self, data: bytes) -> None:
            self.transport.held += data
            self.look()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.transport.held:
                self.look()
                if not self.flow.read_paused:
                    self.transport.resume_reading()

        def look(self) -> None:
            """Look at what is held, up to where a request is here whole and waits for its answer."""
            data, self.transport.held = self.transport.held, b""
            for start in range(0, len(data), PIECE):
                if self.transport.is_closing():
                    return
                if self.waits():
                    self.transport.held = data[start:]
                    self.transport.pause_reading()
                    return
                self.piece_received(data[start : start + PIECE])

        def waits(self) -> bool:
            """Whether a request that is here whole is not answered yet; of a piece there may be several."""
            last = self.cycle
            whole = last is not None and not last.more_body and not last.response_complete
            return whole or bool(getattr(self, "pipeline", ()))

        def piece_received(self, piece: bytes) -> None:
            super().data_received(piece)

    class Counted(InPieces):
        """Counts what comes between the parts of a request that httptools tells of."""

        untold = 0

        def piece_received(self, piece: bytes) -> None:
            self.untold += len(piece)
            super().piece_received(piece)
            if self.untold > HEAD_BYTES and not self.transport.is_closing():
                self.transport.write(REFUSED)
                self.transport.close()

        def on_headers_complete(self) -> None:
            self.untold = 0
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            self.untold = 0
            super().on_body(body)

        def on_message_complete(self) -> None:
            self.untold = 0
            super().on_message_complete()

    return InPieces if issubclass(base, H11Protocol) else Counted  # h11 counts by itself: 64 kB, looked at after each read


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
    except (socket.gaierror, UnicodeError) as error:  # the latter of what is no name, as a..b
        raise must_be("host", "an address of this machine", host, "Its name leads to no address.") from error
    except OSError as error:
        if made is not None:
            made.close()
        raise must_be("port", "free on this machine's address", f"{host}:{port}", f"{error.strerror}: take another.") from error
    return made
