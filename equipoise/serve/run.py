"""A process that serves: the ladder made ready, a server in front of it, and an end at which nothing that was taken is lost."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from equipoise.errors import missing_extra
from equipoise.runtimes.base import check_threads
from equipoise.serve import interpreter
from equipoise.serve.engine import Engine
from equipoise.serve.ladder import Alone, Ladder, at_once, ladder
from equipoise.serve.reload import Reload
from equipoise.ship.deploy.ladder import served_name

if TYPE_CHECKING:
    from fastapi import FastAPI

CONNECTIONS = 1024
"""Connections at once; further ones are told 503."""
QUEUED = 64
"""Times the largest batch that may wait."""


def serve(
    sources: Sequence[Path],
    *,
    slo_s: float,
    share: float,
    least: tuple[str, float] | None,
    name: str | None,
    host: str,
    port: int,
    threads: int,
    batch: int,
    token: str,
    certificate: Path | None,
    key: Path | None,
    body_bytes: int,
) -> None:
    """Serve a study, or artifacts of one model, until the process is told to end; on SIGHUP, what is newer of it.

    Args:
        sources: See `ladder`.
        slo_s, share: Seconds within which this share of the requests is to be answered.
        least: ``("quality", Q)`` or ``("drop", D)``: how far down the ladder may go.
        name: The model's name in addresses; None takes the study's.
        token: What clients must show; empty asks for nothing.
        certificate, key: PEM files; with both it speaks HTTPS.
    Raises:
        InputError: See `ladder`; no rung that is quick enough, a port that is taken, or more threads than cores.
        MissingExtraError: FastAPI or uvicorn are not installed.
    """
    try:
        import uvicorn

        from equipoise.serve.app import Limits, application
        from equipoise.serve.server import IDLE_S, LOGGING, Server, capped, listening
    except ImportError as error:
        raise missing_extra(error.name or "fastapi", "serve") from error
    check_threads(threads, name="threads")
    batches = _batches(batch)

    bound = listening(host, port)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda *_: _say("the front is being read already"))

    def read(alone: Alone, old: Ladder | None = None) -> Ladder:
        return ladder(
            sources, threads=threads, batches=batches, share=share, slo_s=slo_s, tell=_say, least=least, alone=alone, old=old
        )

    made = read(at_once)
    named = served_name(made.name) if name is None else _plain(name)
    for line in made.lines:
        _say(line)
    limits = Limits(body_bytes=body_bytes, rows=batches[-1])
    engine = Engine(made, slo_s, QUEUED * batches[-1], told=_say)
    app = application(engine, name=named, limits=limits, token=token, ready=lambda: not server.should_exit)
    config = uvicorn.Config(  # errors alone are logged: a line for each request that is refused would be one more load
        app, http=capped(), ws="none", log_config=LOGGING, log_level="error", access_log=False, server_header=False,
        ssl_certfile=certificate, ssl_keyfile=key, limit_concurrency=CONNECTIONS,
        timeout_keep_alive=int(IDLE_S), timeout_graceful_shutdown=int(limits.drain_s),
    )  # fmt: skip
    server = Server(config)
    at, scheme = bound.getsockname()[:2], "https" if certificate else "http"
    _say(f"{named} is served at {scheme}://{at[0]}:{at[1]}/v2/models/{named}/infer")
    for told in (signal.SIGTERM, signal.SIGINT):  # raised again by the server once all is answered: a good end
        signal.signal(told, lambda *_: None)
    newer = Reload(engine, lambda alone: read(alone, engine.latest), _say)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda *_: newer.begin())
    with interpreter.shared():
        server.run(sockets=[bound])


def application_of(
    sources: Sequence[str | Path], *, slo_s: float, name: str, share: float = 0.99, threads: int = 1, batch: int = 16
) -> FastAPI:
    """Return what `serve` would serve as an ASGI application, for a server that somebody else runs, such as Ray Serve.

    Args:
        sources, slo_s, share, name, threads: As for `serve`.
        batch: Requests answered at once at most.
    Raises:
        InputError: As `serve`.
    """
    from equipoise.serve.app import Limits, application

    batches = _batches(batch)
    folders = [Path(source) for source in sources]
    made = ladder(folders, threads=threads, batches=batches, share=share, slo_s=slo_s, tell=_say)
    engine = Engine(made, slo_s, QUEUED * batches[-1], told=_say)
    return application(engine, name=_plain(name), limits=Limits(rows=batches[-1]))


def _batches(most: int) -> list[int]:
    """Return the powers of two up to `most`."""
    return [2**step for step in range(most.bit_length()) if 2**step <= most]


def _plain(name: str) -> str:
    """Return a name as part of an address."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-") or "model"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
