"""From what several clients learned to one step: a mean, or something that a few liars cannot move far.

Every rule works coordinate by coordinate over the clients that hold the coordinate, in float64 and in the order of the clients'
numbers, so that the result does not depend on who answered first. `drawn_in` comes before a rule and looks at whole changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from equipoise.errors import must_be
from equipoise.federated.state import Tensors, Update, norm

Rule = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(values (clients, ...), weights (clients,), held (clients, ...) bool) -> combined (...), 0 where nobody holds."""


def mean(values: Tensor, weights: Tensor, held: Tensor) -> Tensor:
    """Return the weighted mean over those who hold a coordinate.

    References:
        McMahan et al. 2017, "Communication-efficient learning of deep networks from decentralized data", algorithm 1. Diao et
        al. 2021, "HeteroFL", section 3.2, where clients hold parts.
    """
    share = weights.view(-1, *[1] * (values.ndim - 1)) * held
    total = share.sum(0)
    return torch.where(total > 0, (values * share).sum(0) / total.clamp_min(1e-300), torch.zeros_like(total))


def trimmed(values: Tensor, weights: Tensor, held: Tensor, *, share: float) -> Tensor:
    """Return the mean without the `share` of values at each end; all clients count alike.

    References:
        Yin et al. 2018, "Byzantine-robust distributed learning: towards optimal statistical rates", definition 2.
    """
    return _between(values, held, (held.sum(0) * share).floor().long())


def median(values: Tensor, weights: Tensor, held: Tensor) -> Tensor:
    """Return the middle value, of an even number the mean of the two; all clients count alike.

    References:
        Yin et al. 2018, definition 1.
    """
    return _between(values, held, (held.sum(0) - 1).clamp_min(0) // 2)


def _between(values: Tensor, held: Tensor, cut: Tensor) -> Tensor:
    """Return the mean of the sorted values without the `cut` smallest and largest of those held."""
    count = held.sum(0)
    ordered = values.masked_fill(~held, torch.inf).sort(0).values
    rank = torch.arange(len(values)).view(-1, *[1] * (values.ndim - 1))
    kept = (rank >= cut) & (rank < count - cut)
    return torch.where(kept, ordered, 0.0).sum(0) / kept.sum(0).clamp_min(1)


def trimming(share: float) -> Rule:
    """Return the rule that trims this share at each end.

    Raises:
        InputError: As `of_liars`.
    """
    return partial(trimmed, share=of_liars(share))


def of_liars(share: float) -> float:
    """Return a share of clients that may lie.

    Raises:
        InputError: No share from 0 to below a half.
    """
    if not 0 <= share < 0.5:
        raise must_be("the strategy's share", "from 0 to below 0.5", share, "Give at least the share of clients that may lie.")
    return share


def drawn_in(updates: Sequence[Update], shapes: Mapping[str, torch.Size], share: float) -> list[Update]:
    """Return the updates with each change that is far from the median of all drawn towards it; the further, the more.

    A mean of the result moves as that of honest clients does, which a median of clients whose data differ does not: what few
    of them know lies at no coordinate's middle. At d times the radius a change counts as its place over d squared, so that who
    lies more moves it less.

    Args:
        updates: At least one, in any order.
        shapes: Tensor -> its shape at the server.
        share: Of the clients that may lie; the radius is the distance within which the others are.

    References:
        Karimireddy, He & Jaggi 2021, "Learning from history for Byzantine robust optimization", section 4 (centered clipping);
        from the median in place of what was learned before, at a radius that the changes themselves tell, and redescending.
    """
    middle = combined(updates, shapes, median, even=True)
    far = [
        {
            name: own.double() - middle[name].flatten()[_places(update, name)].reshape(own.shape)
            for name, own in update.change.items()
        }
        for update in updates
    ]
    apart = [norm(parts) / max(1, sum(value.numel() for value in parts.values())) ** 0.5 for parts in far]
    radius = sorted(apart)[math.ceil((1 - share) * len(apart)) - 1]
    over = [1 - min(1.0, radius / max(own, 1e-300)) ** 2 for own in apart]
    return [
        replace(update, change={name: update.change[name].double() - less * value for name, value in parts.items()})
        for update, parts, less in zip(updates, far, over, strict=True)
    ]


def _places(update: Update, name: str) -> Tensor | slice:
    """Where in the flattened tensor of the server a client's numbers lie."""
    places = update.places.get(name)
    return slice(None) if places is None else places.flatten()


def combined(
    updates: Sequence[Update], shapes: Mapping[str, torch.Size], rule: Rule, *, even: bool, control: bool = False
) -> Tensors:
    """Return one step (float64) of what `updates` say, tensor by tensor.

    Args:
        updates: At least one, in any order.
        shapes: Tensor -> its shape at the server.
        rule: How values become one.
        even: Whether all clients count alike, else by their samples.
        control: Combine the changes of the control variates in place of those of the weights.
    """
    ordered = sorted(updates, key=lambda update: update.client)
    weights = torch.tensor([1.0 if even else float(update.samples) for update in ordered], dtype=torch.float64)
    found: Tensors = {}
    for name, shape in shapes.items():
        values = torch.zeros(len(ordered), shape.numel(), dtype=torch.float64)
        held = torch.zeros(len(ordered), shape.numel(), dtype=torch.bool)
        for row, update in enumerate(ordered):
            places = _places(update, name)
            values[row, places] = (update.control if control else update.change)[name].double().flatten()
            held[row, places] = True
        found[name] = rule(values, weights, held).reshape(shape)
    return found
