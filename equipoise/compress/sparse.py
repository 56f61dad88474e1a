"""Unstructured sparsity: which single weights become zero, and what the others make up for.

A zero costs a runtime what any number costs. What this gives is a smaller archive where the file is compressed, and a start for
runtimes with sparse kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from equipoise.batch import Inputs
from equipoise.compress.masked import masked_solution
from equipoise.compress.schedule import eased
from equipoise.compress.statistics import WIDEST, Moments, as_matrix, as_weight, collect, decomposed
from equipoise.compress.trace import CONVS, WEIGHTED
from equipoise.errors import listed, must_be, unknown

Masks = Mapping[str, Tensor]
"""Layer -> what is left of its weight, as a matrix `(O, d)` of truth values."""

LEAST = 0.02
"""Share of its weights that a layer keeps when all are ranked together: one that lost all would silence the model."""
ROUNDS = 6
"""Steps in which 'obs' takes weights away, making up for each before the next is chosen."""
DAMPING = 1e-3


@dataclass(frozen=True)
class Amount:
    """How much is to be zero: one of three.

    Attributes:
        rate: Fraction of the weights, in [0, 1).
        threshold: Magnitude below which a weight goes.
        pattern: (n, m): of every m weights that read neighbouring channels n stay.
        scope: Of `rate`: of each layer (``layer``), or of all together (``global``).
    """

    rate: float | None = None
    threshold: float | None = None
    pattern: tuple[int, int] | None = None
    scope: Literal["layer", "global"] = "layer"


def magnitude(weight: Tensor, _moments: Moments | None) -> Tensor:
    """Return |w|."""
    return weight.abs()


def activation(weight: Tensor, moments: Moments | None) -> Tensor:
    """Return w² E[x²] over the power of the layer's output: the share of it that a weight moves.

    References:
        Sun et al. 2024, "A simple and effective pruning approach" (Wanda), equation 1: |w| times the norm of x, of which this
        is the square.
    """
    assert moments is not None
    return weight.square() * moments.power / _power(weight, moments)


def obs(weight: Tensor, moments: Moments | None) -> Tensor:
    """Return w² / [H⁻¹]_pp over the power of the layer's output: what is left of a weight's damage after the best update.

    References:
        Hassibi & Stork 1993, "Second order derivatives for network pruning", equation 5.
    """
    assert moments is not None
    factor, scale = decomposed(moments.covariance, DAMPING) or (torch.eye(weight.shape[1]).double(), torch.ones(1).double())
    inverse = torch.cholesky_inverse(factor).diagonal() / scale.square()
    return weight.square() / inverse / _power(weight, moments)


CRITERIA: Mapping[str, Callable[[Tensor, Moments | None], Tensor]] = {
    "magnitude": magnitude,
    "activation": activation,
    "obs": obs,
}


def _power(weight: Tensor, moments: Moments) -> Tensor:
    """Mean variance of the outputs of a layer `(O, d)`."""
    return ((weight @ moments.covariance) * weight).sum(1).mean().clamp_min(torch.finfo(weight.dtype).tiny)


@dataclass(frozen=True)
class Weighed:
    """The weights to choose among, as matrices `(O, d)` in double precision, and what the layers read.

    Attributes:
        weights: Layer -> weight.
        moments: Layer -> moments; empty where the criterion asks for none.
        channels: Layer -> input channels, which run fastest along d.
        left: Why a layer is left whole.
    """

    weights: Mapping[str, Tensor]
    moments: Mapping[str, Moments] = field(default_factory=dict)
    channels: Mapping[str, int] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)


def gather(
    model: nn.Module,
    *,
    criterion: str,
    data: Inputs | None,
    layers: Collection[str] | None = None,
    pattern: tuple[int, int] | None = None,
) -> Weighed:
    """Read off the layers and, where the criterion asks for it, what they read.

    Args:
        layers: Names; None takes every linear and convolution layer.
        pattern: n of m; a layer whose channels m does not divide is left whole.

    Raises:
        InputError: An unknown criterion or layer, no data for a criterion that needs them, or nothing to choose among.
    """
    if criterion not in CRITERIA:
        raise unknown("criterion", criterion, CRITERIA)
    judged = criterion != "magnitude"
    if judged and data is None:
        raise must_be("data", f"a batch of inputs for {criterion!r}", None, "Pass data=inputs, or criterion='magnitude'.")
    found = {name: part for name, part in model.named_modules() if isinstance(part, WEIGHTED)}
    wanted = found if layers is None else listed("layers", layers, found)
    chosen: dict[str, Any] = {name: part for name, part in found.items() if name in wanted}
    moments = {}
    if judged and data is not None:
        moments = dict(collect(model, data, moments_of=frozenset(chosen), targets=False).moments)
    left = {name: why for name, part in chosen.items() if (why := _refusal(part, judged, moments.get(name), pattern))}
    weights = {name: as_matrix(part.weight.detach()).double() for name, part in chosen.items() if name not in left}
    if not weights:
        told = "; ".join(f"{name}: {why}" for name, why in left.items()) or "it has no linear or convolution layer"
        raise must_be("model", "one with layers that can be made sparse", told, "Try criterion='magnitude', or other layers.")
    channels = {name: int(chosen[name].weight.shape[1]) for name in weights}
    return Weighed(weights, moments, channels, left)


def _refusal(layer: Any, judged: bool, moments: Moments | None, pattern: tuple[int, int] | None) -> str:
    if judged and isinstance(layer, CONVS) and (layer.groups > 1 or layer.transposed):
        return "the criterion judges dense layers alone, and it is grouped, depthwise or transposed"
    if judged and (moments is None or not moments.finite):
        return f"what it reads is not finite, wider than {WIDEST} or never seen"
    if pattern is not None and layer.weight.shape[1] % pattern[1]:
        return f"its {layer.weight.shape[1]} input channels are no multiple of {pattern[1]}"
    return ""


def chosen(
    evidence: Weighed, amount: Amount, *, criterion: str, before: Masks | None = None
) -> tuple[Masks, Mapping[str, Tensor]]:
    """Return what stays of each layer, and its weight with what stays making up for what went where moments tell how.

    Args:
        before: What earlier steps left; what they took stays away.
    """
    rounds = ROUNDS if criterion == "obs" and amount.rate is not None else 1
    weights, masks = dict(evidence.weights), dict(before or {name: w != 0 for name, w in evidence.weights.items()})
    for turn in range(1, rounds + 1):
        scores = {
            name: CRITERIA[criterion](weight, evidence.moments.get(name)).masked_fill(~masks[name], -1.0)
            for name, weight in weights.items()
        }
        rate = None if amount.rate is None else amount.rate * eased(turn / rounds)
        masks = {name: mask & masks[name] for name, mask in _masks(scores, amount, rate=rate).items()}
        for name, mask in masks.items():
            weights[name] = fitted(evidence.weights[name], mask, evidence.moments.get(name))
    return masks, weights


def fitted(weight: Tensor, mask: Tensor, moments: Moments | None) -> Tensor:
    """Return the weights `(O, d)` on the mask that answer nearest to the whole, in the mean square of what the layer reads."""
    kept = weight * mask
    found = None if moments is None else decomposed(moments.covariance, DAMPING)
    if found is None:
        return kept
    factor, scale = found
    matrix = factor @ factor.T
    return kept + masked_solution(matrix, ((weight - kept) * scale) @ matrix, mask) / scale


def _masks(scores: Mapping[str, Tensor], amount: Amount, *, rate: float | None) -> dict[str, Tensor]:
    if amount.threshold is not None:
        return {name: score >= amount.threshold for name, score in scores.items()}
    if amount.pattern is not None:
        return {name: _best_of(score, *amount.pattern) for name, score in scores.items()}
    assert rate is not None
    if amount.scope == "layer":
        return {name: _all_but(score.flatten(), rate).view_as(score) for name, score in scores.items()}
    spared = {name: _spared(score, min(LEAST, 1 - rate)) for name, score in scores.items()}
    flat = _all_but(torch.cat([score.flatten() for score in spared.values()]), rate)
    parts = torch.split(flat, [score.numel() for score in scores.values()])
    return {name: part.view_as(score) for (name, score), part in zip(scores.items(), parts, strict=True)}


def _all_but(scores: Tensor, rate: float) -> Tensor:
    """Return which of the scores are left when the least of them go, exactly as many as the rate says."""
    mask = torch.ones_like(scores, dtype=torch.bool)
    mask[scores.argsort(stable=True)[: round(rate * len(scores))]] = False
    return mask | scores.isposinf()


def _spared(score: Tensor, share: float) -> Tensor:
    """Return the scores with this share of them, the best, out of reach, so that no layer goes whole."""
    best = score.flatten().topk(max(1, int(share * score.numel()))).indices
    return score.flatten().index_fill(0, best, float("inf")).view_as(score)


def _best_of(score: Tensor, n: int, m: int) -> Tensor:
    """Return the best `n` of every `m` neighbours."""
    parts = score.reshape(-1, m)
    best = parts.argsort(dim=1, descending=True, stable=True)[:, :n]
    return torch.zeros_like(parts, dtype=torch.bool).scatter_(1, best, True).view_as(score)


@torch.no_grad()
def settle(model: nn.Module, masks: Masks, weights: Mapping[str, Tensor] | None = None) -> None:
    """Give the layers of `model`, in place, these weights, or their own, where the masks let them stand."""
    for name, mask in masks.items():
        layer: Any = model.get_submodule(name)
        value = as_matrix(layer.weight) if weights is None else weights[name].to(layer.weight.dtype)
        layer.weight.copy_(as_weight(value * mask, layer.weight))
