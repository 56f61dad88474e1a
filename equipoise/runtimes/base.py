"""What every runtime is made of: a target, a program, a session, and the table of runtimes.

A `Source` is the model in the forms that runtimes read; `Runtime.compile` turns it into a `Program`, the bytes that would
ship; `Runtime.load` turns a program into a `Session` that runs numpy arrays. This file imports no runtime and no torch.
"""

from __future__ import annotations

import functools
import hashlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable
from urllib.parse import parse_qsl

from equipoise.batch import Inputs, size
from equipoise.errors import InputError, MissingExtraError, must_be, unknown
from equipoise.records import Choice, ProgramRef
from equipoise.runtimes.cpu import cores
from equipoise.schemes import scheme

if TYPE_CHECKING:
    import numpy as np
    import torch

RUNTIMES: dict[str, str] = {
    "onnxruntime": "equipoise.runtimes.onnxruntime:OnnxRuntime",
    "openvino": "equipoise.runtimes.openvino:OpenVino",
    "torch": "equipoise.runtimes.torch_eager:TorchEager",
    "torch:cuda": "equipoise.runtimes.torch_cuda:TorchCuda",
    "inductor:cuda": "equipoise.runtimes.torch_cuda:InductorCuda",
    "onnxruntime:cuda": "equipoise.runtimes.onnxruntime_gpu:OnnxRuntimeCuda",
    "onnxruntime:tensorrt": "equipoise.runtimes.onnxruntime_gpu:OnnxRuntimeTensorRt",
    "executorch": "equipoise.runtimes.executorch:ExecuTorch",
    "litert": "equipoise.runtimes.litert:LiteRt",
}
"""Name on the command line and in files -> ``module:class``, imported on first use; a name without a device is of the CPU."""

PRECISIONS = ("fp32", "int8", "mixed")
"""What a program computes in: all float, all int8 where the runtime can, or each layer in a scheme of its own."""


MOST_BATCH = 65_536
"""Samples in one request; a larger one is a mistake, and was refused by the runtime only after the study had begun."""


def spelled(row: str) -> str:
    """Return a row of `RUNTIMES` as a target begins: with its device, which of a row without one is the CPU."""
    return row if ":" in row else f"{row}:cpu"


