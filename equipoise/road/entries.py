"""The entries of the loss table: in which order they are read, and what is made of those that were not."""

from __future__ import annotations

from collections.abc import Mapping

from equipoise.records import Choice, Knob
from equipoise.road.facts import TARGET, Facts
from equipoise.search import Space
from equipoise.stats import median

Entry = tuple[Knob, Choice]
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
