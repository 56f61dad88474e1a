"""Precision: which layers the runtime is asked to compute in int8."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from equipoise.compress.subject import Subject
from equipoise.compress.technique import Draft, Offer
from equipoise.compress.trace import WEIGHTED
from equipoise.errors import unknown
from equipoise.ops import Op
from equipoise.records import Choice


class Bits:
    """Bits of each layer with weights."""

    def offers(self, subject: Subject) -> Iterable[Offer]:
        """Yield 32 or 8 bits for each layer."""
        for layer in subject.ops:
            yield Offer(layer, (32, 8), (layer,), needs={8: 8})

    def apply(self, draft: Draft, subject: Subject, chosen: Mapping[str, Choice]) -> Draft:
        """Ask for the bits; the weights themselves are rounded by the runtime."""
        weighted = [name for name, part in draft.model.named_modules() if isinstance(part, WEIGHTED)]
        asked = dict(draft.request)
        for layer in chosen:
            if layer not in subject.ops:
                raise unknown("layer", layer, subject.ops)
        for layer, bits in chosen.items():  # one that was put in another form is asked for in all of its parts
            asked.update({name: int(bits) for name in weighted if name == layer or name.startswith(layer + ".")})
        return replace(draft, request=asked)

    def ops(self, subject: Subject, offer: Offer, layer: str, choice: Choice) -> tuple[Op, ...]:
        """Return the layer as it is: what another precision costs is timed."""
        return (subject.ops[layer],)
