"""How a training run went, as one HTML page: its curves, the verdict with its evidence, what would help, and the recipe.

What it is told is laid down in `train_summary`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from equipoise.pages.axes import held
from equipoise.pages.chart import Chart, Point, Series, Zone, drawing, ruler
from equipoise.pages.document import document, finite
from equipoise.pages.facts import surroundings, titled
from equipoise.pages.rows import line, written
from equipoise.pages.schema import number
from equipoise.pages.train_summary import REACHED, Said, TrainSummary, read_train
from equipoise.records import as_data
from equipoise.units import show

SCRIPTS = ("element.js", "tip.js", "readout.js", "train.js")

MOST = 240
"""Points drawn of one line; of a longer curve every second, third, ... is drawn, and the last."""

WIDE = 30.0
"""Losses and learning rates that span more than this factor are drawn on a logarithmic ruler."""


def render_train(summary: Mapping[str, Any]) -> str:
    """Return the HTML page of a training run's summary.

    Args:
        summary: As `train_summary` lays down.
    Raises:
        InputError: Another schema, a field missing or unknown, or a figure that does not say where it came from.
    """
    data = as_data(summary)
    return document("train", page_data(read_train(data)), data=finite(data), scripts=SCRIPTS)


def page_data(found: TrainSummary) -> dict[str, Any]:
    """Return the template's variables."""
    told, metric = found.diagnosis, found.metric.capitalize()
    call = {key: label.replace("Quality", metric) for key, label in REACHED.items()}
    charts = (loss_chart(found), metric_chart(found), rate_chart(found))
    return {
        "header": {key: str(found.header.get(key) or "") for key in ("model", "task", "device", "started")},
        "headline": headline(found),
        "lede": found.statement or (told.reason if told else ""),
        "reached": [line(key, value, call[key]) for key, value in found.reached.items()],
        "stopped": found.stopped,
        "charts": [drawing(chart) for chart in charts if chart],
        "diagnosed": told is not None,
        **{name: _said(getattr(told, name)) if told else [] for name in ("evidence", "remedies", "outlook")},
        "gains": any(said.value.known for said in told.remedies) if told else False,
        "foretold": bool(found.foretold),
        "level": f"{100 * found.level:g} %",
        "told": classes(found),
        "examples": [example(given) for given in found.examples],
        "notes": found.notes,
        "facts": facts(found),
    }


WIDEST = 20
"""Classes up to which it is shown which is taken for which."""


def classes(found: TrainSummary) -> dict[str, Any] | None:
    """Return the classification report in words: a row for each class and average, and the confusion of not too many."""
    data = found.classification
    if data is None:
        return None

    def cells(row: Mapping[str, Any]) -> list[str]:
        shares = [number(row[key]) for key in ("precision", "recall", "f1")]
        return [*("none" if share is None else f"{100 * share:.2f}" for share in shares), f"{row['support']:,}"]

    rows = [{"name": str(row["name"]), "cells": cells(row)} for row in data["classes"]]
    means = [{"name": f"{key} average", "cells": cells(data[key])} for key in ("macro", "weighted")]
    names = [row["name"] for row in rows]
    table = data["confusion"] if len(names) <= WIDEST else []
    confusion = [{"name": name, "cells": [f"{n:,}" for n in row]} for name, row in zip(names, table, strict=False)]
    return {"split": str(data["split"]), "rows": [*rows, *means], "names": names, "confusion": confusion}


