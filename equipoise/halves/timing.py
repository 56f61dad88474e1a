"""The halves timed: each alone, and the model end to end as two processes with the link between them.

Both are races in fresh processes (`measure.race`) on the folder that ships. End to end each process of the race is a device,
and starts a server of its own.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from equipoise.batch import Inputs, mapped, size, take
from equipoise.halves.near import Near, server
from equipoise.halves.pair import HERE, Bundle, Pair, first, load
from equipoise.halves.wire import Link, connect
from equipoise.measure.latency import Call
from equipoise.measure.loads import Load
from equipoise.measure.race import Race, race

DEVICE, SERVER = "device", "server"
ECHO = "link"
PATIENCE = 3.0
REQUESTS = 4
"""Different requests that are asked in turn."""


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
    asked = _requests(bundle)
    return {HERE: _whole(bundle, asked)} | {
        f"{number} {side}": half(bundle, bundle.pairs[number], asked)
        for number in options["numbers"]
        for side, half in ((DEVICE, _device), (SERVER, _server))
    }


def ends(folder: Path, options: Mapping[str, Any]) -> dict[str, Load]:
    """Return the loads of cuts over a link; the server's half runs as long as this process."""
    bundle = Bundle.read(folder)
    asked, link = _requests(bundle), Link(options["uplink"], options["rtt"])
    running = contextlib.ExitStack()
    atexit.register(running.close)
    connection = connect(running.enter_context(server(folder)))
    running.callback(connection.close)

    def split(number: int) -> Load:
        return lambda: _turns(Near(bundle, number, connection, link=link, batch=bundle.device.batch), asked)

    def echo() -> Call:
        near = Near(bundle, next(iter(bundle.pairs)), connection, link=link)
        return lambda: near.echo(options["echo"])

    return {HERE: _whole(bundle, asked), ECHO: echo, **{str(number): split(number) for number in options["numbers"]}}


def _requests(bundle: Bundle) -> list[Inputs]:
    """Some requests: what passes is longer for one than for another, and every contender is asked them in turn."""
    batch = bundle.device.batch
    rows = (np.arange(batch) + number * batch for number in range(REQUESTS))
    return [mapped(take(bundle.probe, some % size(bundle.probe)), np.ascontiguousarray) for some in rows]


def _turns(answer: Callable[[Any], object], asked: Sequence[Any]) -> Call:
    """Return what answers the next request, from copies of its own: where they lie belongs to a load."""
    turn = itertools.cycle([mapped(each, np.copy) if not isinstance(each, bytes) else each for each in asked])
    return lambda: answer(next(turn))


def _whole(bundle: Bundle, asked: Sequence[Inputs]) -> Load:
    return lambda: _turns(load(bundle.whole, bundle.device, bundle.device.batch).run, asked)


def _device(bundle: Bundle, pair: Pair, asked: Sequence[Inputs]) -> Load:
    return lambda: _turns(partial(pair.begin, first(pair, bundle.device, bundle.device.batch)), asked)


def _server(bundle: Bundle, pair: Pair, asked: Sequence[Inputs]) -> Load:
    begin = first(pair, bundle.device, bundle.device.batch)
    bodies = [pair.begin(begin, request) for request in asked]
    return lambda: _turns(partial(pair.end, load(pair.server, bundle.server, bundle.server.batch)), bodies)
