"""Torch module in, ONNX file out: exported once per topology, then re-weighted, and compared with torch every time.

Exporting costs seconds and filling in weights costs milliseconds, so a topology is exported once as a *template*. The
template is made from a copy whose parameters are random: no two constants are then equal by accident (the exporter merges
equal ones) and a constant that was folded from a parameter can never pass for the real one. A file is only handed out after
its outputs were compared with the module's at batch sizes 1 and 2; where filling in does not work, the module itself is
exported.

The length of a sequence is free too where the module's code allows it: compared at two lengths as well.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from onnx import ModelProto, NodeProto, TensorProto, checker, numpy_helper
from torch import Tensor, nn

from equipoise.batch import ONE, SOURCE, Inputs, call, is_pair, joined, leaves, named, size, take
from equipoise.errors import InputError, must_be
from equipoise.runtimes import decoding
from equipoise.runtimes.base import Source, cached
from equipoise.runtimes.kin import Parts, grouped, grown, parts_of
from equipoise.runtimes.layers import TRANSPOSED, WEIGHT_INPUT, parameter_of, scope_of
from equipoise.runtimes.moved import Moved, draw, moved
from equipoise.runtimes.reshapes import opened
from equipoise.runtimes.simplify import simplify

OPSET = 20
"""ONNX operator set written; every runtime of the table reads it."""

TOLERANCE = 1e-4
"""Largest difference from torch, as a fraction of the largest output."""

SHORTEST = 4
"""A sequence of fewer places says too little of how its length is used."""

Weights = Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class _Template:
    """A graph to fill in, the shapes it was exported at, and the floating state that filling in does not reach."""

    graph: ModelProto
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    baked: Weights
    tied: Mapping[str, str]
    """Name of a parameter that the graph holds under another name -> that name."""
    moved: Mapping[str, Moved]
    """Name of a constant that entries of a parameter were moved into -> how."""
    parts: Parts
    """The modules of the model that was exported."""
    free: bool
    """Whether lengths of sequences are free in it."""


class Exporter:
    """Turns modules into ONNX files, re-using the export of the same topology.

    Example:
        >>> from equipoise.runtimes.layers import layer_nodes
        >>> exporter = Exporter()
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
        >>> content = exporter.onnx(net, torch.zeros(2, 4), topology="mlp")
        >>> layer_nodes(content)
        {'0': ('0/Gemm',), '2': ('2/Gemm',)}
    """

    def __init__(self) -> None:
        self._templates: dict[str, _Template] = {}
        self._fixed: set[str] = set()
        """Topologies of which the length of sequences could not stay free: it is tried once."""
        self.exports = 0
        """How many times the slow exporter ran."""

    def onnx(self, model: nn.Module, example: Inputs, *, topology: str) -> bytes:
        """Return the ONNX file of `model`: input ``input`` (or several by name), output ``output``, first axis free.

        Args:
            model: Any module with one tensor out; copied, set to evaluation mode and never changed. Fold BatchNorm before, or
                its statistics stop the template from being re-used.
            example: (N, ...) inputs, any N >= 1: one tensor, or several by name. The second axis of whole numbers (tokens),
                and of all that is as long, is the length of a sequence.
            topology: The same text for models that differ in weights and widths only. A wrong text costs time, never
                correctness.

        Raises:
            InputError: The output is not one finite tensor, the first axis is not free, or an operator has no ONNX form.
        """
        batches = _batches(example)
        wanted = tuple(_reference(model, batch) for batch in batches)
        if lengths(example, model) and topology not in self._fixed:
            if decoding.reads_on(model) and decoding.is_read(example):
                decoding.hold(copy.deepcopy(model).eval(), batches[-1])
            try:
                short = _shorter(example, model)
                looks = ((*batches, short), (*wanted, _reference(model, short)))
                return self._made(model, example, f"{topology}, any length", *looks)
            except InputError:
                self._fixed.add(topology)
        return self._made(model, example, topology, batches, wanted)

    def _made(
        self,
        model: nn.Module,
        example: Inputs,
        topology: str,
        batches: tuple[Inputs, ...],
        wanted: tuple[np.ndarray[Any, Any], ...],
    ) -> bytes:
        """Return a file that computes what is `wanted` of all `batches`; the third of them is of another length."""
        weights, free = _floats(model), len(batches) > 2
        parts = decoding.every(model) if free and decoding.reads_on(model) and decoding.is_read(example) else 0
        shapes = tuple((name, tuple(value.shape)) for name, value in weights.items())
        made = None if topology in self._templates else self._of_kin(model, weights, free=free)
        if made is not None and _agrees(simplify(made), batches, wanted, parts=parts):
            return _finish(made)
        for key in (topology, f"{topology} {shapes}"):
            template = self._templates.get(key)
            if template is None:
                template = self._templates[key] = self._template(model, example, free=free)
            filled = _fill(template, weights, model)
            if filled is not None and _agrees(simplify(filled), batches, wanted, parts=parts):
                return _finish(filled)
            if template.shapes == shapes or (template.baked and filled is None):
                break  # exporting again would give the same template, or one that holds the same numbers as fast
        graph = simplify(self._export(model, example, free=free))
        if not _agrees(graph, batches, wanted, parts=parts):
            raise must_be("model", "one whose ONNX form computes what torch computes", type(model).__name__, _ADVICE)
        return _finish(graph)

    def _of_kin(self, model: nn.Module, weights: Weights, *, free: bool) -> ModelProto | None:
        """Return what the first graph of kin becomes with the modules of this model: one guess, as export is not far."""
        for template in self._templates.values():
            made = grown(template.graph, template.parts, model) if template.free == free else None
            if made is not None:
                there = weights.keys() & {*template.baked, *template.tied}
                baked = {name: value for name, value in template.baked.items() if name in there}
                tied = {name: other for name, other in template.tied.items() if name in there}
                return _fill(replace(template, graph=made, baked=baked, tied=tied), weights, model)
        return None

    def source(self, model: nn.Module, example: Inputs, *, topology: str) -> Source:
        """Return `model` as a `Source` whose ONNX file is made when, and only if, a runtime asks for it."""
        return cached(Source(partial(self.onnx, model, example, topology=topology), model, example))

    def _template(self, model: nn.Module, example: Inputs, *, free: bool) -> _Template:
        scrambled = copy.deepcopy(model)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in scrambled.parameters():
                if parameter.is_floating_point():
                    draw(parameter, generator)
        graph = opened(self._export(scrambled, example, free=free))
        weights = _floats(scrambled)
        held = {parameter_of(initializer.name) for initializer in graph.graph.initializer}
        places = {value.__array_interface__["data"][0]: name for name, value in weights.items() if name in held}
        tied = {
            name: places.get(value.__array_interface__["data"][0], "") for name, value in weights.items() if name not in held
        }
        baked = {name: value for name, value in weights.items() if name not in held and not tied[name]}
        drawn = {name: value.detach().numpy() for name, value in scrambled.named_parameters() if name in baked}
        into = moved(graph, drawn)
        for name in {each.parameter for each in into.values()}:
            del baked[name]
        shapes = tuple((name, tuple(value.shape)) for name, value in weights.items())
        held_by = {name: other for name, other in tied.items() if other}
        return _Template(graph, shapes, baked, held_by, into, parts_of(model), free)

    def _export(self, model: nn.Module, example: Inputs, *, free: bool) -> ModelProto:
        self.exports += 1
        model, two = copy.deepcopy(model).eval(), _batches(example)[-1]
        inputs, outputs, past, growing = list(named(example)), ["output"], tuple[Tensor, ...](), tuple[bool, ...]()
        if free and decoding.is_read(two) and decoding.reads_on(model):
            growing, places = decoding.grows(model, two), decoding.tokens_of(two).shape[1]
            past = decoding.begun(model, two, decoding.cuts(places, decoding.every(model))[0])
            memory = len(cast(Any, model).encode(two[SOURCE][:1])) if is_pair(two) else 0
            model, given, shapes = _in_parts(model, two, past, growing)
            inputs += [f"{decoding.PAST}{number}" for number in range(len(past))]
            outputs += [f"{decoding.PRESENT}{number}" for number in range(len(past))]
            outputs += [f"{decoding.MEMORY}{number}" for number in range(memory)]
        else:
            model, given, shapes = by_position(model, two, free=free)
        try:
            with quiet(), torch.no_grad():
                program = torch.onnx.export(
                    model,
                    given,
                    dynamo=True,
                    dynamic_shapes=shapes,
                    external_data=False,
                    input_names=inputs,
                    output_names=outputs,
                    opset_version=OPSET,
                    verbose=False,
                )
        except Exception as error:
            reason = _reason(error)
            fixed = "specialized" in reason or "Constraints violated" in reason
            what = "able to take any batch size" if fixed else "one that ONNX can express"
            raise InputError(f"model must be {what}; got {type(model).__name__}: {reason} {_ADVICE}") from error
        return decoding.opened(_clean(cast(Any, program).model_proto, _floats(model)), past, growing)


_ADVICE = (
    "Check that forward treats every sample alike, has no branches on values and reads the batch size from x.shape[0] "
    "(len(x) is fixed by the export)."
)


def by_position(model: nn.Module, example: Inputs, *, free: bool) -> tuple[nn.Module, tuple[Any, ...], Any]:
    """Return a module that takes the arrays of `example` by position, these arrays, and their free axes as torch names them.

    Args:
        model: Of several inputs; it is changed: its forward is replaced. What belongs to no sample becomes a constant.
        example: A batch of two or more.
        free: Whether the lengths of sequences are to be free beside the first axis.
    """
    axis = torch.export.Dim("batch")
    long = lengths(example) if free else {}
    if not isinstance(example, Mapping):
        return model, (example,), ({0: axis, 1: torch.export.Dim.AUTO} if long else {0: axis},)
    arrays, forward, held = named(example), model.forward, dict(example)

    def flat(*given: Tensor) -> Any:
        return call(forward, {**held, **dict(zip(arrays, given, strict=True))})

    model.forward = flat
    axes = tuple({0: axis, 1: torch.export.Dim.AUTO} if name in long else {0: axis} for name in arrays)
    return model, tuple(arrays.values()), {"given": axes}


def _in_parts(
    model: Any, inputs: Inputs, past: tuple[Tensor, ...], growing: Sequence[bool]
) -> tuple[nn.Module, tuple[Any, ...], Any]:
    """As `by_position`, of what reads the second half of tokens (N, T) on from `past`, the first; its forward is replaced.

    Of a pair it gives what it remembers of the source as well.
    """

    def flat(tokens: Tensor, *past: Tensor) -> Any:
        outputs, present = model.read_on(tokens, past)
        return (outputs, *present)

    def beside(source: Tensor, written: Tensor, *past: Tensor) -> Any:
        memory = model.encode(source)
        outputs, present = model.read_on(written, past, memory)
        return (outputs, *present, *memory)

    tokens = decoding.tokens_of(inputs)
    rest = tokens[:, decoding.cuts(tokens.shape[1], decoding.every(model))[0] :]
    row = {0: torch.export.Dim("batch"), 1: torch.export.Dim.AUTO}
    grow = tuple({decoding.GROWING: torch.export.Dim.AUTO} if any_length else {} for any_length in growing)
    model.forward = beside if is_pair(inputs) else flat
    if is_pair(inputs):
        return model, (inputs[SOURCE], rest, *past), (row, row, grow)
    return model, (rest, *past), (row, grow)


def lengths(example: Inputs, model: nn.Module | None = None) -> dict[str, int]:
    """Return the inputs that are sequences and how long: integers (N, T, ...), and whatever else is as long as they are.

    Args:
        model: One that reads on reads a sequence, of whatever numbers.
    """
    arrays = named(example)
    if model is not None and decoding.reads_on(model) and isinstance(example, Tensor) and example.ndim > 1:
        return {ONE: int(example.shape[1])} if example.shape[1] >= SHORTEST * decoding.every(model) else {}
    second = {name: int(value.shape[1]) for name, value in arrays.items() if value.ndim > 1}
    tokens = {extent for name, extent in second.items() if not arrays[name].is_floating_point()}
    return {name: extent for name, extent in second.items() if extent in tokens and extent >= SHORTEST}


def _shorter(example: Inputs, model: nn.Module) -> Inputs:
    """Two samples of half the length."""
    long, two = lengths(example, model), _batches(example)[-1]
    if not isinstance(two, Mapping):
        return two[:, : decoding.cuts(long[ONE], decoding.every(model))[0]]
    return {name: value[:, : long[name] // 2] if name in long else value for name, value in two.items()}


def _batches(example: Inputs) -> tuple[Inputs, Inputs]:
    """The first sample alone, and a batch of two."""
    empty = [tuple(value.shape) for value in leaves(example) if value.ndim == 0 or len(value) == 0]
    if empty:
        raise must_be("example", "a batch (N, ...) with N of at least 1", empty[0], "Take a batch of the data.")
    two = example if size(example) > 1 else joined((example, example), torch.cat)
    return take(example, slice(1)), take(two, slice(2))


def _reference(model: nn.Module, batch: Inputs) -> np.ndarray[Any, Any]:
    """What torch computes, in evaluation mode, on a model that is left as it was."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.inference_mode():
            output = call(model.eval(), batch)
    except Exception as error:
        raise InputError(f"model must accept a batch of {size(batch)}; it says: {_reason(error)} {_ADVICE}") from error
    finally:
        for module, mode in modes:
            module.training = mode
    if not isinstance(output, Tensor):
        raise must_be("model output", "one tensor", type(output).__name__, "Wrap the model to return only what is scored.")
    if output.ndim == 0 or len(output) != size(batch):
        raise must_be("model output", "a batch as long as its input", tuple(output.shape), "Keep one row for each sample.")
    if output.dtype == torch.bfloat16:
        raise must_be("model output", "of a type that runtimes know", "bfloat16", "Convert the model with model.float().")
    result = output.numpy()
    if not np.isfinite(result).all():
        raise must_be("model output", "finite on the example", "NaN or infinity", "Check the weights and the input scale.")
    return cast("np.ndarray[Any, Any]", result)


