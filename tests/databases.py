"""A PostgreSQL server of a test's own, on a socket in its own folder; nothing listens on a port."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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
