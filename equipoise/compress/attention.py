"""Attention heads, found by what depends on what: a head is the rows that reach the same inputs of the layer behind.

No name and no type is asked for. Blocks of a layer's outputs are changed, each in a sample of its own, and the changes are seen
where the next dense layer takes its inputs: a query reaches all that its head gives, a key all that the heads sharing it
give. What holds together through what it reaches is a unit: a head, or of grouped-query attention a key with all its queries;
a layer that makes queries, keys and values at once is no special case. What is found is a guess like any other, to be proven by
`group_proof`.

Beside them stands what has one place for each head: the table of a bias by relative position, a gain of the scores. It goes
with the heads, and where several attentions read the same, as all layers of a T5, their heads go together.

Code that reshapes by a number of heads that it remembers has to be told of the new one. Which of a module's whole numbers that
is cannot be known, only tried: for each group come several ways to cut it, of which the first that is proven counts.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.batch import Inputs, call, take
from equipoise.compress.coupling import Cut
from equipoise.compress.cut import AXES, refusal
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
    """A dense layer that reads what others wrote, mixed in blocks: the writers, and the extents that blocks may have.

    Attributes:
        beside: Names of the parameters that are read between, and of the layers that write something narrower.
        values: What was seen between, by number.
    """

    reader: str
    writers: tuple[str, ...]
    extents: tuple[int, ...]
    scopes: tuple[str, ...]
    beside: frozenset[str]
    values: frozenset[int]


def attention(model: nn.Module, example: Inputs, tape: Tape) -> Iterator[Ways]:
    """Yield, for each layer that reads what heads gave, the ways to cut whole heads.

    Args:
        model: In evaluation mode; it is not changed.
        example: A batch (N, ...), N >= 1.
        tape: `trace.record` of both.
    """
    dense = {name: layer for name, layer in model.named_modules() if type(layer) is nn.Linear}
    mixes = _with_own_buffers(model, [mix for name in dense if (mix := _mix(name, dense, tape))])
    best: dict[str, tuple[Cut, ...]] = {}
    unit: dict[str, int] = {}
    for extent in sorted({extent for mix in mixes for extent in mix.extents}, reverse=True):
        asked = [mix for mix in mixes if extent in mix.extents]
        for mix, reached in _marked(model, example, asked, extent):
            cuts = _units(mix, reached, extent)
            if cuts and (mix.reader not in best or len(cuts[0].positions) > len(best[mix.reader][0].positions)):
                best[mix.reader], unit[mix.reader] = cuts, extent
    each = [_Heads(mix, best[mix.reader], unit[mix.reader]) for mix in mixes if mix.reader in best]
    for together in _joined(model, each, tape):
        yield tuple(_ways(model, together))


@dataclass(frozen=True)
class _Heads:
    """The heads of one attention: the cuts of the layers that make and read them, and the extent of a head."""

    mix: _Mix
    cuts: tuple[Cut, ...]
    extent: int

    @property
    def units(self) -> int:
        return len(self.cuts[0].positions)

    @property
    def counts(self) -> frozenset[int]:
        """Numbers of places, and of heads, that are whole shares for each unit."""
        places = [len(cut.positions) * len(cut.positions[0]) for cut in self.cuts]
        return frozenset(count for n in places for count in (n, n // self.extent) if count % self.units == 0)


def _mix(reader: str, dense: Mapping[str, nn.Linear], tape: Tape) -> _Mix | None:
    """Walk back from what a layer reads to the dense layers that wrote it; None where nothing is split into blocks between."""
    own = tape.call_of(reader)
    if own is None:
        return None
    makers = {value: made for made in tape.calls for value in made.outputs}
    writers: dict[str, int] = {}
    beside: set[str] = set()
    between: list[Call] = []
    waiting = [(value, False) for value in own.inputs if value not in tape.held]
    seen = set(waiting)
    while waiting:
        value, split = waiting.pop()
        maker = makers.get(value)
        if maker is None or maker is own:
            continue
        if maker.layer in dense and tape.call_of(maker.layer) is maker:
            if split or dense[maker.layer].out_features == dense[reader].in_features:
                writers[maker.layer] = tape.calls.index(maker)
            else:
                beside.add(f"{maker.layer}.weight")
            continue
        between.append(maker)
        beside |= {tape.held[each] for each in maker.inputs if each in tape.held}
        found = {(each, split or bool(_split(maker, tape))) for each in maker.inputs if each not in tape.held}
        waiting += found - seen
        seen |= found
    widths = [dense[name].out_features for name in writers]
    extents = {extent for made in between if (extent := _split(made, tape)) and not any(w % extent for w in widths)}
    if not writers or not extents:
        return None
    ordered = tuple(sorted(writers, key=lambda name: writers[name]))
    scopes = tuple(dict.fromkeys(made.layer for made in between))
    names = frozenset(name for name in beside if name.rpartition(".")[0] not in writers)
    return _Mix(reader, ordered, tuple(extents), scopes, names, frozenset(value for value, _ in seen))


def _with_own_buffers(model: nn.Module, mixes: Sequence[_Mix]) -> list[_Mix]:
    """Leave buffers out that several attentions read: such as the frequencies of positions, which are no head's."""
    reads = Counter(name for mix in mixes for name in mix.beside)
    several = {name for name, _ in model.named_buffers() if reads[name] > 1}
    return [replace(mix, beside=mix.beside - several) for mix in mixes]


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


