"""Tensors of which each process holds a share (torch's DTensor), for code that works on values one by one.

Plain tensors pass through, and torch.distributed is not imported for their sake.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


def here(tensor: Tensor) -> Tensor:
    """Return this process's share of `tensor`, in the same memory; call it without gradients."""
    shared: Any = tensor
    return shared.to_local() if hasattr(tensor, "to_local") else tensor


def whole(tensor: Tensor) -> Tensor:
    """Return all of `tensor`, gathered from every process."""
    shared: Any = tensor
    return shared.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def joined(share: Tensor, like: Tensor) -> Tensor:
    """Return all of the tensor of which `share` is what `here` gives, laid out as `like` is."""
    if not hasattr(like, "to_local"):
        return share
    shared: Any = like
    form = {"shape": shared.shape, "stride": shared.stride(), "run_check": False}
    return whole(type(shared).from_local(share, shared.device_mesh, shared.placements, **form))


def shared_as(tensor: Tensor, like: Tensor) -> Tensor:
    """Return `tensor`, which every process has, shared out as `like` is; plain where `like` is plain or of another shape."""
    if not hasattr(like, "to_local") or like.shape != tensor.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    shared: Any = like
    made: Tensor = distribute_tensor(tensor.to(like.device), shared.device_mesh, shared.placements, src_data_rank=None)
    return made.to(like.device)  # it lies on the mesh's device, also where `like` is kept in host memory
