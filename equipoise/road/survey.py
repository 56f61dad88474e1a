"""Survey a model: what can be changed in it on these targets, and what becomes of each layer."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from torch import nn

from equipoise.batch import SOURCE, WRITTEN, is_pair, unpadded
from equipoise.compress.builder import Builder
from equipoise.compress.operators import operators
from equipoise.compress.technique import Offer
from equipoise.errors import InputError
from equipoise.ops import Op
from equipoise.records import Choice, Knob
from equipoise.road.facts import TARGET, Act, Facts, Layer
from equipoise.runtimes.decoding import reads_on
from equipoise.study.header import Offered

NOTHING = "Equipoise changes Conv and Linear layers; `equipoise profile` lists those of your model."
SAME = 0.02
"""Shares that differ by no more are alike."""


def survey(builder: Builder, precisions: Mapping[str, Sequence[Choice]]) -> Facts:
    """Read off a model what can be changed, on these targets.

    Args:
        builder: Of the model.
        precisions: Target -> schemes that it computes in; more than one target make a knob of it.
    Raises:
        InputError: Nothing can be changed.
    """
    usable = {bits for some in precisions.values() for bits in some}
    offers = {name: offer for name, offer in builder.offers.items() if not offer.refused}
    offers = {name: cut for name, offer in offers.items() if len((cut := _within(offer, usable)).menu) > 1}
    rows = [Offered(Knob(TARGET, tuple(precisions)))] if len(precisions) > 1 else []
    rows += [Offered(Knob(name, offer.menu), offer.layers) for name, offer in offers.items()]
    if not rows:
        raise InputError(f"model must offer something to change; got nothing that can be cut or quantized. {NOTHING}")
    refused = {offer.place or "model": offer.refused for offer in builder.offers.values() if offer.refused}
    layers = (*_added(offers), *_layers(builder, offers))
    untrained = tuple((name, c) for name, offer in offers.items() for c in offer.menu if c in offer.untrained)
    moot, left_whole = tuple(_moot(offers)), refused | dict(builder.subject.left)
    return Facts(tuple(rows), layers, moot, left_whole, untrained, tuple(_absent(offers, precisions)))


def _within(offer: Offer, usable: set[Choice]) -> Offer:
    """An offer without the choices that no target can compute in."""
    menu = tuple(c for c in offer.menu if offer.needs.get(c, 32) in usable or c == offer.menu[0])
    return replace(offer, menu=menu)


def _moot(offers: Mapping[str, Offer]) -> Iterator[tuple[str, Choice, tuple[str, ...]]]:
    """Knobs that do nothing: those that act on removed layers alone."""
    for name, offer in offers.items():
        for choice, gone in offer.removes.items():
            inside = tuple(other for other, o in offers.items() if other != name and o.layers and set(o.layers) <= set(gone))
            yield name, choice, inside


def _absent(
    offers: Mapping[str, Offer], precisions: Mapping[str, Sequence[Choice]]
) -> Iterator[tuple[str, str, tuple[Choice, ...]]]:
    """Choices that another target computes in and this one does not."""
    for target, ways in precisions.items():
        for name, offer in offers.items():
            if lost := tuple(c for c in offer.menu[1:] if c in offer.needs and offer.needs[c] not in ways):
                yield target, name, lost


def _added(offers: Mapping[str, Offer]) -> list[Layer]:
    """What choices put before the model, as layers that are gone under all others."""
    out = []
    for knob, offer in offers.items():
        act = Act(knob, offer.menu, tuple(offer.adds.get(choice, ()) for choice in offer.menu))
        out += [Layer(knob, ops[0], 0, (act,)) for ops in act.ops if ops][:1]
    return out


def _layers(builder: Builder, offers: Mapping[str, Offer]) -> list[Layer]:
    modules = dict(builder.subject.model.named_modules())
    (found, calls), out = _requested(builder), list[Layer]()
    owners = {id(p): name for name in sorted(found, key=lambda n: found[n].kind != "embedding") for p in _own(modules[name])}
    for name, op in found.items():
        acting = {knob: offer for knob, offer in offers.items() if name in offer.layers}
        acts: list[Act] = []
        for knob, offer in acting.items():
            ops = tuple(builder.ops(knob, name, choice, of=op) for choice in offer.menu)
            if any(under != (op,) for under in ops):
                acts.append(_together(builder, name, acts, Act(knob, offer.menu, ops)))
        precise = next((knob for knob, offer in acting.items() if offer.needs), "")
        params = sum(p.numel() for p in _own(modules[name]) if owners[id(p)] == name)  # shared ones are the product's
        out.append(Layer(name, op, params, tuple(acts), precise, calls.get(name, 1)))
    return out


def _requested(builder: Builder) -> tuple[Mapping[str, Op], Mapping[str, int]]:
    """Return the layers as operators of a request, and how many times each is run there, where that is not once.

    A pair is written word by word: what two words change in size is run for each, what they do not once, for the source.
    """
    example, known = builder.subject.example, builder.subject.ops
    if not (is_pair(example) and reads_on(builder.subject.model)):
        return known, {}
    source, written = (unpadded(example[side]) for side in (SOURCE, WRITTEN))
    one, two = (operators(builder.subject.model, {SOURCE: source, WRITTEN: written[:, :words]}) for words in (1, 2))
    words = [name for name in one if one[name] != two.get(name)]
    return {name: one.get(name, op) for name, op in known.items()}, dict.fromkeys(words, written.shape[1])


def _own(layer: nn.Module) -> tuple[nn.Parameter, ...]:
    return tuple(layer.parameters(recurse=False))


def _together(builder: Builder, layer: str, before: Sequence[Act], act: Act) -> Act:
    """Return an act with what it leaves of a layer that the acts before it have reshaped, where that is another share."""
    whole = builder.subject.ops[layer]
    given = [other for other in before if all(other.ops) and len(set(map(_weights, other.ops))) > 1]
    if not given or len(set(map(_weights, act.ops))) == 1:
        return act
    factors = []
    for choices in itertools.product(*(other.menu for other in given)):
        op = whole
        for other, choice in zip(given, choices, strict=True):
            (op, *more) = builder.ops(other.knob, layer, choice, of=op)
            if more:  # two operators have no shape to go on from
                return act
        for choice, alone in zip(act.menu, act.ops, strict=True):
            share = _weights(builder.ops(act.knob, layer, choice, of=op)) / op.weights
            factors.append(round(share * whole.weights / _weights(alone), 4) if alone else 1.0)
    if max(abs(factor - 1) for factor in factors) < SAME:
        return act
    return replace(act, given=tuple((other.knob, other.menu) for other in given), factors=tuple(factors))


def _weights(ops: Sequence[Op]) -> int:
    return sum(op.weights for op in ops)
