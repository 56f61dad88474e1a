"""Attention heads, found by what depends on what: a head is the rows that reach the same inputs of the layer behind.

No name and no type is asked for. Blocks of a layer's outputs are changed, each in a sample of its own, and the changes are seen
where the next dense layer takes its inputs: a query reaches all that its head gives, a key all that the heads sharing it
give. What holds together through what it reaches is a unit: a head, or of grouped-query attention a key with all its queries;
a layer that makes queries, keys and values at once is no special case. What is found is a guess like any other, to be proven by
`group_proof`.

Code that reshapes by a number of heads that it remembers has to be told of the new one. Which of a module's whole numbers that
is cannot be known, only tried: for each group come several ways to cut it, of which the first that is proven counts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.batch import Inputs, call, take
from equipoise.compress.coupling import Cut
from equipoise.compress.trace import RUN_ERRORS, Call, Tape, copied

Ways = tuple[tuple[Cut, ...], ...]
"""Several ways to cut one group: the first remembers no number of heads."""

MOST = 512
"""Most marks that are tried of one layer, each a sample."""
SEEN = 1e-5
"""A mark changes an input by more than this share of the largest one, where it reaches it."""
REMEMBERED = 3
"""Of so many numbers that could be counts of heads every choice is tried; of more, each alone and all of them."""


@dataclass(frozen=True)
class _Mix:
    """A dense layer that reads what others wrote, mixed in blocks: the writers, and the extents that blocks may have."""

    reader: str
    writers: tuple[str, ...]
    extents: tuple[int, ...]
    scopes: tuple[str, ...]


def attention(model: nn.Module, example: Inputs, tape: Tape) -> Iterator[Ways]:
    """Yield, for each layer that reads what heads gave, the ways to cut whole heads.

    Args:
        model: In evaluation mode; it is not changed.
        example: A batch (N, ...), N >= 1.
        tape: `trace.record` of both.
    """
    dense = {name: layer for name, layer in model.named_modules() if type(layer) is nn.Linear}
    mixes = [mix for name in dense if (mix := _mix(name, dense, tape))]
    best: dict[str, tuple[Cut, ...]] = {}
    unit: dict[str, int] = {}
    for extent in sorted({extent for mix in mixes for extent in mix.extents}, reverse=True):
        asked = [mix for mix in mixes if extent in mix.extents]
        for mix, reached in _marked(model, example, asked, extent):
            cuts = _units(mix, reached, extent)
            if cuts and (mix.reader not in best or len(cuts[0].positions) > len(best[mix.reader][0].positions)):
                best[mix.reader], unit[mix.reader] = cuts, extent
    for mix in mixes:
        if mix.reader in best:
            yield tuple(_remembering(model, mix, best[mix.reader], unit[mix.reader]))


def _mix(reader: str, dense: Mapping[str, nn.Linear], tape: Tape) -> _Mix | None:
    """Walk back from what a layer reads to the dense layers that wrote it; None where nothing is split into blocks between."""
    own = tape.call_of(reader)
    if own is None:
        return None
    makers = {value: made for made in tape.calls for value in made.outputs}
    writers: dict[str, int] = {}
    between: list[Call] = []
    waiting, seen = [value for value in own.inputs if value not in tape.held], set()
    while waiting:
        value = waiting.pop()
        maker = makers.get(value)
        if value in seen or maker is None or maker is own:
            continue
        seen.add(value)
        if maker.layer in dense and tape.call_of(maker.layer) is maker:
            writers[maker.layer] = tape.calls.index(maker)
            continue
        between.append(maker)
        waiting += [value for value in maker.inputs if value not in tape.held]
    widths = [dense[name].out_features for name in writers]
    extents = {extent for made in between if (extent := _split(made, tape)) and not any(w % extent for w in widths)}
    if not writers or not extents:
        return None
    ordered = tuple(sorted(writers, key=lambda name: writers[name]))
    return _Mix(reader, ordered, tuple(extents), tuple(dict.fromkeys(made.layer for made in between)))


def _split(made: Call, tape: Tape) -> int:
    """Return the last extent of what a call made, where it only put one tensor's last axis into several; else 0."""
    if len(made.inputs) != 1 or len(made.outputs) != 1:
        return 0
    before, after = tape.shapes[made.inputs[0]], tape.shapes[made.outputs[0]]
    parts = math.prod(before) == math.prod(after) and len(after) > len(before) and before[-1] % max(1, after[-1]) == 0
    return after[-1] if parts and 1 < after[-1] < before[-1] else 0


