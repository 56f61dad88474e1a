"""Structured pruning in one line: fewer channels, same inputs and outputs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.batch import Inputs
from equipoise.compress.blocks import drop, droppable, least_needed
from equipoise.compress.criteria import Evidence, compromise, gather, ranking
from equipoise.compress.cut import sliced
from equipoise.compress.dense import linear_form
from equipoise.compress.fold import fold
from equipoise.compress.graph import Group, groups, keeping
from equipoise.compress.heads import heads
from equipoise.compress.repair import repair as repaired
from equipoise.compress.schedule import Train, check_steps, eased, trained
from equipoise.compress.trace import copied
from equipoise.errors import listed, must_be, unknown
from equipoise.units import is_real, is_whole


def prune(
    model: nn.Module,
    example: Inputs,
    *,
    ratio: float | None = None,
    widths: Mapping[str, int] | None = None,
    blocks: int | Collection[str] | None = None,
    criterion: str = "l2",
    data: Inputs | None = None,
    round_to: int = 8,
    repair: bool = True,
    loss: Callable[[Tensor], Tensor] | None = None,
    generator: torch.Generator | None = None,
    steps: int = 1,
    train: Train | None = None,
) -> nn.Module:
    """Return a copy of `model` with fewer channels in its prunable groups, or fewer residual blocks.

    Args:
        model: any module; it is not changed.
        example: a small batch `(N, ...)` that the model accepts.
        ratio: fraction of the channels removed from every prunable group, in [0, 1). Give this or `widths`.
        widths: channels kept, by group name (see `groups`); groups that are not named stay whole.
        blocks: whole residual blocks to drop before any width is cut: their names (see `blocks.droppable`), or how many, those
            whose absence changes the outputs on `data` least.
        criterion: which channels go: 'l2' (= 'magnitude'), 'l1', 'random', 'bn_scale', 'taylor', 'fisher', 'activation' or
            'obs' (best without labels, needs `data`). A group that one of the last three cannot judge, since no layer of the
            kind that it looks at reads it, goes by 'l2', with a warning that says so.
        data: unlabelled inputs `(N, ...)` drawn at random, 192 to 512 of them. None: weights alone decide, nothing is repaired.
        round_to: kept widths are rounded to the nearest multiple of this (8 suits AVX2; 62 channels run slower than 64).
        repair: whether to re-solve the remaining weights on `data`; the result then has its BatchNorms folded.
        loss: the loss of the model's output on `data`, for criteria 'taylor' and 'fisher'.
        generator: the source of chance for criterion 'random'.
        steps: cuts on the way to the widths, after each of which `train` is called: 1 - (1 - t)³ of what goes is gone after the
            share t of them.
        train: called with the model after each cut; trains it in place, or returns a trained copy, as `eq.distill` does.

    Returns:
        A new module in eval mode, smaller unless no group can be pruned.

    Raises:
        InputError: a bad ratio, an unknown group or block, a width out of range, a criterion without what it needs, steps
            without training.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
        >>> prune(net, torch.randn(2, 4), ratio=0.5)[0].out_features
        16
    """
    if (ratio is None) == (widths is None) and (ratio is not None or blocks is None):
        given = (ratio, widths)
        raise must_be("ratio or widths", "given, one and not both", given, "Pass ratio=0.5 to halve every group, or blocks=1.")
    if ratio is not None and not (is_real(ratio) and 0 <= ratio < 1):
        raise must_be("ratio", "a fraction of channels to remove in [0, 1)", ratio, "Pass e.g. ratio=0.5 to keep half.")
    if not (is_whole(round_to) and round_to >= 1):
        raise must_be("round_to", "a whole number of at least 1", round_to, "Pass 1 to round to whole channels only.")
    check_steps(steps, train)
    folds = repair and data is not None
    small = fold(model, example, data=data) if folds else linear_form(copied(model).eval(), example)
    if blocks is not None:
        small = _shorter(small, example, blocks, data=data, repair=repair)
    goal: Mapping[str, int] = {}
    for step in range(1, steps + 1):
        found = groups(small, example)
        if step == 1:
            goal = checked(found, widths if widths is not None else _goal(found, ratio or 0.0))
            sizes = {group.name: group.size for group in found}
        asked = goal if step == steps else _on_the_way(goal, sizes, eased(step / steps))
        able = [group for group in found if group.prunable and group.name in asked]  # earlier steps may have ended some
        keeps = {group.name: rounded(asked[group.name], group.size, group.multiple(round_to)) for group in able}
        chosen = [group for group in able if keeps[group.name] < group.size]
        evidence = gather(small, chosen, criterion=criterion, data=data, loss=loss, generator=generator)
        small = _narrower(small, example, chosen, keeps, evidence, criterion=criterion, data=data if repair else None)
        small = small if train is None else trained(train, small)
    return small


def _goal(found: Sequence[Group], ratio: float) -> dict[str, int]:
    """Return the width of every prunable group after `ratio` of it is gone; none is told."""
    chosen = [group for group in found if group.prunable]
    if ratio and not chosen:
        whole = "; ".join(f"{group.name}: {group.reason}" for group in found[:3])
        warnings.warn(f"nothing was cut: {whole or 'there is no group of channels to cut'}", stacklevel=3)
    return {group.name: max(1, round_half_up((1 - ratio) * group.size)) for group in chosen}


def _on_the_way(goal: Mapping[str, int], sizes: Mapping[str, int], share: float) -> dict[str, int]:
    return {name: round_half_up(sizes[name] - share * (sizes[name] - width)) for name, width in goal.items()}


def _narrower(
    source: nn.Module,
    example: Inputs,
    chosen: Sequence[Group],
    keeps: Mapping[str, int],
    evidence: Evidence,
    *,
    criterion: str,
    data: Inputs | None,
) -> nn.Module:
    """Cut the chosen groups once; with data, repair what is left."""
    told = [said for group in chosen if (said := compromise(group, criterion, evidence))]
    if told:
        warnings.warn("; ".join(told), stacklevel=3)
    kept = {group.name: sorted(ranking(group, criterion, evidence)[: keeps[group.name]]) for group in chosen}
    keep = keeping(source, chosen, kept)
    smaller = sliced(source, {**keep, **heads(source, keep, example)})
    if data is not None:
        return repaired(smaller, source, data, kept={layer: spots for (layer, axis), spots in keep.items() if axis == "out"})
    return smaller


def _shorter(source: nn.Module, example: Inputs, blocks: Any, *, data: Inputs | None, repair: bool) -> nn.Module:
    """Drop the named blocks, or as many as are least needed; with data, repair what is left."""
    able = droppable(source, example)
    if is_whole(blocks):
        names = least_needed(source, example, int(blocks), data=data)
    else:
        names = listed("blocks", blocks, able, kind="block")
    shorter = drop(source, [able[name] for name in names])
    return repaired(shorter, source, data) if repair and data is not None else shorter


def rounded(width: int, size: int, round_to: int) -> int:
    """Return the width to build: the nearest multiple of `round_to` (ties up), at least one multiple, at most `size`.

    A group smaller than one multiple is not rounded.
    """
    if width >= size or size < round_to:
        return max(1, min(width, size))
    return min(size, max(round_to, round_half_up(width / round_to) * round_to))


def round_half_up(value: float) -> int:
    """Return the nearest whole number, halves up (Python's own `round` sends halves to even)."""
    return math.floor(value + 0.5)


def checked(found: Sequence[Group], widths: Mapping[str, int]) -> Mapping[str, int]:
    """Return `widths` after each name and number in it was checked against the groups.

    Raises:
        InputError: an unknown or unprunable group, or a width outside [1, size].
    """
    for name, width in widths.items():
        group = member(found, name)
        if not (is_whole(width) and 1 <= width <= group.size):
            raise must_be(
                f"widths[{name!r}]", f"a whole number in [1, {group.size}]", width, "It is the number of channels to keep."
            )
    return widths


def member(found: Sequence[Group], name: str) -> Group:
    """Return the prunable group of that name.

    Raises:
        InputError: there is none, or it must stay whole.
    """
    group = next((group for group in found if group.name == name), None)
    if group is None:
        raise unknown("group", name, [group.name for group in found if group.prunable])
    if not group.prunable:
        raise must_be("group", "prunable", name, f"It is left whole: {group.reason}.")
    return group
