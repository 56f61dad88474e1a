"""A page that follows a study while it is walked: the report's own picture, read from the record and never written to it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from equipoise.errors import EquipoiseError, StoreError, must_be
from equipoise.pages import render, waiting
from equipoise.ship.export import folder_of
from equipoise.ship.report import told
from equipoise.study.record import header_of
from equipoise.study.store import Store
from equipoise.units import counted, show

LOOK_S = 1.0
"""Seconds between two looks at the record, for each page that is open."""
_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY"}


@dataclass(frozen=True)
class Pulse:
    """How far a study is: `mark` changes with the record, `says` is for its reader."""

    mark: str
    says: str


def pulse(store: Store) -> Pulse:
    """Return how far the study is."""
    rows = store.count("evaluation")
    mark = f"{rows}.{store.count('final')}.{store.count('asking')}"
    spent, walker = show(store.spent(), "s"), store.walker()
    state = f"{walker} is at work" if walker else "nobody is at work"
    try:
        asked = f" of {show(header_of(store).time_s, 's')}"
    except StoreError:
        asked = ""
    return Pulse(mark, f"{counted(rows, 'evaluation')}, {spent}{asked} spent; {state}.")


def watching(study: str | Path, *, host: str = "127.0.0.1", port: int = 0) -> ThreadingHTTPServer:
    """Return a server of the page of a study, bound and ready: call its ``serve_forever``.

    Args:
        study: Its folder or address.
        host: Where it listens; the page shows the study to whoever reaches it.
        port: 0 for any that is free.
    Raises:
        InputError: No study there, or the port is taken.
    """
    folder = folder_of(study)
    with Store.open(folder, create=False, readonly=True):
        pass  # what is no study is told now
    try:
        server = ThreadingHTTPServer((host, port), _handler(folder))
    except OSError as error:
        raise must_be("port", "free", port, f"{error.strerror or error}: give another --port.") from error
    server.daemon_threads = True
    return server


def page(folder: Path) -> str:
    """Return the page of the study in `folder` as it is now."""
    with Store.open(folder, create=False, readonly=True) as store:
        mark = pulse(store).mark
    try:
        return render(told(folder)[0], live=mark)
    except StoreError:
        return waiting(str(folder), live=mark)


def _handler(folder: Path) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """``/``: the page; ``/events``: its pulse, as Server-Sent Events."""

        def do_GET(self) -> None:
            pages: dict[str, Callable[[], None]] = {"/": self._page, "/events": self._events}
            answer = pages.get(self.path.partition("?")[0])
            if answer is None:
                self.send_error(404)
                return
            try:
                answer()
            except (BrokenPipeError, ConnectionResetError):
                pass  # the page was closed
            except EquipoiseError as error:
                self.send_error(503, "the study cannot be read", str(error))

        def _page(self) -> None:
            content = page(folder).encode()
            self._begin("text/html; charset=utf-8", len(content))
            self.wfile.write(content)

        def _events(self) -> None:
            with Store.open(folder, create=False, readonly=True) as store:
                self._begin("text/event-stream")
                while True:
                    now = pulse(store)
                    self.wfile.write(f"data: {json.dumps({'mark': now.mark, 'says': now.says})}\n\n".encode())
                    self.wfile.flush()
                    time.sleep(LOOK_S)

        def _begin(self, kind: str, length: int | None = None) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            for name, value in _HEADERS.items():
                self.send_header(name, value)
            if length is not None:
                self.send_header("Content-Length", str(length))
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads a line for each look."""

    return Handler