def _marked(
    model: nn.Module, example: Inputs, mixes: Sequence[_Mix], extent: int
) -> Iterator[tuple[_Mix, dict[tuple[str, int], frozenset[int]]]]:
    """Yield for each mix which of its reader's inputs each block of a writer's outputs reaches, by (writer, block).

    The last sample is left as it is, and every dense layer reads it in place of all others, so that no mark goes further.
    """
    subject = copied(model).eval()
    layers: dict[str, Any] = dict(subject.named_modules())
    found: dict[str, dict[tuple[str, int], frozenset[int]]] = {mix.reader: {} for mix in mixes}
    for turn in range(max((len(mix.writers) for mix in mixes), default=0)):
        marking = {mix.writers[turn]: mix for mix in mixes if turn < len(mix.writers)}
        blocks = {name: layers[name].out_features // extent for name in marking}
        samples = max(blocks.values()) + 1
        if samples > MOST:
            continue
        handles = []
        for name, mix in marking.items():
            handles.append(layers[name].register_forward_hook(_marker(blocks[name], samples)))
            reading = _reading(found[mix.reader], name, blocks[name], samples)
            handles.append(layers[mix.reader].register_forward_pre_hook(reading))
        dense = [layer for layer in layers.values() if type(layer) is nn.Linear]
        handles += [layer.register_forward_pre_hook(_restoring(samples)) for layer in dense]
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                call(subject, take(example, torch.zeros(samples, dtype=torch.long)))
        except RUN_ERRORS:
            return  # so many samples, or such numbers, are not for this model: nothing is known of it
        finally:
            for handle in handles:
                handle.remove()
    for mix in mixes:
        yield mix, found[mix.reader]


def _by_sample(value: Tensor, samples: int) -> Tensor:
    """Return what is (samples · k, ...), windows of an image perhaps, as (samples, k, ...)."""
    return value.reshape(samples, -1, *value.shape[1:])


def _restoring(samples: int) -> Any:
    """Let every sample read what the last one reads."""

    def restore(_layer: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(given[0]) % samples:  # what belongs to no sample bears no mark
            return given
        each = _by_sample(given[0], samples)
        return (each[-1:].expand_as(each).flatten(0, 1), *given[1:])

    return restore


def _marker(blocks: int, samples: int) -> Any:
    """Change block b of what a layer gives in sample b, in every place by something else."""

    def mark(_layer: nn.Module, _given: Any, output: Tensor) -> Tensor:
        each = _by_sample(output.clone(), samples)
        extent = output.shape[-1] // blocks
        noise = torch.randn(each[0].shape, generator=torch.Generator().manual_seed(0)).to(output) * output.abs().max()
        for block in range(blocks):
            places = slice(block * extent, (block + 1) * extent)
            each[block, ..., places] += noise[..., places]
        return each.flatten(0, 1)

    return mark


def _reading(found: dict[tuple[str, int], frozenset[int]], writer: str, blocks: int, samples: int) -> Any:
    """Note which inputs of a layer the mark of each block has changed."""

    def read(_layer: nn.Module, given: tuple[Any, ...]) -> None:
        each = _by_sample(given[0], samples)
        changed = (each[:blocks] - each[-1:]).abs() > SEEN * each.abs().max()
        for block in range(blocks):
            found[writer, block] = frozenset(changed[block].flatten(0, -2).any(0).nonzero().flatten().tolist())

    return read


def _units(mix: _Mix, reached: Mapping[tuple[str, int], frozenset[int]], extent: int) -> tuple[Cut, ...]:
    """Put together what reaches the same inputs; no cuts where that gives fewer than two equal units."""
    units: list[tuple[set[tuple[str, int]], set[int]]] = []
    for block, inputs in reached.items():
        rows, columns = {block}, set(inputs)
        apart = []
        for unit in units:
            if unit[1] & columns:
                rows, columns = rows | unit[0], columns | unit[1]
            else:
                apart.append(unit)
        units = [*apart, (rows, columns)]
    units.sort(key=lambda unit: min(unit[1], default=-1))
    if len(units) < 2 or any(not columns for _, columns in units):
        return ()
    writing = {name: tuple(tuple(sorted(_rows(rows, name, extent))) for rows, _ in units) for name in mix.writers}
    reading = tuple(tuple(sorted(columns)) for _, columns in units)
    if any(len({len(spots) for spots in places}) > 1 or not places[0] for places in (*writing.values(), reading)):
        return ()
    return (*(Cut(name, "out", places) for name, places in writing.items()), Cut(mix.reader, "in", reading))


def _rows(blocks: set[tuple[str, int]], writer: str, extent: int) -> Iterator[int]:
    for name, block in blocks:
        if name == writer:
            yield from range(block * extent, (block + 1) * extent)


def _remembering(model: nn.Module, mix: _Mix, cuts: tuple[Cut, ...], extent: int) -> Iterator[tuple[Cut, ...]]:
    """Yield the cuts alone, then with the whole numbers that the code between may have remembered."""
    yield cuts
    units = len(cuts[0].positions)
    extents = [len(cut.positions) * len(cut.positions[0]) for cut in cuts]
    counts = {count for places in extents for count in (places, places // extent) if count % units == 0}
    numbers = [
        Cut(name, attribute, _shared(value, units))
        for name in mix.scopes
        for attribute, value in vars(model.get_submodule(name)).items()
        if type(value) is int and value in counts and attribute not in ("in", "out")
    ]
    sizes = range(len(numbers), 0, -1) if len(numbers) <= REMEMBERED else (len(numbers), 1)
    for size in sizes:
        for chosen in itertools.combinations(numbers, size):
            yield (*cuts, *chosen)


def _shared(count: int, units: int) -> tuple[tuple[int, ...], ...]:
    each = count // units
    return tuple(tuple(range(unit * each, (unit + 1) * each)) for unit in range(units))