@dataclass(frozen=True, slots=True)
class Target:
    """Where a model must run: ``onnxruntime:cpu?threads=1&batch=1``.

    Attributes:
        runtime: A name of `RUNTIMES`, without its device.
        device: ``cpu``, or what a row of `RUNTIMES` says after the runtime.
        threads: Threads inside one operator.
        batch: Samples per call for which latency counts.

    Example:
        >>> Target.parse("onnxruntime?threads=2")
        Target(runtime='onnxruntime', device='cpu', threads=2, batch=1)
        >>> str(Target("openvino"))
        'openvino:cpu?threads=1&batch=1'
    """

    runtime: str
    device: str = "cpu"
    threads: int = 1
    batch: int = 1

    def __post_init__(self) -> None:
        rows = [spelled(row).split(":") for row in RUNTIMES]
        devices = [device for runtime, device in rows if runtime == self.runtime]
        if not devices:
            raise unknown("target.runtime", self.runtime, dict.fromkeys(runtime for runtime, _ in rows))
        if self.device == "gpu" and "cuda" in devices:
            raise must_be("target.device", f"one of {', '.join(devices)}", "gpu", "Did you mean 'cuda'?")
        if self.device not in devices:
            raise unknown("target.device", self.device, devices)
        for name in ("threads", "batch"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise must_be(f"target.{name}", "a whole number of at least 1", value, f"Write for example ?{name}=1.")
        if self.batch > MOST_BATCH:
            raise must_be("target.batch", f"at most {MOST_BATCH}", self.batch, "Write for example ?batch=1.")

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read ``runtime[:device][?threads=N&batch=N]``; what is left out takes its default.

        Raises:
            InputError: An unknown runtime, device or option, or a count that is not a whole number above 0.
        """
        if not isinstance(text, str):
            raise must_be("target", "text", text, "Write onnxruntime:cpu?threads=1&batch=1.")
        head, _, query = text.strip().partition("?")
        runtime, _, device = head.partition(":")
        counts: dict[str, int] = {}
        for key, value in parse_qsl(query, keep_blank_values=True):
            if key not in ("threads", "batch"):
                raise unknown("target option", key, ("threads", "batch"))
            if key in counts or not value.isdecimal():
                raise must_be(f"target.{key}", "a whole number of at least 1, given once", value, f"Write ?{key}=1.")
            counts[key] = int(value)
        if query and not counts:
            raise must_be("target", "runtime:device?threads=N&batch=N", text, "Write onnxruntime:cpu?threads=1&batch=1.")
        return cls(runtime, device or "cpu", **counts)

    def __str__(self) -> str:
        return f"{self.runtime}:{self.device}?threads={self.threads}&batch={self.batch}"

    @property
    def row(self) -> str:
        """Its row of `RUNTIMES`: what `get` is asked for, and what a program says that it was made for."""
        return self.runtime if self.device == "cpu" else f"{self.runtime}:{self.device}"


def everywhere() -> list[Target]:
    """Return what stands for no target at all: every runtime of the CPU, and those of other devices that are there."""
    targets = [Target.parse(spelled(row)) for row in RUNTIMES]
    return [target for target in targets if target.device == "cpu" or not get(target.row).unavailable()]


def parse_targets(wanted: str | Sequence[Target]) -> tuple[Target, ...]:
    """Read targets to run on here: as `read_targets`.

    Raises:
        InputError: As `read_targets`, or more threads than cores.
    """
    targets = read_targets(wanted)
    for target in targets:
        check_threads(target.threads)
    return targets


def read_targets(wanted: str | Sequence[Target]) -> tuple[Target, ...]:
    """Read targets separated by commas, or take those given, without repeats; the first is the one that is optimized for.

    Raises:
        InputError: No target, the same target twice, one that `Target.parse` refuses, or several batches: what is said of a
            request (times faster, per second, its price) would compare unlike ones.
    """
    if not isinstance(wanted, str | Sequence):
        raise must_be("targets", "text, or a list of targets", wanted, "Write for example onnxruntime:cpu,openvino:cpu.")
    parts = [part for part in wanted.split(",") if part.strip()] if isinstance(wanted, str) else wanted
    targets = tuple(part if isinstance(part, Target) else Target.parse(part) for part in parts)
    if not targets or len(set(targets)) < len(targets):
        raise must_be("targets", "one or more different targets", wanted, "Write for example onnxruntime:cpu,openvino:cpu.")
    if len({target.batch for target in targets}) > 1:
        raise must_be("targets", "of one batch", ", ".join(map(str, targets)), "Optimize for each batch by itself.")
    return targets


def check_threads(threads: int, *, name: str = "target.threads") -> None:
    """Raise `InputError` where there are fewer cores than `threads`: the rest would only wait."""
    if threads > (most := cores()):
        raise must_be(name, f"at most {most}, the cores that this process may run on", threads, f"{most} can run at once.")


def check_usable(target: Target, *, name: str = "target") -> None:
    """Raise where a target cannot be used on this machine; torch is loaded only to ask for a card whose driver is there.

    Raises:
        InputError: Its device is not there.
        MissingExtraError: A package of its runtime is not.
    """
    if reason := get(target.row).unavailable():
        kind = MissingExtraError if target.device == "cpu" else InputError
        raise kind(f"{name} must be a runtime that can be used here; got {str(target)!r}. {reason}")


@dataclass(frozen=True, slots=True)
class Program:
    """What would ship: the files of one compiled model, by name.

    Attributes:
        runtime: The name of the runtime that made it and can load it.
        precision: One of `PRECISIONS`.
        files: File name (no folders) -> content.
        left: Why a layer was left in floating point although int8 was asked for, by name; no part of what ships.
    """

    runtime: str
    precision: str
    files: Mapping[str, bytes]
    left: Mapping[str, str] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise unknown("program.precision", self.precision, PRECISIONS)
        for name in self.files:
            if not name or Path(name).name != name or name in (".", ".."):
                raise must_be("program file", "a plain file name without folders", name, "Rename it.")
        object.__setattr__(self, "files", dict(sorted(self.files.items())))

    def __repr__(self) -> str:
        return f"Program({self.runtime}, {self.precision}: {', '.join(self.files)}; {self.size_bytes:,} bytes)"

    @property
    def size_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(len(content) for content in self.files.values())

    @property
    def digest(self) -> str:
        """SHA-256 over runtime, precision, names and contents: equal exactly when the programs are."""
        total = hashlib.sha256(f"{self.runtime}\0{self.precision}".encode())
        for name, content in self.files.items():
            total.update(f"\0{name}\0{hashlib.sha256(content).hexdigest()}".encode())
        return total.hexdigest()

    def __hash__(self) -> int:
        return hash(self.digest)

    def file(self, name: str) -> bytes:
        """Return one file's content.

        Raises:
            InputError: The program has no such file.
        """
        if name not in self.files:
            raise must_be(f"a program for {self.runtime}", f"a set of files with {name}", list(self.files), "Compile it again.")
        return self.files[name]

    @classmethod
    def stored(cls, ref: ProgramRef, read: Callable[[str], bytes]) -> Program:
        """Return the very program that an evaluation scored; `read` returns the bytes of a SHA-256 (the store's blobs)."""
        return cls(ref.runtime, ref.precision, {name: read(sha) for name, sha in ref.files.items()}, ref.left)

    def write(self, folder: Path) -> None:
        """Write the files into an existing `folder`."""
        for name, content in self.files.items():
            (folder / name).write_bytes(content)

    @classmethod
    def read(cls, folder: Path, *, runtime: str, precision: str, names: tuple[str, ...]) -> Program:
        """Read back the named files of `folder`.

        Raises:
            InputError: A file is missing or is not a regular file (links are refused: they can point anywhere).
        """
        for name in names:
            if (folder / name).is_symlink() or not (folder / name).is_file():
                raise must_be(f"program file {name}", "a regular file", name, "Write the program again.")
        return cls(runtime, precision, {name: (folder / name).read_bytes() for name in names})


@dataclass(frozen=True)
class Source:
    """A model in the forms that runtimes read; each takes the one it needs.

    Attributes:
        onnx: Returns the ONNX file of the model (input ``input``, or several by name; output ``output``; first axis free).
            Called only by runtimes that read ONNX, so that nothing is exported for one that does not.
        model: The torch module, evaluation mode and BatchNorm folded; None where there is only ONNX.
        example: A small batch (N >= 2, ...) of inputs, one tensor or several by name; None where there is only ONNX.
    """

    onnx: Callable[[], bytes]
    model: torch.nn.Module | None = None
    example: Inputs | None = None

    @classmethod
    def of_onnx(cls, content: bytes) -> Source:
        """Return a source that has only an ONNX file."""
        return cls(lambda: content)


class Session(Protocol):
    """A loaded program. Not for use from two threads at once."""

    def run(self, inputs: Inputs) -> np.ndarray[Any, Any]:
        """Return the outputs (N, ...) for `inputs`; the caller may keep both.

        Args:
            inputs: One array (N, ...); for a program of several inputs a mapping of them, in which names that it does not
                know are left aside.
        """
        ...


@runtime_checkable
class Resident(Session, Protocol):
    """A session on a device with memory of its own, to which a request has to go."""

    def again(self) -> None:
        """Run the last request again where it lies, and wait until it is done: what it takes without the way there and back."""
        ...


@runtime_checkable
class Runtime(Protocol):
    """Something that runs models, checked by `equipoise.testing.check_runtime`; see `runs_code` for what it may add."""

    name: str
    precisions: tuple[Choice, ...]
    """How it can compute a layer, names of `schemes.SCHEMES`: 32 always, 8 with a quantizer, others that it can hold."""

    def unavailable(self) -> str:
        """Return why it cannot be used here, with the remedy; empty when it can."""
        ...

    def compile(
        self,
        source: Source,
        *,
        calibration: Inputs | None = None,
        float_layers: frozenset[str] | None = None,
        schemes: Mapping[str, Choice] | None = None,
    ) -> Program:
        """Return the program that would ship.

        Args:
            source: The model.
            calibration: Representative inputs (N, ...), unlabelled, one array or several by name; needed for int8 only.
            float_layers: None compiles the model as it is. A set makes it int8 everywhere except in the layers named (dotted
                module names as in the torch model); an empty set leaves nothing out.
            schemes: Layer -> how it holds its weights, of those in `precisions` that are ``encoded``; such a layer is left out
                of int8. What lies on a grid (`compress.rounding`) is held without loss. Given only where a plan asks for it.

        Raises:
            InputError: int8 without calibration data, a layer name the model does not have, or a precision the runtime has not.
        """
        ...

    def load(self, program: Program, *, threads: int = 1, batch: int | None = None) -> Session:
        """Return a session.

        Args:
            program: One that this runtime compiled.
            threads: Threads inside one operator.
            batch: The only batch size that will be run, for runtimes that plan ahead; the card says how. None allows any.

        Raises:
            InputError: The program is not for this runtime, is damaged, or cannot be read.
        """
        ...


def get(name: str) -> Runtime:
    """Return the runtime called `name`, importing it now.

    Raises:
        InputError: No runtime has that name. (Whether it can be used here is told by its `unavailable`.)
    """
    if name not in RUNTIMES:
        raise unknown("runtime", name, RUNTIMES)
    return cast(Runtime, pkgutil.resolve_name(RUNTIMES[name])())


def runs_code(name: str) -> bool:
    """Return whether loading a program for the runtime `name` may execute code that its files hold.

    It may, unless the class itself says ``runs_code = False``: what it inherits speaks of another's files.
    """
    return vars(type(get(name))).get("runs_code") is not False


def libraries(name: str) -> tuple[str, ...]:
    """Return the modules that the runtime `name` runs on: the class's ``libraries``, else the one called like it.

    The memory that importing them takes belongs to them and not to a model.
    """
    return tuple(getattr(get(name), "libraries", (name.partition(":")[0],)))


def available() -> tuple[str, ...]:
    """Return the names of the runtimes that can be used here."""
    return tuple(name for name in RUNTIMES if not get(name).unavailable())


def requested(program: Program, batch: int, most: int) -> int:
    """Return how many samples a program is to be scored on at once: `most`, or a request of `batch` where answers depend on it.

    They do where inputs are rounded in the range of the request: among many samples it is wider than a user's own.
    """
    return batch if any(b"DynamicQuantizeLinear" in content for content in program.files.values()) else most


def cached(source: Source) -> Source:
    """Return `source` with its ONNX made at most once, for several runtimes."""
    return replace(source, onnx=functools.cache(source.onnx))


def check_program(program: Program, runtime: str) -> None:
    """Raise `InputError` when `program` was made for another runtime."""
    if program.runtime != runtime:
        raise InputError(
            f"program must be for {runtime}; got one for {program.runtime!r}. Load it with runtimes.get({program.runtime!r})."
        )


def feeds(inputs: Inputs, names: Sequence[str]) -> dict[str, np.ndarray[Any, Any]]:
    """Return what a program that takes `names` is fed.

    Raises:
        InputError: One array for several inputs, or one of them missing.
    """
    if not isinstance(inputs, Mapping):
        if len(names) == 1:
            return {names[0]: inputs}
        raise must_be("inputs", f"a mapping of {', '.join(names)}", "one array", "Give each input under its name.")
    lost = [name for name in names if name not in inputs]
    if lost:
        raise must_be("inputs", f"a mapping of {', '.join(names)}", ", ".join(inputs), f"Give {lost[0]} too.")
    return {name: inputs[name] for name in names}


def precision_of(float_layers: frozenset[str] | None, schemes: Mapping[str, Choice] | None) -> str:
    """Return which of `PRECISIONS` a program of these arguments of `Runtime.compile` computes in."""
    return "mixed" if float_layers or schemes else "fp32" if float_layers is None else "int8"


def check_schemes(runtime: str, precisions: Sequence[Choice], schemes: Mapping[str, Choice] | None) -> dict[str, Choice]:
    """Return the schemes that a runtime is asked for; raise `InputError` for one that it has not."""
    held = [choice for choice in precisions if scheme(choice).encoded]
    for layer, choice in (schemes or {}).items():
        if choice not in held:
            ways = ", ".join(map(str, held)) or "none: it computes in floats alone"
            raise must_be(f"schemes[{layer!r}] on {runtime}", f"one of those that it holds weights in ({ways})", choice, _WAYS)
    return dict(schemes or {})


_WAYS = "Choose another, or another runtime; `equipoise doctor` lists what each computes in."


def check_quantizable(calibration: Inputs | None, float_layers: frozenset[str], known: frozenset[str]) -> Inputs:
    """Return `calibration`; raise `InputError` when there is none, or when a layer left float does not exist."""
    if calibration is None or size(calibration) == 0:
        raise must_be("calibration", "a non-empty array of inputs", calibration, "int8 needs it to choose its ranges.")
    for name in sorted(float_layers - known):
        raise unknown("float_layers", name, known)
    return calibration
