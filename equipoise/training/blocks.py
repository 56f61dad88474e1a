"""The blocks that a network is a chain of: found by its structure, recomputed in the backward pass to save memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from equipoise.errors import must_be, unknown

PARTS = 2
"""A block holds at least this many modules with parameters of their own."""


def blocks(model: nn.Module) -> list[str]:
    """Return the names of the blocks of `model` in order: members of its sequences that hold several layers, innermost first.

    A residual block, a transformer block, or a Sequential of convolution and norm is one; a lone layer is not.
    """
    found = []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Sequential, nn.ModuleList)):
            for key, child in module.named_children():
                if sum(has_parameters(part) for part in child.modules()) >= PARTS:
                    found.append(f"{name}.{key}" if name else key)
    return [name for name in found if not any(other.startswith(name + ".") for other in found)]


@contextmanager
def recomputed(model: nn.Module, which: bool | Sequence[str]) -> Iterator[None]:
    """Let blocks of `model` keep their inputs alone and recompute the rest in the backward pass, while the context lasts.

    Gradients, losses and BatchNorm statistics are as without; names and `state_dict` too.

    Args:
        which: True for `blocks`, False for none, or names of modules.
    Raises:
        InputError: An unknown name, or no block found.

    References:
        Chen et al. 2016, "Training deep nets with sublinear memory cost".
    """
    names = blocks(model) if which is True else list(which or ())
    valid = dict(model.named_modules())
    for name in names:
        if name not in valid or not name:
            raise unknown("recipe.activation_checkpointing", name, (n for n in valid if n))
    if which and not names:
        raise must_be(
            "recipe.activation_checkpointing", "names of blocks", which, "No block was found in this model: name them."
        )
    chosen = [(valid[name], valid[name].__dict__.get("forward")) for name in names]
    for module, _ in chosen:
        module.forward = partial(_forward, module, module.forward)
    try:
        yield
    finally:
        for module, own in chosen:
            del module.__dict__["forward"]
            if own is not None:
                module.__dict__["forward"] = own


def _forward(module: nn.Module, forward: Any, *args: Any, **named: Any) -> Any:
    if not module.training:
        return forward(*args, **named)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=partial(_contexts, module), **named)


def _contexts(module: nn.Module) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    return nullcontext(), _still(module)


@contextmanager
def _still(module: nn.Module) -> Iterator[None]:
    """Keep running statistics as they are: the first forward pass has already moved them."""
    norms = [m for m in module.modules() if isinstance(m, _NormBase) and m.track_running_stats]
    kept: list[tuple[float | None, Tensor | None]] = []
    for norm in norms:
        counted = norm.num_batches_tracked
        kept.append((norm.momentum, None if counted is None else counted.clone()))
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, counted) in zip(norms, kept, strict=True):
            norm.momentum = momentum
            if counted is not None and norm.num_batches_tracked is not None:
                norm.num_batches_tracked.copy_(counted)


def has_parameters(module: nn.Module) -> bool:
    """Return whether `module` holds parameters itself, not in its parts."""
    return next(module.parameters(recurse=False), None) is not None
