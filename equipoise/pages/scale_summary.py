"""What a scale page is told: plain JSON data, read once into records, and nothing guessed.

A *reading* is a `Reading`, or what ``records.as_data`` makes of it: value, unit, interval, provenance. What is not known is
``unavailable(unit, reason)``, and the page says so with the reason. Intervals of measured readings are taken for 95 %, those of
estimates and predictions for `level`. A field marked ? may be left out; any may be None where
there is nothing to say. A field that is not named here is an error.

    schema       `records.SCHEMA`
    header       family, task; target?, limits? (text), metric? {name, maximize}, seed?, machine?, versions?, started?,
                 seconds?; any further entry is listed among the facts
    statement?   what the answer rests on and does not say, in the words of whoever decided; stands below the headline
    level?       of the predicted intervals, 0.9 where left out
    law          E, A, B, a, b, size ("params": N is parameters; "flops": forward FLOPs of one sample);
                 intervals? {name: [low, high]}, repetition?, note?
    runs         [params, flops_per_sample, samples, compute (training FLOPs), loss (reading);
                 label?, scale?, unique?, quality? and seconds? (readings), seed?, annealed?, held_out?]
    curves       [compute, sizes, loss, low, high; best? {size, low, high}, label?]: predicted loss against N at a compute
    frontier     compute, loss, low, high: the least loss that each compute buys, predicted
    answer       status "recommended" or "refused", reason;
                 range? [low, high] of N, recommended? (row), limits? [{text, reads, holds}], binding? (text of one of them),
                 requests? (expected), nearest? (row: where no size keeps the limits, the one that breaks them least),
                 add_runs? [label?, scale?, params?, samples?, compute? (numbers), seconds? (reading), why?]
    candidates   [row]
    compress_branch?  direct (row), compressed (row), plan, verdict?: train this size, or train larger and compress down
    progress?    [round, loss (best so far); proposed?, trained?, hypervolume?, seconds?]
    notes?       [text]

A *row* is ``label?``, ``scale?`` {dimension: value}, ``breaks?`` [limits it does not keep], ``note?``, and readings by the
names of `rows.FIGURES`: params, macs, flops_per_sample, quality, loss, regret (fraction of the least loss), compute, samples,
train_s, train_cost, train_energy_j, train_memory_bytes, latency_s, size_bytes, peak_memory_bytes, energy_j, price_per_million.
Of the recommended row, params (or flops_per_sample) and compute are its places on the charts; of the candidates, train_cost and
price_per_million, or else train_s and latency_s, make the total for any number of requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from equipoise.errors import InputError, must_be, unknown
from equipoise.pages.rows import Row, called, row_of
from equipoise.pages.schema import columns, demand, metric, number, reading, versioned
from equipoise.records import Reading, measured

WHERE = "scale summary"

Figures = Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Trained:
    """One small run: its figures, and whether the law was fitted to it."""

    row: Row
    held_out: bool
    annealed: bool

    @property
    def fitted(self) -> bool:
        """Whether the law was fitted to this run."""
        return self.annealed and not self.held_out


@dataclass(frozen=True, slots=True)
class Curve:
    """Predicted loss against size at one compute; `points` have size, loss, low, high, and `best` size, low, high."""

    compute: float
    points: Sequence[Figures]
    best: Figures | None
    label: str


@dataclass(frozen=True, slots=True)
class Law:
    """The fitted constants, and what N counts: a key of a `Row`."""

    constants: Mapping[str, float]
    intervals: Mapping[str, Sequence[float]]
    size: str
    note: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What was decided: a range of sizes and the one recommended in it, or a refusal with what is nearest or would lift it."""

    refused: bool
    reason: str
    range: Sequence[float] | None
    recommended: Row | None
    nearest: Row | None
    limits: Sequence[Mapping[str, Any]]
    binding: str
    requests: float | None
    add_runs: Sequence[Row]


@dataclass(frozen=True, slots=True)
class Branch:
    """Train this size, or train larger and compress down."""

    direct: Row
    compressed: Row
    plan: str
    verdict: str


@dataclass(frozen=True)
class ScaleSummary:
    """A whole summary, checked; `metric` is the user's word for quality."""

    header: Mapping[str, Any]
    metric: str
    statement: str
    level: float
    law: Law | None
    runs: Sequence[Trained]
    curves: Sequence[Curve]
    frontier: Sequence[Figures]
    answer: Answer
    candidates: Sequence[Row]
    branch: Branch | None
    progress: Sequence[Figures]
    notes: Sequence[str]

    @property
    def size(self) -> str:
        """The key of a `Row` that N counts."""
        return self.law.size if self.law else "params"


def read_scale(summary: Any) -> ScaleSummary:
    """Return the summary as records.

    Raises:
        InputError: Another schema, a field missing or unknown, or a figure that does not say where it came from.
    """
    needs = ("header", "law", "runs", "curves", "frontier", "answer", "candidates")
    takes = ("statement", "level", "compress_branch", "progress", "notes")
    data = versioned(summary, WHERE, needs=needs, takes=takes)
    header = demand(data["header"], f"{WHERE} header", needs=("family", "task"), takes=None)
    return ScaleSummary(
        header=header,
        metric=metric(header),
        statement=str(data.get("statement") or ""),
        level=number(data.get("level")) or 0.9,
        law=_law(data["law"]),
        runs=[_trained(run, f"{WHERE} runs[{i}]") for i, run in enumerate(data["runs"] or ())],
        curves=sorted((_curve(c, f"{WHERE} curves[{i}]") for i, c in enumerate(data["curves"] or ())), key=lambda c: c.compute),
        frontier=_frontier(data["frontier"]),
        answer=_answer(data["answer"], f"{WHERE} answer"),
        candidates=[row_of(row, f"{WHERE} candidates[{i}]") for i, row in enumerate(data["candidates"] or ())],
        branch=_branch(data.get("compress_branch"), f"{WHERE} compress_branch"),
        progress=[_round(entry, f"{WHERE} progress[{i}]") for i, entry in enumerate(data.get("progress") or ())],
        notes=[str(note) for note in data.get("notes") or ()],
    )


