"""One file that a killed run goes on from: safetensors with the plain facts in its header, never pickle."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from equipoise.errors import StoreError


def write(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write the checkpoint so that `path` holds either the old or the new one, whole, at every moment.

    Args:
        path: Its folder must exist.
        tensors: Any dtypes and shapes.
        facts: Plain JSON data.
    Raises:
        StoreError: The file cannot be written; the old one is as it was.
    """
    data = save(_apart(tensors), {"facts": json.dumps(facts)})
    temporary = ""
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, suffix=".part", delete=False) as file:
            temporary = file.name
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise StoreError(f"checkpoint {path} must be writable; got {error}. Free space, or choose another folder.") from error


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return (tensors, facts) of a checkpoint, or None when there is none.

    Raises:
        StoreError: The file is there and cannot be read.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["facts"])
            return {key: file.get_tensor(key) for key in file.keys()}, facts  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise StoreError(f"checkpoint {path} must be readable; got {error}. Delete it to start over.") from error


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with memory of their own, which tied weights have not, and the format asks for."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, value in tensors.items():
        found[key] = value.detach().contiguous()
        place = found[key].untyped_storage().data_ptr()
        if place in seen:
            found[key] = found[key].clone()
        seen.add(place)
    return found


def pack_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's per-parameter state as flat tensors, ``<parameter>.<slot>``."""
    return {
        f"{name}.{slot}": value
        for name, parameter in model.named_parameters()
        for slot, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def unpack_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give `optimizer` the state that `pack_optimizer` took, by the parameters' names."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    numbers = {names[p]: i for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, slot = key.rsplit(".", 1)
        state.setdefault(numbers[name], {})[slot] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
