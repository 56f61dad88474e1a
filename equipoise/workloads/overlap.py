"""Samples that two splits share: the same places of one dataset, or the same content."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from equipoise.batch import Batch, named
from equipoise.errors import InputError, must_be
from equipoise.workloads.data import Split
from equipoise.workloads.sources import Arrays, Items

TOLD = 0.02
"""Share of a split's samples that may equal training samples before it is told: a few duplicates are common in tables."""

Words = npt.NDArray[np.uint64]
Places = dict[Hashable, set[Hashable]]
"""Dataset -> which of its samples."""


def shared_places(split: Split, other: Split) -> int:
    """Return how many samples of `split` are, by their place in the user's own dataset, samples of `other` too."""
    if split.source is other.source:
        return len(np.intersect1d(split.order.numpy(), other.order.numpy()))
    mine, theirs = _places(split), _places(other)
    return sum(len(mine[key] & theirs[key]) for key in mine if key in theirs)


def overlapping(train: Split, validation: Split, test: Split, *, calibration: Split | None = None) -> Iterator[InputError]:
    """Yield an error for each two splits that share samples of one dataset; nothing is read for it.

    Args:
        calibration: What is calibrated on must not be what verifies; with the others it may share samples.
    """
    pairs = [(test, train), (test, validation), (validation, train)]
    pairs += [] if calibration is None else [(calibration, test)]
    for split, other in pairs:
        if count := shared_places(split, other):
            found = f"{count} of its {len(split)} samples are samples of the {other.name} split too"
            remedy = "Give each split samples of its own (torch.utils.data.Subset, or samplers of disjoint indices)."
            yield must_be(f"{split.name} split", f"apart from the {other.name} split", found, remedy)


def shared_content(split: Split, other: Split) -> int | None:
    """Return how many samples of `split` have inputs that occur in `other` too; None where they do not lie in memory."""
    if not isinstance(split.source, Arrays) or not isinstance(other.source, Arrays) or not len(split) or not len(other):
        return None
    mine, theirs = named(split.source.inputs), named(other.source.inputs)
    if {k: (v.dtype, v.shape[1:]) for k, v in mine.items()} != {k: (v.dtype, v.shape[1:]) for k, v in theirs.items()}:
        return None
    return int(np.isin(_all_marks(mine, split.order), _all_marks(theirs, other.order)).sum())


def duplicates(train: Split, validation: Split, test: Split) -> Iterator[str]:
    """Yield a sentence for each held-out split of which a notable share equals samples that are trained on."""
    for split, others in ((test, (train, validation)), (validation, (train,))):
        for other in others:
            count = shared_content(split, other)
            if count and count > TOLD * len(split):
                share = f"{count} of {len(split)} {split.name} inputs ({100 * count / len(split):.0f}%)"
                yield (
                    f"{share} also occur in the {other.name} split: what is found on them says little about new data. "
                    "Remove them, unless such repeats are natural here"
                )


def _places(split: Split) -> Places:
    source = split.source
    dataset = source.dataset if isinstance(source, Arrays | Items) else None
    found: Places = {}
    if dataset is not None:
        _resolve(dataset, split.order, found)
    return found


def _resolve(dataset: object, rows: Tensor, found: Places) -> None:
    """Follow subsets and concatenations down to the datasets that hold the samples."""
    if isinstance(dataset, Subset):
        _resolve(dataset.dataset, torch.as_tensor(list(dataset.indices), dtype=torch.int64)[rows], found)
    elif isinstance(dataset, ConcatDataset):
        begin = 0
        for part, end in zip(dataset.datasets, dataset.cumulative_sizes, strict=True):
            inside = rows[(rows >= begin) & (rows < end)]
            _resolve(part, inside - begin, found)
            begin = end
    elif isinstance(dataset, TensorDataset) and dataset.tensors and dataset.tensors[0].stride(0):
        first = dataset.tensors[0]  # two datasets over one tensor hold the same samples
        addresses = first.data_ptr() + rows * first.stride(0) * first.element_size()
        found.setdefault("memory", set()).update(addresses.tolist())
    else:
        files = files_of(dataset)
        key: Hashable = "files" if files else id(dataset)
        found.setdefault(key, set()).update(files[i] if files else i for i in rows.tolist())


def files_of(dataset: object) -> list[str] | None:
    """The files of a folder dataset in torchvision's form: two such datasets of one folder hold the same samples."""
    samples = getattr(dataset, "samples", None)
    if not isinstance(samples, list) or not samples or not isinstance(samples[0], tuple):
        return None
    if not all(s and isinstance(s[0], str) and Path(s[0]).suffix for s in samples) or len(samples) != _length(dataset):
        return None  # texts, or files of which each holds several samples
    return [first for first, *_ in samples]


def _length(dataset: Any) -> int:
    try:
        return len(dataset)
    except TypeError:
        return -1


def _all_marks(inputs: Batch, rows: Tensor) -> Words:
    """Return a 64-bit hash of each row of several inputs together."""
    total = np.zeros(len(rows), np.uint64)
    for _, values in sorted(inputs.items()):
        total = total * np.uint64(0x9E3779B97F4A7C15) + _marks(values, rows)
    return total


def _marks(values: Tensor, rows: Tensor) -> Words:
    """Return a 64-bit hash of each row: equal rows have equal ones, others differ but for one pair in 10^19."""
    out = np.empty(len(rows), np.uint64)
    step = max(1, 4_000_000 // max(1, values[:1].numel()))
    for start in range(0, len(rows), step):
        chunk = np.ascontiguousarray(values[rows[start : start + step]].numpy())
        octets = chunk.reshape(len(chunk), -1).view(np.uint8)
        padded = np.zeros((len(chunk), -(-octets.shape[1] // 8) * 8), np.uint8)
        padded[:, : octets.shape[1]] = octets
        out[start : start + step] = _mixed(padded.view(np.uint64))
    return out


def _mixed(words: Words) -> Words:
    """Sum each row's words, each spread over all bits and then multiplied by an odd number of its column."""
    odd = np.random.default_rng(0).integers(0, 2**63, words.shape[1], dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    words = (words ^ (words >> np.uint64(32))) * np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    total: Words = ((words ^ (words >> np.uint64(32))) * odd).sum(axis=1, dtype=np.uint64)
    return total
