"""The form in which the user has data, and which of its samples are meant.

A DataLoader's sampler says which samples of its dataset make the split; how often and in which order it draws them does not
matter here, since every split has an order of its own.
"""

from __future__ import annotations

import operator
import os
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

from equipoise.errors import must_be
from equipoise.workloads.sources import (
    LABEL_KEYS,
    Arrays,
    Items,
    Source,
    arrays,
    attempt,
    bytes_of,
    concatenated,
    pair,
    several,
    tupled,
)

DRAWS = 4
"""A sampler of one's own is read to its end once, unless it draws more than this many times the dataset."""

MEMORY_SHARE = 0.5
"""A stream is read into memory, up to this share of what the machine has."""


@dataclass(frozen=True)
class Form:
    """A source, the samples of it that are meant (int64; None: all), and what the user should know about that."""

    source: Source
    rows: Tensor | None = None
    notes: tuple[str, ...] = ()


def form_of(data: Any, name: str, *, keep: bool) -> Form:
    """Find the form of `data`.

    Raises:
        InputError: None of the known forms, or one that cannot be read.
    """
    if isinstance(data, DataLoader):
        return _loader(data, name, keep)
    if two := _two_arrays(data):
        return Form(arrays(*two, name))
    if isinstance(data, IterableDataset):
        return Form(_drain(data, name))
    if isinstance(data, Mapping) and _is_batch(data):
        return Form(arrays(*pair(data, name), name))
    if not isinstance(data, (str, bytes, Mapping, Tensor, np.ndarray)):
        if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
            return _dataset(data, name, keep)
        if isinstance(data, Iterable):
            return Form(_drain(data, name))
    remedy = "Inputs alone cannot be scored: pass the targets with them."
    if not isinstance(data, (Tensor, np.ndarray)):
        remedy = "Load the data first; a dataset has __len__ and __getitem__. " + remedy
    kinds = "(inputs, targets), a dataset, a DataLoader or an iterable of batches"
    raise must_be(name, kinds, data if isinstance(data, str) else type(data).__name__, remedy)


def _is_array(value: Any) -> bool:
    return (isinstance(value, (Tensor, np.ndarray)) and value.ndim > 0) or hasattr(value, "to_numpy")


def _is_batch(data: Mapping[Any, Any]) -> bool:
    """Whether a mapping holds whole arrays of inputs and of labels, by name."""
    held = [_is_array(value) for value in data.values()]
    return all(held) if len(data) == 2 else any(held) and len([key for key in data if key in LABEL_KEYS]) == 1


def _two_arrays(data: Any) -> tuple[Any, Any] | None:
    """Return inputs and targets where `data` is the two; a list of two samples is not."""
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        return None
    inputs, targets = data
    count = len(targets) if _is_array(targets) or isinstance(targets, list) else -1
    if count >= 0 and (several(inputs, count) or (isinstance(inputs, Mapping) and any(map(_is_array, inputs.values())))):
        return inputs, targets
    if _is_array(inputs) and (_is_array(targets) or isinstance(targets, list)):
        return inputs, targets
    numbers = isinstance(targets, list) and all(isinstance(value, (int, float)) for value in targets)
    listed = isinstance(data, tuple) and isinstance(inputs, list) and len(inputs) > 0
    if listed and (numbers or _is_array(targets)) and all(isinstance(row, (list, tuple, int, float)) for row in inputs):
        return inputs, targets
    return None


def _dataset(data: Any, name: str, keep: bool, collate: Any = None) -> Form:
    """A map-style dataset; what lies in memory is taken as it lies there."""
    if collate is not None:
        return Form(Items(data, collate, keep, name))
    if type(data) is TensorDataset and len(data.tensors) == 2:
        return Form(arrays(data.tensors[0], data.tensors[1], name, dataset=data))
    if type(data) is Subset:
        whole = _dataset(data.dataset, name, keep)
        if isinstance(whole.source, Arrays):
            return _chosen(whole, torch.as_tensor(list(data.indices), dtype=torch.int64).reshape(-1))
    source = Items(data, keep=keep, name=name)
    if isinstance(data, (list, tuple)) and len(data):
        return Form(Arrays(*source.together(list(data)), data))
    return Form(source)


def _chosen(whole: Form, rows: Tensor, notes: tuple[str, ...] = ()) -> Form:
    return Form(whole.source, rows if whole.rows is None else whole.rows[rows], (*whole.notes, *notes))


def _loader(loader: DataLoader[Any], name: str, keep: bool) -> Form:
    """A loader's dataset, the samples that its sampler draws, and its collate function."""
    data = loader.dataset
    plain = loader.collate_fn is default_collate
    batches = _batches(loader) if plain else loader
    indexed = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    if isinstance(data, IterableDataset) or loader.batch_sampler is None or not indexed:
        return Form(_drain(batches, name))
    drawn = _drawn(loader, name)
    if drawn is None:
        return Form(_drain(batches, name))
    rows, notes = drawn
    whole = _dataset(data, name, keep, None if plain else loader.collate_fn)
    count = len(data)  # type: ignore[arg-type]
    rows = torch.where(rows < 0, rows + count, rows)
    if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < count:
        remedy = "Make the sampler for this very dataset."
        raise must_be(f"{name} sampler", f"of indices below the dataset's {count}", int(rows.max()), remedy)
    every = len(rows) == count and torch.equal(rows, torch.arange(count))
    return Form(whole.source, whole.rows, (*whole.notes, *notes)) if every else _chosen(whole, rows, notes)


