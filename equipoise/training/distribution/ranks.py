"""The processes of one run and what they say to each other; every kind of distribution is made of these few sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from equipoise.errors import EquipoiseError

LOST_TOUCH = "the ranks of a run must stay in touch"
_LOST = re.compile(r"gloo|nccl|connection|socket|broken pipe|timed? ?out", re.IGNORECASE)


@contextmanager
def in_touch() -> Iterator[None]:
    """Turn the many errors of a lost or silent rank into one."""
    try:
        yield
    except RuntimeError as error:
        if _LOST.search(str(error)) is None:
            raise
        reason = str(error).strip().splitlines()[0]
        raise EquipoiseError(
            f"{LOST_TOUCH}; got {reason!r}. Another rank ended or hangs: look at its own error, then "
            "start the run again; it goes on from its last checkpoint."
        ) from error


@dataclass(frozen=True)
class Ranks:
    """This process's place among the `world` processes of a run, and where it computes."""

    rank: int
    world: int
    device: torch.device

    def rows(self, count: int) -> slice:
        """Return which of `count` rows are this rank's: nearly equal shares, in order."""
        return slice(self.rank * count // self.world, (self.rank + 1) * count // self.world)

    @in_touch()
    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of `value` over the ranks."""
        total = value.clone()
        dist.all_reduce(total)
        return total

    @in_touch()
    def gather(self, part: Tensor, count: int) -> Tensor:
        """Return all `count` rows on every rank, of which this one holds its `rows` (more are cut off)."""
        shares = [Ranks(rank, self.world, self.device).rows(count) for rank in range(self.world)]
        lengths = [share.stop - share.start for share in shares]
        padded = part.new_zeros(max(lengths), *part.shape[1:])
        padded[: lengths[self.rank]] = part[: lengths[self.rank]]
        parts = [torch.empty_like(padded) for _ in shares]
        dist.all_gather(parts, padded)
        return torch.cat([found[:length] for found, length in zip(parts, lengths, strict=True)])

    @in_touch()
    def tell(self, value: Tensor | None, source: int) -> Tensor:
        """Return on every rank the tensor that rank `source` has; the others need not know its shape."""
        form: list[tuple[torch.Size, torch.dtype] | None] = [None]
        if self.rank == source and value is not None:
            form, value = [(value.shape, value.dtype)], value.contiguous()
        dist.broadcast_object_list(form, source)
        if self.rank != source and form[0] is not None:
            value = torch.empty(form[0][0], dtype=form[0][1], device=self.device)
        if value is None:
            raise RuntimeError(f"rank {source} has nothing to tell")
        dist.broadcast(value, source)
        return value

    @in_touch()
    def same_buffers(self, model: nn.Module) -> None:
        """Give every rank the buffers of rank 0 (BatchNorm's running statistics)."""
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)

    @in_touch()
    def agree(self, value: float) -> float:
        """Return the `value` of rank 0."""
        said = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(said, 0)
        return float(said)

    def close(self) -> None:
        """Leave the run."""
        if dist.is_initialized():
            dist.destroy_process_group()
