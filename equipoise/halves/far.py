"""The server's half: ``python -m equipoise.halves.far FOLDER`` answers what devices send, over a private protocol.

A request is the number of a cut and what passes there; its answer are the outputs of the model. What is malformed is refused
in words, and the server goes on; after a frame that is none, that connection is closed. One request runs at a time.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sys
import threading
from pathlib import Path

import numpy as np

from equipoise.errors import EquipoiseError, must_be
from equipoise.halves.coding import OUTPUT, packed
from equipoise.halves.pair import Bundle, load
from equipoise.halves.wire import ANSWER, ECHO, PATIENCE_S, REFUSAL, REQUEST, receive, send
from equipoise.runtimes.base import Session

MOST_CONNECTIONS = 16


class Far:
    """The halves behind the cuts of a bundle, loaded; `answer` may be called from several threads.

    Args:
        bundle: What was exported.
        batch: Samples of each request where that is fixed, for runtimes that plan ahead; None for any.
    Raises:
        InputError: No pick is cut, so that there is no half.
    """

    def __init__(self, bundle: Bundle, *, batch: int | None = None) -> None:
        if not bundle.pairs:
            remedy = "There is no half to serve: the whole model runs on the device."
            raise must_be("folder", "of a split in which something is sent", f"{bundle.name}, all on the device", remedy)
        self._pairs = bundle.pairs
        self._sessions: dict[int, Session] = {n: load(pair.server, bundle.server, batch) for n, pair in bundle.pairs.items()}
        self._turn = threading.Lock()

    def answer(self, kind: int, number: int, body: bytes) -> tuple[int, bytes]:
        """Return kind and body of what is to be sent back."""
        if kind == ECHO:
            return ANSWER, b""
        try:
            if kind != REQUEST or number not in self._pairs:
                raise EquipoiseError(f"there is no cut {number}; there are {', '.join(map(str, self._pairs))}")
            with self._turn:
                found = self._pairs[number].end(self._sessions[number], body)
            return ANSWER, packed(OUTPUT, {"output": np.asarray(found, np.float32)})
        except Exception as error:  # noqa: BLE001 - a runtime may raise anything of what a stranger sends: the others are served
            return REFUSAL, str(error)[:400].encode()

    def converse(self, connection: socket.socket) -> None:
        """Answer one device until it leaves."""
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.settimeout(PATIENCE_S)
            try:
                while (frame := receive(connection)) is not None:
                    kind, body = self.answer(*frame)
                    send(connection, kind, frame[1], body)
            except (OSError, EquipoiseError) as error:
                with contextlib.suppress(OSError):  # it may have left
                    send(connection, REFUSAL, 0, str(error)[:400].encode())


def serve(far: Far, listener: socket.socket) -> None:
    """Answer whoever connects, `MOST_CONNECTIONS` at a time, until the listener is closed."""
    places = threading.BoundedSemaphore(MOST_CONNECTIONS)

    def converse(connection: socket.socket) -> None:
        try:
            far.converse(connection)
        finally:
            places.release()

    while True:
        places.acquire()
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=converse, args=(connection,), daemon=True).start()


def main(argv: list[str] | None = None) -> None:
    """Serve a folder; the address is told on standard output once all is loaded. What keeps it from that is one line."""
    parser = argparse.ArgumentParser(prog="python -m equipoise.halves.far", description=__doc__)
    parser.add_argument("folder", type=Path, help="what `equipoise split --out` wrote")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1); there is no encryption")
    parser.add_argument("--port", type=int, default=7707, help="port (7707); 0 takes a free one")
    parser.add_argument("--with-parent", action="store_true", help="end when standard input ends")
    args = parser.parse_args(argv)
    if not 0 <= args.port < 2**16:
        parser.error(f"--port must be from 0 to 65535; got {args.port}")
    try:
        bundle = Bundle.read(args.folder)
        far = Far(bundle, batch=bundle.server.batch)
        listener = socket.create_server((args.host, args.port))
    except EquipoiseError as error:
        sys.exit(f"{parser.prog}: {error}")
    except OSError as error:
        sys.exit(f"{parser.prog}: {args.host}:{args.port} must be an address to listen on: {error}")
    with listener:
        print(f"listening on {args.host}:{listener.getsockname()[1]}", flush=True)
        if args.with_parent:
            threading.Thread(target=_end_with_parent, daemon=True).start()
        serve(far, listener)


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    main()
