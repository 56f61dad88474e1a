"""Generation: a model that reads on from what it has read, in the very file that scores whole windows.

A model that has ``read_on(tokens, past) -> (outputs, past)`` beside its forward is exported by it. The file then takes, beside
``input``, the tensors ``past_0``, ``past_1``, ...; each has a default, empty or, of a past that does not grow, zeros, so that
whoever gives none of them reads a window from its beginning as before, and it gives ``present_0``, ... beside ``output``: the
past of what comes next. Weights are held once, and what is scored is what generates.

A model that writes one sequence while it looks at another takes them as a pair (`batch.SOURCE`, `batch.WRITTEN`) and has
``encode(source) -> memory`` and ``read_on(written, past, memory)``. Its file gives ``memory_0``, ... too, and whoever writes
cuts it there in two: what reads the source once, and what writes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, load_from_string, numpy_helper
from onnx.utils import Extractor
from torch import Tensor, nn

from equipoise.batch import ONE, SOURCE, WRITTEN, Inputs, call, is_pair, mapped, take, unpadded
from equipoise.errors import InputError, must_be
from equipoise.runtimes.base import Program, check_program, get
from equipoise.runtimes.failures import failures
from equipoise.runtimes.sessions import opened as opened_file

PAST, PRESENT, MEMORY = "past_", "present_", "memory_"
Past = tuple[Tensor, ...]
GROWING = 2
"""The axis of a past that is as long as what was read."""
TOLERANCE = 1e-4
"""Largest difference from a whole window, as a fraction of the largest output."""


class Reads(Protocol):
    """A causal model that need not read again what it has read.

    One that reads in chunks says of how many places they are: ``read_every``, else 1.
    """

    def read_on(self, tokens: Tensor, past: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the outputs (N, V, T) of tokens (N, T) that follow on `past`, and the past of what comes next.

        Args:
            past: Tensors (N or 1, heads, P, features), P tokens read, or (N or 1, ...) of one size whatever was read; none
                where a text begins, which is as if those of one size were zeros.
        """
        ...


def reads_on(model: nn.Module) -> bool:
    """Return whether a model says that it can read on."""
    return callable(getattr(model, "read_on", None))


def every(model: nn.Module) -> int:
    """Return at multiples of how many places what a model reads may be cut."""
    return int(getattr(model, "read_every", 1))


