"""Run a changed model only from where it begins to differ: what comes before is answered from what the untouched model gave.

A run is a row of steps, the torch functions that `trace` sees. At a *seam* between two steps, all that the rest of the run
needs is in the tensors that are alive there: made before the seam and read after it. They are kept for a batch of inputs. A
model that is the untouched one up to the seam then runs its own code from the top, but no step before the seam is computed:
each is answered with what the untouched model's gave, the living tensors as they are, the dead ones as empty shapes, sizes and
numbers as they were. So shapes that the code works out, branches that it takes and modules that it calls are its own, whatever
it looks like.

A seam is used only where the untouched model, run from it, gives its own answer again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.batch import Inputs, leaves, mapped, size, take
from equipoise.compress.trace import RUN_ERRORS, WEIGHTED, Invocation, copied, tensors, watch

MOST_BYTES = 2**29
"""Bytes of activations that one `Suffixes` keeps: half a gigabyte."""
_WHOLE = 0
"""The seam before the first step: the whole model runs."""
_OWN = -1
"""Number of every weight that the model holds."""

FIRST = 16
"""Inputs whose run is the script: enough to take the path that most batches take, where code looks at values."""
Answer = Callable[[Invocation], Any]


class Astray(Exception):
    """The changed model did not take the steps of the untouched one up to the seam."""


@dataclass(frozen=True)
class Step:
    """One torch function of a run; numbers stand for tensor objects, whatever they hold."""

    op: str
    scope: tuple[str, ...]
    reads: tuple[int, ...]
    held: frozenset[str]
    makes: tuple[int, ...]
    changes: frozenset[int]

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the modules that it runs in, and of those whose weights it reads."""
        return (*self.scope, *(owner for held in self.held for owner in _owners(held)))


