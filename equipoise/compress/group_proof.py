"""Prove channel groups: cut them for real, in irregular patterns, against the same model whose readers read zeros instead.

Where a channel stands matters to `F.glu`, to shuffles, to padded shortcuts, to norms that average over neighbours; one regular
cut can agree by luck where the next would not. So every group is cut in several patterns (halves, thirds, odd counts, no
order), and all groups at once, each in a pattern of its own: what passes together also passes alone, and a net costs a
dozen forward passes, not some for every group. Where the whole disagrees, halving finds the groups at fault.

What a group promises is about structure, not about today's weights. The proof therefore runs on a copy in double precision
whose weights are shaken: a branch that still starts at zero would hide any mistake made in it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from equipoise.batch import Inputs, call, mapped
from equipoise.compress.coupling import Group, keeping
from equipoise.compress.cut import Keep, sliced
from equipoise.compress.trace import WEIGHTED, Watched, copied, tensors, unwatched

_Place = tuple[str, str]
"""A layer, and whether what it reads (``in``) or gives (``out``) is meant."""
ROUNDS = 6
"""How many patterns every group is cut in."""


def prove(model: nn.Module, example: Inputs, candidates: Sequence[Group], *, watched: Watched = unwatched) -> Mapping[str, str]:
    """Return, by group name, "" when the group can be cut in any pattern, otherwise what goes wrong.

    Args:
        model: in eval mode; it is not changed.
        example: a small batch `(N, ...)` that the model accepts.
        candidates: groups whose layers can all be sliced.
        watched: Entered around each cut, with the names of its groups.
    """
    if not candidates:
        return {}
    try:
        trial = _Trial.of(model, example, candidates, watched)
    except Exception as error:  # noqa: BLE001 - the user's forward may raise anything; the group is left whole and says why
        return {group.name: f"the model could not be run for a comparison: {first_line(error)}" for group in candidates}
    reasons: dict[str, str] = {}
    alive = tuple(candidates)
    for turn in range(ROUNDS):
        reasons |= trial.faults(alive, turn)
        alive = tuple(group for group in alive if group.name not in reasons)
    if alive and trial.fault(alive, ROUNDS):
        reasons |= _one_by_one(trial, alive)
    for group in _unseen(trial, [group for group in alive if group.name not in reasons]):
        reasons[group.name] = "on the example one of its layers changes no output, so a cut cannot be checked"
    return {group.name: reasons.get(group.name, "") for group in candidates}


def pattern(size: int, turn: int, place: int) -> list[int]:
    """Return the channels of a group that stay in one turn; `place` sets groups apart that would otherwise be cut alike."""
    generator = torch.Generator().manual_seed(1000 * turn + place)
    order = torch.randperm(size, generator=generator).tolist()
    shapes = (
        range(0, size, 2),
        order[: _odd(size // 3)],
        range(size // 2),
        order[: _odd(2 * size // 3)],
        range(size - _odd(size // 4), size),
        order[: size - 1],
    )
    return sorted(shapes[(turn + place) % len(shapes)])


def silence(layer: Any, kept: Tensor) -> None:
    """Zero, in place, the weights of a dense layer that read the channels which are not kept: the proof done by hand."""
    axis = 0 if getattr(layer, "transposed", False) else 1
    mask = torch.zeros(layer.weight.shape[axis], dtype=layer.weight.dtype)
    mask[kept] = 1.0
    along = [1] * layer.weight.dim()
    along[axis] = -1
    layer.weight.data = layer.weight.data * mask.view(along)


def first_line(error: BaseException) -> str:
    """Return what an exception says, in one short line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def said(error: BaseException) -> str:
    """Return what kind of exception it is, and what it says."""
    return f"{type(error).__name__}: {first_line(error)}"


def _odd(count: int) -> int:
    return max(1, count - 1 + count % 2)


