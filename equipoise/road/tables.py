"""The tables of a walk, filled as far as their share of the time reaches: a probe for each choice, an entry for each operator.

A probe that fails takes its choice off the menu, and is told; one that found no time is predicted from those that did. Which of
them found time depends on recorded durations alone, so that a replay decides the same.
"""

from __future__ import annotations

import math
import time as clock
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from equipoise import runtimes
from equipoise.batch import call, size
from equipoise.errors import StoreError
from equipoise.road import sensitivity
from equipoise.search import Knob, LossTable, Space, loss_table
from equipoise.stats import median
from equipoise.workloads.running import one_thread

if TYPE_CHECKING:
    from equipoise.records import Choice
    from equipoise.road.walk import Road

TABLE_SHARE = 0.3
"""Share of the time left after the baseline that the loss table may take."""
TIMES_SHARE = 0.1
"""The same for the layer times, of all targets together."""
PASS_SAMPLES = 32
"""Samples of the forward pass from which the pace of the model is read."""

Losses = dict[tuple[str, "Choice"], float]


@dataclass(frozen=True)
class Tables:
    """What the predicted front is solved from.

    Attributes:
        space: The walk's space, without the choices whose probe failed or of which nothing is known.
        losses: The one-knob losses.
        features: Runtime name -> features of its layer times.
    """

    space: Space
    losses: LossTable
    features: Mapping[str, sensitivity.Features]


def tables(road: Road) -> Tables:
    """Measure the tables within their share, leave out what cannot be tried, and record how far they reached."""
    room = road.left() - road.reserve
    todo = sensitivity.choices(road.space, _macs(road), _places(road))
    until = road.spent_s + TABLE_SHARE * room
    losses, failed, probes_s = _probe(road, todo, until)
    space, known = offered(road.space, losses, failed)
    layers = tuple(sensitivity.layers(road.bench, space))
    features = {}
    for target in road.targets:
        road.tell("tables", f"layer times on {target.runtime}")
        seconds = min(max(2.0, min(20.0, road.limit_s / 60)), max(0.5, TIMES_SHARE * room / len(road.targets)))

        def measure(t: Any = target, s: float = seconds) -> dict[str, Any]:
            times, untimed = sensitivity.layer_times(road.bench, t, layers, seconds=s)
            return {"times": times, "failed": untimed}

        times = road.step("lut", str(target), measure, expected_s=2 * seconds)["times"]
        precisions = tuple(runtimes.get(target.runtime).precisions)
        features[target.runtime] = sensitivity.Features(layers, sensitivity.completed(times, layers, precisions), precisions)
    road.extent(entries=len(todo), read=len(losses) + len(failed), seconds=probes_s)
    return Tables(space, loss_table(space, known, errors=1e-4), features)


def _probe(
    road: Road, todo: Sequence[tuple[Knob, Choice]], until: float
) -> tuple[Losses, dict[tuple[str, Choice], str], float]:
    """Read the entries in order while they fit; return the losses, what failed and why, and the seconds that all would take."""
    samples = _samples(road, len(todo), until - road.spent_s)
    losses: Losses = {}
    failed: dict[tuple[str, Choice], str] = {}
    took: dict[str, list[float]] = {}
    for i, (knob, choice) in enumerate(todo):
        expected = median(took[knob.kind]) if knob.kind in took else road.expected("one-shot")
        if road.spent_s + expected > until:
            continue  # another kind may be quicker
        road.tell("tables", f"loss of {knob.name}={choice} ({i + 1}/{len(todo)})")
        read = _reading(road, knob, choice, samples)
        row = road.step("table", f"{knob.name}={choice}", read, expected_s=expected)
        took.setdefault(knob.kind, []).append(row["seconds"])
        if row.get("error"):
            failed[knob.name, choice] = row["error"]
        else:
            losses[knob.name, choice] = row["loss"]
    anyhow = median([s for rows in took.values() for s in rows]) if took else 0.0
    return losses, failed, sum(median(took[k.kind]) if k.kind in took else anyhow for k, _ in todo)


