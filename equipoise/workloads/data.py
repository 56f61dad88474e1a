"""Labelled data in whatever form the user has it, read in one way.

A `Split` is a source and an order. The order is a fixed shuffle made once from a recorded seed, so that ``split.take(n)`` is a
fair sample even of data sorted by class, and the same one in every run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from equipoise.batch import Inputs, call, leaves, named, parts
from equipoise.errors import InputError, must_be
from equipoise.workloads.forms import form_of
from equipoise.workloads.metrics import Metric
from equipoise.workloads.running import at_once
from equipoise.workloads.sources import Arrays, Items, Kept, Source, Streaming, attempt

Transform = Callable[[Any], Any]
"""A batch of inputs as they are read -> as the model takes them: a tensor, or a mapping of several."""


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled samples in a fixed order.

    Attributes:
        source: Where the samples lie.
        order: Sample numbers (int64) in the fixed shuffle.
        transform: Applied to each batch of inputs after reading (normalisation), or None.
        name: ``train``, ``validation``, ``calibration`` or ``test``; for messages.
        seed: Seed of the shuffle.
        notes: What its user should know about how the data were read.
        alike: A number for each sample of the source, or None: a shuffled reading puts samples of like numbers (lengths of
            texts) into one batch.
        unused: Names of several inputs that are not handed out, since the model does not take them.
        values: Whether targets are handed out as floats, values to predict (True), or as whole numbers, classes (False); None
            leaves them as they are read.

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
    notes: tuple[str, ...] = ()
    values: bool | None = None
    unused: tuple[str, ...] = ()
    alike: Tensor | None = None

    def __repr__(self) -> str:
        return f"Split({self.name}: {len(self.order)} samples)"

    @classmethod
    def of(
        cls, data: Any, *, name: str = "data", transform: Transform | None = None, keep: bool = True, seed: int = 0
    ) -> Split:
        """Make a split of what the user has.

        Args:
            data: A `Split`; ``(inputs, targets)`` as tensors or arrays; a map-style dataset of ``(input, target)`` items; a
                DataLoader (the samples of its dataset that its sampler can draw, and its collate function; how often and in
                which order it draws them is not followed); or an iterable of batches, which is read to its end once.
                A batch or a sample may be a mapping of the inputs and the labels. Inputs may be several: a mapping by the
                keywords of the model's forward, or a tuple of what it takes by position.
            name: For messages.
            transform: Batch of raw inputs -> what the model takes.
            keep: Remember items of a dataset after the first read, where they are small.
            seed: Of the fixed shuffle.
        Raises:
            InputError: None of these forms, or lengths that disagree.
        """
        if isinstance(data, Split):
            return replace(data, name=name, transform=transform or data.transform)
        form = form_of(data, name, keep=keep)
        rows = torch.arange(len(form.source)) if form.rows is None else form.rows
        order = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
        return cls(form.source, order, transform, name, seed, form.notes)

    def __len__(self) -> int:
        return len(self.order)

    def take(self, n: int) -> Split:
        """Return the first `n` samples of the fixed shuffle (all of them when there are fewer)."""
        return replace(self, order=self.order[:n])

    def part(self, start: int, stop: int | None = None, *, name: str | None = None) -> Split:
        """Return the samples `start` to `stop` of the fixed shuffle, under another name."""
        return replace(self, order=self.order[start:stop], name=name or self.name)

    def batches(self, size: int, *, shuffle_with: torch.Generator | None = None) -> Iterator[tuple[Inputs, Tensor]]:
        """Yield batches of (inputs, targets), inputs transformed: a tensor, or a mapping where the model takes several.

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
            if self.alike is not None:
                order = beside(order[:stop], self.alike, size, shuffle_with)
        chunks = [order[start : start + size] for start in range(0, stop, size)]
        if shuffle_with is None or not isinstance(self.source, Streaming):
            yield from (self._read(rows) for rows in chunks)
            return
        seed = int(torch.randint(2**62, (), generator=shuffle_with))
        for rows, (inputs, targets) in zip(chunks, self.source.stream(chunks, seed), strict=True):
            yield self._handed(inputs, targets, rows)

    def tensors(self) -> tuple[Inputs, Tensor]:
        """Return all inputs and targets at once, transformed, in the fixed order."""
        return self._read(self.order)

    def reread(self) -> Split:
        """Return the same split with nothing remembered of earlier reads."""
        return replace(self, source=replace(self.source, _seen=Kept())) if isinstance(self.source, Items) else self

    def targets(self) -> Tensor:
        """Return all targets in the fixed order, without reading inputs where they lie apart."""
        if isinstance(self.source, Arrays):
            return self._valued(self.source.targets[self.order])
        if isinstance(self.source, Streaming):
            return self._valued(self.source.labels[self.order])
        return torch.cat([targets for _, targets in self.batches(256)])

    def broken(self, inputs: Inputs, targets: Tensor, rows: Tensor) -> InputError | None:
        """Return an error where a number is NaN or infinite: which split, and which samples of the user's data.

        Args:
            inputs, targets: What was read.
            rows: The samples (N,) int64 that it was read from.
        """
        several = [(f"inputs {name!r}", value) for name, value in named(inputs).items()]
        for what, value in (*(several if len(several) > 1 else [("inputs", leaves(inputs)[0])]), ("targets", targets)):
            if value.is_floating_point() and len(value) == len(rows) and not bool(value.isfinite().all()):
                wrong = rows[~value.reshape(len(rows), -1).isfinite().all(1)].sort().values.tolist()
                more = f" and in {len(wrong) - 1} more" if len(wrong) > 1 else ""
                found = f"NaN or infinity in row {wrong[0]}{more}"
                return must_be(f"{self.name} {what}", "finite", found, "Clean the data, or look at the transform.")
        return None

    def _read(self, indices: Tensor) -> tuple[Inputs, Tensor]:
        return self._handed(*self.source.fetch(indices), indices)

    def _handed(self, inputs: Inputs, targets: Tensor, indices: Tensor) -> tuple[Inputs, Tensor]:
        """What was read at `indices`, as it is handed out."""
        if self.unused:
            inputs = {name: value for name, value in inputs.items() if name not in self.unused}
        inputs = self._transformed(inputs)
        # what lies in memory was looked at before any work, but for the test split, which is left alone until it is used
        if (isinstance(self.source, Items) or self.name == "test") and (error := self.broken(inputs, targets, indices)):
            raise error
        return inputs, self._valued(targets)

    def _transformed(self, inputs: Inputs) -> Inputs:
        change = self.transform
        return (
            inputs if change is None else attempt(f"{self.name} transform", lambda: change(inputs), "Look at transform=... .")
        )

    def _valued(self, targets: Tensor) -> Tensor:
        if self.values is None:
            return targets
        return targets.float() if self.values else targets.round().long() if targets.is_floating_point() else targets