def cuts(length: int, step: int) -> tuple[int, int, int]:
    """Return where a window is cut: near its middle, and before each of the last two steps.

    Example:
        >>> cuts(12, 1), cuts(1000, 300)
        ((6, 10, 11), (300, 300, 600))
    """
    steps = length // step
    return step * (steps // 2), step * (steps - 2), step * (steps - 1)


def is_read(inputs: Inputs) -> bool:
    """Return whether inputs are of a kind that is read on: rows of tokens, or a pair of such."""
    return isinstance(inputs, Tensor) or is_pair(inputs)


def tokens_of(inputs: Inputs) -> Any:
    """Return the tokens (N, T) that follow one another: all, or of a pair what is written."""
    return inputs[WRITTEN] if is_pair(inputs) else inputs


def reading(model: nn.Module, inputs: Inputs) -> Callable[[Tensor, Past], tuple[Tensor, Past]]:
    """Return what reads tokens on from a past; the source of a pair is read now."""
    reader = cast(Any, model)
    if not is_pair(inputs):
        return cast("Callable[[Tensor, Past], tuple[Tensor, Past]]", reader.read_on)
    memory = reader.encode(inputs[SOURCE])
    return lambda tokens, past: reader.read_on(tokens, past, memory)


def hold(model: nn.Module, inputs: Inputs) -> None:
    """Raise `InputError` unless reading tokens (N, T) in parts gives what `model` makes of the whole; it is in evaluation mode.

    Three cuts: all at once, in the middle, and each of the last two tokens (or chunks) alone.
    """
    tokens = tokens_of(inputs)
    middle, *last = cuts(tokens.shape[1], every(model))
    with torch.inference_mode():
        whole, read_on = call(model, inputs), reading(model, inputs)
        for places in ((), (middle,), tuple(last)):
            past: Past = ()
            parts = []
            for part in tokens.tensor_split(places, 1):
                out, past = read_on(part, past)
                parts.append(out)
            off = float((torch.cat(parts, -1) - whole).abs().max() / whole.abs().max())
            if not off <= TOLERANCE:
                remedy = "Check the mask, the positions and the order of the past."
                raise must_be(
                    "model.read_on", "what forward computes, read in parts", f"outputs that are {off:.1g} off", remedy
                )


def begun(model: nn.Module, inputs: Inputs, end: int) -> Past:
    """Return the past of a first sample's tokens up to `end`, (1, heads, end, features) each or of one size."""
    first = take(inputs, slice(1))
    with torch.inference_mode():
        past = reading(model, first)(tokens_of(first)[:, :end], ())[1]
    return tuple(part.detach().clone() for part in past)


def grows(model: nn.Module, inputs: Inputs) -> tuple[bool, ...]:
    """Return of each part of a past whether it is as long as what was read, by reading tokens (N, T) to two lengths."""
    middle, _, last = cuts(tokens_of(inputs).shape[1], every(model))
    short, long = (begun(model, inputs, end) for end in (middle, last))
    return tuple(one.shape != other.shape for one, other in zip(short, long, strict=True))


def opened(graph: ModelProto, past: Sequence[Tensor], growing: Sequence[bool]) -> ModelProto:
    """Return `graph` (changed in place) with a default for each past, of any number of samples: that of a beginning.

    Args:
        growing: Of each past whether it is of any length, and then empty; else it is zeros of its own size.
    """
    for number, (part, grown) in enumerate(zip(past, growing, strict=True)):
        extents = (1, *part.shape[1:GROWING], 0, *part.shape[GROWING + 1 :]) if grown else (1, *part.shape[1:])
        empty = np.zeros(extents, np.float32)
        graph.graph.initializer.append(numpy_helper.from_array(empty, f"{PAST}{number}"))
    return graph


def closed(content: bytes) -> bytes:
    """Return an ONNX file that takes no past and gives none, and computes the same of a text that begins.

    For runtimes that know no defaults of inputs. An operator that joins or spreads an empty past passes the other part on; one
    of a size of its own becomes a constant.
    """
    model = load_from_string(content)
    graph = model.graph
    given = {value.name for value in graph.input if value.name.startswith(PAST)}
    if not given:
        return content
    empty = {t.name: list(t.dims) for t in graph.initializer if t.name in given and 0 in t.dims}
    nodes: list[NodeProto] = []
    for node in graph.node:
        left = [name for name in node.input if name not in empty]
        if node.op_type == "Expand" and node.input[0] in empty:
            empty[node.output[0]] = empty[node.input[0]]
        elif node.op_type == "Shape" and node.input[0] in empty:
            bounds = {a.name: a.i for a in node.attribute}
            extents = np.array(empty[node.input[0]][bounds.get("start", 0) : bounds.get("end")], np.int64)
            graph.initializer.append(numpy_helper.from_array(extents, node.output[0]))
        elif node.op_type == "Concat" and len(left) == 1 < len(node.input):
            nodes.append(helper.make_node("Identity", left, list(node.output), name=node.name))
        else:
            nodes.append(node)
    inputs = [value for value in graph.input if value.name not in given]
    outputs = [value for value in graph.output if not value.name.startswith((PRESENT, MEMORY))]
    held = [tensor for tensor in graph.initializer if tensor.name not in empty]
    del graph.node[:], graph.input[:], graph.output[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.input.extend(inputs)
    graph.output.extend(outputs)
    graph.initializer.extend(held)
    closed: bytes = model.SerializeToString(deterministic=True)
    return closed


def halves(content: bytes) -> tuple[bytes, bytes]:
    """Return the two parts of a pair's file: source -> memory, and memory, written and past -> output and present."""
    given = [value.name for value in load_from_string(content).graph.input]
    out = [value.name for value in load_from_string(content).graph.output]
    memory = [name for name in out if name.startswith(MEMORY)]
    first = Extractor(_counting(content, SOURCE)).extract_model([SOURCE], memory)
    ends = [*memory, *(name for name in given if name != SOURCE)], [name for name in out if name not in memory]
    second = Extractor(_counting(content, WRITTEN)).extract_model(*ends)
    for value in second.graph.input:
        if value.name in memory:  # units that read from left to right declare the length that they were exported at
            value.type.tensor_type.ClearField("shape")
    one, other = (half.SerializeToString(deterministic=True) for half in (first, second))
    return one, other


def _counting(content: bytes, name: str) -> ModelProto:
    """Return a pair's graph in which the number of samples is read off the input `name`: the exporter takes either."""
    model = load_from_string(content)
    for node in model.graph.node:
        bounds = {attribute.name: attribute.i for attribute in node.attribute}
        if node.op_type == "Shape" and node.input[0] in (SOURCE, WRITTEN) and bounds.get("end") == 1:
            node.input[0] = name
    return model


class Reader:
    """A loaded program that reads on.

    Example:
        reader = Reader(program)
        logits = reader.on(prompt)  # (1, V, T)
        logits = reader.on(next_token)  # (1, V, 1)

    Of a program of pairs, which looks at a source meanwhile:
        reader.read(source)
        logits = reader.on(written)  # (N, V, T)
    """

    def __init__(self, program: Program, *, threads: int = 1) -> None:
        """Load a program.

        Raises:
            InputError: It is not for ONNX Runtime, or its file takes no past.
        """
        check_program(program, "onnxruntime")
        (content,) = program.files.values()
        self._encoder = None
        if looks_back(program):
            first, content = halves(content)
            self._encoder = opened_file(first, threads=threads)
        self._session = opened_file(content, threads=threads)
        optional = [value.name for value in self._session.get_overridable_initializers()]
        self._names = sorted((name for name in optional if name.startswith(PAST)), key=lambda name: int(name[len(PAST) :]))
        if not self._names:
            raise must_be(
                "program", "one whose file takes a past", repr(program), "Its model needs read_on (docs/generation.md)."
            )
        self.past: Mapping[str, NDArray[Any]] = {}
        self.memory: Mapping[str, NDArray[Any]] = {}

    def read(self, source: NDArray[Any]) -> None:
        """Read sources (N, S), and forget the past."""
        if self._encoder is not None:
            names = [value.name for value in self._encoder.get_outputs()]
            self.memory = dict(zip(names, self._encoder.run(names, {SOURCE: source}), strict=True))
        self.past = {}

    def begin(self, inputs: Inputs) -> NDArray[Any]:
        """Read the source of a pair, forget the past, and return the tokens that are to be read on."""
        self.past = {}
        if is_pair(inputs):
            self.read(inputs[SOURCE])
        return cast("NDArray[Any]", tokens_of(inputs))

    def on(self, tokens: NDArray[Any]) -> NDArray[Any]:
        """Return the outputs (N, V, T) of tokens (N, T) that follow on the past, which they are added to."""
        name = ONE if self._encoder is None else WRITTEN
        output, *present = self._session.run(None, {name: tokens, **self.memory, **self.past})
        self.past = dict(zip(self._names, present, strict=True))
        return cast("NDArray[Any]", output)


def reads(program: Program) -> bool:
    """Return whether a program's file takes a past."""
    return program.runtime == "onnxruntime" and any(f"{PAST}0".encode() in content for content in program.files.values())


def looks_back(program: Program) -> bool:
    """Return whether a program's file reads on beside a source: it gives what it remembers of that."""
    return reads(program) and any(f"{MEMORY}0".encode() in content for content in program.files.values())


def sentences(program: Program, inputs: Inputs, *, threads: int = 1) -> Callable[[], None]:
    """Load a program of pairs anew, and return what writes each of `inputs` word by word, side by side, to the longest's end.

    What is written is given, so that every program takes as many steps. One that keeps no past reads all of it anew each time;
    one that takes a single length only cannot be written with, and reads each pair once.
    """
    source, written = (np.ascontiguousarray(unpadded(inputs[side])) for side in (SOURCE, WRITTEN))
    places = range(written.shape[1])
    if not looks_back(program):
        session = get(program.runtime).load(program, threads=threads, batch=len(source))
        requests: list[Inputs] = [{SOURCE: source, WRITTEN: np.ascontiguousarray(written[:, : n + 1])} for n in places]
        try:
            session.run(requests[0])
        except InputError:
            requests = [mapped(inputs, np.ascontiguousarray)]

        def anew() -> None:
            for request in requests:
                session.run(request)

        return anew
    reader = Reader(program, threads=threads)
    tokens = [np.ascontiguousarray(written[:, place : place + 1]) for place in places]

    def once() -> None:
        reader.read(source)
        for token in tokens:
            reader.on(token)

    return once


class ProgramWriter:
    """Writes with a program of pairs, several rows of each source side by side (`workloads.writing.Writer`)."""

    def __init__(self, program: Program, *, threads: int = 1) -> None:
        self._reader = Reader(program, threads=threads)

    def begin(self, source: Tensor, beams: int) -> None:
        """Read sources (N, S); each is then written on in `beams` rows."""
        self._reader.read(source.numpy())
        self._reader.memory = {name: np.repeat(part, beams, 0) for name, part in self._reader.memory.items()}

    def on(self, written: Tensor) -> Tensor:
        """Return the logits (rows, V) of what follows on one more token of each row, (rows, 1)."""
        return torch.from_numpy(self._reader.on(written.numpy())[:, :, -1])

    def keep(self, rows: Tensor) -> None:
        """Go on from these rows of those before."""
        self._reader.past = {name: part[rows.numpy()] for name, part in self._reader.past.items()}


def continues(graph: ModelProto, inputs: Inputs, wanted: NDArray[Any], step: int = 1) -> bool:
    """Whether a file reads tokens (N, T), or a pair, in parts as `wanted` (N, V, T), for one sample and for several.

    Args:
        step: Places at multiples of which they may be cut, as of `every`.
    """
    try:
        reader = Reader(Program("onnxruntime", "fp32", {"model.onnx": graph.SerializeToString()}))
        for some in (slice(1), slice(None)):
            whole, expected = reader.begin(mapped(take(inputs, some), np.asarray)), wanted[some]
            middle, _, last = cuts(whole.shape[1], step)
            parts = [reader.on(part) for part in np.split(whole, (middle, last), 1)]
            if not np.allclose(np.concatenate(parts, -1), expected, rtol=0, atol=TOLERANCE * np.abs(expected).max()):
                return False
    except InputError:
        return False
    except failures():
        return False
    return True
