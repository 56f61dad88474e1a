"""How much memory a program takes: loaded and run in a fresh process that does nothing else."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from equipoise.batch import Inputs, size
from equipoise.measure.memory import PeakMemory, peak_memory
from equipoise.road.racing import read, written
from equipoise.runtimes.base import Program, Target, get


def run_program(folder: Path, options: Mapping[str, Any]) -> Iterator[None]:
    """Load the program in `folder` and run it a few times: the child's work for `measure.memory`."""
    runtime = get(options["runtime"])
    with contextlib.suppress(ImportError):  # the library belongs to the baseline, not to the model
        importlib.import_module(options["runtime"])
    inputs = read(folder / options["inputs"])
    yield
    names = tuple(options["names"])
    program = Program.read(folder, runtime=options["runtime"], precision=options["precision"], names=names)
    session = runtime.load(program, threads=options["threads"], batch=size(inputs))
    for _ in range(3):
        session.run(inputs)


def program_memory(target: Target, program: Program, inputs: Inputs) -> PeakMemory:
    """Return the peak memory of loading `program` and running it on `inputs` (N, ...), in a fresh process."""
    options = {
        "runtime": target.runtime,
        "precision": program.precision,
        "threads": target.threads,
        "names": list(program.files),
        "inputs": "equipoise-inputs.npy",
    }
    payload = {**program.files, "equipoise-inputs.npy": written(inputs)}
    return peak_memory("equipoise.road.appetite:run_program", payload, options=options)
