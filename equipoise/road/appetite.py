"""How much memory a program takes: loaded and run in a fresh process that does nothing else."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.measure.memory import PeakMemory, peak_memory
from equipoise.runtimes.base import Program, Target, get

if TYPE_CHECKING:
    import numpy as np


def run_program(folder: Path, options: Mapping[str, Any]) -> Iterator[None]:
    """Load the program in `folder` and run it a few times: the child's work for `measure.memory`."""
    import numpy as np

    runtime = get(options["runtime"])
    with contextlib.suppress(ImportError):  # the library belongs to the baseline, not to the model
        importlib.import_module(options["runtime"])
    inputs = np.load(folder / options["inputs"], allow_pickle=False)
    yield
    names = tuple(options["names"])
    program = Program.read(folder, runtime=options["runtime"], precision=options["precision"], names=names)
    session = runtime.load(program, threads=options["threads"], batch=len(inputs))
    for _ in range(3):
        session.run(inputs)


def program_memory(target: Target, program: Program, inputs: np.ndarray[Any, Any]) -> PeakMemory:
    """Return the peak memory of loading `program` and running it on `inputs` (N, ...), in a fresh process."""
    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, inputs, allow_pickle=False)
    options = {
        "runtime": target.runtime,
        "precision": program.precision,
        "threads": target.threads,
        "names": list(program.files),
        "inputs": "equipoise-inputs.npy",
    }
    payload = {**program.files, "equipoise-inputs.npy": buffer.getvalue()}
    return peak_memory("equipoise.road.appetite:run_program", payload, options=options)