def _batches(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yield what torch's own collate function makes; nothing is drawn before the first is asked for."""
    yield from map(tupled, loader)


def _drawn(loader: DataLoader[Any], name: str) -> tuple[Tensor, tuple[str, ...]] | None:
    """Return the indices that a loader can draw, sorted, each once, with notes; None where they are no whole numbers."""
    batches: Any = loader.batch_sampler
    if type(batches) is not BatchSampler:
        return _read_once(batches, loader, name)
    sampler: Any = batches.sampler
    kind, notes = type(sampler), []
    if kind is SequentialSampler:
        rows = torch.arange(len(sampler.data_source))
        if batches.drop_last and name != "train" and len(rows) % batches.batch_size:
            notes.append(f"{name}: drop_last is not followed; all {len(rows)} samples are used")
    elif kind is RandomSampler:
        rows = torch.arange(len(sampler.data_source))
        if sampler.replacement or sampler.num_samples < len(rows):
            notes.append(f"{name}: the sampler draws {sampler.num_samples} at random; all {len(rows)} samples are used")
    elif kind is SubsetRandomSampler:
        rows = torch.tensor(sorted({int(i) for i in sampler.indices}), dtype=torch.int64)
    elif kind is WeightedRandomSampler:
        rows = torch.as_tensor(sampler.weights).flatten().nonzero().flatten()
        notes.append(f"{name}: the sampler's weights are not followed; its {len(rows)} samples that have one count alike")
    elif kind is DistributedSampler:
        rows = torch.arange(len(sampler.dataset))
        if sampler.num_replicas > 1:
            notes.append(f"{name}: the sampler shares out samples between processes; all {len(rows)} are used")
    else:
        return _read_once(sampler, loader, name)
    return rows, tuple(notes)


def _read_once(sampler: Iterable[Any], loader: DataLoader[Any], name: str) -> tuple[Tensor, tuple[str, ...]] | None:
    """Read a sampler of the user's own to its end; what it draws is the split."""
    count = len(loader.dataset)  # type: ignore[arg-type]
    with _undisturbed(sampler):
        drawn = attempt(f"{name} sampler", lambda: _indices(sampler, DRAWS * count + 1000, name), "Mend its __iter__.")
    if drawn is None:
        return None
    rows = torch.tensor(sorted(set(drawn)), dtype=torch.int64)
    kind = type(sampler).__name__
    notes = (
        ()
        if isinstance(sampler, (list, tuple, range))
        else (f"{name}: {kind} was read once; the {len(rows)} of {count} samples that it drew are the split",)
    )
    return rows, notes


def _indices(sampler: Iterable[Any], most: int, name: str) -> list[int] | None:
    """Return the indices that a sampler or batch sampler yields; None where they are something else."""
    found: list[int] = []
    for drawn in sampler:
        for index in drawn if isinstance(drawn, (list, tuple, Tensor, np.ndarray)) and np.ndim(drawn) else (drawn,):
            try:
                found.append(operator.index(index))
            except TypeError:
                return None
        if len(found) > most:
            raise must_be(f"{name} sampler", "one that ends", f"more than {most} draws", "Pass the dataset, or a Subset of it.")
    return found


@contextmanager
def _undisturbed(sampler: Any) -> Iterator[None]:
    """Leave every random state that a sampler may draw from as it was."""
    own = getattr(sampler, "generator", None)
    own = own if isinstance(own, torch.Generator) else None
    kept = own.get_state() if own else None
    ours, numpys = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(ours)
        np.random.set_state(numpys)
        if own and kept is not None:
            own.set_state(kept)


def _drain(batches: Iterable[Any], name: str) -> Source:
    """Read an iterable of batches to its end: it cannot be indexed, and may be readable only once."""
    found = attempt(f"{name} data", lambda: _collected(batches, name), "Look at what it yields.")
    if not found:
        return Arrays(torch.empty(0), torch.empty(0))
    if _is_sample(found[0]):
        return Arrays(*Items(found, name=name).together(found))
    pairs = [pair(batch, name) for batch in found]
    try:
        return arrays(concatenated([p[0] for p in pairs]), torch.cat([p[1] for p in pairs]), name)
    except RuntimeError as error:
        raise must_be(name, "batches of one shape", str(error), "Pad or crop the items to one size.") from error


def _collected(batches: Iterable[Any], name: str) -> list[Any]:
    """Return all that an iterable yields, as long as there is room for it."""
    room, held, found = MEMORY_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), 0, []
    for batch in batches:
        found.append(batch)
        held += bytes_of(batch)
        if held > room:
            remedy = "Pass a map-style dataset, whose items are read when they are needed."
            raise must_be(name, "a stream that ends within half of the memory", f"more than {held / 1e9:.1f} GB", remedy)
    return found


def _is_sample(item: Any) -> bool:
    """Whether what a stream yields is one sample (its target is one number) rather than a batch."""
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        return False
    return np.ndim(item[1]) == 0 and not isinstance(item[1], (str, bytes, Mapping)) and item[1] is not None