def _floats(model: nn.Module) -> dict[str, np.ndarray[Any, Any]]:
    """All floating parameters and buffers by dotted name, saved or not; tied ones under each of their names."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: value.detach().numpy() for name, value in named if value.is_floating_point()}


def _fill(template: _Template, weights: Weights, model: nn.Module) -> ModelProto | None:
    """Put the weights and groups of `model` into the template; None when some of them have no place in it."""
    baked = template.baked
    if not all(name in weights and np.array_equal(weights[name], value) for name, value in baked.items()):
        return None
    if not all(name in weights and np.array_equal(weights[name], weights[other]) for name, other in template.tied.items()):
        return None
    filled = ModelProto()
    filled.CopyFrom(template.graph)
    reached = {*baked, *template.tied}
    for initializer in filled.graph.initializer:
        name = parameter_of(initializer.name)
        if initializer.name in template.moved:
            from_ = template.moved[initializer.name]
            made = from_.of(weights[from_.parameter]) if from_.parameter in weights else None
            if made is None:
                return None
            initializer.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(made), initializer.name))
            reached.add(from_.parameter)
        elif name in weights:
            value = weights[name] if initializer.name == name else weights[name].T
            initializer.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), initializer.name))
            reached.add(name)
    grouped(filled.graph, model)
    return filled if reached == set(weights) else None


def _agrees(
    graph: ModelProto, batches: tuple[Inputs, ...], wanted: tuple[np.ndarray[Any, Any], ...], *, parts: int = 0
) -> bool:
    """Whether ONNX Runtime computes `wanted` from `batches`, and from the second of them read in chunks of `parts` too."""
    from equipoise.runtimes.failures import failures
    from equipoise.runtimes.sessions import session

    slack = TOLERANCE * max(float(np.abs(expected).max(initial=0.0)) for expected in wanted)  # one may be next to zero
    try:
        loaded = session(graph.SerializeToString(), basic=True)
        for batch, expected in zip(batches, wanted, strict=True):
            (got, *_) = loaded.run(None, {name: value.numpy() for name, value in named(batch).items()})
            if got.shape != expected.shape or not np.allclose(got, expected, rtol=0, atol=slack):
                return False
    except failures():
        return False  # a shape of the template is baked in, or an operator has no kernel for the type
    return not parts or decoding.continues(graph, batches[1], wanted[1], parts)


def _clean(graph: ModelProto, weights: Weights) -> ModelProto:
    """Drop what tells of the exporting machine, name nodes after their modules, and mark transposed parameters."""
    del graph.graph.value_info[:], graph.metadata_props[:], graph.graph.metadata_props[:]
    graph.doc_string = graph.graph.doc_string = ""
    taken: dict[str, int] = {}
    for node in graph.graph.node:
        scope = _scope(node)
        name = f"{scope}/{node.op_type}" if scope else node.op_type
        taken[name] = taken.get(name, 0) + 1
        node.name = name if taken[name] == 1 else f"{name}_{taken[name]}"
        node.doc_string = ""
        del node.metadata_props[:]
    symbols: dict[str, str] = {}
    for value in (*graph.graph.input, *graph.graph.output):
        dims = value.type.tensor_type.shape.dim
        dims[0].dim_param = "batch"
        for dim in dims[1:]:
            if dim.dim_param:  # the exporter's own name for it, numbered by what was traced before
                dim.dim_param = symbols.setdefault(dim.dim_param, f"length_{len(symbols)}" if symbols else "length")
        del value.metadata_props[:]
    renamed = _by_readers(graph, weights)
    for initializer in graph.graph.initializer:
        free = [new for new in _transposed(initializer, weights) if new not in renamed.values()]
        if free:  # layers may hold the same numbers, and each needs a name of its own: of tied ones that of the reader
            readers = [scope_of(node) for node in graph.graph.node if initializer.name in node.input]
            own = [name for name in free if name.rpartition(".weight")[0] in readers]
            renamed[initializer.name] = (own or free)[0]
    for initializer in graph.graph.initializer:
        initializer.name = renamed.get(initializer.name, initializer.name)
        initializer.doc_string = ""
        del initializer.metadata_props[:]
    for node in graph.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
    return graph


def _by_readers(graph: ModelProto, weights: Weights) -> dict[str, str]:
    """Return old name -> new name of tied parameters that are held under the name of a layer that does not read them there."""
    readers: dict[str, str] = {}
    for node in graph.graph.node:
        index = WEIGHT_INPUT.get(node.op_type, -1)
        if 0 <= index < len(node.input):
            readers.setdefault(node.input[index], scope_of(node))
    renamed: dict[str, str] = {}
    for initializer in graph.graph.initializer:
        name, own = initializer.name, f"{readers.get(initializer.name, '')}.weight"
        if name in weights and own in weights and own != name and np.shares_memory(weights[name], weights[own]):
            renamed[name] = own
    return renamed


def _scope(node: NodeProto) -> str:
    """The dotted name of the module whose code made `node`; empty at the top.

    Where torch traced Python's bytecode, a model whose forward was replaced stands in a cell of that function.
    """
    scopes = next((p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), "")
    names = [part.strip(" '\"") for part in scopes.strip("[]").split(",")]
    module = names[-2].rpartition("cell_contents")[2].removeprefix(".") if len(names) > 1 else ""
    return "" if module.startswith("_") else module


def _transposed(initializer: TensorProto, weights: Weights) -> list[str]:
    """The new names that an initializer could have, of the 2-D parameters that it is transposed; empty when it is none."""
    if initializer.name in weights or len(initializer.dims) != 2:
        return []
    value = numpy_helper.to_array(initializer).T
    return [n + TRANSPOSED for n, weight in weights.items() if weight.shape == value.shape and np.array_equal(weight, value)]


def _finish(graph: ModelProto) -> bytes:
    checker.check_model(graph)
    return cast(bytes, graph.SerializeToString(deterministic=True))


def _reason(error: BaseException) -> str:
    """The innermost cause in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    return text[:300] + ("…" if len(text) > 300 else "")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back what torch's exporters print, warn and log meanwhile, and put everything back."""
    names = {name for name in logging.root.manager.loggerDict if name.split(".")[0] in ("torch", "onnxscript")}
    names.add("torch.onnx._internal.exporter._registration")  # made on first use
    loggers = [logger for name in sorted(names) if not (logger := logging.getLogger(name)).disabled]
    for logger in loggers:
        logger.disabled = True
    sink = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger in loggers:
            logger.disabled = False
