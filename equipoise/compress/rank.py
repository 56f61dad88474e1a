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

LEVELS = (0.5, 0.25)
"""Shares of the rank at which two halves hold as much as the whole."""


class Rank:
    """Channels between the two halves of each dense layer that can be put into two."""

    def offers(self, subject: Subject) -> Iterable[Offer]:
        """Yield the full rank, at which a layer stays whole, and ranks at which two halves are half and a quarter the work."""
        for name, op in subject.ops.items():
            full = full_rank(subject.model.get_submodule(name))
            menu = {max(1, round(level * _even(op) / subject.likes)) * subject.likes for level in LEVELS} if full else set()
            useful = sorted((rank for rank in menu if rank < min(full, _even(op))), reverse=True)
            if useful:
                yield Offer(name, (full, *useful), (name,))

    def apply(self, draft: Draft, subject: Subject, chosen: Mapping[str, Choice]) -> Draft:
        """Put each named layer in two; one that other choices have made so narrow that it would not pay stays whole."""
        for name in chosen:
            if name not in subject.ops:
                raise unknown("layer", name, subject.ops)
        moments, parts, modules = subject.moments(tuple(chosen)), {}, dict(draft.model.named_modules())
        for name, rank in chosen.items():
            layer: Any = modules.get(name)  # None inside a block that was dropped
            if layer is not None and int(rank) < full_rank(layer) and int(rank) * _a_channel(layer) < layer.weight.numel():
                parts[name] = halves(layer, int(rank), _second_moment(draft, name, layer, moments.get(name)))
        renamed = {**draft.renamed, **{name: f"{name}.1" for name in parts}}
        return replace(draft, model=replaced(draft.model, parts), damaged=draft.damaged or bool(parts), renamed=renamed)

    def ops(self, subject: Subject, offer: Offer, layer: str, choice: Choice) -> tuple[Op, ...]:
        """Return the two halves: for a convolution its rows, then its columns."""
        op, rank = subject.ops[layer], int(choice)
        if choice == offer.menu[0]:
            return (op,)
        (high, wide), (down, across), (above, beside) = op.kernel, op.stride, op.padding
        rows = replace(op, cout=rank, kernel=(high, 1), stride=(down, 1), padding=(above, 0), relu=False)
        left = (op.height + 2 * above - high) // down + 1 if op.kind == "conv" else op.height
        return rows, replace(op, cin=rank, kernel=(1, wide), stride=(1, across), padding=(0, beside), height=left)


def _even(op: Op) -> float:
    """Rank at which two halves hold as much as the whole."""
    return op.weights / (op.cin * op.kernel[0] + op.cout * op.kernel[1])


def _a_channel(layer: Any) -> int:
    """Weights that each channel between the halves takes."""
    high, wide = layer.kernel_size if hasattr(layer, "kernel_size") else (1, 1)
    return axis_size(layer, "in") * int(high) + axis_size(layer, "out") * int(wide)


def _second_moment(draft: Draft, name: str, layer: Any, moments: Moments | None) -> torch.Tensor:
    """Second moment of what the layer still reads; of a subject of shapes alone, and of one that is not read, the identity."""
    if moments is None:
        return torch.eye(layer.weight[0].numel(), dtype=torch.float64)
    kept = draft.keep.get((name, "in"))
    if kept is None:
        return moments.gram
    taps = layer.weight[0, 0].numel() if layer.weight.dim() > 2 else 1
    columns = len(moments.gram) // taps
    places = (torch.arange(taps)[:, None] * columns + kept[None]).flatten()  # channels run fastest
    return moments.gram[places][:, places]