def example(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was written for a source as text, and a row of shaded cells for each written piece."""
    rows = [
        {"name": name, "cells": [{"share": round(share, 3), "told": f"{100 * share:.0f} %"} for share in row]}
        for name, row in zip(given["written"], given["shares"], strict=False)
    ]
    whole = {key: "".join(given[key]).strip("⏎ ") for key in ("source", "written", "wanted")}
    return {**whole, "pieces": given["source"], "rows": rows}


def headline(found: TrainSummary) -> str:
    """Return what was reached, in how long, and the verdict, in one line."""
    key = next((k for k in ("test_quality", "quality", "test_loss", "validation_loss", "train_loss") if _known(found, k)), "")
    word = found.metric.capitalize() if key.endswith("quality") else REACHED.get(key, "")
    reading = found.reached.get(key)
    took = found.reached.get("train_s")
    parts = (
        [f"{word} {held(written(key, reading.value, reading.unit))}"] if reading and reading.value is not None else ["Trained"]
    )
    if took and took.value is not None:
        parts.append(f"after {held(show(took.value, took.unit))}")
    verdict = found.diagnosis.verdict if found.diagnosis else ""
    return " ".join(parts) + (f": {verdict}." if verdict else ".")


def _known(found: TrainSummary, key: str) -> bool:
    return key in found.reached and found.reached[key].known


def loss_chart(found: TrainSummary) -> Chart | None:
    """Return training and validation loss against steps, continued where that was foretold."""
    series = [
        _seen(found, "train_loss", "training loss", tone="soft"),
        _seen(found, "validation_loss", "validation loss"),
        *_ahead(found, "validation_loss", "validation loss"),
        *_kept(found, "validation_loss"),
    ]
    return _against_steps(found, "loss", "Loss", series)


def metric_chart(found: TrainSummary) -> Chart | None:
    """Return the metric on validation data against steps, continued where that was foretold."""
    series = [
        _seen(found, "validation_metric", found.metric),
        *_ahead(found, "validation_metric", found.metric),
        *_kept(found, "validation_metric"),
    ]
    return _against_steps(found, "metric", found.metric.capitalize(), series)


def rate_chart(found: TrainSummary) -> Chart | None:
    """Return the learning rate against steps."""
    return _against_steps(found, "rate", "Learning rate", [_seen(found, "lr", "learning rate", tone="soft")])


def _seen(found: TrainSummary, key: str, name: str, *, tone: int | str = 3) -> Series:
    seen = [(p["step"], p.get(key), _when(p)) for p in found.curve]
    points = [Point(step, value, note=when) for step, value, when in seen if step is not None and value is not None]
    stride = 1 + len(points) // MOST
    return Series(name, "line", [*points[:-1:stride], *points[-1:]], tone, key=name)


def _when(point: Mapping[str, float | None]) -> str:
    words = [f"epoch {point['epoch']:.3g}"] if point.get("epoch") is not None else []
    seconds = point.get("seconds")
    return ", ".join([*words, *([show(seconds, "s")] if seconds is not None else [])])


def _ahead(found: TrainSummary, key: str, name: str) -> list[Series]:
    if found.foretells != key or not found.foretold:
        return []
    points = [Point(p["steps"] or 0.0, p["value"] or 0.0, p["low"], p["high"]) for p in found.foretold]
    return [Series(f"{name}, foretold", "dashed", points, 1, key=f"{name}, foretold")]


def _kept(found: TrainSummary, key: str) -> list[Series]:
    best = found.best
    value, step = (best.get(key), best["step"]) if best else (None, None)
    return [] if value is None or step is None else [Series("kept", "best", [Point(step, value)], "pick", key="weights kept")]


def _against_steps(found: TrainSummary, name: str, label: str, series: Sequence[Series]) -> Chart | None:
    series = [s for s in series if s.points]
    values = [p.y for s in series for p in s.points]
    if len(values) < 2:
        return None
    log = name != "metric" and min(values) > 0 and max(values) > WIDE * min(values)
    reach = [v for s in series for p in s.points for v in (p.low, p.high) if v is not None]
    x = ruler("Step", [p.x for s in series for p in s.points], write=lambda v: f"{v:,.0f}")
    y = ruler(label, values, write=lambda v: f"{v:.4g}", log=log, reach=reach)
    says = "; ".join(f"{s.name} from {s.points[0].y:.4g} to {s.points[-1].y:.4g}" for s in series if s.look != "best")
    seen = max((p["step"] for p in found.curve if p["step"] is not None), default=x.high)
    zones = [Zone("not trained: foretold", "beyond", seen)] if any(s.look == "dashed" for s in series) else []
    return Chart(name, f"{label} against steps: {says}.", x, y, series, zones)


def _said(entries: Sequence[Said]) -> list[dict[str, str]]:
    """Figures with what is said of them; how each was read, or why not, comes after."""
    rows = [(line("quality" if e.value.unit == "points" else "loss", e.value, e.what), e) for e in entries]
    return [
        {
            **row,
            "value": f"{row['value']} points" if e.value.known and e.value.unit == "points" else row["value"],
            "note": "; ".join(filter(None, [e.why, e.value.note])),
        }
        for row, e in rows
    ]


def facts(found: TrainSummary) -> list[dict[str, Any]]:
    """Return the titled lists that say what was trained, how and where."""
    header = found.header
    run = {key: value for key, value in header.items() if key not in ("machine", "versions", "metric")}
    run |= {"metric": found.metric, **({"ended by": found.stopped} if found.stopped else {})}
    return titled([("Run", run), ("Recipe", found.recipe), *surroundings(header)])
