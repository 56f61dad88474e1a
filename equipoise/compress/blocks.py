"""Residual blocks: which may go, and the model without them.

Two forms are known by what the tape shows. A part that adds one of its own inputs to what it computes may *hand that input on*
(a block of a residual net, attention with the sum and the norm behind it). A part whose answer is added to what it was computed
from may *add nothing* (attention and feed-forward network of a transformer that normalises first). Layers that only such a part
needs go with it, wherever they stand.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from equipoise.batch import Inputs, call
from equipoise.compress.cut import axis_size
from equipoise.compress.trace import RUN_ERRORS, WEIGHTED, Tape, Watched, record, tensors, unwatched
from equipoise.errors import must_be, unknown

ZERO = -1
"""In place of an input's number: nothing, to be added."""


class Skip(nn.Module):
    """Stand in for a dropped part: hand some of its inputs on, whatever else is passed.

    Args:
        answer: What to return: the number of an input, counted over all tensors passed; `ZERO`; None; or a tuple of such.
    """

    def __init__(self, answer: Any = 0) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, *given: Any, **named: Any) -> Any:
        """Return the inputs asked for."""
        return self._part(self.answer, list(tensors((given, named))))

    @property
    def adds(self) -> bool:
        """Whether it stands for a term of a sum: nothing is then added."""
        return bool(self.answer == ZERO)

    def _part(self, answer: Any, given: list[Tensor]) -> Any:
        if isinstance(answer, tuple):
            return tuple(self._part(part, given) for part in answer)
        if answer is None:
            return None
        return _zeros(given[0]) if answer == ZERO else given[answer]


class Blank(nn.Module):
    """Stand in for a layer whose answer nothing needs: zeros in the shape that it gave, which code around it may count on.

    Args:
        layer: A linear layer or a convolution, of which the other extents are those of its input.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        weight = cast(Tensor, layer.weight)
        self.axis, self.width = 1 - weight.dim(), axis_size(layer, "out")

    def forward(self, given: Tensor) -> Tensor:
        """Return the zeros, of a single number in memory."""
        shape = list(given.shape)
        shape[self.axis] = self.width
        return _zeros(given).expand(shape)


def _zeros(like: Tensor) -> Tensor:
    """Return one zero with the axes of a tensor, of which it is no function: what is traced ends here."""
    return torch.zeros([1] * like.dim(), dtype=like.dtype, device=like.device)


StandIn = nn.Module | type[Blank]
"""What takes the place of a module; `Blank`: one for the layer that stands there."""


@dataclass(frozen=True)
class Block:
    """A part that may go.

    Attributes:
        parts: Module name -> what takes its place.
        gone: The modules with weights that nothing then needs.
    """

    parts: Mapping[str, StandIn]
    gone: tuple[str, ...]


def droppable(model: nn.Module, example: Inputs, *, watched: Watched = unwatched) -> dict[str, Block]:
    """Return the blocks that the model can do without, by the name of the part that goes, in execution order.

    At least two weighted layers must go, no smaller part may qualify, and the model must still run, to outputs of the same
    shapes, without the block. What goes lies in the part itself, or in a larger one around it that keeps the shape too.

    Args:
        model: any module; it is not changed.
        example: a small batch `(N, ...)` that the model accepts.
        watched: Entered around each run without a block, with its name.
    """
    tape = record(model, example)
    forms = _forms(model, example)
    owners = frozenset(name for name, part in model.named_modules() if any(True for _ in part.parameters(recurse=False)))
    needed = tape.needed()
    ways = [way for name in tape.runs if name in forms for way in _ways(name, forms[name], tape)]
    around = {way.name for way in ways if not way.adds}
    found = []
    for way in ways:
        dead = needed - tape.needed({way.value: way.instead})
        gone = frozenset(owner for owner in owners if owner in dead or _within(owner, way.name))
        places = {way.name, *(name for name in around if _within(way.name, name))}
        layers = frozenset(owner for owner in gone if isinstance(model.get_submodule(owner), WEIGHTED))
        if len(layers) >= 2 and any(all(_within(owner, place) for owner in gone) for place in places):
            found.append((way, layers, gone))
    found.sort(key=lambda each: (len(each[1]), each[0].adds, each[0].name.count(".")))
    ready: dict[str, Block] = {}
    taken: list[frozenset[str]] = []
    for way, layers, gone in found:
        if any(layers >= done for done in taken):
            continue
        order = tuple(name for name, _ in model.named_modules() if name in gone)
        skip: dict[str, StandIn] = {way.name: Skip(way.answer)}
        for parts in ({**_idle(model, gone, way.name, forms), **skip}, skip):
            if _still_runs(model, way.name, Block(parts, order), example, tape, watched):
                ready[way.name] = Block(parts, order)
                taken.append(layers)
                break
    return dict(sorted(ready.items(), key=lambda item: tape.runs[item[0]][0][0][0]))


def drop(model: nn.Module, blocks: Iterable[Block]) -> nn.Module:
    """Return a copy of `model` without these blocks of `droppable`.

    Raises:
        InputError: a block is not one of this model.
    """
    parts = {name: part for block in blocks for name, part in block.parts.items()}
    valid = dict(model.named_modules())
    for name in parts:
        if not name or name not in valid:
            raise unknown("block", name, [other for other in valid if other])
    return replaced(model, {name: part(valid[name]) if isinstance(part, type) else part for name, part in parts.items()})


@torch.no_grad()
def least_needed(model: nn.Module, example: Inputs, count: int, *, data: Inputs | None = None) -> tuple[str, ...]:
    """Return the `count` blocks whose absence changes the outputs least, found one after another; no labels are asked for.

    Args:
        data: inputs `(N, ...)` on which outputs are compared, in the mean square; None takes `example`.

    Raises:
        InputError: there are not so many blocks that can go.
    """
    able, inputs = droppable(model, example), example if data is None else data
    if not 0 < count <= len(able):
        raise must_be("blocks", f"from 1 to {len(able)}, or names of blocks that can go", count, f"They are {', '.join(able)}.")
    wanted, gone = next(tensors(call(model, inputs))), list[str]()

    def off(name: str) -> float:
        shorter = drop(model, [able[block] for block in (*gone, name)])
        return float((next(tensors(call(shorter, inputs))) - wanted).square().mean())

    while len(gone) < count:
        gone.append(min((name for name in able if name not in gone), key=off))
    return tuple(gone)


def replaced(model: nn.Module, parts: Mapping[str, nn.Module]) -> nn.Module:
    """Return a copy of `model` with other modules under the given names."""
    changed = copy.deepcopy(model)
    for name, part in parts.items():
        changed.set_submodule(name, part)
    return changed


@dataclass(frozen=True)
class _Way:
    """How a part may go: what its stand-in answers, and the value that the rest then reads instead of the part's own."""

    name: str
    answer: Any
    value: int
    instead: int | None
    adds: bool


