"""Which channels of a group matter: scores `(size,)`, higher = keep, one plain function for each criterion."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.batch import Inputs, arguments
from equipoise.compress.cut import is_depthwise
from equipoise.compress.graph import Cut, Group
from equipoise.compress.information import information
from equipoise.compress.statistics import WIDEST, Moments, as_matrix, collect, columns, decomposed
from equipoise.compress.trace import NORMS, WEIGHTED
from equipoise.errors import must_be, unknown


@dataclass(frozen=True)
class Evidence:
    """What a criterion may look at: the model, and whatever it needs that was measured beforehand.

    Attributes:
        gradients: Of each weight, by its id: layers may share one.
    """

    model: nn.Module
    moments: Mapping[str, Moments] = field(default_factory=dict)
    gradients: Mapping[int, Tensor] = field(default_factory=dict)
    information: Mapping[str, Tensor] = field(default_factory=dict)
    generator: torch.Generator | None = None


def l1(group: Group, evidence: Evidence) -> Tensor:
    """Return the sum of absolute weights that produce each channel."""
    return sum((weight.abs().sum(1) for weight in _written(group, evidence.model)), torch.zeros(group.size))


def l2(group: Group, evidence: Evidence) -> Tensor:
    """Return the Euclidean norm of the weights that produce each channel."""
    return sum((weight.square().sum(1) for weight in _written(group, evidence.model)), torch.zeros(group.size)).sqrt()


def at_random(group: Group, evidence: Evidence) -> Tensor:
    """Return random scores: the baseline that every other criterion has to beat."""
    if evidence.generator is None:
        raise must_be(
            "generator", "a torch.Generator for criterion 'random'", None, "Pass generator=torch.Generator().manual_seed(0)."
        )
    return torch.rand(group.size, generator=evidence.generator)


def bn_scale(group: Group, evidence: Evidence) -> Tensor:
    """Return the summed absolute BatchNorm scales of each channel (Network Slimming)."""
    norms = [(cut, evidence.model.get_submodule(cut.layer)) for cut in group.cuts]
    scales = [
        module.weight.detach().abs()[_spots(cut)].sum(1)
        for cut, module in norms
        if isinstance(module, NORMS) and module.weight is not None
    ]
    if not scales:
        raise must_be(
            "criterion",
            "'l2', 'l1' or 'obs' where no BatchNorm scales the channels",
            "bn_scale",
            f"Group {group.name!r} has none: it never had, or it was folded for the repair, which repair=False leaves out.",
        )
    return torch.stack(scales).sum(0)


def taylor(group: Group, evidence: Evidence) -> Tensor:
    """Return |Σ weight · gradient| of each channel: the first-order change of the loss when it goes."""
    weights, slopes = _written(group, evidence.model), _written(group, evidence.model, evidence.gradients)
    changes = ((weight * slope).sum(1).abs() for weight, slope in zip(weights, slopes, strict=True))
    return sum(changes, torch.zeros(group.size))


def fisher(group: Group, evidence: Evidence) -> Tensor:
    """Return Σₙ (∂Lₙ/∂m)² of a gate m = 1 on each channel: the empirical Fisher information, diagonal.

    References:
        Theis et al. 2018, "Faster gaze prediction with dense networks and Fisher pruning", equation 5 (half of it is the
        expected rise of the loss when the channel goes).
    """
    return evidence.information[group.name]


def activation(group: Group, evidence: Evidence) -> Tensor:
    """Return Σ weight² · E[input²] over what reads each channel: Wanda's score, summed over the structure."""
    score = torch.zeros(group.size, dtype=torch.float64)
    for weight, moments, reads in _readers(group, evidence):
        score += (weight.square().sum(0) * moments.power)[reads].sum(1)
    return score.float()


