"""Linear layers of other people's making, put in the form that everything else knows.

A layer whose weight lies the other way round (`Conv1D` of the GPT-2 code) computes what a linear layer does. It is known by its
answers: to its own inputs, and to random ones. So are norms (`norms`); an attention in one piece is taken apart (`multihead`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from equipoise.batch import Inputs, call
from equipoise.compress.multihead import multihead_form
from equipoise.compress.norms import norm_form
from equipoise.compress.trace import RUN_ERRORS

NEAR = 1e-5
"""Largest difference of the answers, as a share of the largest answer."""


def linear_form(model: nn.Module, example: Inputs) -> nn.Module:
    """Return `model` with linear layers in place of what multiplies by a transposed weight or attends, norms as torch's own.

    Args:
        model: A copy, in evaluation mode; it may be changed.
        example: A batch (N, ...) that it accepts.
    """
    model = norm_form(multihead_form(model, example), example)
    shared = shared_parameters(model)
    able = {name: part for name, part in model.named_modules() if _could_be(part) and id(part.weight) not in shared}
    if not able:
        return model
    seen: dict[str, bool] = {}
    handles = [part.register_forward_hook(_compared(name, seen), with_kwargs=True) for name, part in able.items()]
    try:
        with torch.no_grad():
            call(model, example)
    finally:
        for handle in handles:
            handle.remove()
    for name, part in able.items():
        if seen.get(name) and _equal(part, torch.randn(3, len(part.weight), generator=torch.Generator().manual_seed(0))):
            model.set_submodule(name, _linear(part))
    return model


def shared_parameters(model: nn.Module) -> frozenset[int]:
    """Return the ids of parameters that more than one module (or more than one name) holds."""
    seen: set[int] = set()
    twice: set[int] = set()
    for _, parameter in model.named_parameters(remove_duplicate=False):
        (twice if id(parameter) in seen else seen).add(id(parameter))
    return frozenset(twice)


def _could_be(part: Any) -> bool:
    parameters = dict(part.named_parameters())
    weight, bias = parameters.get("weight"), parameters.get("bias")
    if weight is None or not weight.is_floating_point() or weight.dim() != 2 or isinstance(part, (nn.Linear, nn.Embedding)):
        return False
    return parameters.keys() <= {"weight", "bias"} and (bias is None or bias.shape == weight.shape[1:])


def _compared(name: str, seen: dict[str, bool]) -> Any:
    def hook(part: Any, given: tuple[Any, ...], named: dict[str, Any], answer: Any) -> None:
        alone = len(given) == 1 and not named and isinstance(given[0], Tensor)
        fits = alone and given[0].shape[-1:] == part.weight.shape[:1]
        seen[name] = seen.get(name, True) and fits and _near(answer, given[0], part)

    return hook


def _equal(part: Any, x: Tensor) -> bool:
    x = x.to(part.weight)
    try:
        with torch.no_grad():
            return _near(part(x), x, part)
    except RUN_ERRORS:
        return False


def _near(answer: Any, x: Tensor, part: Any) -> bool:
    wanted = nn.functional.linear(x, part.weight.T, getattr(part, "bias", None))
    if not isinstance(answer, Tensor) or answer.shape != wanted.shape:
        return False
    return bool((answer - wanted).abs().max() <= NEAR * wanted.abs().max())


def _linear(part: Any) -> nn.Linear:
    bias = getattr(part, "bias", None)
    inputs, outputs = part.weight.shape
    layer = nn.Linear(inputs, outputs, bias=bias is not None, device=part.weight.device, dtype=part.weight.dtype)
    layer.weight = nn.Parameter(part.weight.detach().T.contiguous(), part.weight.requires_grad)
    if bias is not None:
        layer.bias = bias
    return layer.train(part.training)