def _reading(road: Road, knob: Knob, choice: Choice, samples: int) -> Callable[[], Mapping[str, Any]]:
    """Return the step that reads one entry; what goes wrong in it is its result."""

    def read() -> Mapping[str, Any]:
        found: dict[str, Any] = {"knob": knob.name, "choice": choice, "samples": samples}
        try:
            loss = sensitivity.loss_of(road.bench, knob, choice, samples=samples)
        except (KeyboardInterrupt, StoreError):
            raise
        except BaseException as error:  # noqa: BLE001 - a probe runs the user's model: what fails is told, and left as it is
            return {**found, "loss": None, "error": sensitivity.one_line(error)}
        return {**found, "loss": loss} if math.isfinite(loss) else {**found, "loss": None, "error": f"its loss is {loss}"}

    return read


def _samples(road: Road, entries: int, seconds: float) -> int:
    """Validation samples for one probe, so that at this model's pace all entries fit into half of `seconds`, within limits."""

    def time_it() -> dict[str, float]:
        inputs = road.work.validation.take(PASS_SAMPLES).tensors()[0]
        with one_thread(), torch.inference_mode():
            call(road.bench.teacher, inputs)
            began = clock.perf_counter()
            call(road.bench.teacher, inputs)
        return {"sample_s": (clock.perf_counter() - began) / size(inputs)}

    pace = road.step("pace", "teacher", time_it)["sample_s"]
    most = seconds / 2 / max(1, entries) / max(pace, 1e-9)
    return int(min(sensitivity.PROBE_SAMPLES, max(sensitivity.FEWEST_SAMPLES, most)))


def offered(space: Space, losses: Losses, failed: Mapping[tuple[str, Choice], str]) -> tuple[Space, Losses]:
    """Return the space without what cannot be tried, and the losses with what was not read predicted where the menu needs it.

    A failed choice leaves its menu. A knob of which nothing was read is given the losses typical of its kind at the same share
    taken away; where nothing is known of its kind either it is left as it is.
    """
    menus: dict[str, tuple[Choice, ...]] = {}
    known = dict(losses)
    for knob in space.knobs:
        if knob.kind == "runtime":
            known.update({(knob.name, c): 0.0 for c in knob.menu[1:]})
            continue
        menu = tuple(c for c in knob.menu if (knob.name, c) not in failed)
        if len(menu) > 1 and not any((knob.name, c) in losses for c in menu):
            guesses = _typical(space, losses, Knob(knob.name, menu))
            menu = menu if guesses else menu[:1]
            known.update(guesses)
        if not knob.nested:
            menu = (menu[0], *(c for c in menu[1:] if (knob.name, c) in known))
        menus[knob.name] = menu
    return space.restrict(menus), known


def _typical(space: Space, losses: Losses, knob: Knob) -> Losses:
    """The losses that the choices of `knob` have on other knobs of its kind; empty where none was read."""
    kin = {k.name: k for k in space.knobs if k.kind == knob.kind}
    read = [(kin[name], choice, loss) for (name, choice), loss in losses.items() if name in kin]
    if not read:
        return {}
    if not knob.nested:
        return {(knob.name, c): median([loss for _, _, loss in read]) for c in knob.menu[1:]}
    steep = median([loss / _gone(k, choice) ** 2 for k, choice, loss in read if k.nested])
    return {(knob.name, c): steep * _gone(knob, c) ** 2 for c in knob.menu[1:]}


def _gone(knob: Knob, choice: Choice) -> float:
    """Share of a nested knob that a choice takes away."""
    return 1.0 - float(choice) / float(knob.menu[0])


def _macs(road: Road) -> dict[str, float]:
    """MACs of each layer, as the baseline counted them."""
    return {row["name"]: float(row["macs"]) for row in road.evaluations[0].details.get("layers", ()) if row.get("macs")}


def _places(road: Road) -> dict[str, tuple[str, ...]]:
    """Group name -> the layers that make or read its channels."""
    return {g.name: (*g.producers, *g.consumers) for g in road.bench.pruner.groups}
