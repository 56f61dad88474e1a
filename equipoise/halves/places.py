"""Where a model is worth cutting, and in how few levels features pass there: found on calibration and validation inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from equipoise.batch import Inputs, mapped, named, parts, size, take
from equipoise.halves.coding import Field, packed, shortest
from equipoise.halves.pair import Pair, apart, first, load
from equipoise.records import Reading, measured
from equipoise.runtimes.base import Program, Session, Source, Target, feeds, get
from equipoise.runtimes.cpu import cores
from equipoise.runtimes.cutting import MOST_LEVELS, SENT, Cut, Grid, cuts, exposed, halves
from equipoise.runtimes.sessions import session
from equipoise.stats import quantile
from equipoise.workloads import Metric, Split, predict
from equipoise.workloads.scoring import drop_reading, quality_reading

Array = NDArray[Any]

LEVELS = (256, 64, 32, 24, 16, 12, 8, 6)
"""In how many levels features may pass. A Huffman code comes after, so a level less always saves something."""
MOST_PLACES = 10
LESS = (0.95, 0.9, 0.8, 0.65, 0.5)
"""A later cut is worth trying only where less passes than at every one before, by one of these factors: the first by which
`MOST_PLACES` remain. It leaves more to the device, which is the slower; where it is not, the whole model stays there."""
SAMPLES, REQUESTS = 64, 12
"""Calibration inputs that ranges are read from, and requests that sizes are."""
MARGIN, SAME = 2.0, 1e-3
"""A tolerance is so many times the largest difference on calibration inputs, and what float kernels differ by."""
AT_ONCE = 2
IMAGE_AXES = 4


@dataclass(frozen=True)
class Place:
    """A cut that is worth trying.

    Attributes:
        number: Of the cut among all of the file's; 0 sends the inputs.
        low, high: Range of its tensor on calibration inputs, of an image for each channel.
    """

    number: int
    cut: Cut
    low: Array = field(repr=False)
    high: Array = field(repr=False)


@dataclass(frozen=True)
class Trial:
    """A pair of halves, and what is lost and sent with it.

    Attributes:
        levels: In which features pass; 0 for floats as they are.
        sent: Bytes of a request, the median.
        drop: In points on validation, from the whole model.
    """

    pair: Pair
    place: Place
    levels: int
    sent: Reading
    drop: Reading


def worth(content: bytes, inputs: Inputs, batch: int) -> list[Place]:
    """Return the cuts of a file that are worth trying, the inputs first.

    Args:
        content: The model's ONNX file.
        inputs: For calibration (N, ...).
        batch: Samples of a request.
    """
    found = cuts(content)
    request = take(inputs, np.arange(batch) % size(inputs))
    seen = _seen(content, found, request)
    whole = [n for n, cut in enumerate(found) if not cut.tensor or len(seen[cut.tensor]) == batch]  # a row for each sample
    sent = {n: len(packed(*_rounded(found[n], seen, named(request)))) for n in whole}
    for less in LESS:
        kept = [0]
        for number in whole:
            if sent[number] < less * sent[kept[-1]]:
                kept.append(number)
        if len(kept) <= MOST_PLACES:
            break
    tensors = {found[number].tensor: _axes(found[number], inputs) for number in kept if found[number].tensor}
    low, high = dict[str, Array](), dict[str, Array]()
    for few in parts(take(inputs, slice(SAMPLES)), AT_ONCE):
        for name, value in _seen(content, [Cut(name) for name in tensors], few).items():
            axes, each = tensors[name], tensors[name] is not None
            least, most = value.min(axes, keepdims=each), value.max(axes, keepdims=each)
            low[name], high[name] = np.minimum(low.get(name, least), least), np.maximum(high.get(name, most), most)
    none = np.zeros(())
    return [Place(n, found[n], low.get(found[n].tensor, none), high.get(found[n].tensor, none)) for n in kept]


def _axes(cut: Cut, inputs: Inputs) -> tuple[int, ...] | None:
    """Over which axes the range of a tensor is one; None for all.

    The channels of an image keep their own: its pixels then pass without loss.
    """
    given = named(inputs).get(cut.tensor)
    return (0, 2, 3) if given is not None and given.ndim == IMAGE_AXES else None


def _seen(content: bytes, found: Sequence[Cut], inputs: Inputs) -> dict[str, Array]:
    """The tensors of cuts, for some inputs."""
    given, names = named(inputs), [cut.tensor for cut in found if cut.tensor]
    inner = [name for name in names if name not in given]
    loaded = session(exposed(content, inner), basic=True) if inner else None
    values = loaded.run(inner, feeds(inputs, [value.name for value in loaded.get_inputs()])) if loaded else []
    return {**{name: given[name] for name in names if name in given}, **dict(zip(inner, values, strict=True))}


def _rounded(cut: Cut, seen: Mapping[str, Array], given: Mapping[str, Array]) -> tuple[tuple[Field, ...], dict[str, Array]]:
    """What passes at a cut, in as many levels as 8 bits have, from the least value of these very inputs to the largest."""
    fields, arrays = [Field(name, given[name].dtype.name) for name in cut.inputs], {name: given[name] for name in cut.inputs}
    if cut.tensor:
        value = seen[cut.tensor]
        grid = Grid.over(value.min(), value.max(), MOST_LEVELS)
        arrays[cut.tensor] = np.round((value - grid.low) / grid.step).astype(np.uint8)
        fields.append(shortest(Field(cut.tensor, "uint8", MOST_LEVELS), [arrays[cut.tensor]]))
    return tuple(fields), arrays


@dataclass(frozen=True)
class Judge:
    """What tells of a pair whether it answers as the whole model does.

    Attributes:
        whole: The model's program on the device.
        inputs: For calibration (N, ...).
        validation, metric: What a drop is read on.
        bound: Points that may be lost.
    """

    content: bytes
    whole: Program
    device: Target
    server: Target
    inputs: Inputs
    validation: Split
    metric: Metric
    bound: float

    def answers(self, inputs: Inputs) -> Array:
        """Return what the whole model answers to inputs (N, ...)."""
        return self._session.run(inputs)

    def quality(self) -> Reading:
        """Return the whole model's quality on validation, in points."""
        return quality_reading(self.metric, *self._expected, note="validation, the program that ships")

    @cached_property
    def _session(self) -> Session:
        return load(self.whole, quick(self.device))

    @cached_property
    def _expected(self) -> tuple[Array, Any]:
        """The whole model's answers to validation, and the targets."""
        outputs, targets = predict(lambda given: self.answers(arrays(given)), self.validation)
        return outputs.numpy(), targets

    @cached_property
    def _few(self) -> tuple[Inputs, Array]:
        """Inputs for calibration, and the whole model's answers to them."""
        few = take(self.inputs, slice(SAMPLES))
        return few, self.answers(few)

    def best(self, place: Place) -> Trial:
        """Return the cut in the fewest levels down to which every step keeps the bound; in floats where 256 do not.

        On 341 photographs a drop is known to two points: what keeps the bound further down, once it was lost, does so by luck.
        """
        kept = None
        for levels in LEVELS if place.cut.tensor else ():
            tried = self.trial(place, levels)
            if tried.drop.get() > self.bound:
                break
            kept = tried
        return kept or self.trial(place, 0)

    def trial(self, place: Place, levels: int) -> Trial:
        """Return the halves of a cut whose features pass in so many levels, or as they are (0), and what that loses."""
        pair = self._pair(place, levels)
        begin, end = first(pair, quick(self.device)), load(pair.server, quick(self.server))
        requests = [take(self.inputs, rows) for rows in _rows(size(self.inputs), self.device.batch)]
        if levels:
            name = pair.fields[0].name
            seen = [cast(Session, begin).run(request) for request in requests]
            pair = replace(pair, fields=(shortest(Field(name, "uint8", levels), seen), *pair.fields[1:]))
        found, targets = predict(lambda given: pair.end(end, pair.begin(begin, arrays(given))), self.validation)
        drop = drop_reading(self.metric, self._expected[0], found.numpy(), targets)
        few, wanted = self._few
        off = apart(pair.end(end, pair.begin(begin, few)), wanted)
        sizes = [len(pair.begin(begin, request)) for request in requests]
        sent = measured(quantile(sizes, 0.5), "B", low=min(sizes), high=max(sizes), n=len(sizes), note="least and most")
        return Trial(replace(pair, tolerance=MARGIN * off + SAME), place, levels, sent, drop)

    def _pair(self, place: Place, levels: int) -> Pair:
        cut, types = place.cut, {name: value.dtype.name for name, value in named(self.inputs).items()}
        grid = Grid.over(place.low, place.high, levels) if levels else None
        before, behind = halves(self.content, cut, grid)
        fields = [Field(cut.tensor + SENT, "uint8", levels) if levels else Field(cut.tensor, "float32")] if cut.tensor else []
        return Pair(
            number=place.number,
            fields=(*fields, *(Field(name, types[name]) for name in cut.inputs)),
            device=compiled(before, self.device) if before else None,
            server=compiled(behind, self.server),
            tolerance=0.0,
        )


def compiled(content: bytes, target: Target) -> Program:
    """Return the program of an ONNX file for a target."""
    return get(target.row).compile(Source.of_onnx(content))


def quick(target: Target) -> Target:
    """Return the target on all cores: answers are the same."""
    return replace(target, threads=cores())


def arrays(inputs: Inputs) -> Inputs:
    """Return inputs as runtimes take them."""
    return mapped(inputs, lambda value: np.ascontiguousarray(value.numpy() if hasattr(value, "numpy") else value))


def _rows(count: int, batch: int) -> Iterator[Array]:
    for request in range(REQUESTS):
        yield (np.arange(batch) + request * batch) % count
