"""Start the clients of a federation as processes on this machine, and start those again that died."""

from __future__ import annotations

import json
import secrets
import ssl
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from equipoise.errors import must_be
from equipoise.federated.client import Client
from equipoise.federated.members import cuts_for, members
from equipoise.federated.messages import Message
from equipoise.federated.served import Served
from equipoise.federated.terms import Faults, Terms
from equipoise.federated.transport import Reply
from equipoise.records import as_data
from equipoise.training import Recipe
from equipoise.verbs.train import built
from equipoise.workloads import load_family, load_task
from equipoise.workloads.families import Scale


@dataclass
class Processes:
    """A transport whose clients are processes that it starts.

    Attributes:
        served: Where they come to.
        given: Client -> what it is started with.
        folder: Where what they say is written: ``clients/NUMBER.log``.
    """

    served: Served
    given: Mapping[int, Mapping[str, Any]]
    folder: Path
    _running: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    @classmethod
    def started(
        cls,
        family: str,
        task: str,
        scale: Scale,
        terms: Terms,
        recipe: Recipe,
        *,
        folder: Path,
        tls: tuple[Path, Path] | None = None,
    ) -> Processes:
        """Listen, and return the transport; the clients are started when they are first asked.

        Args:
            family, task: Names, which every client loads for itself; of the training split it reads its own part.
            tls: Files of the server's certificate and key; clients trust that certificate alone.
        """
        context = None
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            try:
                context.load_cert_chain(*tls)
            except (OSError, ssl.SSLError) as error:
                raise must_be("tls", "files of a certificate and its key", tls, f"{error}.") from error
        tokens = {client: secrets.token_urlsafe(32) for client in terms.able}
        served = Served.listening(tokens, tls=context)
        common = {
            "url": f"{'http' if tls is None else 'https'}://127.0.0.1:{served.port}",
            "authority": None if tls is None else str(tls[0]),
            "family": family,
            "task": task,
            "scale": dict(scale),
            "terms": as_data(terms),
            "recipe": as_data(recipe),
            "folder": str(folder / "clients"),
        }
        found = cls(served, {c: {**common, "client": c, "token": token} for c, token in tokens.items()}, folder / "clients")
        served.gone = found.gone
        return found

    def ask(self, asked: Mapping[int, Message], *, most: int, limit_s: float) -> dict[int, Reply]:
        """Start whoever does not run, and ask."""
        for client in asked:
            if client not in self._running or self._running[client].poll() is not None:
                self._running[client] = self._start(client)
        return self.served.ask(asked, most=most, limit_s=limit_s)

    def gone(self, client: int) -> str:
        """Return why a client cannot answer: its process has ended."""
        code = self._running[client].poll()
        return "" if code is None else f"its process ended with code {code}"

    def _start(self, client: int) -> subprocess.Popen[bytes]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{client}.log").open("ab") as log:
            command = [sys.executable, "-m", "equipoise.federated.remote"]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log)
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(self.given[client]).encode())  # on a command line others could read the token
            process.stdin.close()
        except BrokenPipeError:
            pass  # it has ended already, which asking it will show
        return process

    def close(self) -> None:
        """Let the clients go, and end those that stay."""
        self.served.close()
        for process in self._running.values():
            process.terminate()
        for process in self._running.values():
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def client_of(given: Mapping[str, Any]) -> Client:
    """Return the client that a process was started as."""
    data = dict(given["terms"])
    terms = Terms(**{**data, "scales": tuple(data["scales"]), "faults": Faults(**data["faults"])})
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in given["recipe"].items()}
    recipe = Recipe(**values)
    family = load_family(given["family"])
    task = family.prepared(load_task(given["task"], family=family))
    cuts = cuts_for(terms, task, built(family, given["scale"], task, terms.seed))
    number = int(given["client"])
    return members(terms, task, cuts, recipe, folder=Path(given["folder"]), of=[number])[number]
