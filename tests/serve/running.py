"""A server that runs in a thread of the tests, and a client of it."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from typing import Any

import uvicorn
from ladders import ladder

from equipoise.serve.app import Limits, application
from equipoise.serve.engine import Engine
from equipoise.serve.server import LOGGING, Server, capped

LIMITS = Limits(body_bytes=20_000, rows=8, body_s=0.5, drain_s=5.0)
INFER = "/v2/models/sums/infer"


class Served:
    """A running server and what stands behind it."""

    def __init__(self, *seconds: float, slo_s: float = 5.0, token: str = "", http: Any = None, **more: Any) -> None:
        made, self.sums = ladder(*seconds)
        self.engine = Engine(made, slo_s, 1000)
        self.app = application(self.engine, name="sums", limits=LIMITS, token=token)
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        config = uvicorn.Config(self.app, log_config=LOGGING, log_level="error", lifespan="on", http=capped(http), **more)
        self.server = Server(config, idle_s=1.0)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listening]}, daemon=True)

    def __enter__(self) -> Served:
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
        """Return status, content and headers of an answer."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)) as to:
            content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            to.request(method, path, content, {name.replace("_", "-"): value for name, value in headers.items()})
            found = to.getresponse()
            text = found.read()
            told = json.loads(text) if text and "json" in (found.headers["content-type"] or "") else text
            return found.status, told, {k.lower(): v for k, v in found.headers.items()}


def request(rows: int = 1, value: float = 1.0, **more: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "input", "datatype": "FP32", "shape": [rows, 3], "data": [value] * 3 * rows}], **more}
