"""How large a model should be, as one HTML page: the answer in a sentence, the law behind it, every run and every candidate.

What it is told is laid down in `scale_summary`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from equipoise.pages.axes import MISSING, held, times
from equipoise.pages.chart import drawing
from equipoise.pages.document import document, finite
from equipoise.pages.facts import surroundings, titled
from equipoise.pages.rows import FIGURES, interval, lines, table, written
from equipoise.pages.scale_charts import compute_chart, progress_charts, size_chart
from equipoise.pages.scale_summary import Law, ScaleSummary, read_scale
from equipoise.records import Reading, as_data
from equipoise.units import show

SCRIPTS = ("element.js", "table.js", "tip.js", "readout.js", "scale.js")

REQUESTS = 1_000_000
"""Requests that the page opens with, where the summary expects no number of them."""

REGRET = 0.005
"""Regret that the page opens with: what the recommended range allows."""

CONSTANTS = {
    "E": "loss that no model gets below, however large",
    "A": "how much too small a model loses",
    "a": "how fast that falls with size",
    "B": "how much too little data loses",
    "b": "how fast that falls with data",
    "repetition": "epochs of repetition after which a repeated sample is worth 1/e of a fresh one",
}
"""Constant of the law -> what it says."""

BILLS = {"$": ("train_cost", "price_per_million", 1e-6), "s": ("train_s", "latency_s", 1.0)}
"""Unit -> what is paid once, what is paid for requests, and the share of the latter for one request."""


def render_scale(summary: Mapping[str, Any]) -> str:
    """Return the HTML page of a scale advisor's summary.

    Args:
        summary: As `scale_summary` lays down.
    Raises:
        InputError: Another schema, a field missing or unknown, or a figure that does not say where it came from.
    """
    data = as_data(summary)
    return document("scale", page_data(read_scale(data)), data=finite(data), scripts=SCRIPTS)


def page_data(found: ScaleSummary) -> dict[str, Any]:
    """Return the template's variables."""
    answer, call = found.answer, {"quality": found.metric.capitalize()}
    charts = {"size": size_chart(found), "compute": compute_chart(found)}
    return {
        "header": {key: str(found.header.get(key) or "") for key in ("family", "task", "target", "started")},
        "headline": headline(found),
        "lede": found.statement or expectation(found),
        "answer": answer,
        "level": f"{100 * found.level:g} %",
        "expected": lines(shown, call=call) if (shown := answer.recommended or answer.nearest) else [],
        "additions": table(answer.add_runs),
        "charts": {name: drawing(chart) if chart else None for name, chart in charts.items()},
        "candidates": table(found.candidates, call=call, without={"compute", "samples", "flops_per_sample"} - {found.size}),
        "bill": bill(found),
        "branch": found.branch,
        "branches": branches(found, call),
        "progress": [drawing(chart) for chart in progress_charts(found)],
        "runs": table([run.row for run in found.runs], call=call),
        "law": law_rows(found.law),
        "noun": "parameters" if found.size == "params" else "forward FLOPs of a sample",
        "notes": found.notes,
        "facts": facts(found),
    }


def headline(found: ScaleSummary) -> str:
    """Return the answer in one sentence: how large the model should be, or that this cannot be said yet."""
    answer, noun = found.answer, "parameters" if found.size == "params" else "FLOPs a sample"
    best = answer.recommended.value(found.size) if answer.recommended else None
    if answer.refused:
        return "No size keeps the limits." if answer.nearest and not answer.add_runs else "No size can be recommended yet."
    if answer.range and best is not None and len({show(end, "1") for end in answer.range}) > 1:
        cheapest = "to train and serve" if answer.requests else "to serve"
        return f"Train about {held(span(*answer.range))} {noun}; {held(show(best, '1'))} is the cheapest {cheapest}."
    if best is not None:
        return f"Train about {held(show(best, '1'))} {noun}."
    return f"Train about {held(span(*answer.range))} {noun}." if answer.range else "A size is recommended."


def expectation(found: ScaleSummary) -> str:
    """Return what the recommended model is expected to reach and to cost, in one sentence; what is not known is left out."""
    row = found.answer.recommended
    if row is None:
        return ""
    reached = [(k, word) for k, word in (("quality", found.metric), ("loss", "loss")) if row.value(k) is not None]
    told = [f"expected {word} {_rough(key, row.readings[key], found.level)}" for key, word in reached[:1]]
    costs = {"train_s": "of training", "train_cost": "to train", "latency_s": "a request", "size_bytes": "to store"}
    told += [
        f"{held(written(k, v, row.readings[k].unit))} {word}" for k, word in costs.items() if (v := row.value(k)) is not None
    ]
    sentence = ", ".join(told)
    return f"{sentence[:1].upper()}{sentence[1:]}." if told else ""


