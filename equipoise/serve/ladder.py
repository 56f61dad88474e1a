"""The rungs: verified programs of one model, the best first, each checked and timed here before it answers anyone."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import load_from_string
from safetensors.numpy import load as loaded

from equipoise.batch import Inputs, mapped, named, restored, size, take
from equipoise.errors import EquipoiseError, InputError, must_be
from equipoise.records import Reading, program_ref
from equipoise.runtimes.base import Program, Session, get
from equipoise.serve.dispatch import Cost
from equipoise.serve.protocol import Taken
from equipoise.ship.artifact import Artifact
from equipoise.ship.manifest import PROBE, Manifest
from equipoise.ship.promises import at_home, slack
from equipoise.study.record import Study
from equipoise.study.store import Store

TIMED_S, ROUNDS = 0.15, 7
"""Seconds that a batch of a rung is timed for, and rounds at least."""
LONGEST = 0.25
"""Part of a request's time that a batch may take for the next larger one to be timed: one that takes more than half of it would
leave too little to those who come meanwhile."""
GAIN = 1.1
"""Times as quick that a rung must be as the next better one: what gains hardly any time only loses quality in a burst."""

Alone = Callable[[Callable[[], float]], float]
"""Does a run at a moment at which no other model runs, and returns its seconds."""


def at_once(run: Callable[[], float]) -> float:
    """Do a run now: nothing else runs at the start."""
    return run()


@dataclass(frozen=True)
class Rung:
    """One program of the ladder.

    Attributes:
        name: Unique in the ladder.
        quality, drop: As they were measured on validation, with their intervals; the drop is what is certified.
        threads: Inside one operator.
        probe: Inputs (N, ...) that it is tried with.
        answers: What it is to answer to them; None where that was not recorded.
        bound: How far from that it may be, relative to the largest.
    """

    name: str
    program: Program
    quality: Reading
    drop: Reading
    threads: int
    probe: Inputs = field(repr=False)
    answers: NDArray[Any] | None = field(default=None, repr=False)
    bound: float = math.inf

    @cached_property
    def session(self) -> Session:
        """The loaded program."""
        return get(self.program.runtime).load(self.program, threads=self.threads)

    def check(self) -> tuple[int, ...]:
        """Return the shape of an answer; raise `EquipoiseError` unless it loads and answers its probe as it was recorded."""
        found = self.session.run(mapped(self.probe, np.ascontiguousarray))
        if len(found) != size(self.probe) or not np.isfinite(found).all():
            raise EquipoiseError(f"its answers to {size(self.probe)} samples are not as many finite rows")
        if self.answers is not None:
            off = float(np.abs(found - self.answers).max() / max(float(np.abs(self.answers).max()), 1e-30))
            if off > self.bound:
                raise EquipoiseError(f"its answers are {off:.1g} off those that were recorded")
        return tuple(found.shape[1:])

    def cost(self, batches: Sequence[int], share: float, *, slo_s: float = math.inf, alone: Alone = at_once) -> Cost:
        """Return what it takes here, by timing batches: the median, and what this share of the runs takes at most.

        Args:
            batches: Ascending; those that would take more than half of `slo_s` are left out, but not the first.
        """
        usual: dict[int, float] = {}
        most: dict[int, float] = {}
        for batch in batches:
            if any(seconds > LONGEST * slo_s for seconds in usual.values()):
                break
            request = mapped(take(self.probe, np.arange(batch) % size(self.probe)), np.ascontiguousarray)
            times = self._timed(request, alone)
            usual[batch], most[batch] = float(np.median(times)), float(np.quantile(times, share))
        return Cost(usual, most)

    def _timed(self, request: Inputs, alone: Alone) -> list[float]:
        """Return the seconds of each of several runs."""

        def run() -> float:
            began = time.perf_counter()
            self.session.run(request)
            return time.perf_counter() - began

        alone(run)
        times: list[float] = []
        while len(times) < ROUNDS or sum(times) < TIMED_S:
            times.append(alone(run))
        return times


@dataclass(frozen=True)
class Ladder:
    """Rungs that passed their check, the best first.

    Attributes:
        costs: What each rung takes here.
        metric: Name of the quality.
        answer: Shape of an answer to one sample.
        left: What else the source holds, by name, and why it is left out.
        held: A digest of what the source held.
    """

    name: str
    rungs: tuple[Rung, ...]
    costs: tuple[Cost, ...]
    metric: str
    answer: tuple[int, ...] = ()
    left: Mapping[str, str] = field(default_factory=dict)
    held: str = ""

    @property
    def lines(self) -> list[str]:
        """A line for each rung: what it gives and takes."""
        pairs = zip(self.rungs, self.costs, strict=True)
        return [f"{r.name}: {self.metric} {r.quality}, drop {r.drop}, {1e3 * c.usual[1]:.3g} ms here" for r, c in pairs]

    @cached_property
    def places(self) -> dict[str, int]:
        """Name of a rung -> its place."""
        return {rung.name: place for place, rung in enumerate(self.rungs)}

    @cached_property
    def takes(self) -> dict[str, Taken]:
        """What the model takes: types from real inputs, free axes from the file where it tells them."""
        first = self.rungs[0]
        found = {name: Taken(value.dtype.name, tuple(value.shape[1:])) for name, value in named(first.probe).items()}
        for file, content in first.program.files.items():
            if file.endswith(".onnx"):
                for value in load_from_string(content).graph.input:
                    axes = value.type.tensor_type.shape.dim[1:]
                    if value.name in found:
                        free = tuple(None if axis.dim_param else int(axis.dim_value) for axis in axes)
                        found[value.name] = Taken(found[value.name].type, free)
        return found

    @property
    def gives(self) -> tuple[int, ...]:
        """Axes of the answers, as the protocol tells them: -1 where one is free, as all are where an input has a free one."""
        free = any(axis is None for taken in self.takes.values() for axis in taken.shape)
        return (-1, *(-1 if free else axis for axis in self.answer))


def ladder(
    sources: Sequence[Path],
    *,
    threads: int,
    batches: Sequence[int],
    share: float,
    slo_s: float,
    tell: Callable[[str], None],
    least: tuple[str, float] | None = None,
    alone: Alone = at_once,
    old: Ladder | None = None,
) -> Ladder:
    """Return the ladder of a study, or of several artifacts of one model.

    Args:
        sources: One folder of a study, or folders that `equipoise export` wrote, of an artifact each or with ``--as``.
        threads: Inside one operator.
        batches: Requests that may be answered at once, ascending from 1.
        share: Of the runs of a batch that take no longer than its cost says.
        slo_s: The time that a request has; a rung that takes longer for one alone is left out.
        tell: Told which rungs are left out, a line each.
        least: ``("quality", Q)`` or ``("drop", D)``, which every rung must keep.
        alone: How a run is timed; see `Alone`.
        old: Returned as it is, and nothing timed, where the sources hold what it was made of: other times would choose others.
    Raises:
        InputError: No such folder, artifacts of different models, or no rung left.
    """
    sources = [rung for source in sources for rung in _rungs_in(source)]
    for source in sources:
        if not any((source / name).is_file() for name in ("study.db", "manifest.json")):
            raise must_be("SOURCE", "a study, or a folder that `equipoise export` wrote", str(source), "Name its folder.")
    studied = len(sources) == 1 and (sources[0] / "study.db").is_file()
    name, metric, rungs, left = _of_study(sources[0], threads) if studied else _of_artifacts(sources, threads)
    held = _digest(name, metric, rungs, left)
    if old is not None and old.held == held:
        return old
    left |= {rung.name: why for rung in rungs if (why := _beyond(rung, least))}
    ready: list[tuple[Rung, Cost]] = []
    answer: tuple[int, ...] = ()
    for rung in rungs:
        if rung.name in left:
            continue
        try:
            answer = rung.check()
            cost = rung.cost(batches, share, slo_s=slo_s, alone=alone)
            if (takes := cost.usual[batches[0]]) > slo_s:
                here = f"above the {1e3 * takes:.3g} ms that it takes here"
                raise must_be("--slo", here, f"{1e3 * slo_s:.3g} ms", "Allow more time.")
            ready.append((rung, cost))
        except EquipoiseError as error:
            left[rung.name] = str(error)
        except Exception as error:  # noqa: BLE001 - a runtime may raise anything of a damaged file: the other rungs serve
            left[rung.name] = f"{type(error).__name__}: {str(error)[:200]}"
    for rung_name, why in left.items():
        tell(f"WARNING: {rung_name} is left out: {why}")
    if not ready:
        raise InputError(f"no rung of {name} can serve, each for the reason told above. Loosen --slo or --at-least.")
    ready.sort(key=lambda made: (made[0].drop.get(), made[1].usual[batches[0]]))
    kept = ready[:1]
    for rung, cost in ready[1:]:
        better, quick = kept[-1]
        if _quicker(cost, quick):
            kept.append((rung, cost))
            continue
        here, there = (f"{1e3 * made.usual[batches[0]]:.3g} ms" for made in (cost, quick))
        left[rung.name] = f"{better.name} loses no more and is as quick here, {there} against {here}"
        tell(f"{rung.name} is left out: {left[rung.name]}")
    served, costs = zip(*kept, strict=True)
    return Ladder(name, served, costs, metric, answer, left, held)


def _quicker(cost: Cost, other: Cost) -> bool:
    """Whether a rung answers one request sooner than another, or more of them a second, by enough to be worth a step down."""
    alone = cost.batches[0]
    return cost.usual[alone] <= other.usual[alone] / GAIN or cost.capacity >= GAIN * other.capacity


def _rungs_in(source: Path) -> list[Path]:
    """Return the folders of the rungs, where a source is what `equipoise export --as` wrote; else the source itself."""
    inside = source / "rungs"
    return sorted(inside.iterdir()) if inside.is_dir() else [source]


def _digest(name: str, metric: str, rungs: Sequence[Rung], left: Mapping[str, str]) -> str:
    """Return a digest of what sources hold: equal where the same programs are promised with the same figures."""
    rows = sorted((r.name, r.program.digest, str(r.quality.get()), str(r.drop.get())) for r in rungs)
    return sha256(repr((name, metric, rows, sorted(left))).encode()).hexdigest()


def _beyond(rung: Rung, least: tuple[str, float] | None) -> str:
    """Return why a rung does not keep the bound; empty where it does."""
    if least is None:
        return ""
    word, bound = least
    value = (rung.quality if word == "quality" else rung.drop).get()
    kept = value >= bound if word == "quality" else value <= bound
    return "" if kept else f"its {word} of {value:.2f} is {'below' if word == 'quality' else 'above'} {bound:g}"


def _of_study(folder: Path, threads: int) -> tuple[str, str, list[Rung], dict[str, str]]:
    """Return name, metric and rungs of a study: its front; and which of it cannot be read."""
    with Store.open(folder, create=False, readonly=True) as store:
        study = Study.read(store).made
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
    rungs, left, claims = list[Rung](), dict[str, str](), list[Manifest]()
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
        bound = slack(program.precision, home=at_home(claim.recorded.machine, program.runtime))
        own = _free(folder, rungs)
        rungs.append(Rung(own, program, promise["quality"], promise["drop"], threads, restored(held), answers, bound))
    if not claims:
        raise InputError(next(iter(left.values())))
    if len({(claim.study.fingerprint, claim.study.metric.name) for claim in claims}) > 1:
        names = ", ".join(sorted({claim.study.name for claim in claims}))
        raise must_be("artifacts", "of one model and its data", names, "Serve each model by itself.")
    return claims[0].study.name, claims[0].study.metric.name, rungs, left


def _free(folder: Path, rungs: Sequence[Rung]) -> str:
    """Return a folder's name as part of an address, with a number behind it where a rung has it."""
    plain, taken = re.sub(r"[^A-Za-z0-9_.-]+", "-", folder.resolve().name), {rung.name for rung in rungs}
    return next(name for name in chain([plain], (f"{plain}-{number}" for number in count(2))) if name not in taken)


def _hold(artifact: Artifact, contents: Mapping[str, bytes]) -> None:
    """Raise `EquipoiseError` unless files of an artifact are what its manifest says."""
    for name, content in contents.items():
        if sha256(content).hexdigest() != artifact.claims.files[name].sha256:
            raise EquipoiseError(f"{name} of {artifact.path} is not the file that was exported")
