"""Optimizers of a recipe: torch's own, and Muon."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.optim.adamw import adamw

from equipoise.errors import must_be
from equipoise.training.recipe import Recipe
from equipoise.training.shards import here, joined, shared_as

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the odd quintic that pushes singular values toward 1 fastest from near 0 (Jordan et al. 2024)."""
MATCHED_RMS = 0.2
"""Root mean square of an AdamW update, as found by Liu et al. 2025; Muon's updates are given the same."""


def optimizer_of(model: nn.Module, recipe: Recipe, rates: Mapping[str, float] | None = None) -> torch.optim.Optimizer:
    """Return a fresh optimizer of the parameters of `model` that require gradients.

    Each parameter group has a ``scale``: the loop sets its rate to the schedule's times that.

    Args:
        model: As it will be trained: moved and wrapped before.
        recipe: Names the optimizer and its settings.
        rates: Parameter name -> factor on the learning rate; those not named have 1.
    Raises:
        InputError: Nothing to train.
    """
    hidden = hidden_weights(model) if recipe.optimizer == "muon" else set()
    groups: dict[tuple[bool, bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = 1.0 if rates is None else rates.get(name, 1.0)
            groups.setdefault((parameter.ndim > 1, parameter in hidden, scale), []).append(parameter)
    if not groups:
        raise must_be("model", "trainable", "no parameter that requires a gradient", "Call requires_grad_() on it.")
    made: list[dict[str, Any]] = [
        {"params": members, "weight_decay": recipe.weight_decay if matrix else 0.0, "hidden": in_muon, "scale": scale}
        for (matrix, in_muon, scale), members in sorted(groups.items(), key=lambda item: item[0], reverse=True)
    ]
    first, second = recipe.momentum, recipe.second_beta
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(made, lr=recipe.lr, momentum=first, nesterov=recipe.nesterov and first > 0, foreach=True)
    if recipe.optimizer == "rmsprop":
        return torch.optim.RMSprop(made, lr=recipe.lr, alpha=second, momentum=first, foreach=True)
    if recipe.optimizer == "adam":
        return torch.optim.Adam(made, lr=recipe.lr, betas=(first, second), foreach=True)
    if recipe.optimizer == "muon":
        return Muon(made, lr=recipe.lr, momentum=first, nesterov=recipe.nesterov, second_beta=second)
    return torch.optim.AdamW(made, lr=recipe.lr, betas=(first, second), foreach=True)


def hidden_weights(model: nn.Module) -> set[nn.Parameter]:
    """Return the weights that Muon takes: matrices and convolution kernels, but embeddings, grouped kernels and the head.

    The head is the last module registered that has a matrix.
    """
    found: list[nn.Parameter] = []
    others: set[nn.Parameter] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim < 2 or name not in ("weight", "in_proj_weight"):
                continue
            whole = not isinstance(module, (nn.Embedding, nn.EmbeddingBag))
            if isinstance(module, _ConvNd) and module.groups > 1:
                whole = False  # its kernel is not one matrix
            if whole:
                found.append(parameter)
            else:
                others.add(parameter)
    return set(found[:-1]) - set(found[-1:]) - others


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalized by Newton-Schulz for groups with ``hidden``, AdamW (first beta 0.9) for the others.

    Updates of a hidden matrix (rows, columns) are scaled by ``0.2 sqrt(max(rows, columns))``, so that their size is AdamW's and
    both take one rate. Kernels (out, in, height, width) count as matrices (out, in height width). Weight decay is decoupled.

    Args:
        groups: Dicts of ``params``, ``hidden`` and optionally ``lr`` and ``weight_decay``.
        lr: Learning rate.
        momentum: Of the hidden weights.
        nesterov: Whether to look ahead.
        second_beta: Of the AdamW part.
        weight_decay: Of groups that do not say.
        steps: Newton-Schulz iterations.

    References:
        Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks". Liu et al. 2025, "Muon is scalable for
        LLM training", section 2.2 (matching the root mean square).
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float = 0.95,
        nesterov: bool = True,
        second_beta: float = 0.999,
        weight_decay: float = 0.0,
        steps: int = 5,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "second_beta": second_beta, "hidden": False}
        super().__init__(groups, {**defaults, "weight_decay": weight_decay, "steps": steps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Make one step with the gradients as they are; parameters without one are left alone."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters and group["hidden"]:
                self._muon(parameters, group)
            elif parameters:
                self._adamw(parameters, group)
        return loss

    def _muon(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [here(p.grad) for p in parameters if p.grad is not None]
        for p in parameters:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        running = [here(self.state[p]["momentum"]) for p in parameters]
        torch._foreach_lerp_(running, gradients, 1 - group["momentum"])
        wanted = torch._foreach_lerp(gradients, running, group["momentum"]) if group["nesterov"] else running
        same: dict[tuple[int, int], list[int]] = {}
        wanted = [joined(value, p) for value, p in zip(wanted, parameters, strict=True)]  # a matrix is orthogonal as a whole
        for i, value in enumerate(wanted):
            same.setdefault((len(value), value[0].numel()), []).append(i)
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        for (rows, columns), members in same.items():
            updates = orthogonalize(torch.stack([wanted[i].reshape(rows, columns) for i in members]), steps=group["steps"])
            rate = group["lr"] * MATCHED_RMS * max(rows, columns) ** 0.5
            for i, update in zip(members, updates, strict=True):
                p = parameters[i]
                here(p).add_(here(shared_as(update.reshape(p.shape).to(p.dtype), p)), alpha=-rate)

    def _adamw(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for p in parameters:
            if not self.state[p]:
                zeros = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                self.state[p].update(step=torch.tensor(0.0), **zeros)
        slots = [[self.state[p][slot] for p in parameters] for slot in ("exp_avg", "exp_avg_sq", "step")]
        adamw(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            slots[0],
            slots[1],
            [],
            slots[2],
            foreach=True,
            amsgrad=False,
            beta1=0.9,
            beta2=group["second_beta"],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=1e-8,
            maximize=False,
        )


def orthogonalize(matrices: Tensor, *, steps: int = 5) -> Tensor:
    """Return, for each matrix of (..., rows, columns), about the nearest one with orthonormal rows or columns.

    For ``U S V^T`` this is ``U S' V^T`` with singular values S' between about 0.7 and 1.2 where S is not tiny; bfloat16 on
    GPUs, where that is exact enough, float32 elsewhere.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x: Tensor = matrices.bfloat16() if matrices.is_cuda else matrices.float()
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
