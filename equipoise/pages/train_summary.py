"""What a training page is told: plain JSON data, read once into records, and nothing guessed.

A *reading* is a `Reading`, or what ``records.as_data`` makes of it. A field marked ? may be left out; any may be None where
there is nothing to say. A field that is not named here is an error.

    schema       `records.SCHEMA`
    header       model, task; device?, metric? {name, maximize}, seed?, machine?, versions?, started?;
                 any further entry is listed among the facts
    statement?   stands below the headline in place of the diagnosis's reason
    level?       of the foretold intervals, 0.9 where left out
    curve        [step; epoch?, seconds?, train_loss?, validation_loss?, validation_metric?, lr?]: what a `CurvePoint` holds
    best?        the entry of the curve whose weights were kept
    stopped?     what ended the run
    reached      readings by the names of `REACHED`
    diagnosis?   verdict, reason?; evidence? [{sign, value (reading), means?}];
                 remedies? [{do, gain (reading), why?}], in order; outlook? [{change, value (reading), why?}]
    extrapolation?  of ("validation_loss" or "validation_metric"), steps, value, low, high
    classification?  split, accuracy, classes [{name, precision, recall, f1, support}], macro, weighted, confusion [[samples]]
    examples?    [{source, written, wanted: [piece of text]; shares: [[share of each piece of the source, a row for each
                 written one]] or None}]
    recipe       name -> value
    notes?       [text]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from equipoise.errors import unknown
from equipoise.pages.rows import FIGURES
from equipoise.pages.schema import columns, demand, metric, number, reading, versioned
from equipoise.records import Reading

WHERE = "train summary"

SEEN = ("train_loss", "validation_loss", "validation_metric", "lr")
"""What a point of the curve may have seen."""

REACHED = {
    "quality": "Quality on validation data",
    "frozen_quality": "Quality of the last layer alone, on validation data",
    "test_quality": "Quality on test data",
    "train_loss": "Training loss",
    "validation_loss": "Validation loss",
    "test_loss": "Test loss",
    **{key: FIGURES[key] for key in ("params", "flops_per_sample", "compute", "samples")},
    **{key: FIGURES[key] for key in ("train_s", "train_cost", "train_energy_j", "train_memory_bytes")},
    "frozen_s": "Time of the last layer alone",
    "throughput_per_s": "Samples a second",
    "utilization": "Share of the peak FLOP rate",
}
"""What a run may have reached and cost -> what the page calls it, in order."""

Figures = Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Said:
    """A figure with what it is said of: a sign and what it means, a remedy and its gain, a change and what it would bring."""

    what: str
    value: Reading
    why: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What is wrong with a run, if anything, how it is known and what would help."""

    verdict: str
    reason: str
    evidence: Sequence[Said]
    remedies: Sequence[Said]
    outlook: Sequence[Said]


@dataclass(frozen=True)
class TrainSummary:
    """A whole summary, checked; `metric` is the user's word for quality.

    `foretold` continues the curve of `foretells`: points with steps, value, low, high.
    """

    header: Mapping[str, Any]
    metric: str
    statement: str
    level: float
    curve: Sequence[Figures]
    best: Figures | None
    stopped: str
    reached: Mapping[str, Reading]
    diagnosis: Diagnosis | None
    foretells: str
    foretold: Sequence[Figures]
    classification: Mapping[str, Any] | None
    examples: Sequence[Mapping[str, Any]]
    recipe: Mapping[str, Any]
    notes: Sequence[str]


def read_train(summary: Any) -> TrainSummary:
    """Return the summary as records.

    Raises:
        InputError: Another schema, a field missing or unknown, or a figure that does not say where it came from.
    """
    takes = ("statement", "level", "best", "stopped", "diagnosis", "extrapolation", "classification", "examples", "notes")
    data = versioned(summary, WHERE, needs=("header", "curve", "reached", "recipe"), takes=takes)
    reached = demand(data["reached"], f"{WHERE} reached", needs=(), takes=REACHED)
    ahead = data.get("extrapolation")
    header = demand(data["header"], f"{WHERE} header", needs=("model", "task"), takes=None)
    own = str((header.get("metric") or {}).get("unit") or "")
    return TrainSummary(
        header=header,
        metric=metric(header),
        statement=str(data.get("statement") or ""),
        level=number(data.get("level")) or 0.9,
        curve=[_point(p, f"{WHERE} curve[{i}]") for i, p in enumerate(data["curve"] or ())],
        best=_point(data["best"], f"{WHERE} best") if data.get("best") else None,
        stopped=str(data.get("stopped") or ""),
        reached={k: reading(reached[k], f"{WHERE} reached.{k}", own=own) for k in REACHED if reached.get(k) is not None},
        diagnosis=_diagnosis(data.get("diagnosis"), f"{WHERE} diagnosis", own),
        foretells=str(ahead["of"]) if ahead else "",
        foretold=_foretold(ahead, f"{WHERE} extrapolation") if ahead else (),
        classification=_classification(data.get("classification"), f"{WHERE} classification"),
        examples=[_example(e, f"{WHERE} examples[{i}]") for i, e in enumerate(data.get("examples") or ())],
        recipe=demand(data["recipe"] or {}, f"{WHERE} recipe", needs=(), takes=None),
        notes=[str(note) for note in data.get("notes") or ()],
    )


def _point(data: Any, where: str) -> Figures:
    demand(data, where, needs=("step",), takes=("epoch", "seconds", *SEEN))
    return {key: number(value) for key, value in data.items()}


def _foretold(data: Any, where: str) -> Sequence[Figures]:
    names = ("steps", "value", "low", "high")
    demand(data, where, needs=("of", *names))
    if data["of"] not in SEEN[1:3]:
        raise unknown(f"{where}.of", str(data["of"]), SEEN[1:3])
    return columns(data, where, names)


def _example(data: Any, where: str) -> Mapping[str, Any]:
    demand(data, where, needs=("source", "written", "wanted", "shares"))
    shares = [[number(value) or 0.0 for value in row] for row in data["shares"] or ()]
    return {**{key: [str(piece) for piece in data[key]] for key in ("source", "written", "wanted")}, "shares": shares}


def _classification(data: Any, where: str) -> Mapping[str, Any] | None:
    if data is None:
        return None
    demand(data, where, needs=("split", "accuracy", "classes", "macro", "weighted", "confusion"))
    for row in (*data["classes"], data["macro"], data["weighted"]):
        demand(row, f"{where} row", needs=("name", "precision", "recall", "f1", "support"))
    return dict(data)


def _diagnosis(data: Any, where: str, own: str) -> Diagnosis | None:
    if data is None:
        return None
    demand(data, where, needs=("verdict",), takes=("reason", "evidence", "remedies", "outlook"))

    def said(name: str, what: str, value: str, why: str) -> list[Said]:
        out = []
        for i, entry in enumerate(data.get(name) or ()):
            place = f"{where}.{name}[{i}]"
            demand(entry, place, needs=(what, value), takes=(why,))
            out.append(Said(str(entry[what]), reading(entry[value], f"{place}.{value}", own=own), str(entry.get(why) or "")))
        return out

    return Diagnosis(
        verdict=str(data["verdict"] or ""),
        reason=str(data.get("reason") or ""),
        evidence=said("evidence", "sign", "value", "means"),
        remedies=said("remedies", "do", "gain", "why"),
        outlook=said("outlook", "change", "value", "why"),
    )