def _rough(key: str, reading: Reading, level: float) -> str:
    """A figure with its interval, no finer than a manager reads it."""
    ends = [reading.value, reading.low, reading.high]
    value, low, high = (None if v is None else f"{v:.1f}" if key == "quality" else written(key, v, reading.unit) for v in ends)
    return f"{value} ({100 * level:g} % interval {low} to {high})" if low and high else str(value)


def span(low: float, high: float) -> str:
    """Return a range of counts with one unit where both ends share it: ``1.2–2.3 M``."""
    ends = [show(v, "1").partition(" ") for v in (low, high)]
    if ends[0][2] == ends[1][2]:
        return f"{ends[0][0]}–{ends[1][0]} {ends[0][2]}".strip()
    return f"{show(low, '1')}–{show(high, '1')}"


def bill(found: ScaleSummary) -> dict[str, Any] | None:
    """Return what the total cost of training and serving is made of, in money where it is known, else in time.

    The script adds it up for any number of requests; None where no candidate has both parts.
    """
    for unit, (once, each, share) in BILLS.items():
        parts = [
            {
                "name": row.name,
                "once": row.value(once),
                "each": None if row.value(each) is None else share * (row.value(each) or 0.0),
                "regret": row.value("regret"),
                "within": "" if row.breaks else "yes",
            }
            for row in found.candidates
        ]
        if any(part["once"] is not None and part["each"] is not None for part in parts):
            judged = any(part["regret"] is not None for part in parts)
            requests = round(found.answer.requests or REQUESTS)
            return {"unit": unit, "parts": parts, "requests": requests, "regret": f"{100 * REGRET:g}" if judged else ""}
    return None


def branches(found: ScaleSummary, call: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the two branches figure by figure: train this size, or train larger and compress down."""
    if found.branch is None:
        return []
    left, right = found.branch.direct, found.branch.compressed
    keys = [key for key in FIGURES if key in left.readings and key in right.readings]
    return [_branch_row(key, call.get(key) or FIGURES[key], left.readings[key], right.readings[key]) for key in keys]


def _branch_row(key: str, label: str, before: Reading, after: Reading) -> dict[str, Any]:
    values = [before.value, after.value]
    widest = max((abs(v) for v in values if v is not None), default=0.0) or 1.0
    shares = [f"{100 * abs(v or 0.0) / widest:.1f}%" for v in values]
    words = [written(key, r.value, r.unit) if r.value is not None else "unavailable" for r in (before, after)]
    unknown = next((r.note for r in (before, after) if r.value is None), "")
    return {
        "label": label,
        "before": f"≈ {words[0]}" if before.provenance == "estimated" else words[0],
        "after": words[1],
        "before_share": shares[0],
        "after_share": shares[1],
        "estimated": after.provenance == "estimated",
        "interval": f"[{interval(key, after)}]" if interval(key, after) else "",
        "change": "" if unknown else _change(key, *(v for v in values if v is not None)),
        "change_interval": "",
        "unknown": unknown,
    }


def _change(key: str, before: float, after: float) -> str:
    """Say what compressing changes: a difference for what is reached, a ratio for what is paid."""
    if key == "quality":
        return f"{after - before:+.2f} points"
    if key == "regret":
        return f"{100 * (after - before):+.2f} points"
    return times(key, before / after) if before > 0 and after > 0 else ""


def law_rows(law: Law | None) -> list[dict[str, str]]:
    """Return the constants of the law with their intervals and what each says."""
    if law is None:
        return []
    rows = []
    for name, says in CONSTANTS.items():
        if name in law.constants:
            ends = law.intervals.get(name) or ()
            told = " to ".join(f"{v:.4g}" for v in ends) if len(ends) == 2 and all(v is not None for v in ends) else MISSING
            rows.append({"name": name, "value": f"{law.constants[name]:.4g}", "interval": told, "says": says})
    return rows


def facts(found: ScaleSummary) -> list[dict[str, Any]]:
    """Return the titled lists that say what was asked and where the runs were made."""
    header = found.header
    shown = {"family", "task", "target", "limits", "metric", "seed", "started", "seconds", "machine", "versions"}
    asked = {
        "family": header["family"],
        "task": header["task"],
        "target": header.get("target"),
        "limits": header.get("limits") or "none",
        "metric": found.metric,
        "seed": header.get("seed"),
        "started": header.get("started"),
        "took": show(header["seconds"], "s") if header.get("seconds") is not None else None,
        "runs": len(found.runs),
        **{key: value for key, value in header.items() if key not in shown},
    }
    return titled([("Search", asked), *surroundings(header)])
