"""ExecuTorch on the CPU: a ``.pte`` file whose operators XNNPACK runs, float or int8 by its own quantizer.

What phones and boards run. A program is planned for one sample: see `rows`. int8 is XNNPACK's symmetric scheme, weights per
channel, ranges from calibration, of the layers and what lies between them. The last linear layers, and with attention all of
them, round what they read in each sample's own range and give floats: scores of unlike scales are not rounded on one. What the
quantizer has no pattern for (embeddings, normalization) stays float, and layers of that kind are named.
"""

from __future__ import annotations

import functools
import importlib.util
import struct
import weakref
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from equipoise.batch import Inputs
from equipoise.errors import InputError, missing_extra, must_be
from equipoise.records import Choice
from equipoise.runtimes.base import Program, Session, Source, check_program, check_schemes, precision_of
from equipoise.runtimes.rows import hushed, names_of, run_rows

FILE = "model.pte"
"""The program; beside it the names of several inputs."""

HEADER = struct.Struct("<4x4s4s4xQQQ")
"""Of a file: its two marks, how long the program is, where the segments of weights begin, and how long they are."""
MARKS = (b"ET12", b"eh00")


class ExecuTorch:
    """ExecuTorch with XNNPACK. See `base.Runtime` for the methods."""

    name = "executorch"
    precisions: tuple[Choice, ...] = (32, 8)
    runs_code = True
    """No code is in a file, but its reader trusts it: of 150 with random bytes in them, two ended the process."""
    libraries = ("torch", "executorch.extension.pybindings._C")

    def unavailable(self) -> str:
        """Return which package is missing, with the line that installs it."""
        for package in ("executorch", "torchao"):
            if importlib.util.find_spec(package) is None:
                return str(missing_extra(package, "executorch"))
        return ""

    def compile(
        self,
        source: Source,
        *,
        calibration: Inputs | None = None,
        float_layers: frozenset[str] | None = None,
        schemes: Mapping[str, Choice] | None = None,
    ) -> Program:
        """Return the module as XNNPACK runs it for one sample, quantized when `float_layers` is a set.

        Raises:
            InputError: The source has no module, or ExecuTorch cannot express it; else as `base.Runtime.compile`.
        """
        from equipoise.runtimes.export import quiet
        from equipoise.runtimes.single import single

        check_schemes(self.name, self.precisions, schemes)
        one = single(source, self.name)
        samples = None if float_layers is None else one.samples(calibration, float_layers)
        exported, left = one.exported, dict[str, str]()
        try:
            with quiet(), hushed():
                from equipoise.runtimes import xnnpack

                if samples is not None and float_layers is not None:
                    exported, left = xnnpack.quantized(one, samples, float_layers)
                content = xnnpack.lowered(exported)
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"model must be one that ExecuTorch takes; got {type(one.model).__name__}: {reason}") from error
        return Program(self.name, precision_of(float_layers, None), {FILE: content, **one.files}, left)

    def load(self, program: Program, *, threads: int = 1, batch: int | None = None) -> Session:
        """Return a session that runs sample by sample, whatever the `batch`."""
        check_program(program, self.name)
        content, names = program.file(FILE), names_of(program)
        _check_whole(content)
        return _Session(content, names, threads)


class _Session:
    """A loaded method. ExecuTorch has one pool of threads for all; one of another size makes sessions load again."""

    def __init__(self, content: bytes, names: tuple[str, ...], threads: int) -> None:
        self._content, self._names, self._threads = content, names, threads
        self._method: Any = None
        self._open()

    def run(self, inputs: Inputs) -> NDArray[Any]:
        if self._method is None:
            self._open()
        return run_rows(inputs, self._names, self._one)

    def _one(self, arrays: list[NDArray[Any]]) -> NDArray[Any]:
        import torch

        for name, array, shape in zip(self._names, arrays, self._shapes, strict=True):
            if array.shape != shape:  # told here: ExecuTorch would print what it says
                fixed = "Its shape is fixed in the file."
                raise must_be(f"inputs[{name!r}]", f"of samples {shape[1:]}", array.shape[1:], fixed)
        try:
            result: NDArray[Any] = self._method(list(map(torch.from_numpy, arrays)))[0].numpy()
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"inputs must be of the shape and type the program was made for: {reason}") from error
        return result

    def _open(self) -> None:
        library = _library()
        if library._threadpool_get_thread_count() != self._threads:
            for session in list(_OPEN):
                session.close()  # what it holds was made for the threads that now end
            with hushed():
                library._unsafe_reset_threadpool(self._threads)
        try:
            with hushed():
                how = library.Verification.InternalConsistency
                self._program = library._load_program_from_buffer(self._content, program_verification=how)
                self._method = self._program.load_method("forward")
            meta = self._method.method_meta()
            self._shapes = [tuple(meta.input_tensor_meta(place).sizes()) for place in range(meta.num_inputs())]
        except Exception as error:
            raise _damaged(" ".join(str(error).split())[:200]) from error
        if len(self._shapes) != len(self._names):
            raise _damaged(f"it takes {len(self._shapes)} inputs, and {len(self._names)} are named")
        _OPEN.add(self)

    def close(self) -> None:
        """Let go of the method; the next run loads it again."""
        self._method = self._program = None
        _OPEN.discard(self)


_OPEN: weakref.WeakSet[_Session] = weakref.WeakSet()
"""Sessions that hold on to the pool of threads as it is."""


@functools.cache
def _library() -> Any:
    """The runtime alone: ``executorch.runtime`` loads the whole compiler beside it, 5.7 s in place of 3 ms."""
    import torch  # noqa: F401 - it loads the libraries that the next one needs

    with hushed():
        from executorch.extension.pybindings import _C

        _C._threadpool_get_thread_count()  # the first call makes the pool, and tells of the CPU meanwhile
    return _C


def _check_whole(content: bytes) -> None:
    """Raise `InputError` where a file is not as long as it says: its reader would look for weights behind its end."""
    if len(content) < HEADER.size:
        raise _damaged("it is too short")
    *marks, program, begin, segments = HEADER.unpack_from(content)
    if tuple(marks) != MARKS:
        raise _damaged("it does not begin as one does")
    if len(content) < max(program, begin + segments):
        raise _damaged(f"it holds {len(content):,} bytes of {max(program, begin + segments):,}")


def _damaged(reason: str) -> InputError:
    return InputError(f"{FILE} must be a file that ExecuTorch can read: {reason}. Compile the program again.")
