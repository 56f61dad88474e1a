"""Labelled data in whatever form the user has it, read in one way.

A `Split` is a source and an order. The order is a fixed shuffle made once from a recorded seed, so that ``split.take(n)`` is a
fair sample even of data sorted by class, and the same one in every run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset, default_collate

from equipoise.errors import InputError, must_be

KEEP_BYTES = 1_000_000_000
"""Items of a map-style dataset are kept in memory after the first read when all of them would fit in this many bytes."""

Transform = Callable[[Tensor], Tensor]


class Source(Protocol):
    """Numbered samples."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def fetch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return the samples at `indices` (int64, one dimension) as one batch of inputs and targets."""
        ...


@dataclass(frozen=True, eq=False)
class Arrays:
    """Samples that lie in memory: `inputs` (N, ...) in any dtype (images stay uint8), `targets` (N, ...)."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def fetch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows at `indices`."""
        return self.inputs[indices], self.targets[indices]


@dataclass(frozen=True, eq=False)
class Items:
    """Samples read one by one from a map-style dataset.

    Attributes:
        keep: Remember what was read, if it is small. Off for training data, whose dataset may augment at random.
    """

    dataset: Any
    collate: Callable[[list[Any]], Any] = default_collate
    keep: bool = False
    name: str = "data"
    _seen: dict[int, Any] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.dataset)

    def fetch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return the items at `indices`, put together by the loader's own collate function."""
        items = [self._item(int(i)) for i in indices]
        try:
            batch = self.collate(items)
        except (RuntimeError, TypeError, ValueError) as error:
            remedy = "Give items of one shape, or a DataLoader with a collate_fn."
            raise must_be(self.name, "items that stack into one batch", str(error), remedy) from error
        return _pair(batch, self.name)

    def _item(self, index: int) -> Any:
        if index in self._seen:
            return self._seen[index]
        item = self.dataset[index]
        if self.keep and _bytes(item) * len(self) <= KEEP_BYTES:
            self._seen[index] = item
        return item


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled samples in a fixed order.

    Attributes:
        source: Where the samples lie.
        order: Sample numbers (int64) in the fixed shuffle.
        transform: Applied to each batch of inputs after reading (normalisation), or None.
        name: ``train``, ``validation``, ``calibration`` or ``test``; for messages.
        seed: Seed of the shuffle.

    Example:
        >>> split = Split.of((torch.arange(6).float(), torch.arange(6)), name="train")
        >>> len(split), len(split.take(2))
        (6, 2)
    """

    source: Source
    order: Tensor
    transform: Transform | None = None
    name: str = "data"
    seed: int = 0

    def __repr__(self) -> str:
        return f"Split({self.name}: {len(self.order)} samples)"

    @classmethod
    def of(
        cls, data: Any, *, name: str = "data", transform: Transform | None = None, keep: bool = True, seed: int = 0
    ) -> Split:
        """Make a split of what the user has.

        Args:
            data: A `Split`; ``(inputs, targets)`` as tensors or arrays; a map-style dataset of ``(input, target)`` items; a
                DataLoader (its dataset and its collate function are used, its order is not); or an iterable of batches, which
                is read to its end once.
            name: For messages.
            transform: Batch of raw inputs -> what the model takes.
            keep: Remember items of a dataset after the first read, where they are small.
            seed: Of the fixed shuffle.
        Raises:
            InputError: None of these forms, or lengths that disagree.
        """
        if isinstance(data, Split):
            return replace(data, name=name, transform=transform or data.transform)
        source = _source(data, name, keep)
        order = torch.randperm(len(source), generator=torch.Generator().manual_seed(seed))
        return cls(source, order, transform, name, seed)

    def __len__(self) -> int:
        return len(self.order)

    def take(self, n: int) -> Split:
        """Return the first `n` samples of the fixed shuffle (all of them when there are fewer)."""
        return replace(self, order=self.order[:n])

    def part(self, start: int, stop: int | None = None, *, name: str | None = None) -> Split:
        """Return the samples `start` to `stop` of the fixed shuffle, under another name."""
        return replace(self, order=self.order[start:stop], name=name or self.name)

    def batches(self, size: int, *, shuffle_with: torch.Generator | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of (inputs, targets), inputs transformed.

        Args:
            size: Samples in a batch.
            shuffle_with: None reads in the fixed order, a shorter last batch included. A generator draws one fresh order, and
                all batches are full (one shorter batch when the split is smaller than `size`).
        """
        if size < 1:
            raise must_be("batch size", "at least 1", size, "Give a positive number of samples.")
        order, stop = self.order, len(self)
        if shuffle_with is not None:
            order = order[torch.randperm(len(order), generator=shuffle_with)]
            stop = max(stop - stop % size, min(stop, size))
        for start in range(0, stop, size):
            yield self._read(order[start : start + size])

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Return all inputs and targets at once, transformed, in the fixed order."""
        return self._read(self.order)

    def reread(self) -> Split:
        """Return the same split with nothing remembered of earlier reads."""
        return replace(self, source=replace(self.source, _seen={})) if isinstance(self.source, Items) else self

    def targets(self) -> Tensor:
        """Return all targets in the fixed order, without reading inputs where they lie apart."""
        if isinstance(self.source, Arrays):
            return self.source.targets[self.order]
        return torch.cat([targets for _, targets in self.batches(256)])

    def _read(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        inputs, targets = self.source.fetch(indices)
        return (self.transform(inputs) if self.transform else inputs), targets


def _source(data: Any, name: str, keep: bool) -> Source:
    """Find the form of `data`; the order of the questions matters (a tuple of arrays is also a sequence)."""
    if isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(d, (Tensor, np.ndarray)) and d.ndim for d in data):
        return _arrays(data[0], data[1], name)
    if isinstance(data, DataLoader):
        if isinstance(data.dataset, IterableDataset) or data.batch_size is None:
            return _drain(data, name)
        if data.collate_fn is not default_collate:
            return Items(data.dataset, data.collate_fn, keep, name)
        data = data.dataset
    if isinstance(data, TensorDataset) and len(data.tensors) == 2:
        return _arrays(data.tensors[0], data.tensors[1], name)
    if isinstance(data, Subset) and isinstance(data.dataset, TensorDataset) and len(data.dataset.tensors) == 2:
        chosen = torch.as_tensor(list(data.indices), dtype=torch.int64)
        return _arrays(data.dataset.tensors[0][chosen], data.dataset.tensors[1][chosen], name)
    if not isinstance(data, (str, bytes, Mapping, Tensor, np.ndarray)):
        if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
            return Items(data, keep=keep, name=name)
        if isinstance(data, Iterable):
            return _drain(data, name)
    raise must_be(
        name,
        "(inputs, targets), a dataset, a DataLoader or an iterable of batches",
        type(data).__name__,
        "Inputs alone cannot be scored: pass the targets with them.",
    )


def _arrays(inputs: Any, targets: Any, name: str) -> Arrays:
    source = Arrays(*_pair((inputs, targets), name))
    if len(source.inputs) != len(source.targets):
        raise must_be(
            name, "as many targets as inputs", (len(source.inputs), len(source.targets)), "Check how the two were made."
        )
    return source


def _drain(batches: Iterable[Any], name: str) -> Source:
    """Read an iterable of batches to its end: it cannot be indexed, and may be readable only once."""
    pairs = [_pair(batch, name) for batch in batches]
    if not pairs:
        return Arrays(torch.empty(0), torch.empty(0))
    try:
        return _arrays(torch.cat([p[0] for p in pairs]), torch.cat([p[1] for p in pairs]), name)
    except RuntimeError as error:
        raise must_be(name, "batches of one shape", str(error), "Pad or crop the items to one size.") from error


def _pair(batch: Any, name: str) -> tuple[Tensor, Tensor]:
    """Check that a batch is one input tensor and one target tensor, in dtypes that models and losses take."""
    if not isinstance(batch, Sequence) or isinstance(batch, (str, bytes)) or len(batch) != 2:
        got = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
        raise must_be(name, "batches of (inputs, targets)", got, "Give a collate_fn that returns these two tensors.")
    return _tensor(batch[0], f"{name} inputs"), _tensor(batch[1], f"{name} targets")


def _tensor(value: Any, name: str) -> Tensor:
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], (int, float, bool)):
        value = np.asarray(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        value = torch.from_numpy(np.ascontiguousarray(value) if value.flags.writeable else value.copy())
    if not isinstance(value, Tensor):
        kind = f"array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
        raise must_be(name, "a tensor or an array of numbers", kind, "Convert it before; one tensor per model is supported.")
    found: Tensor = value.detach()
    if found.dtype in (torch.float64, torch.float16, torch.bfloat16):
        return found.float()
    if name.endswith("targets") and not found.is_floating_point():
        return found.long()
    return found


def _bytes(item: Any) -> int:
    """Memory of one item, roughly."""
    if isinstance(item, Tensor):
        return item.numel() * item.element_size()
    if isinstance(item, np.ndarray):
        return item.nbytes
    if isinstance(item, (tuple, list)):
        return sum(_bytes(part) for part in item)
    return 64


def predict(run: Callable[[Tensor], Any], split: Split, *, batch: int = 256) -> tuple[Tensor, Tensor]:
    """Return (outputs, targets) of a whole split, outputs in the split's fixed order.

    Args:
        run: Batch of inputs -> batch of outputs (a model, or a runtime's session wrapped in a function); tensor or array.
        split: What to read.
        batch: Samples at a time.
    Raises:
        InputError: The split is empty.
    """
    outputs, targets = [], []
    with torch.inference_mode():
        for inputs, wanted in split.batches(batch):
            outputs.append(torch.as_tensor(cast(Any, run(inputs))))
            targets.append(wanted)
    if not outputs:
        raise InputError(f"{split.name} must be data with at least one sample; got none. Pass another {split.name} split.")
    return torch.cat(outputs).clone(), torch.cat(targets)
