"""The plain module inside what training scripts leave behind: data parallel, compiled, averaged, normalised by hooks.

Compression changes layers, so it needs them where they are and as they are. A wrapper that only hands its input on is taken
off; a weight that is computed anew at each call (weight and spectral normalization, in both of torch's forms) is written
down as the number it has in evaluation mode. Both leave the function as it was.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from equipoise.errors import must_be

INSIDE = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
    "OptimizedModule": "_orig_mod",
}
"""Torch's class whose forward only calls the model inside -> the attribute that holds that model."""

SHARDED = ("FullyShardedDataParallel", "FSDPModule")

HOOKS = (WeightNorm, SpectralNorm, BasePruningMethod)
"""Forward hooks that compute a weight from others: the old normalizations, and masks of `torch.nn.utils.prune`."""

CONSTANT = (parametrizations._WeightNorm, parametrizations._SpectralNorm, parametrizations._Orthogonal)
"""Parametrizations whose value is a constant in evaluation mode."""

_PLAIN = "Pass the Python module itself"


def bare(model: nn.Module) -> nn.Module:
    """Return the plain module that `model` wraps, at the top or inside; `model` itself where there is nothing to take off.

    Taken off are data parallel and compiled wrappers, averages of weights (the averaged model stays), weight and spectral
    normalization and the masks of `torch.nn.utils.prune` (zeros stay zero until they are trained). The caller's model is never
    changed: what has to be changed is changed on a copy, which computes the same in evaluation mode.

    Args:
        model: Any module.
    Raises:
        InputError: A TorchScript module, one whose weights are sharded over processes, or one with weights that do not exist
            yet (lazy layers that never ran); the remedy is named.
    """
    plain = inside(model)
    _refuse(plain)
    parts = list(plain.modules())
    if all(inside(part) is part and not normalized(part) and not _computed(part) for part in parts):
        return plain
    free = copied(plain)
    modes = [(part, part.training) for part in free.modules()]
    free.eval()  # spectral normalization moves its vectors at each call in training mode
    for part in list(free.modules()):
        for name in normalized(part):
            _write_down(part, name)
    for part, mode in modes:
        part.training = mode
    return free


def inside(model: nn.Module) -> nn.Module:
    """Return what is left of `model` once the wrappers around it (not those around its parts) are taken off."""
    while True:
        kinds = [kind for kind in type(model).__mro__ if kind.__name__ in INSIDE and kind.__module__.startswith("torch.")]
        if not kinds or type(model).forward is not kinds[0].forward:  # type: ignore[attr-defined]
            return model
        within = getattr(model, INSIDE[kinds[0].__name__])
        if not isinstance(within, nn.Module):
            return model
        model = within


def copied(model: nn.Module) -> nn.Module:
    """Return a deep copy without the wrappers around its parts.

    Weights that a hook has computed, which Python's own copy refuses, are copied as numbers.
    """
    done: dict[int, Any] = {}
    for part in model.modules():
        done.update({id(value): value.detach().clone() for value in _computed(part)})
    for part in reversed(list(model.modules())):  # from the inside out: a wrapper may hold wrappers
        if (within := inside(part)) is not part:
            done[id(part)] = copy.deepcopy(within, done)
    return copy.deepcopy(model, done)


def normalized(part: nn.Module) -> tuple[str, ...]:
    """Return the names of the tensors of one module that a normalization computes from others."""
    hooks = [_tensor_of(hook) for hook in part._forward_pre_hooks.values() if isinstance(hook, HOOKS)]
    if not parametrize.is_parametrized(part):
        return tuple(hooks)
    chains: Any = part.parametrizations
    return (*hooks, *(name for name, chain in chains.items() if all(isinstance(step, CONSTANT) for step in chain)))


def single(model: nn.Module) -> tuple[nn.Module, str]:
    """Return `model` and an empty text where it computes in float32, else a float32 copy and what was converted.

    Example:
        >>> single(nn.Linear(2, 2).half())[1]
        'converted from float16 to float32'
    """
    values = (*model.parameters(), *model.buffers())
    others = sorted({str(v.dtype).removeprefix("torch.") for v in values if v.is_floating_point() and v.dtype != torch.float32})
    if not others:
        return model, ""
    return copied(model).float(), f"converted from {' and '.join(others)} to float32"


def hosted(model: nn.Module) -> nn.Module:
    """Return `model` where all of it lies on the CPU, else a copy that does: where runtimes read it, and torch exports it."""
    away = any(value.device.type != "cpu" for value in (*model.parameters(), *model.buffers()))
    return copied(model).cpu() if away else model


def _computed(part: nn.Module) -> list[Tensor]:
    """Return the tensors that a module keeps beside its parameters and that come from a computation."""
    return [value for value in vars(part).values() if isinstance(value, Tensor) and not value.is_leaf]


def _tensor_of(hook: Any) -> str:
    """Return the name of the tensor that a hook computes."""
    return str(hook._tensor_name if isinstance(hook, BasePruningMethod) else hook.name)


def _refuse(model: nn.Module) -> None:
    """Raise for what cannot be taken apart."""
    for name, part in model.named_modules():
        where = f"model.{name}" if name else "model"
        kind = type(part).__name__
        if isinstance(part, torch.jit.ScriptModule):
            what = "a Python torch.nn.Module, not TorchScript, whose layers cannot be changed"
            raise must_be(where, what, kind, f"{_PLAIN}, as it was before torch.jit.script or torch.jit.trace.")
        if {base.__name__ for base in type(part).__mro__} & set(SHARDED):
            raise must_be(where, "a module that holds its weights whole", kind, f"{_PLAIN}, loaded with the full state dict.")
        own = (*part.parameters(recurse=False), *part.buffers(recurse=False))
        if any(isinstance(value, (UninitializedParameter, UninitializedBuffer)) for value in own):
            raise must_be(where, "a layer whose weights exist", kind, "Call model(inputs) once before, which makes them.")


def _write_down(part: nn.Module, name: str) -> None:
    """Replace a computed tensor by a parameter that holds its value in evaluation mode."""
    if parametrize.is_parametrized(part, name):
        chains: Any = part.parametrizations
        value = getattr(part, name).detach().clone()
        trained = any(source.requires_grad for source in chains[name].parameters())
        _unchain(part, name)
    else:
        hooks = part._forward_pre_hooks
        key = next(k for k, hook in hooks.items() if isinstance(hook, HOOKS) and _tensor_of(hook) == name)
        sources = [p for own, p in part.named_parameters(recurse=False) if own.startswith(f"{name}_")]
        trained = any(source.requires_grad for source in sources)
        cast(Any, hooks.pop(key)).remove(part)
        value = getattr(part, name).detach().clone()
        _forget(part, name)
    if hasattr(part, name):
        delattr(part, name)
    part.register_parameter(name, nn.Parameter(value, trained))


def _unchain(part: Any, name: str) -> None:
    """Take a parametrization off one copy; torch's own way would take it off the class, which all copies share."""
    kind, chains = type(part), part.parametrizations
    del chains[name]
    if len(chains):
        part.__class__ = type(kind.__name__, kind.__bases__, {key: v for key, v in vars(kind).items() if key != name})
    else:
        del part.parametrizations
        part.__class__ = kind.__bases__[0]


def _forget(part: nn.Module, name: str) -> None:
    """Take off what the hook form of spectral normalization does when the weights are saved and loaded."""
    for hooks in (part._state_dict_hooks, part._load_state_dict_pre_hooks):
        for key, hook in list(hooks.items()):
            holder = getattr(hook, "hook", hook)
            if getattr(getattr(holder, "fn", None), "name", None) == name:
                del hooks[key]
