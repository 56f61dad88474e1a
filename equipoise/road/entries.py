"""The entries of the loss table: in which order they are read, and what is made of those that were not."""

from __future__ import annotations

import base64
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from equipoise.records import Choice, Knob
from equipoise.road.facts import TARGET, Facts
from equipoise.search import LossTable, Space, loss_table
from equipoise.stats import median
from equipoise.techniques import TECHNIQUES, Stage

Entry = tuple[Knob, Choice]
Key = tuple[str, Choice]
"""Knob and choice: the name of an entry."""
FIRST_SAMPLES = 64
"""Samples that every change is read on first, and by which a reading grows."""
MOST_SAMPLES = 256
"""Samples beyond which a reading does not grow: ranks settle long before (benchmarks/table_cost.py)."""
LEAST = 2e-4
"""Loss below which losses are not told apart: a loss table calls none of them smaller."""
FARTHEST = 2.0
"""A reading that is more times its score, or less, counts as this many: on few samples one may be next to nothing by chance."""
Losses = dict[tuple[str, Choice], float]


def ordered(space: Space, facts: Facts, macs: Mapping[str, float]) -> list[Entry]:
    """Return every single change that costs quality, an entry of the loss table each, the most telling first.

    The first pass takes the middle of each menu, the second its end, the third what lies between. Within a pass the heaviest
    knob of each kind comes first, from which its kin can be predicted, then the others by what their layers compute. So
    wherever the time ends, what is missing is what matters least.

    Args:
        macs: Layer -> MACs of one sample.
    """
    knobs = [k for k in space.knobs if k.name != TARGET and len(k.menu) > 1]
    weights = {knob.name: sum(macs.get(layer, 0.0) for layer in facts.acted_on(knob.name)) for knob in knobs}
    by_weight = sorted(knobs, key=lambda k: -weights[k.name])  # stable: knobs of equal weight stay in the order of the model
    heads = [next(k for k in by_weight if k.kind == kind) for kind in sorted({k.kind for k in by_weight})]
    by_weight = [*heads, *(k for k in by_weight if k not in heads)]
    passes = [[(k, k.menu[i]) for k in by_weight for i in _pass(len(k.menu) - 1, turn)] for turn in range(3)]
    return [entry for each in passes for entry in each]


def _pass(last: int, turn: int) -> list[int]:
    """Menu indices that belong to pass `turn` of a menu that ends at index `last`."""
    middle = (last + 1) // 2
    if turn == 0:
        return [middle]
    if turn == 1:
        return [last] if last != middle else []
    return [i for i in range(1, last) if i != middle]


def offered(space: Space, losses: Losses, failed: Mapping[tuple[str, Choice], str]) -> tuple[Space, Losses]:
    """Return the space without what cannot be tried, and the losses with what was not read predicted where the menu needs it.

    A failed choice leaves its menu. A knob of which nothing was read is given the losses typical of its kind at the same share
    taken away; where nothing is known of its kind either it is left as it is.
    """
    menus: dict[str, tuple[Choice, ...]] = {}
    known = dict(losses)
    for knob in space.knobs:
        if knob.name == TARGET:
            known.update({(knob.name, c): 0.0 for c in knob.menu[1:]})
            continue
        menu = tuple(c for c in knob.menu if (knob.name, c) not in failed)
        if len(menu) > 1 and not any((knob.name, c) in losses for c in menu):
            guesses = _typical(space, losses, Knob(knob.name, menu))
            menu = menu if guesses else menu[:1]
            known.update(guesses)
        if not knob.nested:
            known.update(_beside(space, losses, Knob(knob.name, menu)))
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


def _beside(space: Space, losses: Losses, knob: Knob) -> Losses:
    """The losses of the choices of `knob` that were not read, by how much they lose on its kin beside one that was."""
    kin = [k.name for k in space.knobs if k.kind == knob.kind and k.name != knob.name]
    read = [c for c in knob.menu[1:] if (knob.name, c) in losses]
    found: Losses = {}
    for choice in (c for c in knob.menu[1:] if c not in read):
        for other in read:
            both = [name for name in kin if (name, choice) in losses and (name, other) in losses]
            if both:
                times = median([max(losses[name, choice], LEAST) / max(losses[name, other], LEAST) for name in both])
                found[knob.name, choice] = max(losses[knob.name, other], LEAST) * times
                break
    return found


def _gone(knob: Knob, choice: Choice) -> float:
    """Share of a nested knob that a choice takes away."""
    return 1.0 - float(choice) / float(knob.menu[0])


class Loss(NamedTuple):
    """What a change does to the answers.

    Attributes:
        mean: Divergence from the untouched model.
        error: Its standard error.
        samples: That it was read on; 0 where it was estimated.
        toward: Which way it moves the answers to the first samples, as `sketched` writes it; empty where that was not read.
    """

    mean: float
    error: float
    samples: int
    toward: str = ""


