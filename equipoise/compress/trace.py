"""See what a model computes, call by call, without asking how it was written.

Symbolic tracing refuses data-dependent Python; running the model once and watching every torch function does not. The
price is that the trace is true for that example only, which is why `graph` and `depth` still probe what they conclude.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from equipoise.batch import Inputs, call, mapped

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
WEIGHTED = (*CONVS, nn.Linear)
"""Layers that multiply by weights."""
HOLDING = (*WEIGHTED, nn.Embedding)
"""Layers that hold weights which a runtime may hold otherwise."""
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

Watched = Callable[[frozenset[str]], AbstractContextManager[str]]
"""Entered around each run of a changed model, with the names of what was changed; gives why it is not to be run, or ""."""
RUN_ERRORS = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError, NotImplementedError)
"""What somebody else's forward may raise when its widths or blocks are changed under it."""


def unwatched(_names: frozenset[str]) -> AbstractContextManager[str]:
    """Run every changed model, and tell nobody."""
    return nullcontext("")


@dataclass(frozen=True)
class Invocation:
    """One torch function about to run: call it with `run()`, or answer in its place."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    scope: tuple[str, ...]

    @property
    def op(self) -> str:
        """Return the function's bare name: `conv2d`, `add` for `+`, `+=` and `Tensor.add_`."""
        name = getattr(self.function, "__name__", "").strip("_")
        return {"iadd": "add", "radd": "add"}.get(name, name)

    @property
    def layer(self) -> str:
        """Return the name of the innermost module running now; "" is the model itself."""
        return self.scope[-1] if self.scope else ""

    def run(self) -> Any:
        """Return what the function itself computes."""
        return self.function(*self.args, **self.kwargs)


@dataclass(frozen=True)
class Call:
    """One finished torch function: value numbers stand for tensors, a changed tensor gets a new number."""

    op: str
    scope: tuple[str, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def layer(self) -> str:
        """Return the name of the innermost module that made the call."""
        return self.scope[-1] if self.scope else ""


@dataclass(frozen=True)
class Tape:
    """All calls of one run in order, the tensors each module took and gave, and the shapes of all of them.

    `held` names the value numbers of the parameters and buffers, as they were before the run.
    """

    calls: tuple[Call, ...]
    runs: Mapping[str, tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]]
    shapes: Mapping[int, tuple[int, ...]]
    outputs: tuple[int, ...]
    held: Mapping[int, str] = field(default_factory=dict)

    def consumers(self, value: int) -> tuple[Call, ...]:
        """Return the calls that read `value`."""
        return tuple(call for call in self.calls if value in call.inputs)

    def call_of(self, layer: str) -> Call | None:
        """Return the only weighted call of `layer`, or None when it runs never or more than once."""
        found = [call for call in self.calls if call.layer == layer and call.op.startswith(("conv", "linear", "batch_norm"))]
        return found[0] if len(found) == 1 else None

    def needed(self, instead: Mapping[int, int | None] | None = None) -> frozenset[str]:
        """Return the modules whose own calls the outputs need; none where the origin of a value that they need is not seen.

        Args:
            instead: Value -> the one that is read in its place, or None for nothing.
        """
        instead = instead or {}
        makers = {value: call for call in self.calls for value in call.outputs}
        known = {*self.held, *(value for taken, _ in self.runs.get("", ()) for value in taken)}
        waiting, seen, layers = list(self.outputs), set[int](), set[str]()
        while waiting:
            read = waiting.pop()
            value = instead.get(read, read)
            if value is None or value in seen or value in known:
                continue
            seen.add(value)
            if value not in makers:
                return frozenset()
            layers.add(makers[value].layer)
            waiting += makers[value].inputs
        return frozenset(layers)

    def fed(self) -> frozenset[str]:
        """Return the modules whose own calls read what was made of the inputs, or something whose origin is not seen."""
        steady, layers = set(self.held), set[str]()
        for step in self.calls:
            if steady.issuperset(step.inputs) and step.inputs:
                steady.update(step.outputs)
            else:
                layers.add(step.layer)
        return frozenset(layers)


class _Interception(TorchFunctionMode):
    def __init__(self, answer: Callable[[Invocation], Any], scope: list[str]) -> None:
        super().__init__()
        self._answer, self._scope = answer, scope

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._answer(Invocation(func, tuple(args), kwargs or {}, tuple(self._scope)))


def watch(model: nn.Module, inputs: Inputs, answer: Callable[[Invocation], Any]) -> Any:
    """Run `model` on `inputs` once without gradients and let `answer` stand for every torch function called.

    Hooks are hung on `model` while it runs and taken off again; they also keep `nn.TransformerEncoderLayer` from its
    fused path, in which no single layer can be seen.
    """
    scope: list[str] = []
    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda _m, _x, name=name: scope.append(name)))
        handles.append(module.register_forward_hook(lambda _m, _x, _y: _pop(scope)))
    try:
        with torch.inference_mode(False), torch.no_grad(), _Interception(answer, scope):
            return call(model, mapped(inputs, _countable))
    finally:
        for handle in handles:
            handle.remove()


