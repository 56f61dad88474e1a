"""Precision: how the runtime is asked to hold and compute each layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from equipoise.compress.subject import Subject
from equipoise.compress.technique import Draft, Offer
from equipoise.compress.trace import HOLDING, together
from equipoise.errors import unknown
from equipoise.ops import Op
from equipoise.records import Choice
from equipoise.schemes import menu


class Bits:
    """Scheme of each layer with weights, by the name that it has in `schemes.SCHEMES`."""

    def offers(self, subject: Subject) -> Iterable[Offer]:
        """Yield the schemes of each layer's kind; layers that share their weights are one place."""
        for layers in together(subject.model, subject.ops):
            ways = menu(*(subject.ops[layer].kind for layer in layers))
            yield Offer(layers[0], ways, layers, needs={way: way for way in ways[1:]})

    def apply(self, draft: Draft, subject: Subject, chosen: Mapping[str, Choice]) -> Draft:
        """Ask for the schemes; the weights themselves are rounded once nothing changes them any more."""
        weighted = [name for name, part in draft.model.named_modules() if isinstance(part, HOLDING)]
        asked = dict(draft.request)
        places = {layers[0]: layers for layers in together(subject.model, subject.ops)}
        for place in chosen:
            if place not in places:
                raise unknown("layer", place, places)
        for place, way in chosen.items():  # one that was put in another form is asked for in all of its parts
            for layer in places[place]:
                asked.update({name: way for name in weighted if name == layer or name.startswith(layer + ".")})
        return replace(draft, request=asked)

    def ops(self, subject: Subject, offer: Offer, layer: str, choice: Choice) -> tuple[Op, ...]:
        """Return the layer as it is: what another precision costs is timed."""
        return (subject.ops[layer],)
