"""The device's half: runs what lies before the cut, sends what passes, and returns the answer.

near = Near(Bundle.read(Path("out/split")), 3, connect(("server.local", 7707)))
scores = near(photograph)
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from equipoise.batch import Inputs
from equipoise.errors import EquipoiseError, must_be
from equipoise.halves.coding import OUTPUT, unpacked
from equipoise.halves.pair import Bundle, first
from equipoise.halves.wire import ANSWER, ECHO, REQUEST, Link, receive, send, until


class Near:
    """One cut of a bundle, loaded on the device; call it with inputs (N, ...).

    Args:
        bundle: What was exported.
        number: Of the cut.
        connection: To the server (`wire.connect`); several cuts may share one, one at a time.
        link: What the connection is to be shaped to, for measuring; None for the line as it is.
        batch: Samples of each request where that is fixed; None for any.
    Raises:
        InputError: There is no such cut.
    """

    def __init__(
        self, bundle: Bundle, number: int, connection: socket.socket, *, link: Link | None = None, batch: int | None = None
    ) -> None:
        if number not in bundle.pairs:
            cuts = ", ".join(map(str, bundle.pairs)) or "none: the whole model runs on the device"
            raise must_be("number", f"of a cut ({cuts})", number, "See Bundle.pairs.")
        self._pair, self._connection, self._link = bundle.pairs[number], connection, link
        self._session = first(self._pair, bundle.device, batch)

    def __call__(self, inputs: Inputs) -> NDArray[Any]:
        """Return the answers (N, ...).

        Raises:
            EquipoiseError: The server refuses, or is not there.
        """
        body = self._pair.begin(self._session, inputs)
        return unpacked(OUTPUT, self._asked(REQUEST, body))["output"]

    def echo(self, size: int) -> float:
        """Return the seconds until so many bytes were answered by none: what the link itself takes."""
        began = time.perf_counter()
        self._asked(ECHO, bytes(size))
        return time.perf_counter() - began

    def _asked(self, kind: int, body: bytes) -> bytes:
        try:
            send(self._connection, kind, self._pair.number, body, self._link)
            frame = receive(self._connection)
        except OSError as error:
            raise EquipoiseError(f"the server does not answer: {error}") from error
        if self._link is not None:
            until(time.perf_counter() + self._link.rtt / 2)
        if frame is None or frame[0] != ANSWER:
            raise EquipoiseError(f"the server refuses: {frame[2].decode(errors='replace') if frame else 'it has closed'}")
        return frame[2]


@contextmanager
def server(folder: Path) -> Iterator[tuple[str, int]]:
    """Run the server's half of a folder as a process of its own on this machine; gives its address.

    Raises:
        EquipoiseError: It does not start; its last words are in the message.
    """
    package = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])}
    command = [sys.executable, "-P", "-m", "equipoise.halves.far", str(folder), "--port", "0", "--with-parent"]
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        line = process.stdout.readline().decode()
        if not line.startswith("listening on "):
            words = process.communicate()[1].decode(errors="replace").strip().splitlines()
            raise EquipoiseError(f"the server's half did not start: {words[-1] if words else 'no message'}")
        try:
            yield "127.0.0.1", int(line.rsplit(":", 1)[1])
        finally:
            process.stdin.close()  # by which it ends
