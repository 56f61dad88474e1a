"""The tables of a walk, filled as far as their share of the time reaches: a probe for each choice, an entry for each operator.

A probe that fails takes its choice off the menu, and is told; one that found no time is predicted from those that did. Which of
them found time depends on recorded durations alone, so that a replay decides the same.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from equipoise import runtimes
from equipoise.errors import StoreError
from equipoise.road import sensitivity
from equipoise.road.probing import FIRST_SAMPLES, LEAST, Change, Loss, Prober, calibrated, unsure
from equipoise.search import Knob, LossTable, Space, loss_table
from equipoise.stats import median

if TYPE_CHECKING:
    from equipoise.records import Choice
    from equipoise.road.walk import Road

TABLE_SHARE = 0.3
"""Share of the time left after the baseline that the loss table may take."""
TIMES_SHARE = 0.1
"""The same for the layer times, of all targets together."""
GUESS_SHARE = 0.2
"""Share of the loss table's time that is kept for estimating what there is no time to read."""
GUESS_COST = 0.5
"""An estimate's share of the time of a reading."""
CALIBRATING = 4
"""Readings of each kind that estimates are put on scale by."""

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
    return Tables(space, loss_table(space, known, errors=LEAST / 2), features)


def _probe(
    road: Road, todo: Sequence[tuple[Knob, Choice]], until: float
) -> tuple[Losses, dict[tuple[str, Choice], str], float]:
    """Read the entries in order while they fit; return the losses, what failed and why, and the seconds that all would take.

    Where all fit, those that cannot be told apart are read on more samples while there is time; else the rest is estimated.
    """
    prober = sensitivity.prober(road.bench)
    changes = {(knob.name, choice): sensitivity.change_of(road.bench, prober, knob, choice) for knob, choice in todo}
    kinds = {(knob.name, choice): knob.kind for knob, choice in todo}
    read: dict[tuple[str, Choice], Loss] = {}
    failed: dict[tuple[str, Choice], str] = {}
    took: dict[str, list[float]] = {}
    kept_s = GUESS_SHARE * (until - road.spent_s)

    def one(key: tuple[str, Choice], samples: int, until: float) -> bool:
        kind = kinds[key]
        expected = median(took[kind]) if kind in took else road.expected("one-shot")
        if road.spent_s + expected > until:
            return False
        more = f"@{samples}" if key in read else ""
        row = road.step("table", f"{key[0]}={key[1]}{more}", _reading(prober, key, changes[key], samples), expected_s=expected)
        if not more:
            took.setdefault(kind, []).append(row["seconds"])
        if row.get("error"):
            failed[key] = row["error"]
        else:
            read[key] = Loss(row["loss"], row["se"], row["samples"])
        return True

    for i, key in enumerate(changes):
        road.tell("tables", f"loss of {key[0]}={key[1]} ({i + 1}/{len(todo)})")
        one(key, FIRST_SAMPLES, until - kept_s)  # one that does not fit is passed over: another kind may be quicker
    left = [key for key in changes if key not in read and key not in failed]
    anyhow = median([s for rows in took.values() for s in rows]) if took else 0.0
    afford = int(kept_s / max(GUESS_COST * anyhow, 1e-9))  # the rest is predicted from its kind
    turns = itertools.zip_longest(*([k for k in read if kinds[k] == kind][:CALIBRATING] for kind in took))
    known = [key for turn in turns for key in turn if key is not None][: afford // 2]
    some = {key: changes[key] for key in [*known, *left][:afford]} if known else {}
    guessed = _guessed(road, prober, some, read, kinds) if left and some else {}
    growing = True
    while growing and (keys := [] if left else unsure(read, most=prober.most)):
        for key in keys:
            growing = one(key, 2 * read[key].samples, until)
            if not growing or key in failed:
                growing = False
                break
    seconds = sum(median(took[k.kind]) if k.kind in took else anyhow for k, _ in todo)
    return {key: loss.mean for key, loss in (read | guessed).items() if key not in failed}, failed, seconds


def _reading(prober: Prober, key: tuple[str, Choice], change: Change, samples: int) -> Callable[[], Mapping[str, Any]]:
    """Return the step that reads one entry; what goes wrong in it is its result."""

    def read() -> Mapping[str, Any]:
        found: dict[str, Any] = {"knob": key[0], "choice": key[1], "samples": samples}
        try:
            loss = sensitivity.loss_of(prober, change, samples=samples)
        except (KeyboardInterrupt, StoreError):
            raise
        except BaseException as error:  # noqa: BLE001 - a probe runs the user's model: what fails is told, and left as it is
            return {**found, "loss": None, "error": sensitivity.one_line(error)}
        if not math.isfinite(loss.mean):
            return {**found, "loss": None, "error": f"its loss is {loss.mean}"}
        return {**found, "loss": loss.mean, "se": loss.error, "samples": loss.samples}

    return read


def _guessed(
    road: Road,
    prober: Prober,
    changes: Mapping[tuple[str, Choice], Change],
    read: Mapping[tuple[str, Choice], Loss],
    kinds: Mapping[tuple[str, Choice], str],
) -> dict[tuple[str, Choice], Loss]:
    """Estimate what was not read, on the scale of what was; nothing where the model cannot be estimated."""
    road.tell("tables", "estimate of losses that there was no time to read")

    def guess() -> Mapping[str, Any]:
        try:
            found = calibrated(prober.estimate(changes), read, kinds)
        except Exception as error:  # noqa: BLE001 - a backward pass through the user's model: without it they are predicted
            return {"estimated": [], "error": sensitivity.one_line(error)}
        return {"estimated": [[*key, loss.mean, loss.error] for key, loss in found.items() if math.isfinite(loss.mean)]}

    rows = road.step("guess", str(len(read)), guess)["estimated"]
    by_text = {(name, str(choice)): (name, choice) for name, choice in changes}
    return {by_text[name, str(choice)]: Loss(mean, error, 0) for name, choice, mean, error in rows}


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