def _ways(name: str, form: Any, tape: Tape) -> Iterator[_Way]:
    """Yield the ways in which a part may go, as far as the tape tells."""
    taken, given = tape.runs[name][0] if len(tape.runs[name]) == 1 else ((), ())
    own = [value for value in given if value not in taken]
    if not name or not taken or len(own) != 1:
        return
    value, shape = own[0], tape.shapes[own[0]]
    sums = [step for step in tape.calls if step.op == "add"]
    for place, other in enumerate(taken):
        if tape.shapes[other] == shape and any(name in step.scope and other in step.inputs for step in sums):
            answers = [place if given[spot] == value else taken.index(given[spot]) for spot in range(len(given))]
            yield _Way(name, _filled(form, answers), value, other, False)
    for step in sums:
        others = [other for other in step.inputs if other != value]
        alike = name not in step.scope and value in step.inputs and len(others) == 1 and tape.shapes[others[0]] == shape
        if alike and others[0] in _ancestors(tape, value):
            answers = [ZERO if each == value else taken.index(each) for each in given]
            yield _Way(name, _filled(form, answers), value, None, True)


def _filled(form: Any, answers: list[int]) -> Any:
    """Return a form with the answers in place of the numbers of the tensors."""
    if isinstance(form, tuple):
        return tuple(_filled(part, answers) for part in form)
    return None if form is None else answers[form]


def _first(form: Any) -> Any:
    """Return a form with the first input for every tensor."""
    return tuple(map(_first, form)) if isinstance(form, tuple) else None if form is None else 0


def _forms(model: nn.Module, example: Inputs) -> dict[str, Any]:
    """Return how the answer of each module is put together, of tuples, None and tensors by number; other forms are left out."""
    subject = copy.deepcopy(model).eval()
    found: dict[str, Any] = {}

    def form(answer: Any, count: Iterator[int]) -> Any:
        if isinstance(answer, Tensor):
            return next(count)
        if isinstance(answer, (tuple, list)) and type(answer) in (tuple, list):
            return tuple(form(part, count) for part in answer)
        if answer is None:
            return None
        raise TypeError(type(answer).__name__)

    def note(name: str) -> Any:
        def hook(_m: nn.Module, _x: Any, answer: Any) -> None:
            with contextlib.suppress(TypeError):
                found[name] = form(answer, itertools.count())

        return hook

    for name, module in subject.named_modules():
        module.register_forward_hook(note(name))
    with torch.no_grad():
        call(subject, example)
    return found


def _ancestors(tape: Tape, value: int) -> frozenset[int]:
    makers = {made: step for step in tape.calls for made in step.outputs}
    waiting, seen = [value], set()
    while waiting:
        for other in makers[at].inputs if (at := waiting.pop()) in makers else ():
            if other not in seen:
                seen.add(other)
                waiting.append(other)
    return frozenset(seen)


def _within(name: str, place: str) -> bool:
    return name == place or name.startswith(f"{place}.")


def _idle(model: nn.Module, gone: frozenset[str], name: str, forms: Mapping[str, Any]) -> dict[str, StandIn]:
    """Return stand-ins for the largest modules outside of the part in which all that has weights is gone."""
    parts: dict[str, StandIn] = {}
    for other, module in model.named_modules():
        inside = [owner for owner in gone if _within(owner, other)]
        held = [o for o, m in module.named_modules(prefix=other) if any(True for _ in m.parameters(recurse=False))]
        apart = not _within(other, name) and not _within(name, other)
        if other in forms and inside and apart and len(inside) == len(held) and not any(_within(other, done) for done in parts):
            parts[other] = Blank if isinstance(module, WEIGHTED) else Skip(_first(forms[other]))
    return parts


def _still_runs(model: nn.Module, name: str, block: Block, example: Inputs, tape: Tape, watched: Watched) -> bool:
    """Return whether the model without the block gives outputs of the same shapes."""
    try:
        with torch.no_grad(), watched(frozenset([name])) as known:
            if known:
                return False
            outputs = list(tensors(call(drop(model, [block]).eval(), example)))
    except RUN_ERRORS:
        return False
    return [tuple(output.shape) for output in outputs] == [tape.shapes[value] for value in tape.outputs]
