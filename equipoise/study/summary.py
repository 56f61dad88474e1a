"""What a report shows of a study: plain data, read from the record alone."""

from __future__ import annotations

import math
from typing import Any

from equipoise.pareto import hypervolume, non_dominated
from equipoise.records import SCHEMA, Evaluation, as_data
from equipoise.study.picks import settled
from equipoise.study.record import Study
from equipoise.study.store import Store
from equipoise.study.tested import verified
from equipoise.units import counted


def summarize(store: Store) -> dict[str, Any]:
    """Return everything a report needs of the study in `store`, as JSON data.

    Raises:
        StoreError: The study has no baseline yet.
    """
    study = Study.read(store)
    best = study.best
    tables = {f"{row['knob']}={row['choice']}": row["loss"] for row in store.all("table") if row["loss"] is not None}
    return {
        "schema": SCHEMA,
        "header": dict(study.header),
        "evaluations": [_row(study, e) for e in study.evaluations],
        "baseline": study.baseline.key,
        "knee": study.knee.key,
        "pick": best.key,
        "pick_rule": study.verdict(),
        "layers": layer_rows(best, study.baseline, tables),
        "progress": progress(study),
        "sentence": study.sentence(best),
        "verified": [as_data(found) for found in verified(study.path)],
        "notes": [*untimed(store), *notes(study)],
    }


def _row(study: Study, e: Evaluation) -> dict[str, Any]:
    """One evaluation, with its identity and, where it ended well, its speed-up over the untouched model."""
    return {**as_data(e), "key": e.key, **({"speed_up": as_data(study.ratio(e))} if e.ok else {})}


def layer_rows(pick: Evaluation, baseline: Evaluation, tables: dict[str, float]) -> list[dict[str, Any]]:
    """Return each layer before and after, with the loss that the tables gave to what was done to it."""
    after = {row["name"]: row for row in pick.details.get("layers", [])}
    rows = []
    for row in baseline.details["layers"]:
        name = row["name"]
        now = after.get(name)
        causes = _causes(name, pick, baseline)
        losses = [tables[cause] for cause in causes if cause in tables]
        keys = ("out", "params", "macs", "bits")
        rows.append(
            {
                "name": name,
                "kind": row["kind"],
                "before": {k: row[k] for k in keys},
                "after": {k: now[k] for k in keys} if now else None,
                "loss": sum(losses) if losses else None,
                "saved_s": None,
                "why": _why(row, now, causes, losses),
            }
        )
    return rows


def _causes(name: str, pick: Evaluation, baseline: Evaluation) -> list[str]:
    """The choices of the pick that act on one layer, as keys of the loss table."""
    out = []
    for knob, choice in pick.plan.choices.items():
        kind, _, place = knob.partition(".")
        if choice == baseline.plan.choices.get(knob):
            continue
        if place == name or (kind == "depth" and name.startswith(place + ".")):
            out.append(f"{knob}={choice}")
    return out


def _why(row: dict[str, Any], now: dict[str, Any] | None, causes: list[str], losses: list[float]) -> str:
    if now is None:
        return "its block was dropped"
    said = []
    if now["out"] < row["out"]:
        said.append(f"{row['out'] - now['out']} of {row['out']} channels cut: the least needed by the layers that read them")
    elif now["params"] < row["params"]:
        said.append("reads fewer channels")
    if now["bits"] < row["bits"]:
        said.append(f"{now['bits']}-bit")
    if not said:
        return "left whole"
    return "; ".join(said) + (f" (alone: {sum(losses):.3g} nats)" if losses else "")


def progress(study: Study) -> list[dict[str, float]]:
    """Return the hypervolume of log latency against drop after each evaluation, relative to the last."""
    rows: list[tuple[float, float]] = []
    corner = (math.log(study.baseline.axis("latency_s").get()) + 1e-9, max(10.0, study.baseline.drop.get() + 10.0))
    out, seconds = [], 0.0
    for n, e in enumerate(study.evaluations, start=1):
        seconds += e.seconds
        if e.ok:
            rows.append((math.log(e.axis("latency_s").get()), settled(e.drop)))
            rows = [rows[i] for i in non_dominated(rows)]
        out.append({"n": n, "seconds": seconds, "hypervolume": hypervolume(rows, corner)})
    return out


def untimed(store: Store) -> list[str]:
    """Return how many operators could not be timed, so that their time was predicted, and why the first could not."""
    reasons = [reason for row in store.all("lut") for reason in (row.get("failed") or {}).values()]
    if not reasons:
        return []
    untold = "could not be timed alone and had to be predicted from the MACs; the first:"
    return [f"{counted(len(reasons), 'operator')} {untold} {reasons[0]}"]


def notes(study: Study) -> list[str]:
    """Return what a reader must know: groups left whole, failed trials, what is not measured here."""
    out = [f"{name or 'model'} was left whole: {reason}" for name, reason in study.header.get("left_whole", {}).items()]
    out += [f"{what} was left out: its probe failed ({reason})" for what, reason in study.unread.items()]
    if said := study.failed():
        out.append(f"{said} (the table has every reason)")
    if said := study.unsearched():
        out.append(said)
    entries, read = (study.extent.get(key, 0) for key in ("entries", "read"))
    if study.searched and read < entries:
        out.append(
            f"{read} of {entries} one-knob losses were read in their share of the time, the most telling first; "
            "the others were predicted from them"
        )
    out.append("quality is read on the validation split; the test split is touched only by `equipoise verify`")
    return out