POOL = 32
"""Batches that are drawn together and sorted, where samples of like numbers go together: few enough to stay random."""


def beside(order: Tensor, alike: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Return `order` with samples of like numbers in one batch of `size`; which batch comes when is drawn."""
    pools = [order[start : start + POOL * size] for start in range(0, len(order), POOL * size)]
    sorted_ = torch.cat([pool[alike[pool].argsort(stable=True)] for pool in pools])
    batches = [sorted_[start : start + size] for start in range(0, len(order), size)]
    places = torch.randperm(len(batches) - 1, generator=generator).tolist()  # a shorter last one stays the last
    return torch.cat([*(batches[place] for place in places), batches[-1]])


def predict(run: Callable[..., Any], split: Split, *, batch: int = 256) -> tuple[Tensor, Tensor]:
    """Return (outputs, targets) of a whole split, outputs in the split's fixed order.

    Args:
        run: Batch of inputs -> batch of outputs; tensor or array. A model is called with them as it takes them, a function (a
            runtime's session, say) with the batch itself.
        split: What to read.
        batch: Samples at a time, fewer where they are large.
    Raises:
        InputError: The split is empty.
    """
    outputs, targets = [], []
    with torch.inference_mode():
        for inputs, wanted in split.batches(batch):
            for few in parts(inputs, at_once(inputs, batch)):
                answer = call(run, few) if isinstance(run, nn.Module) else run(few)
                outputs.append(torch.as_tensor(cast(Any, answer)))
            targets.append(wanted)
    if not outputs:
        raise InputError(f"{split.name} must be data with at least one sample; got none. Pass another {split.name} split.")
    return _together("outputs", outputs, split.name).clone(), _together("targets", targets, split.name)


@dataclass(frozen=True)
class Asked:
    """Whom a metric asks: maps a batch of inputs to outputs, as tensors.

    Attributes:
        run: A model, or what answers for a program.
    """

    run: Callable[..., Any]

    def __call__(self, inputs: Inputs) -> Tensor:
        """Return the answers to a batch."""
        found: Any = call(self.run, inputs) if isinstance(self.run, nn.Module) else self.run(inputs)
        return torch.as_tensor(found)


def asked(metric: Metric, run: Callable[..., Any], split: Split, *, batch: int = 256) -> tuple[Tensor, Tensor]:
    """Return (outputs, targets) as `metric` reads them: what `predict` gives, or what it makes the model answer itself.

    Args:
        run, split, batch: As of `predict`.
    Raises:
        InputError: The split is empty, or the metric's own questions give no row for each target.
    """
    if metric.ask is None:
        return predict(run, split, batch=batch)

    with torch.inference_mode():
        outputs, targets = metric.ask(Asked(run), split)
    if not len(outputs) == len(targets) > 0:
        found = f"{len(outputs)} outputs and {len(targets)} targets"
        raise must_be(f"metric {metric.name}.ask", "one that returns a row for each target", found, "See metrics.Ask.")
    return outputs, targets


def _together(what: str, batches: list[Tensor], name: str) -> Tensor:
    """Return batches as one; those of different lengths cannot be compared place by place."""
    shapes = {tuple(batch.shape[1:]) for batch in batches}
    if len(shapes) > 1:
        remedy = "Pad every sample to one length in the collate function, and mark the padding by ignore_label=... ."
        raise must_be(f"{what} for the {name} data", "of one shape in every batch", sorted(shapes)[:3], remedy)
    return torch.cat(batches)
