"""A PostgreSQL server of a test's own, on a socket in its own folder; nothing listens on a port."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path


def programs() -> Path | None:
    """Return the folder of initdb and pg_ctl, or None where PostgreSQL is not installed."""
    homes = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True)
    here = shutil.which("initdb")
    return next(
        (home for home in [*([Path(here).resolve().parent] if here else []), *homes] if (home / "pg_ctl").exists()), None
    )


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        folder: Of its data and its socket.
        connections: At most.
    """

    folder: Path
    connections: int = 200

    def address(self, study: str = "") -> str:
        """Address of its database, or of a study there."""
        return f"postgresql:///postgres?host={self.folder}&user=postgres" + (f"#{study}" if study else "")

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = f"-c listen_addresses='' -c unix_socket_directories={self.folder} -c max_connections={self.connections}"
        self._control("start", "-w", "-l", str(self.folder / "log"), "-o", options)

    def stop(self, mode: str = "fast") -> None:
        """Stop it: ``immediate`` is what a power cut leaves."""
        self._control("stop", "-m", mode)

    def _control(self, *words: str) -> None:
        home = programs()
        assert home is not None, "it was started"
        run_as_postgres([str(home / "pg_ctl"), "-D", str(self.folder / "data"), *words])


class Line:
    """A way to a server that a test can cut and hold: a socket in a folder of its own, whose ends are joined piece by piece.

    Attributes:
        through: Cleared, nothing passes and nothing is refused, as where a network is parted.
        pieces: How many came from the clients.
    """

    def __init__(self, server: Server, folder: Path) -> None:
        self._far, self._folder = server.folder / ".s.PGSQL.5432", folder
        self.through, self.pieces = threading.Event(), 0
        self.through.set()
        self._cut_at, self._unanswered, self._mute = 0, False, False
        self._open: list[socket.socket] = []
        self._near = socket.socket(socket.AF_UNIX)
        self._near.bind(str(folder / ".s.PGSQL.5432"))
        self._near.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def address(self, study: str) -> str:
        """Address of a study over this way."""
        return f"postgresql:///postgres?host={self._folder}&user=postgres#{study}"

    def cut_at(self, piece: int, *, unanswered: bool) -> None:
        """Cut all connections at the nth piece from now on: it is lost, or `unanswered` its answer is; 0 cuts none."""
        self._unanswered, self._cut_at = unanswered, self.pieces + piece

    def close(self) -> None:
        """Let all go."""
        self.through.set()
        self._near.close()
        self._drop()

    def _drop(self) -> None:
        while self._open:
            with suppress(OSError):
                self._open.pop().shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._near.accept()
                far = socket.socket(socket.AF_UNIX)
                far.connect(str(self._far))
                self._open += [near, far]
                threading.Thread(target=self._pass, args=(near, far, True), daemon=True).start()
                threading.Thread(target=self._pass, args=(far, near, False), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket, from_client: bool) -> None:
        with suppress(OSError), one:
            while piece := one.recv(1 << 16):
                self.through.wait()
                self.pieces += from_client
                if from_client and self.pieces == self._cut_at:
                    self._cut_at, self._mute = 0, self._unanswered
                    if not self._mute:
                        self._drop()
                        return
                elif self._mute and not from_client:
                    self._mute = False
                    self._drop()
                    return
                other.sendall(piece)
        with suppress(OSError):
            other.shutdown(socket.SHUT_RDWR)


@contextmanager
def line_to(server: Server) -> Iterator[Line]:
    """Give a way to a server that can be cut."""
    with tempfile.TemporaryDirectory(prefix="eq-line-", dir="/tmp") as name:
        line = Line(server, Path(name))
        try:
            yield line
        finally:
            line.close()


def run_as_postgres(command: list[str]) -> None:
    """Run a program of the server's; it refuses to be root."""
    prefix = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    done = subprocess.run([*prefix, *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd="/", check=False)
    assert done.returncode == 0, done.stderr.decode()


@contextmanager
def served(connections: int = 200) -> Iterator[Server]:
    """Give a fresh server; its folder is short, as the name of a socket must be."""
    home = programs()
    assert home is not None, "look at `programs` first"
    with tempfile.TemporaryDirectory(prefix="eq-pg-", dir="/tmp") as name:
        if os.getuid() == 0:
            shutil.chown(name, "postgres")
        run_as_postgres([str(home / "initdb"), "-D", f"{name}/data", "-A", "trust", "-U", "postgres", "--no-sync"])
        server = Server(Path(name), connections)
        server.start()
        try:
            yield server
        finally:
            server.stop("immediate")
