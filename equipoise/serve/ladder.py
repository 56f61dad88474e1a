"""The rungs: verified programs of one model, the best first, each checked and timed here before it answers anyone."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as loaded

from equipoise.batch import Inputs, mapped, restored, size, take
from equipoise.errors import EquipoiseError, InputError, must_be
from equipoise.pareto import non_dominated
from equipoise.records import Reading, program_ref
from equipoise.runtimes.base import Program, Session, get
from equipoise.serve.dispatch import Cost
from equipoise.ship.artifact import Artifact
from equipoise.ship.manifest import PROBE, Manifest
from equipoise.study.record import Study
from equipoise.study.store import Store

OFF = 1e-3
"""Largest difference of an answer from the one that was recorded, as a fraction of the largest; int8 kernels of another CPU may
round otherwise."""
TIMED_S, ROUNDS = 0.15, 7
"""Seconds that a batch of a rung is timed for at the start, and rounds at least."""


@dataclass(frozen=True)
class Rung:
    """One program of the ladder.

    Attributes:
        name: Unique in the ladder.
        quality, drop: As they were measured on validation, with their intervals; the drop is what is certified.
        threads: Inside one operator.
        probe: Inputs (N, ...) that it is tried with.
        answers: What it is to answer to them; None where that was not recorded.
    """

    name: str
    program: Program
    quality: Reading
    drop: Reading
    threads: int
    probe: Inputs = field(repr=False)
    answers: NDArray[Any] | None = field(default=None, repr=False)

    @cached_property
    def session(self) -> Session:
        """The loaded program."""
        return get(self.program.runtime).load(self.program, threads=self.threads)

    def check(self) -> None:
        """Raise `EquipoiseError` unless it loads and answers its probe as it was recorded."""
        found = self.session.run(mapped(self.probe, np.ascontiguousarray))
        if len(found) != size(self.probe) or not np.isfinite(found).all():
            raise EquipoiseError(f"its answers to {size(self.probe)} samples are not as many finite rows")
        if self.answers is not None:
            off = float(np.abs(found - self.answers).max() / max(float(np.abs(self.answers).max()), 1e-30))
            if off > OFF:
                raise EquipoiseError(f"its answers are {off:.1g} off those that were recorded")

    def cost(self, batches: Sequence[int], share: float) -> Cost:
        """Return what it takes here, by timing each batch: the median, and what this share of the runs takes at most."""
        usual, most = {}, {}
        for batch in batches:
            request = mapped(take(self.probe, np.arange(batch) % size(self.probe)), np.ascontiguousarray)
            times = self._timed(request)
            usual[batch], most[batch] = float(np.median(times)), float(np.quantile(times, share))
        return Cost(usual, most)

    def _timed(self, request: Inputs) -> list[float]:
        """Return the seconds of each of several runs."""
        self.session.run(request)
        times: list[float] = []
        while len(times) < ROUNDS or sum(times) < TIMED_S:
            began = time.perf_counter()
            self.session.run(request)
            times.append(time.perf_counter() - began)
        return times


@dataclass(frozen=True)
class Ladder:
    """Rungs that passed their check, the best first.

    Attributes:
        costs: What each rung takes here.
        metric: Name of the quality.
    """

    name: str
    rungs: tuple[Rung, ...]
    costs: tuple[Cost, ...]
    metric: str

    @cached_property
    def places(self) -> dict[str, int]:
        """Name of a rung -> its place."""
        return {rung.name: place for place, rung in enumerate(self.rungs)}


def ladder(
    sources: Sequence[Path],
    *,
    threads: int,
    batches: Sequence[int],
    share: float,
    tell: Callable[[str], None],
    least: tuple[str, float] | None = None,
) -> Ladder:
    """Return the ladder of a study, or of several artifacts of one model.

    Args:
        sources: One folder of a study, or folders that `equipoise export` wrote.
        threads: Inside one operator.
        batches: Requests that may be answered at once, ascending from 1.
        share: Of the runs of a batch that take no longer than its cost says.
        tell: Told which rungs are left out, a line each.
        least: ``("quality", Q)`` or ``("drop", D)``, which every rung must keep.
    Raises:
        InputError: No such folder, artifacts of different models, or no rung left.
    """
    for source in sources:
        if not any((source / name).is_file() for name in ("study.db", "manifest.json")):
            raise must_be("SOURCE", "a study, or a folder that `equipoise export` wrote", str(source), "Name its folder.")
    studied = len(sources) == 1 and (sources[0] / "study.db").is_file()
    name, metric, rungs, left = _of_study(sources[0], threads) if studied else _of_artifacts(sources, threads)
    left |= {rung.name: why for rung in rungs if (why := _beyond(rung, least))}
    ready: list[tuple[Rung, Cost]] = []
    for rung in rungs:
        if rung.name in left:
            continue
        try:
            rung.check()
            ready.append((rung, rung.cost(batches, share)))
        except EquipoiseError as error:
            left[rung.name] = str(error)
        except Exception as error:  # noqa: BLE001 - a runtime may raise anything of a damaged file: the other rungs serve
            left[rung.name] = f"{type(error).__name__}: {str(error)[:200]}"
    for rung_name, why in left.items():
        tell(f"WARNING: {rung_name} is left out: {why}")
    if not ready:
        raise InputError(f"no rung of {name} can serve: {'; '.join(f'{n}: {w}' for n, w in left.items())}.")
    ready = [ready[i] for i in sorted(non_dominated([[r.drop.get(), c.usual[batches[0]]] for r, c in ready]))]
    ready.sort(key=lambda pair: (pair[0].drop.get(), pair[1].usual[batches[0]]))
    return Ladder(name, tuple(r for r, _ in ready), tuple(c for _, c in ready), metric)


def _beyond(rung: Rung, least: tuple[str, float] | None) -> str:
    """Return why a rung does not keep the bound; empty where it does."""
    if least is None:
        return ""
    word, bound = least
    value = (rung.quality if word == "quality" else rung.drop).get()
    kept = value >= bound if word == "quality" else value <= bound
    return "" if kept else f"its {word} of {value:.2f} is beyond {bound:g}"


def _of_study(folder: Path, threads: int) -> tuple[str, str, list[Rung], dict[str, str]]:
    """Return name, metric and rungs of a study: its front; and which of it cannot be read."""
    with Store.open(folder, create=False, readonly=True) as store:
        study = Study.read(store)
        probe, rungs, left = restored(loaded(store.read_blob(study.header.probe))), [], {}
        for e in study.front:
            try:
                program = Program.stored(program_ref(e), store.read_blob)
            except EquipoiseError as error:
                left[e.key] = str(error)
            else:
                rungs.append(Rung(e.key, program, e.quality, e.drop, threads, probe))
    return study.header.name, str(study.header.metric["name"]), rungs, left


def _of_artifacts(folders: Sequence[Path], threads: int) -> tuple[str, str, list[Rung], dict[str, str]]:
    """Return name, metric and rungs of artifacts, each file held to its manifest; and which of them are damaged."""
    rungs, left, claims = [], {}, list[Manifest]()
    for folder in folders:
        try:
            artifact = Artifact.load(folder)
            claim, program, probe = artifact.claims, artifact.program, artifact.read(PROBE)
            _hold(artifact, {PROBE: probe, **{name: program.file(Path(name).name) for name in claim.deployable.files}})
        except EquipoiseError as error:
            left[str(folder)] = str(error)
            continue
        claims.append(claim)
        promise, held = artifact.promise, loaded(probe)
        answers = held.pop("outputs")
        rungs.append(Rung(str(folder), program, promise["quality"], promise["drop"], threads, restored(held), answers))
    if not claims:
        raise InputError(next(iter(left.values())))
    if len({(claim.study.fingerprint, claim.study.metric.name) for claim in claims}) > 1:
        names = ", ".join(sorted({claim.study.name for claim in claims}))
        raise must_be("artifacts", "of one model and its data", names, "Serve each model by itself.")
    return claims[0].study.name, claims[0].study.metric.name, rungs, left


def _hold(artifact: Artifact, contents: Mapping[str, bytes]) -> None:
    """Raise `EquipoiseError` unless files of an artifact are what its manifest says."""
    for name, content in contents.items():
        if sha256(content).hexdigest() != artifact.claims.files[name].sha256:
            raise EquipoiseError(f"{name} of {artifact.path} is not the file that was exported")