def sketched(push: Sequence[float]) -> str:
    """Return a direction as text: whole numbers of a byte, the largest 127.

    Example:
        >>> directed(sketched([0.5, 0.0, -1.0])).tolist()
        [64.0, 0.0, -127.0]
    """
    values = np.asarray(push, dtype=float)
    largest = float(np.abs(values).max(initial=0.0))
    return (
        base64.b64encode(np.rint(values * (127 / largest)).astype(np.int8).tobytes()).decode() if 0 < largest < math.inf else ""
    )


def directed(text: str) -> NDArray[np.float64]:
    """Return the direction of a `sketched` text, of no certain length."""
    return np.frombuffer(base64.b64decode(text), dtype=np.int8).astype(float)


def loss_from(row: Mapping[str, Any]) -> Loss:
    """Return the loss that the record holds of an entry; releases before this one read no direction."""
    return Loss(row["loss"], row["se"], row["samples"], row.get("toward", ""))


def guessed(row: Mapping[str, Any]) -> dict[Key, Loss]:
    """Return the estimates that the record holds."""
    return {(name, choice): Loss(mean, error, 0) for name, choice, mean, error in row["estimated"]}


def table_of(space: Space, losses: Losses, read: Mapping[Key, Loss]) -> LossTable:
    """Return the table of a space's losses, with the directions of those that were read."""
    kept = {(knob.name, choice) for knob in space.knobs for choice in knob.menu}
    toward = {key: directed(loss.toward) for key, loss in read.items() if loss.toward and key in kept}
    return loss_table(space, losses, errors=LEAST / 2, toward=toward)


def unsure(read: Mapping[Key, Loss], *, most: int) -> list[Key]:
    """Return the changes whose loss cannot be told from that of a neighbor in the ranking and may still grow.

    Neighbors that are both below `LEAST` need not be told apart. Those that are hardest to tell come first.

    Args:
        most: Samples beyond which none grows.
    """
    ranked = sorted(read, key=lambda key: read[key].mean)
    doubt: dict[Key, float] = {}
    for below, above in itertools.pairwise(ranked):
        if read[above].mean + read[above].error < LEAST:
            continue
        gap = read[above].mean - read[below].mean
        error = math.hypot(read[above].error, read[below].error)
        for key in (below, above):
            if gap < error and 0 < read[key].samples < most:
                doubt[key] = max(doubt.get(key, 0.0), error / max(gap, 1e-12))
    return sorted(doubt, key=lambda key: -doubt[key])


def calibrated(guesses: Mapping[Key, Loss], read: Mapping[Key, Loss], kinds: Mapping[Key, str]) -> dict[Key, Loss]:
    """Return the estimates of what was not read, put on the scale of what was: a line in log space for each kind of change.

    The slope is held near 1, the more so the fewer were read; a kind of which nothing was read takes the line of them all.
    """
    both = [key for key in guesses if key in read and guesses[key].mean > 0 and read[key].mean > 0]
    lines = {kind: _line([k for k in both if kinds[k] == kind] or both, guesses, read) for kind in set(kinds.values())}
    out = {}
    for key, guess in guesses.items():
        if key not in read:
            level, slope = lines[kinds[key]]
            mean = math.exp(level + slope * math.log(max(guess.mean, 1e-12)))
            out[key] = Loss(mean, mean * guess.error / max(guess.mean, 1e-12), 0)
    return out


def roundings(read: Mapping[Key, Loss], kinds: Mapping[Key, str]) -> list[Key]:
    """Return the entries that were read of techniques that round."""
    return [key for key in read if TECHNIQUES[kinds[key]].stage == Stage.ROUND]


def leant(read: Mapping[Key, Loss], scores: Mapping[Key, Loss]) -> dict[Key, Loss]:
    """Return what was read; of what has a score too, the geometric mean of both, on the level of what was read.

    A reading holds how the roundings of a layer happen to add up on its samples, of which few weigh where a model is sure. A
    score takes them for independent (Fisher's, see `Prober.estimate`), and so orders layers better than few samples can. They
    err apart: the bits of a ResNet-20's layers lose least where both are asked (`benchmarks/mixed_precision.py`).
    """
    both = [key for key in scores if key in read and scores[key].mean > 0 and read[key].mean > 0]
    level = median([read[key].mean / scores[key].mean for key in both]) if both else 1.0
    found = dict(read)
    for key in both:
        score = level * scores[key].mean
        found[key] = read[key]._replace(mean=score * math.sqrt(min(max(read[key].mean / score, 1 / FARTHEST), FARTHEST)))
    return found


def _line(keys: Sequence[Key], guesses: Mapping[Key, Loss], read: Mapping[Key, Loss]) -> tuple[float, float]:
    """Fit log(read) = a + b log(guess), b near 1."""
    if not keys:
        return 0.0, 1.0
    x, y = ([math.log(rows[key].mean) for key in keys] for rows in (guesses, read))
    mx, my = sum(x) / len(x), sum(y) / len(y)
    across, along = sum((a - mx) ** 2 for a in x), sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    slope = (along + 1.0) / (across + 1.0)
    return my - slope * mx, slope