def record(model: nn.Module, example: Inputs) -> Tape:
    """Run a copy of `model` on `example` in eval mode and return the tape of what was computed."""
    subject = copied(model).eval()
    numbers = _Numbers()
    named = (*subject.named_parameters(), *subject.named_buffers())
    held = {numbers.of(tensor): name for name, tensor in named}
    calls: list[Call] = []
    runs: dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]] = {}

    def answer(invocation: Invocation) -> Any:
        before = list(tensors((invocation.args, dict(invocation.kwargs))))
        versions = [tensor._version for tensor in before]
        inputs = tuple(numbers.of(tensor) for tensor in before)
        result = invocation.run()
        changed = [tensor for tensor, version in zip(before, versions, strict=True) if tensor._version != version]
        for tensor in changed:
            numbers.renew(tensor)
        numbers.renew_views(changed)
        outputs = tuple(numbers.of(tensor) for tensor in tensors(result))
        if changed or (outputs and not set(outputs) <= set(inputs)):  # not a size query, not an eval-mode dropout
            calls.append(Call(invocation.op, invocation.scope, inputs, outputs))
        return result

    handles = []
    for name, module in subject.named_modules():

        def note(_m: nn.Module, taken: Any, named: Any, given: Any, name: str = name) -> None:
            both = (tuple(map(numbers.of, tensors(part))) for part in ((taken, named), given))
            runs.setdefault(name, []).append((next(both), next(both)))

        handles.append(module.register_forward_hook(note, with_kwargs=True))
    outputs = watch(subject, example, answer)
    for handle in handles:
        handle.remove()
    ends = tuple(numbers.of(tensor) for tensor in tensors(outputs))
    return Tape(tuple(calls), {name: tuple(found) for name, found in runs.items()}, numbers.shapes, ends, held)


def copied(model: nn.Module) -> nn.Module:
    """Return a deep copy; weights that a hook has computed, which Python's own copy refuses, are copied as numbers."""
    parts = [value for part in model.modules() for value in vars(part).values() if isinstance(value, Tensor)]
    done: dict[int, Any] = {id(value): value.detach().clone() for value in parts if not value.is_leaf}
    return copy.deepcopy(model, done)


def together(model: nn.Module, layers: Iterable[str]) -> list[tuple[str, ...]]:
    """Return the layers, those that share one tensor of weights (a head tied to its embedding) in one row, in their order."""
    found: dict[int, tuple[Tensor, list[str]]] = {}
    for name in layers:
        weight: Any = model.get_submodule(name).weight
        found.setdefault(id(weight), (weight, []))[1].append(name)  # kept alive, so that no identity is used twice
    return [tuple(names) for _, names in found.values()]


def tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors inside nested tuples, lists, dictionaries and records, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)
    elif hasattr(value, "__dataclass_fields__") and not isinstance(value, type):
        for name in value.__dataclass_fields__:
            yield from tensors(getattr(value, name))


def _countable(tensor: Tensor) -> Tensor:
    """Return a tensor whose changes are counted: one of inference mode has no count."""
    return tensor.clone() if tensor.is_inference() else tensor


def _pop(scope: list[str]) -> None:
    """Leave the innermost module (a hook must return None, or it would replace the output)."""
    scope.pop()


class _Numbers:
    """Value numbers by tensor identity; every tensor seen is kept alive so that no identity is used twice."""

    def __init__(self) -> None:
        self.shapes: dict[int, tuple[int, ...]] = {}
        self._known: dict[int, int] = {}
        self._alive: list[Tensor] = []

    def of(self, tensor: Tensor) -> int:
        """Return the number of `tensor` as it is now."""
        if id(tensor) not in self._known:
            self._alive.append(tensor)
            self.renew(tensor)
        return self._known[id(tensor)]

    def renew(self, tensor: Tensor) -> None:
        """Give `tensor` a new number because its content has changed."""
        number = len(self.shapes)
        self._known[id(tensor)] = number
        with torch._C.DisableTorchFunction():
            self.shapes[number] = tuple(tensor.shape)

    def renew_views(self, changed: Sequence[Tensor]) -> None:
        """Give what shares the memory of tensors that have changed a new number too."""
        with torch._C.DisableTorchFunction():
            places = {tensor.untyped_storage().data_ptr() for tensor in changed if tensor.numel()}
            apart = {id(tensor) for tensor in changed}
            views = [t for t in self._alive if places and id(t) not in apart and _place(t) in places]
        for tensor in views:
            self.renew(tensor)


def _place(tensor: Tensor) -> int:
    """The memory that a tensor lies in; 0 where it holds none."""
    return tensor.untyped_storage().data_ptr() if tensor.numel() else 0
