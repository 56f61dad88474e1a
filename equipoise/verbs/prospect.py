"""What `advise` finds: which techniques are worth trying on a model and this machine, each figure with its range and origin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from equipoise.markup import table
from equipoise.records import Reading
from equipoise.units import counted


@dataclass(frozen=True, slots=True)
class Contest:
    """The untouched model on one runtime in one precision, timed beside all the others.

    Attributes:
        target: As `runtimes.Target` prints it.
        precision: ``fp32`` or ``int8``.
        latency: Of one request.
        times_faster: Than the model in floats on the target that was asked for.
        verdict: ``faster``, ``slower`` or ``cannot tell``; empty where there are no figures.
        size_bytes: All files that would ship.
        loss: Divergence of its answers from the model's.
        reason: Why there are no figures.
    """

    target: str
    precision: str
    latency: Reading
    times_faster: Reading
    verdict: str
    size_bytes: Reading
    loss: Reading
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """One layer: what it computes and what it takes on the target, timed alone."""

    name: str
    kind: str
    params: int
    macs: int
    seconds: Reading
    share: float | None


@dataclass(frozen=True, slots=True)
class Level:
    """One way to use a technique, or all of them together.

    Attributes:
        what: In words.
        times_faster, times_smaller, times_fewer_macs: Than the untouched model on the same target.
        loss: Divergence from the untouched model's answers, not trained.
    """

    what: str
    times_faster: Reading
    times_smaller: Reading
    times_fewer_macs: Reading
    loss: Reading


@dataclass(frozen=True, slots=True)
class Prospects:
    """One technique on this model.

    Attributes:
        technique: What a knob of it sets.
        places: Where it can be used.
        refused: Where it cannot -> why.
        levels: From the mildest use to the strongest.
        verdict: Whether it is worth trying here, in words.
    """

    technique: str
    places: int
    refused: Mapping[str, str]
    levels: tuple[Level, ...]
    verdict: str


@dataclass(frozen=True, slots=True)
class Prospect:
    """What is worth trying on a model and a machine, before anything is searched or trained.

    Attributes:
        name, target: Of what, for where.
        inputs: Inputs that losses were read on; 0 where the example was too small to tell any.
        unit: What losses are counted in.
        contests: The untouched model on each runtime and in each precision, the fastest first.
        parts: The layers, those that take longest first.
        techniques: What each technique would bring, the one that gains most first.
        together: What all of them may reach together, at some losses.
        left_whole: What nothing can change -> why.
        read, entries: How many of the one-knob losses were read.
        skipped: What there was no time for.
        command: What to run next.
        search_s: Seconds that the command gives to the search.
        seconds: Wall time spent.
    """

    name: str
    target: str
    inputs: int
    unit: str
    contests: tuple[Contest, ...]
    parts: tuple[Part, ...]
    techniques: tuple[Prospects, ...]
    together: tuple[Level, ...]
    left_whole: Mapping[str, str]
    read: int
    entries: int
    skipped: tuple[str, ...]
    command: str
    search_s: float
    seconds: float

    def __repr__(self) -> str:
        best = next((row for row in self.contests if row.latency.known), None)
        where = f", quickest in {best.precision} on {best.target.partition('?')[0]}" if best else ""
        return f"Prospect({self.name} on {self.target}: {counted(len(self.techniques), 'technique')} apply{where})"

    def _repr_html_(self) -> str:
        rows = [["technique", "use", "times faster", "times smaller", "loss", "verdict"]]
        for row in self.techniques:
            for level in row.levels:
                figures = (level.times_faster, level.times_smaller, level.loss)
                rows.append([row.technique, level.what, *map(str, figures), row.verdict])
        return table(rows, caption=f"{self.name} on {self.target}; next: {self.command}")
