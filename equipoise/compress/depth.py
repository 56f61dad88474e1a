"""Depth: whole residual blocks dropped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from equipoise.compress.blocks import drop
from equipoise.compress.subject import Subject
from equipoise.compress.technique import Draft, Offer
from equipoise.errors import unknown
from equipoise.ops import Op
from equipoise.records import Choice

KEEP, DROP = "keep", "drop"


class Depth:
    """Residual blocks, kept or dropped."""

    def offers(self, subject: Subject) -> Iterable[Offer]:
        """Yield each block that can go; under it all of its layers are gone."""
        for name, block in subject.blocks.items():
            yield Offer(name, (KEEP, DROP), block.gone, removes={DROP: block.gone})

    def apply(self, draft: Draft, subject: Subject, chosen: Mapping[str, Choice]) -> Draft:
        """Let each named block hand its input on, or add nothing."""
        for block in chosen:
            if block not in subject.blocks:
                raise unknown("block", block, subject.blocks)
        return replace(draft, model=drop(draft.model, [subject.blocks[name] for name in chosen]), damaged=True)

    def ops(self, subject: Subject, offer: Offer, layer: str, choice: Choice) -> tuple[Op, ...]:
        """Return nothing for a layer of a block that is dropped."""
        return () if choice == DROP else (subject.ops[layer],)
