"""The halves timed: each alone, and the model end to end as two processes with the link between them.

Both are races in fresh processes (`measure.race`) on the folder that ships. End to end each process of the race is a device,
and starts a server of its own.
"""

from __future__ import annotations

import atexit
import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from equipoise.batch import Inputs, mapped, size, take
from equipoise.halves.near import Near, server
from equipoise.halves.pair import HERE, Bundle, first, load
from equipoise.halves.wire import Link, connect
from equipoise.measure.loads import Load
from equipoise.measure.race import Race, race

DEVICE, SERVER = "device", "server"
ECHO = "link"
PATIENCE = 3.0


def race_parts(bundle: Bundle, *, seconds: float, seed: int = 0) -> Race:
    """Race the halves of every cut beside the whole model on the device; packing and unpacking count.

    Returns:
        Contenders ``here``, ``N device`` and ``N server``, for each number N of a cut.
    """
    numbers = list(bundle.pairs)
    return race(
        "equipoise.halves.timing:parts", bundle.files(), {"numbers": numbers}, baseline=HERE, seconds=seconds,
        patience=PATIENCE, seed=seed,
    )  # fmt: skip


def race_link(bundle: Bundle, numbers: Iterable[int], link: Link, *, echo: int, seconds: float, seed: int = 0) -> Race:
    """Race cuts end to end over a link, beside the whole model on the device.

    Args:
        echo: Bytes that are sent to and fro with no work at all, to see what the link takes.
    Returns:
        Contenders ``here``, ``link`` and the cuts by their numbers.
    """
    options = {"numbers": list(numbers), "uplink": link.uplink, "rtt": link.rtt, "echo": echo}
    return race(
        "equipoise.halves.timing:ends", bundle.files(), options, baseline=HERE, seconds=seconds, patience=PATIENCE, seed=seed
    )


def parts(folder: Path, options: Mapping[str, Any]) -> dict[str, Load]:
    """Return the loads of the halves in `folder`: what a fresh process calls."""
    bundle = Bundle.read(folder)
    request = _request(bundle)
    return {HERE: _whole(bundle, request)} | {
        f"{number} {side}": half(bundle, number, request)
        for number in options["numbers"]
        for side, half in ((DEVICE, _device), (SERVER, _server))
    }


def ends(folder: Path, options: Mapping[str, Any]) -> dict[str, Load]:
    """Return the loads of cuts over a link; the server's half runs as long as this process."""
    bundle = Bundle.read(folder)
    request, link = _request(bundle), Link(options["uplink"], options["rtt"])
    running = contextlib.ExitStack()
    atexit.register(running.close)
    connection = connect(running.enter_context(server(folder)))
    running.callback(connection.close)

    def split(number: int) -> Load:
        def loaded() -> Any:
            near = Near(bundle, number, connection, link=link, batch=size(request))
            own = mapped(request, np.copy)
            return lambda: near(own)

        return loaded

    def echo() -> Any:
        near = Near(bundle, next(iter(bundle.pairs)), connection, link=link)
        return lambda: near.echo(options["echo"])

    return {HERE: _whole(bundle, request), ECHO: echo, **{str(number): split(number) for number in options["numbers"]}}


def _request(bundle: Bundle) -> Inputs:
    return mapped(take(bundle.probe, np.arange(bundle.device.batch) % size(bundle.probe)), np.ascontiguousarray)


def _whole(bundle: Bundle, request: Inputs) -> Load:
    def loaded() -> Any:
        session, own = load(bundle.whole, bundle.device, size(request)), mapped(request, np.copy)
        return lambda: session.run(own)

    return loaded


def _device(bundle: Bundle, number: int, request: Inputs) -> Load:
    pair = bundle.pairs[number]

    def loaded() -> Any:
        session, own = first(pair, bundle.device, size(request)), mapped(request, np.copy)
        return lambda: pair.begin(session, own)

    return loaded


def _server(bundle: Bundle, number: int, request: Inputs) -> Load:
    pair = bundle.pairs[number]
    body = pair.begin(first(pair, bundle.device, size(request)), request)

    def loaded() -> Any:
        session, own = load(pair.server, bundle.server, size(request)), bytes(bytearray(body))
        return lambda: pair.end(session, own)

    return loaded
