"""Rank: a layer as the product of two thin ones, where that is less work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from equipoise.compress.blocks import replaced
from equipoise.compress.cut import axis_size
from equipoise.compress.factorize import full_rank, halves
from equipoise.compress.statistics import Moments
from equipoise.compress.subject import Subject
from equipoise.compress.technique import Draft, Offer
from equipoise.errors import unknown
from equipoise.ops import Op
from equipoise.records import Choice

LEVELS = (100, 50, 25)
"""Percent of a layer's weights that its two halves hold together; all of them: it stays whole.

A share, not a rank: of a layer that other choices have narrowed it is the same share of less, as near as whole steps come.
"""


class Rank:
    """Weights that the two halves of each dense layer hold, where it can be put into two."""

    def offers(self, subject: Subject) -> Iterable[Offer]:
        """Yield the shares at which a layer's two halves are less than the whole, each of another rank."""
        for name, op in subject.ops.items():
            if not full_rank(subject.model.get_submodule(name)):
                continue
            ranks = {_rank(level, op.cin, op.cout, op.kernel, subject): level for level in reversed(LEVELS[1:])}
            useful = [level for rank, level in ranks.items() if rank]
            if useful:
                yield Offer(name, (LEVELS[0], *sorted(useful, reverse=True)), (name,))

    def apply(self, draft: Draft, subject: Subject, chosen: Mapping[str, Choice]) -> Draft:
        """Put each named layer in two; one that other choices have made so narrow that it would not pay stays whole."""
        for name in chosen:
            if name not in subject.ops:
                raise unknown("layer", name, subject.ops)
        moments, parts, modules = subject.moments(tuple(chosen)), {}, dict(draft.model.named_modules())
        for name, level in chosen.items():
            layer: Any = modules.get(name)
            if not full_rank(layer):  # gone with its block, or put in a form that has no two halves
                continue
            kernel = getattr(layer, "kernel_size", (1, 1))
            rank = _rank(level, axis_size(layer, "in"), axis_size(layer, "out"), kernel, subject)
            if rank:
                parts[name] = halves(layer, rank, _second_moment(draft, name, layer, subject.ops[name], moments.get(name)))
        renamed = {**draft.renamed, **{name: f"{name}.1" for name in parts}}
        return replace(draft, model=replaced(draft.model, parts), damaged=draft.damaged or bool(parts), renamed=renamed)

    def ops(self, subject: Subject, offer: Offer, layer: str, choice: Choice) -> tuple[Op, ...]:
        """Return the two halves: for a convolution its rows, then its columns."""
        op = subject.ops[layer]
        rank = 0 if choice == offer.menu[0] else _rank(choice, op.cin, op.cout, op.kernel, subject)
        if not rank:
            return (op,)
        (high, wide), (down, across), (above, beside) = op.kernel, op.stride, op.padding
        rows = replace(op, cout=rank, kernel=(high, 1), stride=(down, 1), padding=(above, 0), relu=False)
        left = (op.height + 2 * above - high) // down + 1 if op.kind == "conv" else op.height
        return rows, replace(op, cin=rank, kernel=(1, wide), stride=(1, across), padding=(0, beside), height=left)


def _rank(level: Choice, cin: int, cout: int, kernel: tuple[int, int], subject: Subject) -> int:
    """Channels between the two halves at a level, in whole steps of what kernels like; 0 where they would not pay."""
    reading, giving = cin * kernel[0], cout * kernel[1]
    even = reading * giving / (reading + giving)  # two halves of this rank hold as much as the whole
    rank = max(1, round(int(level) / 100 * even / subject.likes)) * subject.likes
    return rank if rank < min(reading, giving, even) else 0


def _second_moment(draft: Draft, name: str, layer: Any, op: Op, moments: Moments | None) -> torch.Tensor:
    """Second moment of what the layer still reads, `op` being what it was; the identity (a plain SVD) where nobody can tell.

    Kernel and padding tell which taps of the untouched kernel are left: a row of padding less is the kernel's first row gone.
    """
    unweighed = torch.eye(layer.weight[0].numel(), dtype=torch.float64)
    if moments is None:
        return unweighed
    kernel, padding = getattr(layer, "kernel_size", op.kernel), getattr(layer, "padding", op.padding)
    rows, columns = (torch.arange(k) + was - now for k, was, now in zip(kernel, op.padding, padding, strict=True))
    inside = min(rows[0], columns[0]) >= 0 and rows[-1] < op.kernel[0] and columns[-1] < op.kernel[1]
    kept = draft.keep.get((name, "in"), torch.arange(op.cin))
    if not inside or len(rows) * len(columns) * len(kept) != len(unweighed):
        return unweighed
    taps = (rows[:, None] * op.kernel[1] + columns).flatten()
    places = (taps[:, None] * op.cin + kept).flatten()  # channels run fastest
    gram = moments.gram
    return gram if len(places) == len(gram) else gram[places][:, places]
