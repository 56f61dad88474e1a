"""What the checks of an artifact look at together, and how two sets of answers are compared."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from equipoise.batch import Inputs, mapped, restored, size, take
from equipoise.road.bench import BATCH, Answering, Array
from equipoise.runtimes import Program, Target, requested
from equipoise.ship.artifact import Artifact
from equipoise.ship.manifest import PROBE
from equipoise.ship.promises import Check, at_home, judged
from equipoise.workloads import Split, Workload, asked, predict

ELSEWHERE = "another CPU or other versions than those recorded, where kernels may round differently"


@dataclass(frozen=True)
class Scene:
    """What every check looks at.

    Attributes:
        work: The source model and the data; None where no code of the artifact's author may be executed.
        samples: Inputs of requests: of the validation split, without a workload those of the probe.
        at_home: Whether this is the CPU and the versions that the manifest records.
    """

    artifact: Artifact
    work: Workload | None
    program: Program
    reference: Program
    samples: Inputs
    at_home: bool

    @classmethod
    def of(cls, artifact: Artifact, work: Workload | None) -> Scene:
        """Read the programs of `artifact`, not yet loaded by a runtime."""
        program, reference = artifact.program, artifact.reference
        samples = (
            mapped(restored(probe(artifact)), torch.from_numpy) if work is None else work.validation.take(BATCH).tensors()[0]
        )
        return cls(
            artifact,
            work,
            program,
            reference,
            samples,
            at_home(artifact.claims.recorded.machine, program.runtime, reference.runtime),
        )

    @property
    def data(self) -> Workload:
        """The workload, where there is one."""
        assert self.work is not None
        return self.work

    def outputs(self, program: Program, split: Split) -> Tensor:
        """Answers of a program to a split, scored as the study scored it."""
        batch = requested(program, Target.parse(self.artifact.claims.deployable.target).batch, BATCH)
        return predict(Answering(program), split, batch=batch)[0]

    def source(self, split: Split) -> Tensor:
        """Answers of the rebuilt source model."""
        return predict(self.data.model, split, batch=BATCH)[0]

    def judged(self, run: Program | nn.Module, split: Split, given: Tensor) -> tuple[Tensor, Tensor]:
        """What the metric reads of a program or of the source: the answers `given` to `split`, or those it asks for itself."""
        if self.data.metric.ask is None:
            return given, split.targets()
        return asked(self.data.metric, run if isinstance(run, nn.Module) else Answering(run), split)


def probe(artifact: Artifact) -> dict[str, Array]:
    """The recorded inputs and answers."""
    from safetensors.numpy import load

    found: dict[str, Array] = load(artifact.read(PROBE))
    return found


def apart(a: Tensor, b: Tensor) -> float:
    """Largest difference relative to the largest value; infinite where shapes differ or an answer is not finite."""
    if a.shape != b.shape or not bool(torch.isfinite(b).all()):
        return math.inf
    return float((a - b).abs().max() / a.abs().max().clamp_min(1e-12))


def near(name: str, promised: str, found: str, off: float, *, tight: float, wide: float, note: str) -> Check:
    """Judge a difference: kept within `tight`, broken beyond `wide`, and between them not to be told from here."""
    if off <= tight:
        return Check(name, promised, found, "kept", note)
    if off <= wide:
        return Check(name, promised, found, "cannot tell", f"off by {off:.2g}, more than {tight:.2g}: {note}")
    return Check(name, promised, found, "broken", note)


def guarded(name: str, checks: Iterator[Check]) -> Iterator[Check]:
    """Yield `checks`; where the files or the user's code make them fail, that is what was found."""
    try:
        yield from checks
    except Exception as error:  # noqa: BLE001 - a forged file can make any library raise anything: the failure is the finding
        lines = str(error).strip().splitlines() or [""]
        yield judged(name, "", f"{type(error).__name__}: {lines[0][:200]}", False, "could not be carried out on these files")


def request(samples: Inputs, batch: int) -> Inputs:
    """The inputs of one request of `batch` samples."""
    return mapped(take(samples, torch.arange(batch) % size(samples)), lambda value: np.ascontiguousarray(value.numpy()))