def obs(group: Group, evidence: Evidence) -> Tensor:
    """Return the rank at which structured Optimal Brain Surgeon gives each channel up (0 = first to go).

    One elimination orders all channels, so the kept sets of different widths are nested. References: Hassibi & Stork 1993;
    Kurtic et al. 2023 (ZipLM), the structure score W_S ((H⁻¹)_SS)⁻¹ W_Sᵀ.
    """
    readers = [_Elimination(weight, moments.covariance, reads) for weight, moments, reads in _readers(group, evidence)]
    alive = torch.arange(group.size)
    ranks = torch.full((group.size,), float(group.size - 1))
    batch = max(1, group.size // 128)  # very wide groups lose a few at a time
    for rank in range(0, group.size - batch, batch):
        score = sum((reader.cost(alive) for reader in readers), torch.zeros(len(alive), dtype=torch.float64))
        worst = alive[score.argsort(stable=True)[:batch]]
        ranks[worst] = rank + torch.arange(len(worst), dtype=ranks.dtype)
        for reader in readers:
            reader.remove(worst)
        alive = alive[~torch.isin(alive, worst)]
    return ranks


CRITERIA: Mapping[str, Callable[[Group, Evidence], Tensor]] = {
    "l1": l1,
    "l2": l2,
    "random": at_random,
    "bn_scale": bn_scale,
    "magnitude": l2,
    "taylor": taylor,
    "fisher": fisher,
    "activation": activation,
    "obs": obs,
}
_NEED_MOMENTS = frozenset({"activation", "obs"})
_NEED_LOSS = frozenset({"taylor", "fisher"})


def gather(
    model: nn.Module,
    chosen: Sequence[Group],
    *,
    criterion: str,
    data: Inputs | None = None,
    loss: Callable[[Tensor], Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> Evidence:
    """Measure what `criterion` needs, in one pass over `data`.

    Raises:
        InputError: the criterion is unknown, or it needs `data` or `loss` that was not given.
    """
    if criterion not in CRITERIA:
        raise unknown("criterion", criterion, CRITERIA)
    if data is None and criterion in _NEED_MOMENTS | _NEED_LOSS:
        raise must_be(
            "data", f"a batch of inputs for criterion {criterion!r}", data, "Pass data=inputs, or use criterion='l2'."
        )
    if criterion in _NEED_LOSS and loss is None:
        raise must_be(
            "loss",
            f"a function of the model's output on `data` for criterion {criterion!r}",
            loss,
            "Pass e.g. loss=lambda out: F.cross_entropy(out, targets).",
        )
    if criterion in _NEED_MOMENTS and data is not None:
        wanted = frozenset(name for group in chosen for name in group.consumers)
        return Evidence(model, moments=collect(model, data, moments_of=wanted, targets=False).moments)
    if criterion == "taylor" and data is not None and loss is not None:
        return Evidence(model, gradients=_gradients(model, data, loss))
    if criterion == "fisher" and data is not None and loss is not None:
        return Evidence(model, information=information(model, chosen, data, loss))
    return Evidence(model, generator=generator)


def ranking(group: Group, criterion: str, evidence: Evidence) -> tuple[int, ...]:
    """Return the group's channels, most important first; the first k of them are what width k keeps.

    Where the criterion has nothing to go by in this group, 'l2' orders it; `compromise` says so.
    """
    asked = CRITERIA[criterion] if not compromise(group, criterion, evidence) else l2
    with torch.no_grad():
        scores = asked(group, evidence).nan_to_num(posinf=float("inf"))
    return tuple(int(channel) for channel in scores.argsort(descending=True, stable=True))


def compromise(group: Group, criterion: str, evidence: Evidence) -> str:
    """Return why `ranking` orders this group by 'l2' instead of the criterion asked for, or ""."""
    if criterion == "fisher" and group.name not in evidence.information:
        return f"group {group.name!r} is ordered by criterion 'l2', not 'fisher': no layer that takes one tensor reads it"
    if criterion not in _NEED_MOMENTS or _readers(group, evidence):
        return ""
    seen = [name for name in group.consumers if name in evidence.moments]
    why = f"what {seen[0]} reads is not finite" if seen else f"no dense layer of at most {WIDEST} columns reads it"
    return f"group {group.name!r} is ordered by criterion 'l2', not {criterion!r}: {why}"


class _Elimination:
    """Structured OBS on one reader: the inverse Hessian and the weights, both updated as channels go."""

    def __init__(self, weight: Tensor, hessian: Tensor, reads: Tensor) -> None:
        self.reads = reads
        factor, scale = decomposed(hessian, 1e-3) or (torch.eye(len(hessian), dtype=torch.float64), torch.ones(1))
        self.weight = weight * scale  # in units in which every input varies by one
        self.inverse = torch.cholesky_inverse(factor)

    def cost(self, channels: Tensor) -> Tensor:
        """Return the squared output error `(channels,)` that losing each would leave after the best update."""
        spots = self.reads[channels]  # (c, s)
        alone = self.inverse.diagonal()[spots[:, 0]]
        if spots.shape[1] == 1 and bool((alone > 0).all()):  # the blocks are numbers
            return (self.weight.square().sum(0)[spots[:, 0]] / alone).to(self.weight)
        blocks = self.inverse[spots[:, :, None], spots[:, None, :]]  # (c, s, s)
        held = self.weight.T[spots]  # (c, s, O)
        error: Tensor = (held * _solved(blocks, held)).sum((1, 2))
        return error

    def remove(self, channels: Tensor) -> None:
        """Take the channels out and let the rest make up for them."""
        spots = self.reads[channels].flatten()
        update = _solved(self.inverse[spots][:, spots], self.inverse[spots])  # (s, d)
        self.weight.addmm_(self.weight[:, spots], update, alpha=-1)
        self.inverse.addmm_(self.inverse[:, spots], update, alpha=-1)


def _solved(matrix: Tensor, right: Tensor) -> Tensor:
    """Return matrix⁻¹ right; where rounding has left nothing to divide by, the least-squares answer."""
    result: Tensor
    result, failed = torch.linalg.solve_ex(matrix, right)
    if bool(failed.any()) or not bool(result.isfinite().all()):
        result = torch.linalg.pinv(matrix.nan_to_num(), hermitian=True) @ right
    return result


def _readers(group: Group, evidence: Evidence) -> list[tuple[Tensor, Moments, Tensor]]:
    """Return weight matrix (double), input moments and columns by channel of every dense layer that reads the group."""
    found = []
    for cut in group.cuts:
        moments = evidence.moments.get(cut.layer) if cut.axis == "in" else None
        if moments is not None and moments.finite:
            weight: Any = evidence.model.get_submodule(cut.layer).weight
            found.append((as_matrix(weight.detach()).double(), moments, columns(weight, cut.positions)))
    return found


def _written(group: Group, model: nn.Module, values: Mapping[int, Tensor] | None = None) -> list[Tensor]:
    """Return, for each layer that writes the group, its weights (or their `values`) as `(size, weights of the channel)`."""
    rows = []
    for cut in group.cuts:
        layer: Any = model.get_submodule(cut.layer)
        if cut.axis == "out" and isinstance(layer, (*WEIGHTED, nn.Embedding)):
            value = layer.weight.detach() if values is None else values[id(layer.weight)]
            turned = isinstance(layer, nn.Embedding) or getattr(layer, "transposed", False)
            value = value.transpose(0, 1) if turned and not is_depthwise(layer) else value
            rows.append(value[_spots(cut)].flatten(1).float())
    return rows


def _spots(cut: Cut) -> Tensor:
    return torch.tensor(cut.positions)  # (size, places)


def _gradients(model: nn.Module, data: Inputs, loss: Callable[[Tensor], Tensor]) -> dict[int, Tensor]:
    """Return the gradient of the loss in every layer's weight, by the id of the weight."""
    named = {name: parameter for name, parameter in model.named_parameters() if name.endswith("weight")}
    leaves = {name: parameter.detach().clone().requires_grad_() for name, parameter in named.items()}
    with torch.enable_grad():
        value = loss(torch.func.functional_call(model, leaves, *arguments(data)))
        slopes = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    return {
        id(named[name]): torch.zeros_like(named[name]) if slope is None else slope
        for name, slope in zip(leaves, slopes, strict=True)
    }
