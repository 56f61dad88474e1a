"""What a report shows of a study: plain data, read from the record alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from equipoise.pareto import hypervolume
from equipoise.records import SCHEMA, Choice, Evaluation, Knob, LayerRow, as_data
from equipoise.study.header import Header
from equipoise.study.picks import settled
from equipoise.study.record import Study
from equipoise.study.store import Store
from equipoise.study.tested import verified
from equipoise.techniques import TECHNIQUES
from equipoise.units import counted


def summarize(store: Store, study: Study | None = None) -> dict[str, Any]:
    """Return everything a report needs of the study in `store`, as JSON data; `study` is what was read of it already.

    Raises:
        StoreError: The study has no baseline yet.
    """
    study = study or Study.read(store)
    best = study.best
    tables = {f"{row['knob']}={row['choice']}": row["loss"] for row in store.all("table") if row["loss"] is not None}
    return {
        "schema": SCHEMA,
        "header": as_data(study.header),
        "evaluations": [_row(study, e) for e in study.evaluations],
        "baseline": study.baseline.key,
        "knee": study.knee.key,
        "pick": best.key,
        "pick_rule": study.verdict(),
        "layers": layer_rows(study.header, best, study.baseline, tables),
        "progress": progress(study),
        "sentence": study.sentence(best),
        "verified": [as_data(found) for found in verified(study.path)],
        "notes": [*untimed(store), *notes(study)],
    }


def _row(study: Study, e: Evaluation) -> dict[str, Any]:
    """One evaluation, with its identity and, where it ended well, its speed-up over the untouched model."""
    return {**as_data(e), "key": e.key, **({"speed_up": as_data(study.ratio(e).reading("1"))} if e.ok else {})}


def layer_rows(header: Header, pick: Evaluation, baseline: Evaluation, tables: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return each layer before and after, with the loss that the tables gave to what was done to it."""
    changed = header.changed(pick.plan)
    rows = []
    for row in baseline.layers:
        now = _joined([other for other in pick.layers if other.name == row.name or other.name.startswith(row.name + ".")])
        causes = {knob: changed[knob.name] for knob in header.acting_on(row.name) if knob.name in changed}
        now = None if any(TECHNIQUES[knob.kind].replaces for knob in causes) else now
        entries = [f"{knob.name}={new}" for knob, (_, new) in causes.items()]
        losses = [tables[entry] for entry in entries if entry in tables]
        rows.append(
            {
                "name": row.name,
                "kind": row.kind,
                "before": _counts(row),
                "after": _counts(now) if now else None,
                "loss": sum(losses) if losses else None,
                "why": _why(row, now, causes, losses, header.damage_unit),
            }
        )
    return rows


def _joined(rows: Sequence[LayerRow]) -> LayerRow | None:
    """What a layer has become: itself, the parts that it was put into, or nothing."""
    if not rows:
        return None
    params, macs = sum(row.params for row in rows), sum(row.macs for row in rows)
    return replace(rows[-1], params=params, macs=macs, bits=max(row.bits for row in rows))


def _counts(row: LayerRow) -> dict[str, int]:
    return {"out": row.out, "params": row.params, "macs": row.macs, "bits": row.bits}


def _why(
    row: LayerRow, now: LayerRow | None, causes: Mapping[Knob, tuple[Choice, Choice]], losses: Sequence[float], unit: str
) -> str:
    said = []
    for knob, (old, new) in causes.items():
        words = TECHNIQUES[knob.kind]
        reads = words.upstream and now is not None and now.out == row.out
        said.append(words.upstream if reads else words.why(old, new))
    if now is None or not said:
        return said[0] if said else "left whole"
    return "; ".join(said) + (f" (alone: {sum(losses):.3g} {unit})" if losses else "")


def progress(study: Study) -> list[dict[str, float]]:
    """Return the hypervolume of log latency against drop after each evaluation."""
    rows: list[tuple[float, float]] = []
    corner = (math.log(study.baseline.axis("latency_s").get()) + 1e-9, max(10.0, study.baseline.drop.get() + 10.0))
    out, seconds, volume = [], 0.0, 0.0
    for n, e in enumerate(study.evaluations, start=1):
        seconds += e.seconds
        if e.ok:
            point = math.log(e.axis("latency_s").get()), settled(e.drop)
            if not any(row[0] <= point[0] and row[1] <= point[1] for row in rows):
                rows = [row for row in rows if row[0] < point[0] or row[1] < point[1]] + [point]
                volume = hypervolume(rows, corner)
        out.append({"n": n, "seconds": seconds, "hypervolume": volume})
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
    out = [f"{name or 'model'} was left whole: {reason}" for name, reason in study.header.left_whole.items()]
    out += [f"{what} was left out: its probe failed ({reason})" for what, reason in study.unread.items()]
    failed, unsearched = study.failed(), study.unsearched()
    if failed and failed not in unsearched:
        out.append(f"{failed} (the table has every reason)")
    if unsearched:
        out.append(unsearched)
    entries, read = (study.extent.get(key, 0) for key in ("entries", "read"))
    if study.searched and read < entries:
        out.append(
            f"{read} of {entries} one-knob losses were read in their share of the time, the most telling first; "
            "the others were predicted from them"
        )
    out.append("quality is read on the validation split; the test split is touched only by `equipoise verify`")
    return out
