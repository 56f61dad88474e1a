"""Questions over HTTP: the server waits on a port, clients come for what they are asked and bring their answers.

A client proves who it is by a token of its own. It asks ``GET /question`` (204: nothing now, 410: it is over) and answers
``POST /answer``. An answer counts once: to the question that is open for this client, in time, and of a bounded length.
"""

from __future__ import annotations

import hmac
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from equipoise.errors import InputError, must_be
from equipoise.federated.messages import Message, packed, unpacked
from equipoise.federated.transport import Reply

SILENT_S = 30.0
"""Seconds that a connection may stay silent."""
HELD_S = 2.0
"""Seconds that a client's question is held open where there is nothing to ask yet."""
LARGEST = 1 << 34


@dataclass
class _Open:
    """A question that waits for its answer."""

    data: bytes
    nonce: str
    most: int
    began: float
    reply: Reply | None = None


@dataclass
class Board:
    """The questions that are open, by client; every access is under one lock."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    open: dict[int, _Open] = field(default_factory=dict)
    over: bool = False
    wire: list[bytes] | None = None
    refused: list[str] = field(default_factory=list)

    def question(self, client: int) -> bytes | None:
        """Return what a client is asked now, waiting a little for it; None where there is nothing."""
        with self.changed:
            self.changed.wait_for(lambda: self.over or self._waiting(client), HELD_S)
            return self.open[client].data if self._waiting(client) else None

    def _waiting(self, client: int) -> bool:
        return client in self.open and self.open[client].reply is None

    def most(self, client: int) -> int:
        """Return how many bytes an answer of a client may have now; 0 where none is waited for."""
        with self.changed:
            return self.open[client].most if self._waiting(client) else 0

    def answer(self, client: int, data: bytes) -> str:
        """Take an answer, and return why it does not count; empty where it does."""
        with self.changed:
            if self.wire is not None:
                self.wire.append(data)
            if not self._waiting(client):
                return self.refuse(client, "nothing is asked of it now: its answer is late, or a second one")
            waiting = self.open[client]
            seconds, down = time.monotonic() - waiting.began, len(waiting.data)
            try:
                message = unpacked(data, most=waiting.most)
                if message.facts.get("nonce") != waiting.nonce:
                    return self.refuse(client, "it answers another question than the one that is open")
                waiting.reply = Reply(message, "", down, len(data), seconds)
            except InputError as error:
                waiting.reply = Reply(None, str(error), down, len(data), seconds)
            self.changed.notify_all()
            return waiting.reply.lost

    def refuse(self, client: int, why: str) -> str:
        """Write down and return why something was refused; the open question stays open."""
        self.refused.append(f"client {client}: {why}")
        return why


@dataclass
class Served:
    """A transport whose clients come over HTTP.

    Attributes:
        server, board: The listening server, in threads of its own, and what is asked.
        gone: Says why a client cannot answer any more, empty while it can; called while answers are waited for.
    """

    server: ThreadingHTTPServer
    board: Board
    gone: Callable[[int], str] = lambda client: ""

    @classmethod
    def listening(
        cls, tokens: Mapping[int, str], *, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
    ) -> Served:
        """Listen on a port (0: a free one) for the clients that hold these tokens.

        Args:
            tokens: Client -> its secret word.
            tls: With a certificate, speak HTTPS. Without it everything but the masked changes can be read on the way.
        Raises:
            InputError: The port cannot be had.
        """
        board = Board()
        try:
            server = ThreadingHTTPServer((host, port), _handler(board, dict(tokens)))
        except OSError as error:
            raise must_be("port", "free", port, f"{error.strerror}: take another, or 0.") from error
        server.daemon_threads = True
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return cls(server, board)

    @property
    def port(self) -> int:
        """Return where it listens."""
        return int(self.server.server_address[1])

    def ask(self, asked: Mapping[int, Message], *, most: int, limit_s: float) -> dict[int, Reply]:
        """Ask all at once and wait for each, until it has answered, is gone, or is late."""
        board, began = self.board, time.monotonic()
        with board.changed:
            board.open = {c: _Open(packed(q), q.facts["nonce"], most, began) for c, q in asked.items()}
            if board.wire is not None:
                board.wire += [waiting.data for waiting in board.open.values()]
            board.changed.notify_all()
            while open_ := [client for client, waiting in board.open.items() if waiting.reply is None]:
                left = began + limit_s - time.monotonic()
                for client in open_:
                    why = self.gone(client) or (f"it was late: more than {limit_s:g} s" if left <= 0 else "")
                    if why:
                        waiting = board.open[client]
                        waiting.reply = Reply(None, why, len(waiting.data), 0, time.monotonic() - began)
                board.changed.wait(max(0.01, min(0.1, left)))
            replies = {client: waiting.reply for client, waiting in board.open.items()}
            board.open = {}
        return {client: reply for client, reply in replies.items() if reply is not None}

    def close(self) -> None:
        """Tell the clients that it is over, and stop listening."""
        with self.board.changed:
            self.board.over = True
            self.board.changed.notify_all()
        time.sleep(0.2)  # who asks right now is told; the others find nobody, which is the same to them
        self.server.shutdown()
        self.server.server_close()


def _handler(board: Board, tokens: dict[int, str]) -> type[BaseHTTPRequestHandler]:
    """Return the class that answers one request."""

    class Handler(BaseHTTPRequestHandler):
        """One request of one client."""

        timeout = SILENT_S
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            client = self.known()
            if client is None:
                return
            data = board.question(client) if self.path == "/question" else None
            self.told(200 if data else 404 if self.path != "/question" else 410 if board.over else 204, data or b"")

        def do_POST(self) -> None:
            client = self.known()
            if client is None:
                return None
            text = self.headers.get("Content-Length", "")
            length, most = int(text) if text.isascii() and text.isdigit() and len(text) < 12 else -1, board.most(client)
            if self.path != "/answer" or length < 0:
                self.close_connection = True
                return self.told(404 if self.path != "/answer" else 411)
            if length > most:
                self.close_connection = True  # what it goes on sending is not read
                why = f"its answer has {length} bytes; {most} at most" if most else "nothing is asked of it now"
                board.refuse(client, why)
                return self.told(413 if most else 409, why.encode())
            data = self.rfile.read(length)
            if len(data) < length:
                self.close_connection = True
                return None
            why = board.answer(client, data)
            return self.told(409 if why else 200, why.encode())

        def known(self) -> int | None:
            """Return the client whose token came along; None where there is none, which is told."""
            given = self.headers.get("Authorization", "").encode()
            for client, token in tokens.items():
                if hmac.compare_digest(given, f"Bearer {token}".encode()):
                    return client
            self.close_connection = True
            self.told(401)
            return None

        def told(self, status: int, body: bytes = b"") -> None:
            self.send_response_only(status)
            self.send_header("Content-Length", str(len(body)))
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Write nothing."""

    return Handler