def _joined(model: nn.Module, each: Sequence[_Heads], tape: Tape) -> Iterator[tuple[_Heads, ...]]:
    """Put together the attentions that share what has a place for each head; of different numbers of heads none can."""
    parts: list[tuple[set[Any], tuple[_Heads, ...]]] = []
    for one in each:
        shared: set[Any] = {cut.layer for cut in _beside(model, one)}
        shared |= {value for value in one.mix.values if len(tape.shapes[value]) == 4 and tape.shapes[value][1] == one.units}
        together: tuple[_Heads, ...] = (one,)
        apart = []
        for keys, others in parts:
            if keys & shared and others[0].units == one.units:
                shared, together = shared | keys, (*others, *together)
            else:
                apart.append((keys, others))
        parts = [*apart, (shared, together)]
    for _, found in parts:
        yield found


def _beside(model: nn.Module, heads: _Heads) -> tuple[Cut, ...]:
    """Return the cuts of what was read beside queries, keys and values and has a place for each head."""
    found, tensors = {}, {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name in sorted(heads.mix.beside):
        owner, _, held = name.rpartition(".")
        layer, value = model.get_submodule(owner), tensors[name]
        if isinstance(layer, (nn.Linear, nn.Embedding)):
            width = layer.out_features if isinstance(layer, nn.Linear) else layer.embedding_dim
            if width in heads.counts and held == "weight":
                found[name] = Cut(owner, "out", _shared(width, heads.units), beside=True)
        elif value.is_floating_point() and refusal(layer):
            sizes = [(size, -axis) for axis, size in enumerate(value.shape) if size in heads.counts]
            for size, axis in sorted(sizes)[:1]:
                found[name] = Cut(owner, f"{held}:{-axis}", _shared(size, heads.units))
    return tuple(found.values())


def _ways(model: nn.Module, together: Sequence[_Heads]) -> Iterator[tuple[Cut, ...]]:
    """Yield the cuts, then with the whole numbers that the code between may have remembered, then with less beside them."""
    cuts = tuple(cut for heads in together for cut in heads.cuts)
    beside = tuple({(cut.layer, cut.axis): cut for heads in together for cut in _beside(model, heads)}.values())
    numbers = {
        (name, attribute): Cut(name, attribute, _shared(value, heads.units))
        for heads in together
        for name in heads.mix.scopes
        for attribute, value in vars(model.get_submodule(name)).items()
        if type(value) is int and value in heads.counts and attribute not in AXES and refusal(model.get_submodule(name))
    }
    learned = tuple(cut for cut in beside if _learned(model, cut))
    for others in dict.fromkeys((beside, learned, ())):
        yield (*cuts, *others)
        sizes = range(len(numbers), 0, -1) if len(numbers) <= REMEMBERED else (len(numbers), 1)
        for size in sizes:
            for chosen in itertools.combinations(numbers.values(), size):
                yield (*cuts, *others, *chosen)


def _learned(model: nn.Module, cut: Cut) -> bool:
    """Whether a cut is of weights and not of a buffer, whose extents are more often something else."""
    return cut.axis in AXES or cut.axis.partition(":")[0] in dict(
        model.get_submodule(cut.layer).named_parameters(recurse=False)
    )


def _shared(count: int, units: int) -> tuple[tuple[int, ...], ...]:
    each = count // units
    return tuple(tuple(range(unit * each, (unit + 1) * each)) for unit in range(units))
