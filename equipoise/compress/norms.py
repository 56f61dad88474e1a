"""Norms over the last axis of other people's making, put in torch's own form, of which channels can be cut.

Libraries bring classes of their own for `nn.LayerNorm` (a quicker path on some devices) and `nn.RMSNorm` (Llama, T5). Which of
the two a module computes is known by its answers: to its own inputs, and to random ones, large and small.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.batch import Inputs, call
from equipoise.compress.trace import RUN_ERRORS

NEAR = 1e-5
"""Largest difference of the answers, as a share of the largest answer."""
SIZES = (1.0, 1e-3, 100.0)
"""Sizes of the random inputs: at the small one the number added to the variance counts."""


def norm_form(model: nn.Module, example: Inputs) -> nn.Module:
    """Return `model`, in place, with every module that answers as a norm over the last axis replaced by that norm.

    Args:
        model: A copy, in evaluation mode.
        example: A batch (N, ...) that it accepts.
    """
    able: dict[str, list[nn.Module]] = {}
    handles = []
    for name, part in model.named_modules():
        if forms := list(_forms(part)):
            able[name] = forms
            handles.append(part.register_forward_hook(_kept(name, able), with_kwargs=True))
    if not able:
        return model
    seen: set[str] = set()
    handles += [model.get_submodule(name).register_forward_hook(lambda *_, name=name: seen.add(name)) for name in able]
    try:
        with torch.no_grad():
            call(model, example)
    finally:
        for handle in handles:
            handle.remove()
    for name in [name for name, forms in able.items() if forms and name in seen]:
        part = model.get_submodule(name)
        form = next((form for form in able[name] if _alike(part, form)), None)
        if form is not None and name:
            model.set_submodule(name, form)
    return model


def _forms(part: Any) -> Iterator[nn.Module]:
    """Yield the norms that a module could be: one weight for each channel, a bias or none, and a small number of its own."""
    held = dict(part.named_parameters())
    weight, bias = held.get("weight"), held.get("bias")
    if type(part) in (nn.LayerNorm, nn.RMSNorm) or weight is None or weight.dim() != 1 or not weight.is_floating_point():
        return
    if not held.keys() <= {"weight", "bias"} or part._forward_hooks or part._forward_pre_hooks:
        return
    if any(True for _ in part.buffers()):
        return
    if bias is not None and bias.shape != weight.shape:
        return
    for eps in {value for value in vars(part).values() if isinstance(value, float) and 0 < value < 1e-2}:
        options = {"eps": eps, "device": weight.device, "dtype": weight.dtype}
        norms: list[Any] = [nn.LayerNorm(len(weight), bias=bias is not None, **options)]
        norms += [] if bias is not None else [nn.RMSNorm(len(weight), **options)]
        for norm in norms:
            norm.weight = weight
            if bias is not None:
                norm.bias = bias
            yield norm.train(part.training)


def _kept(name: str, able: dict[str, list[nn.Module]]) -> Any:
    """Keep of the norms that a module could be those that answer its own inputs as it does."""

    def hook(part: nn.Module, given: tuple[Any, ...], named: dict[str, Any], answer: Any) -> None:
        able[name] = [form for form in able[name] if len(given) == 1 and not named and _near(form, given[0], answer)]

    return hook


def _alike(part: Any, form: nn.Module) -> bool:
    """Whether both answer random inputs of several sizes alike."""
    drawn = torch.randn(7, len(part.weight), generator=torch.Generator().manual_seed(0)).to(part.weight)
    try:
        with torch.no_grad():
            return all(
                _near(form, size * (drawn + shift), part(size * (drawn + shift))) for size in SIZES for shift in (0.0, 1.0)
            )
    except RUN_ERRORS:
        return False


def _near(form: Any, x: Any, answer: Any) -> bool:
    if (
        not isinstance(x, Tensor)
        or not isinstance(answer, Tensor)
        or x.shape[-1:] != form.weight.shape
        or answer.shape != x.shape
    ):
        return False
    wanted = form(x)
    return wanted.dtype == answer.dtype and bool((answer - wanted).abs().max() <= NEAR * wanted.abs().max())
