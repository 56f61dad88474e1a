"""How much memory a program takes: loaded and run in a fresh process that does nothing else."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from equipoise.batch import Inputs, size
from equipoise.measure.memory import PeakMemory, peak_memory
from equipoise.records import Reading
from equipoise.road.racing import read, written
from equipoise.runtimes.base import Program, Target, get, libraries
from equipoise.units import show

PAGES, SHARE = 64 * 4096, 0.01
"""Two fresh processes differ by at most so many bytes or that share, whichever is more.

Twelve readings each of the digits study's program span up to 228 KiB of 22 MB in ONNX Runtime, 320 KiB of 45 MB in OpenVINO and
1.1 MiB of 121 MB in PyTorch, at batches 1 and 64.
"""


def run_program(folder: Path, options: Mapping[str, Any]) -> Iterator[None]:
    """Load the program in `folder` and run it a few times: the child's work for `measure.memory`."""
    runtime = get(options["runtime"])
    with contextlib.suppress(ImportError):  # the libraries belong to the baseline, not to the model
        for name in libraries(options["runtime"]):
            importlib.import_module(name)
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
        "runtime": target.row,
        "precision": program.precision,
        "threads": target.threads,
        "names": list(program.files),
        "inputs": "equipoise-inputs.npy",
    }
    payload = {**program.files, "equipoise-inputs.npy": written(inputs)}
    return peak_memory("equipoise.road.appetite:run_program", payload, options=options)


class Appetite:
    """What a program adds to the memory of its process."""

    def missing(self) -> str:
        """Return nothing: a process can be started everywhere."""
        return ""

    def read(self, program: Program, target: Target, rows: Inputs) -> Reading:
        """Return the peak that loading and running adds, with what another fresh process may differ by."""
        found = program_memory(target, program, rows).added
        if found.value is None:
            return found
        apart = max(PAGES, SHARE * found.value)
        note = f"{found.note}; another differs by up to {show(apart, 'B')}"
        return replace(found, low=max(0.0, found.value - apart), high=found.value + apart, note=note)
