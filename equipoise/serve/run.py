"""A process that serves: the ladder made ready, a server in front of it, and an end at which nothing that was taken is lost."""

from __future__ import annotations

import re
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from equipoise.errors import missing_extra, must_be
from equipoise.runtimes.cpu import cores
from equipoise.serve.engine import Engine
from equipoise.serve.ladder import ladder

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
    """Serve a study, or artifacts of one model, until the process is told to end.

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
    except ImportError as error:
        raise missing_extra(error.name or "fastapi", "serve") from error
    if threads > cores():
        raise must_be("threads", f"at most {cores()}, the cores here", threads, "Lower it.")
    batches = [2**step for step in range(batch.bit_length()) if 2**step <= batch]
    made = ladder(sources, threads=threads, batches=batches, share=share, tell=_say, least=least)
    named = re.sub(r"[^A-Za-z0-9_.-]+", "-", made.name if name is None else name).strip("-") or "model"
    for rung, cost in zip(made.rungs, made.costs, strict=True):
        _say(f"{rung.name}: {made.metric} {rung.quality}, drop {rung.drop}, {1e3 * cost.usual[1]:.3g} ms here")
    quickest = min(cost.most[1] for cost in made.costs)
    if quickest > slo_s:
        raise must_be("slo", f"above the {1e3 * quickest:.3g} ms of the quickest rung here", slo_s, "Allow more time.")
    listening = _listening(host, port)
    limits = Limits(body_bytes=body_bytes, rows=batches[-1])
    engine = Engine(made, slo_s, QUEUED * batches[-1], told=_say)
    app = application(engine, name=named, limits=limits, token=token, ready=lambda: not server.should_exit)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_keep_alive=30, limit_concurrency=CONNECTIONS,
        ssl_certfile=certificate, ssl_keyfile=key, timeout_graceful_shutdown=int(limits.drain_s),
    )  # fmt: skip
    server = uvicorn.Server(config)
    at, scheme = listening.getsockname()[:2], "https" if certificate else "http"
    _say(f"{named} is served at {scheme}://{at[0]}:{at[1]}/v2/models/{named}/infer")
    for told in (signal.SIGTERM, signal.SIGINT):  # raised again by the server once all is answered: a good end
        signal.signal(told, lambda *_: None)
    server.run(sockets=[listening])


def _listening(host: str, port: int) -> socket.socket:
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
    except OSError as error:
        if made is not None:
            made.close()
        raise must_be("port", "free on this machine's address", f"{host}:{port}", f"{error.strerror}: take another.") from error
    return made


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