def _law(data: Any) -> Law | None:
    if data is None:
        return None
    names = ("E", "A", "B", "a", "b")
    demand(data, f"{WHERE} law", needs=(*names, "size"), takes=("intervals", "repetition", "note"))
    sizes = {"params": "params", "flops": "flops_per_sample"}
    if data["size"] not in sizes:
        raise unknown(f"{WHERE} law.size", str(data["size"]), sizes)
    constants = {name: number(data.get(name)) for name in (*names, "repetition")}
    lost = [name for name in names if constants[name] is None]
    if lost:
        raise must_be(f"{WHERE} law.{lost[0]}", "a finite number", data[lost[0]], "Give None where no law was fitted.")
    known = {name: value for name, value in constants.items() if value is not None}
    return Law(known, dict(data.get("intervals") or {}), sizes[data["size"]], str(data.get("note") or ""))


def _trained(data: Any, where: str) -> Trained:
    counts = ("params", "flops_per_sample", "samples", "compute")
    takes = ("label", "scale", "unique", "quality", "seconds", "seed", "annealed", "held_out")
    demand(data, where, needs=(*counts, "loss"), takes=takes)
    readings = {name: _counted(data[name], f"{where}.{name}") for name in counts}
    readings["loss"] = reading(data["loss"], f"{where}.loss")
    for name, key in (("quality", "quality"), ("seconds", "train_s")):
        if data.get(name) is not None:
            readings[key] = reading(data[name], f"{where}.{name}")
    held_out, annealed = bool(data.get("held_out")), data.get("annealed") is not False
    notes = [word for word, said in (("held out", held_out), ("not annealed, so not fitted", not annealed)) if said]
    return Trained(Row(called(data), readings, note=", ".join(notes)), held_out, annealed)


def _counted(value: Any, where: str) -> Reading:
    """A count that a run was given: it is exact."""
    if number(value) is None or value <= 0:
        raise must_be(where, "a number above 0", value, "Leave out a run that was never started.")
    return measured(value, "1", note="counted")


def _curve(data: Any, where: str) -> Curve:
    demand(data, where, needs=("compute", "sizes", "loss", "low", "high"), takes=("best", "label"))
    best = data.get("best")
    if best is not None:
        best = {k: number(v) for k, v in demand(best, f"{where}.best", needs=("size", "low", "high")).items()}
    points = columns(data, where, ("sizes", "loss", "low", "high"))
    compute = _counted(data["compute"], f"{where}.compute").get()
    return Curve(compute, points, best if best and best["size"] else None, str(data.get("label") or ""))


def _frontier(data: Any) -> Sequence[Figures]:
    if data is None:
        return []
    names = ("compute", "loss", "low", "high")
    return columns(demand(data, f"{WHERE} frontier", needs=names), f"{WHERE} frontier", names)


def _answer(data: Any, where: str) -> Answer:
    takes = ("range", "recommended", "limits", "binding", "requests", "nearest", "add_runs")
    demand(data, where, needs=("status", "reason"), takes=takes)
    if data["status"] not in ("recommended", "refused"):
        raise unknown(f"{where}.status", str(data["status"]), ("recommended", "refused"))
    refused = data["status"] == "refused"
    if not refused and data.get("recommended") is None:
        raise InputError(f'{where}.recommended must be a row where the status is "recommended"; got None. Refuse instead.')
    ends = data.get("range")
    if ends is not None and (len(ends) != 2 or any(number(v) is None or v <= 0 for v in ends)):
        raise must_be(f"{where}.range", "[low, high] above 0", ends, "Give None where there is no range.")
    return Answer(
        refused=refused,
        reason=str(data["reason"] or ""),
        range=ends,
        recommended=row_of(data["recommended"], f"{where}.recommended") if data.get("recommended") else None,
        nearest=row_of(data["nearest"], f"{where}.nearest") if data.get("nearest") else None,
        limits=[demand(limit, f"{where}.limits", needs=("text", "reads", "holds")) for limit in data.get("limits") or ()],
        binding=str(data.get("binding") or ""),
        requests=number(data.get("requests")),
        add_runs=[_addition(run, f"{where}.add_runs[{i}]") for i, run in enumerate(data.get("add_runs") or ())],
    )


def _addition(data: Any, where: str) -> Row:
    """A run that would lift a refusal: what it is, what it takes, and why."""
    counts = ("params", "samples", "compute")
    demand(data, where, needs=(), takes=("label", "scale", *counts, "seconds", "why"))
    readings = {name: _counted(data[name], f"{where}.{name}") for name in counts if data.get(name) is not None}
    if data.get("seconds") is not None:
        readings["train_s"] = reading(data["seconds"], f"{where}.seconds")
    return Row(called(data), readings, note=str(data.get("why") or ""))


def _round(data: Any, where: str) -> Figures:
    demand(data, where, needs=("round", "loss"), takes=("proposed", "trained", "hypervolume", "seconds"))
    return {key: number(value) for key, value in data.items()}


def _branch(data: Any, where: str) -> Branch | None:
    if data is None:
        return None
    demand(data, where, needs=("direct", "compressed", "plan"), takes=("verdict",))
    direct, compressed = (row_of(data[name], f"{where}.{name}") for name in ("direct", "compressed"))
    return Branch(direct, compressed, str(data["plan"] or ""), str(data.get("verdict") or ""))
