"""LiteRT (TensorFlow Lite) on the CPU: a ``.tflite`` file whose operators XNNPACK runs.

Running one needs ``ai-edge-litert`` alone. Making one needs litert-torch, a gigabyte whose pins fit beside little else, so that
it lives in an environment of its own: `CONVERTER` names its interpreter, which is started once and handed torch programs. int8
is the AI Edge Quantizer's: signed, weights per channel, ranges as wide as calibration saw them, in the roles that
`executorch` tells. A program is planned for one sample: see `rows`.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from equipoise.batch import Inputs
from equipoise.errors import InputError, missing_extra
from equipoise.records import Choice
from equipoise.runtimes import litert_convert
from equipoise.runtimes.base import Program, Session, Source, check_program, check_schemes, precision_of
from equipoise.runtimes.rows import hushed, names_of, run_rows
from equipoise.runtimes.torch_eager import stored

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from equipoise.runtimes.single import Single

FILE = "model.tflite"
"""The program; beside it the names of several inputs."""

ROOT = "."
"""Stands for the name of the model itself."""

CONVERTER = "EQUIPOISE_LITERT_PYTHON"
"""Environment variable: the Python of an environment that holds litert-torch."""


class LiteRt:
    """LiteRT with XNNPACK. See `base.Runtime` for the methods."""

    name = "litert"
    precisions: tuple[Choice, ...] = (32, 8)
    runs_code = False
    libraries = ("ai_edge_litert.interpreter",)

    def unavailable(self) -> str:
        """Return what is missing to run programs, or to make them, with the remedy."""
        if importlib.util.find_spec("ai_edge_litert") is None:
            return str(missing_extra("ai-edge-litert", "litert"))
        return _no_converter(_python())

    def compile(
        self,
        source: Source,
        *,
        calibration: Inputs | None = None,
        float_layers: frozenset[str] | None = None,
        schemes: Mapping[str, Choice] | None = None,
    ) -> Program:
        """Return the module as LiteRT runs it for one sample, quantized when `float_layers` is a set.

        Raises:
            InputError: The source has no module, or litert-torch cannot express it; else as `base.Runtime.compile`.
        """
        from equipoise.runtimes.single import single

        check_schemes(self.name, self.precisions, schemes)
        one = single(source, self.name)
        samples = [value.numpy() for value in one.given]
        if float_layers is not None:
            samples = [np.concatenate(column) for column in zip(*one.samples(calibration, float_layers), strict=True)]
        with tempfile.TemporaryDirectory(prefix="equipoise-") as name:
            folder = Path(name)
            np.savez(folder / "samples.npz", **{f"{place}": value for place, value in enumerate(samples)})
            (folder / "order.json").write_text(json.dumps(_order(one, float_layers)))
            (folder / "model.pt2").write_bytes(stored(_renamed(one.exported)))
            left = _converted(folder)
            content = (folder / FILE).read_bytes()
        files = {FILE: content, **one.files}
        return Program(self.name, precision_of(float_layers, None), files, dict.fromkeys(left, NO_INT8))

    def load(self, program: Program, *, threads: int = 1, batch: int | None = None) -> Session:
        """Return a session that runs sample by sample, whatever the `batch`."""
        check_program(program, self.name)
        content, names = program.file(FILE), names_of(program)
        try:
            with hushed():
                from ai_edge_litert.interpreter import Interpreter

                interpreter = Interpreter(model_content=content, num_threads=threads)
                interpreter.allocate_tensors()
            return _Session(interpreter, names)
        except Exception as error:
            line = " ".join(str(error).split())[:200]
            raise InputError(f"{FILE} must be a file that LiteRT can read: {line}. Compile the program again.") from error


class _Session:
    """An interpreter with its tensors in place."""

    def __init__(self, interpreter: Any, names: tuple[str, ...]) -> None:
        (signature,) = interpreter.get_signature_list()
        runner = interpreter.get_signature_runner(signature)
        details = runner.get_input_details()
        if len(details) != len(names):
            raise ValueError(f"it takes {len(details)} inputs, and {len(names)} are named")
        self._interpreter, self._names = interpreter, names
        self._inputs = [(details[f"args_{place}"]["index"], details[f"args_{place}"]["dtype"]) for place in range(len(names))]
        self._output = next(iter(runner.get_output_details().values()))["index"]

    def run(self, inputs: Inputs) -> NDArray[Any]:
        return run_rows(inputs, self._names, self._one)

    def _one(self, arrays: list[NDArray[Any]]) -> NDArray[Any]:
        try:
            for (place, kind), value in zip(self._inputs, arrays, strict=True):
                whole = issubclass(kind, np.integer) and value.dtype.kind == "i"  # those of torch, 64 bits wide, are 32 there
                self._interpreter.set_tensor(place, value.astype(kind) if whole else value)
            self._interpreter.invoke()
            result: NDArray[Any] = self._interpreter.get_tensor(self._output)
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"inputs must be of the shape and type the program was made for: {reason}") from error
        return result


NO_INT8 = "the AI Edge Quantizer has no int8 for it"


def _order(one: Single, float_layers: frozenset[str] | None) -> dict[str, Any]:
    """What is to be rounded; names in the file are those that `_renamed` gives, each with a semicolon behind it."""
    return {
        "int8": float_layers is not None,
        "layers": {name: f"(^|[; ]){re.escape(name)};" for name in sorted(one.layers)},
        "float": {name: f"(^|[; ]){re.escape(name)}(\\.[^;]*)?;" for name in sorted(float_layers or ())},
        "fixed": [f"(^|[; ]){re.escape(name or ROOT)};" for name in sorted(one.fixed)],
    }


def _renamed(exported: ExportedProgram) -> ExportedProgram:
    """Return a graph (changed in place) whose operators are named after their modules alone, not after classes as well."""
    from equipoise.runtimes.single import owner

    for node in exported.graph.nodes:
        if "nn_module_stack" in node.meta:
            node.meta["nn_module_stack"] = {"": ("", owner(node) or ROOT)}
    return exported


def _python() -> str:
    """The interpreter that converts: the one named, or this one."""
    return os.environ.get(CONVERTER, sys.executable)


@functools.cache
def _no_converter(python: str) -> str:
    """Return why an interpreter cannot convert, empty where it can."""
    look = "from importlib.util import find_spec as f; raise SystemExit(not (f('litert_torch') and f('ai_edge_quantizer')))"
    try:
        found = subprocess.run([python, "-I", "-c", look], capture_output=True, timeout=60, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        found = False
    remedy = f"pip install litert-torch in an environment of its own, with the same torch, and set {CONVERTER} to its Python"
    return "" if found else f"litert-torch, which makes {FILE}, is not where {python!r} looks. needs: {remedy}."


class _Converter:
    """The other interpreter, kept: starting it takes 7 s, a small model 2 s."""

    def __init__(self, python: str) -> None:
        self._child = subprocess.Popen(
            [python, "-I", litert_convert.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._one = threading.Lock()
        atexit.register(self.close)

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(OSError), self._child:  # closes its pipes, one of which may be broken, and waits
            self._child.kill()

    def convert(self, folder: Path) -> dict[str, Any]:
        """Return its answer. Raises `OSError` or `ValueError` where it has ended."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        with self._one:
            self._child.stdin.write(f"{folder}\n")
            self._child.stdin.flush()
            answer: dict[str, Any] = json.loads(self._child.stdout.readline())
        return answer


_converter = functools.cache(_Converter)


def _converted(folder: Path) -> list[str]:
    """Write the file that `folder` asks for; return the layers that stayed float.

    Raises:
        InputError: litert-torch cannot express the model, or ended.
    """
    if reason := _no_converter(_python()):
        raise InputError(f"target must be one that programs can be made for here: {reason}")
    try:
        answer = _converter(_python()).convert(folder)
    except (OSError, ValueError) as error:
        _converter(_python()).close()
        _converter.cache_clear()
        answer = {"error": f"its process ended ({error or type(error).__name__})"}
    if "error" in answer:
        raise InputError(f"model must be one that litert-torch can convert: {answer['error']}")
    left: list[str] = answer["left"]
    return left
