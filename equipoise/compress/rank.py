"""Rank: a layer as the product of two or three thin ones, where that is less work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from equipoise.compress.blocks import replaced
from equipoise.compress.cut import axis_size
from equipoise.compress.factorize import full_rank, shares, thin, tuckers, weights
from equipoise.compress.statistics import WIDEST, Moments
from equipoise.compress.subject import Subject
from equipoise.compress.technique import Draft, Offer
from equipoise.errors import unknown
from equipoise.ops import Op
from equipoise.records import Choice

LEVELS = (100, 50, 25, 12)
"""Percent of a layer's weights that the thin ones hold together; all of them: it stays whole.

A share, not a rank: of a layer that other choices have narrowed it is the same share of less, as near as whole steps come.
"""
TUCKER = 12
"""Level from which a k×k convolution is put in Tucker-2 form: down to 25 its two halves lose less and are as quick."""
CHANNELS = 8
"""Steps of channels that a convolution must have for that form: of fewer, its core fills no register."""


class Rank:
    """Weights that the thin layers hold in place of each dense layer, where it can be put into such."""

    def offers(self, subject: Subject) -> Iterable[Offer]:
        """Yield the shares at which the thin layers are less than the whole, each of other ranks."""
        for name, op in subject.ops.items():
            layer: Any = subject.model.get_submodule(name)
            if not full_rank(layer) or layer.weight[0].numel() > WIDEST:  # an SVD of those takes minutes, for each plan
                continue
            wide = tuckers(layer) and min(op.cin, op.cout) >= CHANNELS * subject.likes
            levels = [level for level in reversed(LEVELS[1:]) if level > TUCKER or wide]
            found = {_ranks(level, op.cin, op.cout, op.kernel, subject): level for level in levels}
            useful = [level for ranks, level in found.items() if ranks]
            if useful:
                yield Offer(name, (LEVELS[0], *sorted(useful, reverse=True)), (name,))

    def apply(self, draft: Draft, subject: Subject, chosen: Mapping[str, Choice]) -> Draft:
        """Put each named layer in thin ones; one that other choices have made so narrow that it would not pay stays whole."""
        for name in chosen:
            if name not in subject.ops:
                raise unknown("layer", name, subject.ops)
        moments, parts, modules = subject.moments(tuple(chosen)), {}, dict(draft.model.named_modules())
        for name, level in chosen.items():
            layer: Any = modules.get(name)
            if not full_rank(layer):  # gone with its block, or put in a form that has no thin layers
                continue
            kernel = getattr(layer, "kernel_size", (1, 1))
            ranks = _ranks(level, axis_size(layer, "in"), axis_size(layer, "out"), kernel, subject)
            if ranks:
                parts[name] = thin(layer, ranks, _second_moment(draft, name, layer, subject.ops[name], moments.get(name)))
        renamed = {**draft.renamed, **{name: f"{name}.{len(part) - 1}" for name, part in parts.items()}}
        return replace(draft, model=replaced(draft.model, parts), damaged=draft.damaged or bool(parts), renamed=renamed)

    def ops(self, subject: Subject, offer: Offer, layer: str, choice: Choice) -> tuple[Op, ...]:
        """Return the thin layers: of a convolution its rows, then its columns; or fewer channels, its core, all channels."""
        op = subject.ops[layer]
        ranks = () if choice == offer.menu[0] else _ranks(choice, op.cin, op.cout, op.kernel, subject)
        if not ranks:
            return (op,)
        (high, wide), (down, across), (above, beside) = op.kernel, op.stride, op.padding
        left = (op.height + 2 * above - high) // down + 1 if op.kind == "conv" else op.height
        if len(ranks) == 2:
            point = replace(op, kernel=(1, 1), stride=(1, 1), padding=(0, 0))
            right = (op.width + 2 * beside - wide) // across + 1
            core = replace(op, cin=ranks[0], cout=ranks[1], relu=False)
            return replace(point, cout=ranks[0], relu=False), core, replace(point, cin=ranks[1], height=left, width=right)
        rows = replace(op, cout=ranks[0], kernel=(high, 1), stride=(down, 1), padding=(above, 0), relu=False)
        return rows, replace(op, cin=ranks[0], kernel=(1, wide), stride=(1, across), padding=(0, beside), height=left)


def _ranks(level: Choice, cin: int, cout: int, kernel: tuple[int, int], subject: Subject) -> tuple[int, ...]:
    """Channels between the thin layers at a level, in whole steps of what kernels like; none where they would not pay."""
    share, step = int(level) / 100, subject.likes
    if int(level) <= TUCKER:
        narrow = shares(share, cin, cout, kernel)
        ranks = tuple(max(1, round(narrow * width / step)) * step for width in (cin, cout))
        pays = ranks[0] < cin and ranks[1] < cout and weights(ranks, cin, cout, kernel) < cin * cout * kernel[0] * kernel[1]
        return ranks if pays else ()
    reading, giving = cin * kernel[0], cout * kernel[1]
    even = reading * giving / (reading + giving)  # two halves of this rank hold as much as the whole
    rank = max(1, round(share * even / step)) * step
    return (rank,) if rank < min(reading, giving, even) else ()


def _second_moment(draft: Draft, name: str, layer: Any, op: Op, moments: Moments | None) -> torch.Tensor | None:
    """Second moment of what the layer still reads, `op` being what it was; None where nobody can tell.

    Kernel and padding tell which taps of the untouched kernel are left: a row of padding less is the kernel's first row gone.
    """
    if moments is None:
        return None
    kernel, padding = getattr(layer, "kernel_size", op.kernel), getattr(layer, "padding", op.padding)
    rows, columns = (torch.arange(k) + was - now for k, was, now in zip(kernel, op.padding, padding, strict=True))
    inside = min(rows[0], columns[0]) >= 0 and rows[-1] < op.kernel[0] and columns[-1] < op.kernel[1]
    kept = draft.keep.get((name, "in"), torch.arange(op.cin))
    if not inside or len(rows) * len(columns) * len(kept) != layer.weight[0].numel():
        return None
    taps = (rows[:, None] * op.kernel[1] + columns).flatten()
    places = (taps[:, None] * op.cin + kept).flatten()  # channels run fastest
    gram = moments.gram
    return gram if len(places) == len(gram) else gram[places][:, places]