@dataclass(frozen=True)
class _Trial:
    """One model made ready: its answers when whole, and how close two answers must be to be the same."""

    model: nn.Module
    example: Inputs
    whole: tuple[Tensor, ...]
    places: Mapping[str, int]
    near: float
    equal: float
    watched: Watched

    @classmethod
    def of(cls, model: nn.Module, example: Inputs, candidates: Sequence[Group], watched: Watched) -> _Trial:
        places = {group.name: place for place, group in enumerate(candidates)}
        plain = _floating(_run(model, example))
        subject, inputs = _precise(model, example, plain)
        subject = _shaken(subject, inputs)
        answers = _floating(_run(subject, inputs))
        unit = max((float(torch.finfo(answer.dtype).eps) for answer in answers), default=1.0)
        return cls(subject, inputs, answers, places, min(max(1e3 * unit, 1e-7), 0.02), 20 * unit, watched)

    def faults(self, chosen: Sequence[Group], turn: int) -> dict[str, str]:
        """Return the groups of `chosen` that fail in this turn and why, found by halving."""
        if not chosen:
            return {}
        why = self.fault(chosen, turn)
        if not why or len(chosen) == 1:
            return {group.name: why for group in chosen if why}
        middle = len(chosen) // 2
        return self.faults(chosen[:middle], turn) | self.faults(chosen[middle:], turn)

    def fault(self, chosen: Sequence[Group], turn: int) -> str:
        """Cut all of `chosen` at once; return what is wrong, or "" when the result is what it must be."""
        with self.watched(frozenset(group.name for group in chosen)) as known:
            return known or self._fault(chosen, turn)

    def _fault(self, chosen: Sequence[Group], turn: int) -> str:
        kept = {group.name: pattern(group.size, turn, self.places[group.name]) for group in chosen}
        keep = keeping(self.model, chosen, kept)
        try:
            smaller = _floating(_run(sliced(self.model, keep, borrow=True), self.example))
        except Exception as error:  # noqa: BLE001 - the user's forward may raise anything when its widths are changed
            return f"the forward pass breaks when it is cut: {first_line(error)}"
        if not self.whole:
            return "the model's output holds no floating-point tensor, so a cut cannot be checked"
        if not all(bool(part.isfinite().all()) for part in self.whole):
            return "the model's output is not finite on the example, so a cut cannot be checked"
        if [part.shape for part in smaller] != [part.shape for part in self.whole]:
            before, after = ([tuple(part.shape) for part in parts] for parts in (self.whole, smaller))
            return f"cutting it changes the output's shape from {before[0]} to {after[0] if after else 'nothing'}"
        with _silenced(self.model, chosen, keep):
            expected = _floating(_run(self.model, self.example))
        return self._compared(smaller, expected)

    def matters(self, name: str, axis: str) -> bool:
        """Return whether the output changes where a layer reads, or gives, zeros."""
        handle = _hooked(self.model, (name, axis), torch.zeros_like)
        try:
            answers = _floating(_run(self.model, self.example))
        finally:
            handle.remove()
        return not all(map(torch.equal, answers, self.whole))

    def _compared(self, smaller: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> str:
        for got, wanted, whole in zip(smaller, expected, self.whole, strict=True):
            if not wanted.numel():
                continue
            size, off, effect = (float(part.abs().max()) for part in (wanted, got - wanted, whole - wanted))
            if not off <= self.near * size or (off > self.equal * size and off > 0.01 * effect):
                return "removing its channels is not the same as silencing them: something else depends on their places"
        return ""


def _one_by_one(trial: _Trial, chosen: Sequence[Group]) -> dict[str, str]:
    """Return the groups that pass alone but not beside those before them."""
    accepted: list[Group] = []
    reasons = {}
    for group in chosen:
        if why := trial.fault([*accepted, group], ROUNDS):
            reasons[group.name] = f"beside the other groups, {why}"
        else:
            accepted.append(group)
    return reasons


def _unseen(trial: _Trial, chosen: Sequence[Group]) -> list[Group]:
    """Return the groups of which a layer runs and changes nothing (a branch that no sample takes): any cut of it looks right.

    Where gradients reach what a reader takes or a writer gives there is no doubt; any other is silenced to see.
    """
    ran, reached = _reached(trial, {place for group in chosen for place in _ends(group)})
    hidden = {place for place in ran - reached if not trial.matters(*place)}
    return [group for group in chosen if hidden & _ends(group)]


def _ends(group: Group) -> set[_Place]:
    return {(name, "out") for name in group.producers} | {(name, "in") for name in group.consumers}


def _reached(trial: _Trial, places: set[_Place]) -> tuple[set[_Place], set[_Place]]:
    """Return the places that run, and those where some value moves an output: none where code has no gradients."""
    added: dict[_Place, list[Tensor]] = {}

    def more(value: Tensor, place: _Place) -> Tensor:
        added.setdefault(place, []).append(torch.zeros_like(value).requires_grad_(True))
        return value + added[place][-1]

    handles = [_hooked(trial.model, place, lambda value, place=place: more(value, place)) for place in places]
    found: set[_Place] = set()
    try:
        with contextlib.suppress(Exception), torch.enable_grad():
            outputs = [part for part in _floating(_answer(trial.model, trial.example)) if part.requires_grad]
            noise = torch.Generator().manual_seed(0)
            mixed = [(part * torch.randn(part.shape, generator=noise).to(part)).sum() for part in outputs]
            values = [(place, value) for place, some in added.items() for value in some]
            grads = torch.autograd.grad(mixed, [value for _, value in values], allow_unused=True) if mixed else ()
            found = {place for (place, _), grad in zip(values, grads, strict=False) if grad is not None and bool(grad.any())}
    finally:
        for handle in handles:
            handle.remove()
    return set(added), found


def _hooked(model: nn.Module, place: _Place, change: Any) -> Any:
    """Let a layer read, or give, something else wherever it runs."""
    layer, (_, axis) = model.get_submodule(place[0]), place
    if axis == "in":
        return layer.register_forward_pre_hook(_reading(lambda _layer, x: change(x)), with_kwargs=True)
    return layer.register_forward_hook(lambda _layer, _given, answer: change(answer))


@torch.no_grad()
def _run(model: nn.Module, example: Inputs) -> Any:
    return _answer(model, example)


def _answer(model: nn.Module, example: Inputs) -> Any:
    """Return the model's answer with the same chance on every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return call(model, mapped(example, torch.clone))


def _floating(answer: Any) -> tuple[Tensor, ...]:
    return tuple(part for part in tensors(answer) if part.is_floating_point())


def _precise(model: nn.Module, example: Inputs, plain: Sequence[Tensor]) -> tuple[nn.Module, Inputs]:
    """Return the model and its input in double precision, or as they are where its code does not allow that."""
    inputs = mapped(example, lambda value: value.double() if value.is_floating_point() else value)
    with contextlib.suppress(Exception):
        subject = copied(model).double()
        answers = _floating(_run(subject, inputs))
        unit = max((torch.finfo(part.dtype).eps for part in plain), default=0.0)
        near = max(0.01, 10 * unit)
        if len(answers) == len(plain) and all(
            a.shape == b.shape and float((a - b).abs().max()) <= near * float(b.abs().max())
            for a, b in zip(answers, plain, strict=True)
        ):
            return subject, inputs
    return copied(model), example


@torch.no_grad()
def _shaken(model: nn.Module, example: Inputs) -> nn.Module:
    """Return a copy with noise in all weights, and something in those that are nothing; the model itself when that fails."""
    shaken = copied(model)
    generator = torch.Generator().manual_seed(0)
    for parameter in shaken.parameters():
        if not parameter.is_floating_point() or not parameter.numel():
            continue
        noise = torch.randn(parameter.shape, generator=generator).to(parameter)
        parameter.add_(noise, alpha=_step(parameter))
    with contextlib.suppress(Exception):
        if all(bool(part.isfinite().all()) for part in _floating(_run(shaken, example))):
            return shaken
    return model


def _step(parameter: Tensor) -> float:
    """Return how far to shake a parameter: a tenth of its size, or as far as weights usually start where it is nothing."""
    size = float(parameter.double().square().mean().sqrt())
    vector = parameter.numel() == max(parameter.shape, default=1)  # a bias, a gain
    if size >= (1e-2 if vector else 1e-6):
        return 0.1 * size
    return 0.3 if vector else float(parameter[0].numel()) ** -0.5


@contextlib.contextmanager
def _silenced(model: nn.Module, chosen: Sequence[Group], keep: Keep) -> Iterator[None]:
    """Let the readers of removed channels read zeros there, and norms over channels average over the kept ones alone."""
    handles = []
    for name, axis in {(cut.layer, cut.axis) for group in chosen for cut in group.cuts}:
        layer, kept = model.get_submodule(name), keep.get((name, axis))
        if kept is None:
            continue
        if axis == "in" and isinstance(layer, WEIGHTED):
            handles.append(layer.register_forward_pre_hook(_reading(_zeroing(kept)), with_kwargs=True))
        elif isinstance(layer, (nn.LayerNorm, nn.RMSNorm)):
            handles.append(layer.register_forward_hook(_norm_of(kept), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _reading(change: Callable[[Any, Tensor], Tensor]) -> Any:
    """Let a layer read what `change` makes of its first input, which may be given by position or by name."""

    def hook(layer: Any, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if given:
            return (change(layer, given[0]), *given[1:]), named
        first = next(iter(named))
        return given, {**named, first: change(layer, named[first])}

    return hook


def _zeroing(kept: Tensor) -> Callable[[Any, Tensor], Tensor]:
    def change(layer: Any, x: Tensor) -> Tensor:
        axis = -1 if isinstance(layer, nn.Linear) else x.dim() - layer.weight.dim() + 1
        mask = torch.zeros(x.shape[axis], dtype=x.dtype, device=x.device)
        mask[kept.to(x.device)] = 1.0
        along = [1] * x.dim()
        along[axis] = -1
        return torch.where(mask.view(along) > 0, x, torch.zeros_like(x))

    return change


def _norm_of(kept: Tensor) -> Any:
    def hook(layer: Any, given: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> Tensor:
        part = next(iter((*given, *named.values()))).index_select(-1, kept)
        held = (layer.weight, getattr(layer, "bias", None))
        weight, bias = (None if value is None else value.index_select(-1, kept) for value in held)
        shape = (*layer.normalized_shape[:-1], len(kept))
        if isinstance(layer, nn.RMSNorm):
            result = functional.rms_norm(part, shape, weight, layer.eps)
        else:
            result = functional.layer_norm(part, shape, weight, bias, layer.eps)
        return torch.zeros_like(output).index_copy(-1, kept, result.to(output.dtype))

    return hook
