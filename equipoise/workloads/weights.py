"""Weights from a file, never by running code that the file brings along."""

from __future__ import annotations

import pickle
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from equipoise.errors import InputError, must_be

BUILDER = "Write a function make_workload() that builds the model and loads its state dict, and pass FILE.py:make_workload."

UNREADABLE = (
    SafetensorError,
    RuntimeError,
    OSError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    MemoryError,
    ImportError,
    struct.error,
)
"""What reading a file of other bytes as weights has been seen to raise, and its kin."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a ``.safetensors`` file or of a state dict saved by torch, on the CPU.

    Raises:
        InputError: No such file, damaged, not a state dict, or a pickle that would run code.
    """
    if not path.is_file():
        raise must_be("weights", "an existing file", str(path), "Give the path of a safetensors file.")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an unusual pickle protocol is told by the error, if it is one
            found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise must_be("weights", "tensors alone", f"{path}, a pickle that would run code", BUILDER) from error
    except UNREADABLE as error:
        said = f"{type(error).__name__}: {error}".splitlines()[0][:120]
        raise must_be(
            "weights", "a readable file of tensors", f"{path} ({said})", "Save it again; it may be cut off, or no such file."
        ) from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise must_be("weights", "a state dict", f"{path}, a {type(found).__name__}", "Save model.state_dict().")
    return dict(found)


def packed(model: nn.Module) -> bytes:
    """Return the state dict of `model` as a safetensors file; a tensor that two layers share is written for both."""
    return bytes(save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}))


def load_weights(
    model: nn.Module, tensors: Mapping[str, Tensor], *, name: str, remedy: str = "Give the weights of this very model."
) -> None:
    """Load `tensors` into `model`, every name and shape matching; BatchNorm's step counters may be left out.

    Raises:
        InputError: Names or shapes differ; all of them are told.
    """
    wanted = model.state_dict()
    missing = [key for key in wanted if key not in tensors and not key.endswith("num_batches_tracked")]
    extra = [key for key in tensors if key not in wanted]
    other = [key for key in wanted if key in tensors and tensors[key].shape != wanted[key].shape]
    lines = [
        f"{name} must {what}; got {len(keys)} that do not: {', '.join(keys[:5])}{' ...' if len(keys) > 5 else ''}. " + remedy
        for what, keys in (
            ("name every tensor of the model", missing),
            ("name only tensors of the model", extra),
            ("have the model's shapes", other),
        )
        if keys
    ]
    if lines:
        raise InputError("\n".join(lines))
    model.load_state_dict({**wanted, **tensors})


def go_on_from(model: nn.Module, tensors: Mapping[str, Tensor], *, name: str) -> int:
    """Load what an earlier model of the same family learned into one that may have more rows; return how many are new.

    Tensors of which `model` has more rows (its first dimension) are loaded as far as they go: items, words or classes that came
    later stand behind those that there were, and keep the values that they were drawn with.

    Raises:
        InputError: A name is missing on either side, or a tensor differs otherwise than by rows that the model has more.
    """
    wanted, new = model.state_dict(), 0
    loaded: dict[str, Tensor] = {}
    for key, value in tensors.items():
        mine = wanted.get(key)
        if mine is not None and mine.ndim == value.ndim > 0 and mine.shape[1:] == value.shape[1:] and len(mine) > len(value):
            new = max(new, len(mine) - len(value))
            value = torch.cat([value.to(mine.dtype), mine[len(value) :]])
        loaded[key] = value
    remedy = "Give what the same family wrote at the same scale; of items, words or classes there may be more now."
    load_weights(model, loaded, name=name, remedy=remedy)
    return new