@dataclass(frozen=True)
class Script:
    """The steps of a model's run in order, and what is alive between them.

    Attributes:
        sizes: Object -> bytes of one sample.
        stores: Object -> the memory that it lies in; views share theirs.
        ends: Objects that the model returned.
        given: How many of the first objects are the inputs.
    """

    steps: tuple[Step, ...]
    sizes: Mapping[int, float]
    stores: Mapping[int, int]
    ends: frozenset[int]
    given: int = 1

    def step(self, place: int, invocation: Invocation) -> Step:
        """Return the step at `place`; raise `Astray` where it is not this one."""
        step = self.steps[place] if place < len(self.steps) else None
        if step is None or (step.op, step.scope) != (invocation.op, invocation.scope):
            raise Astray
        return step

    def first(self, layers: Collection[str]) -> int:
        """Return the first step that runs inside one of the layers or reads what it holds; 0 where one of them never does."""
        return min((self._firsts.get(name, _WHOLE) for name in layers), default=_WHOLE)

    def last(self, layers: Collection[str]) -> int:
        """Return the last step that runs inside one of the layers or reads what it holds; the last where one never does."""
        return max((self._lasts.get(name, len(self.steps) - 1) for name in layers), default=len(self.steps) - 1)

    @cached_property
    def _lasts(self) -> dict[str, int]:
        return {name: place for place, step in enumerate(self.steps) for name in step.parts}

    @cached_property
    def _firsts(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for place, step in enumerate(self.steps):
            for name in step.parts:
                found.setdefault(name, place)
        return found

    @cached_property
    def _spans(self) -> dict[int, tuple[int, int]]:
        """Object -> the step that made it (-1: the input) and the last one that reads it; others' objects are not in it."""
        made = dict.fromkeys(range(self.given), -1)
        last: dict[int, int] = {}
        for place, step in enumerate(self.steps):
            last.update(dict.fromkeys(step.reads, place))
            for number in step.makes:
                if number != _OWN and number not in last:  # one read before it was made is the model's
                    made.setdefault(number, place)
        last.update(dict.fromkeys(self.ends, len(self.steps)))
        return {number: (place, last.get(number, -1)) for number, place in made.items()}

    def alive(self, seam: int) -> frozenset[int]:
        """Return the objects made before step `seam` and read at it or after."""
        return frozenset(number for number, (made, last) in self._spans.items() if made < seam <= last)

    def sound(self, seam: int) -> bool:
        """Return whether no two living objects share memory that a later step changes."""
        stores = [self.stores[number] for number in self.alive(seam)]
        if len(set(stores)) == len(stores):
            return True
        shared = {store for store in stores if stores.count(store) > 1}
        changed = {self.stores.get(number) for step in self.steps[seam:] for number in step.changes}
        return not shared & changed

    def bytes_at(self, seam: int) -> float:
        """Return the bytes that one sample's living objects take."""
        return sum(self.sizes[number] for number in self.alive(seam))


def script_of(model: nn.Module, inputs: Inputs) -> Script:
    """Run a copy of `model` on a small batch `(N, ...)` and return its script."""
    subject = copied(model).eval()
    owned = {id(tensor): name for name, tensor in (*subject.named_parameters(), *subject.named_buffers())}
    given = mapped(inputs, lambda value: value.detach().clone())
    objects: list[Tensor] = list(leaves(given))  # kept, so that no identity is used twice
    numbers, count = {id(tensor): place for place, tensor in enumerate(objects)}, len(objects)
    steps: list[Step] = []

    def number(tensor: Tensor) -> int:
        if id(tensor) not in numbers:
            numbers[id(tensor)] = len(objects)
            objects.append(tensor)
        return numbers[id(tensor)]

    def answer(invocation: Invocation) -> Any:
        read = list(tensors((invocation.args, dict(invocation.kwargs))))
        versions = [tensor._version for tensor in read]
        reads = tuple(number(tensor) for tensor in read if id(tensor) not in owned)
        held = frozenset(owned[id(tensor)] for tensor in read if id(tensor) in owned)
        result = invocation.run()
        changes = frozenset(number(t) for t, v in zip(read, versions, strict=True) if t._version != v and id(t) not in owned)
        makes = tuple(_OWN if id(tensor) in owned else number(tensor) for tensor in tensors(result))
        steps.append(Step(invocation.op, invocation.scope, reads, held, makes, changes))
        return result

    ends = frozenset(number(t) for t in tensors(watch(subject, given, answer)) if id(t) not in owned)
    sizes = {place: tensor.numel() * tensor.element_size() / size(inputs) for place, tensor in enumerate(objects)}
    stores = {place: tensor.untyped_storage().data_ptr() for place, tensor in enumerate(objects)}
    return Script(tuple(steps), sizes, stores, ends, count)


def chosen(script: Script, *, places: Collection[int], samples: int, most_bytes: int = MOST_BYTES) -> tuple[int, ...]:
    """Return the seams to keep for `samples` so that the models that begin to differ at `places` run the fewest steps.

    Cuts are taken one by one, each the one that saves most steps for its bytes, until `most_bytes` are spent.
    """
    able = sorted({place for place in places if place > _WHOLE and script.sound(place)})
    price = {seam: script.bytes_at(seam) * samples for seam in able}
    taken: list[int] = []
    left = float(most_bytes)

    def saved(seam: int) -> int:
        before = max((other for other in taken if other < seam), default=_WHOLE)
        after = min((other for other in taken if other > seam), default=len(script.steps) + 1)
        return (seam - before) * sum(seam <= place < after for place in places)

    while fitting := [seam for seam in able if seam not in taken and price[seam] <= left and saved(seam)]:
        best = max(fitting, key=lambda seam: saved(seam) / max(price[seam], 1.0))
        taken.append(best)
        left -= price[best]
    return tuple(sorted(taken))


@dataclass
class Kept:
    """What one batch needs to be run from the seams: the living tensors at each, and an answer for every earlier step."""

    inputs: Inputs
    results: list[Any] = field(default_factory=list)
    alive: dict[int, dict[int, Tensor]] = field(default_factory=dict)
    outputs: Any = None


def keep(model: nn.Module, inputs: Inputs, script: Script, seams: Collection[int]) -> Kept:
    """Run the untouched `model` once on `inputs` `(N, ...)` and keep what models changed after a seam will need.

    Raises:
        Astray: The model did not take the steps of its script.
    """
    kept = Kept(inputs)
    given = mapped(inputs, lambda value: value.detach().clone())
    living: dict[int, Tensor] = dict(enumerate(leaves(given)))
    last = max(seams, default=_WHOLE)
    wanted = frozenset(number for seam in seams for number in script.alive(seam))
    shapes: dict[Any, Tensor] = {}
    taken = 0

    def answer(invocation: Invocation) -> Any:
        nonlocal taken
        place, taken = taken, taken + 1
        if place in seams:
            kept.alive[place] = {number: living[number].clone() for number in script.alive(place)}
        if place >= last:
            return invocation.run()
        step = script.step(place, invocation)
        result = invocation.run()
        living.update({n: tensor for n, tensor in zip(step.makes, tensors(result), strict=True) if n in wanted})
        kept.results.append(_mapped(result, lambda tensor: _empty(tensor, shapes)))
        return result

    try:
        kept.outputs = watch(model, given, answer)
    except (KeyError, ValueError) as error:
        raise Astray from error
    if len(kept.alive) < len(seams):
        raise Astray
    return kept


def resume(student: nn.Module, kept: Kept, script: Script, seam: int, answer: Answer = Invocation.run) -> Any:
    """Return what `student` gives for the kept inputs, run from `seam`; `answer` stands for every step from there on.

    Raises:
        Astray: The student did not take the script's steps up to the seam.
    """
    if seam == _WHOLE:
        return watch(student, mapped(kept.inputs, lambda value: value.detach().clone()), answer)
    living = {number: tensor.clone() for number, tensor in kept.alive[seam].items()}
    taken = 0

    def stand_in(invocation: Invocation) -> Any:
        nonlocal taken
        place, taken = taken, taken + 1
        if place >= seam:
            return answer(invocation)
        step = script.step(place, invocation)
        if _OWN in step.makes:  # a weight handed on: the student has its own
            return invocation.run()
        if living.keys().isdisjoint(step.makes):
            return kept.results[place]
        numbers = iter(step.makes)
        return _mapped(kept.results[place], lambda tensor: living.get(next(numbers), tensor))

    places = itertools.count()
    output = watch(student, mapped(kept.inputs, lambda value: living.get(next(places), value)), stand_in)
    if taken < seam:
        raise Astray
    return output


class Suffixes:
    """Runs of models that differ from one untouched model in some layers only, on the same inputs.

    Args:
        model: the untouched one, in eval mode; it is not changed, and must not be while this is in use.
        inputs: `(N, ...)`.
        step: inputs that are run at once.
        samples: how many of the inputs are likely to be used, by which the bytes are shared out; None for all.
        most_bytes: bound on the activations kept, all batches together.
    """

    def __init__(
        self, model: nn.Module, inputs: Inputs, *, step: int, samples: int | None = None, most_bytes: int = MOST_BYTES
    ) -> None:
        self._model, self._inputs, self._step = model, inputs, step
        self._kept: dict[int, Kept] = {}
        self.script = script_of(model, take(inputs, slice(FIRST)))
        places = [self.script.first([name]) for name, part in model.named_modules() if isinstance(part, WEIGHTED)]
        seams = chosen(self.script, places=places, samples=samples or size(inputs), most_bytes=most_bytes)
        self.seams = self._proven(seams)

    def _proven(self, seams: tuple[int, ...]) -> tuple[int, ...]:
        """Return the seams from which the untouched model gives its own answer again."""
        try:
            kept = keep(self._model, take(self._inputs, slice(FIRST)), self.script, seams)
        except Astray:
            return ()
        return tuple(seam for seam in seams if self._returns(kept, seam))

    def _returns(self, kept: Kept, seam: int) -> bool:
        try:
            again = resume(self._model, kept, self.script, seam)
        except (Astray, *RUN_ERRORS):
            return False
        return all(map(torch.equal, tensors(again), tensors(kept.outputs)))

    @property
    def batches(self) -> tuple[slice, ...]:
        """The inputs of each batch."""
        count = size(self._inputs)
        return tuple(slice(i, min(i + self._step, count)) for i in range(0, count, self._step))

    @property
    def held_bytes(self) -> int:
        """Bytes of the activations that are kept now."""
        rows = (tensor for kept in self._kept.values() for alive in kept.alive.values() for tensor in alive.values())
        return sum(tensor.numel() * tensor.element_size() for tensor in rows)

    def run(
        self, student: nn.Module, layers: Collection[str] | None, *, batch: int = 0, answer: Answer = Invocation.run
    ) -> Any:
        """Return what `student` gives for one batch, run from the last kept seam before the first of the changed `layers`.

        Args:
            layers: names of the modules that may differ from the untouched model's; None where this is not known.
            answer: stands for every step that is run.
        """
        if batch not in self._kept:
            inputs = take(self._inputs, self.batches[batch])
            try:
                self._kept[batch] = keep(self._model, inputs, self.script, self.seams)
            except Astray:  # its code looks at values, such as whether anything is padding: from here it runs whole
                self._kept[batch] = Kept(inputs)
        kept = self._kept[batch]
        place = _WHOLE if layers is None else self.script.first(layers)
        seam = max((seam for seam in kept.alive if seam <= place), default=_WHOLE)
        try:
            return resume(student, kept, self.script, seam, answer)
        except Astray:
            return resume(student, kept, self.script, _WHOLE, answer)


def _owners(held: str) -> tuple[str, ...]:
    """Return the module that holds a parameter, and those around it."""
    parts = held.split(".")[:-1]
    return tuple(".".join(parts[: i + 1]) for i in range(len(parts)))


def _empty(tensor: Tensor, made: dict[Any, Tensor]) -> Tensor:
    """Return a tensor of this shape and kind that holds nothing: one number, spread."""
    key = (tuple(tensor.shape), tensor.dtype, tensor.device)
    if key not in made:
        made[key] = torch.zeros((), dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)
    return made[key]


def _mapped(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """Return `value` with `change` made to every tensor in its nested tuples, lists and dictionaries, in order."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _mapped(item, change) for key, item in value.items()}
    if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        items = [_mapped(item, change) for item in value]
        if hasattr(value, "_fields"):
            return type(value)(*items)
        return type(value)(items)
    return value
