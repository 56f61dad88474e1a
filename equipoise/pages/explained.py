"""What each change of the pick brought, and what was left and why, as the rows of two tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from equipoise.pages.axes import MISSING, figure
from equipoise.records import Reading, reading_from
from equipoise.units import show

GAINS = ("seconds", "bytes", "macs")


def explained(study: Mapping[str, Any]) -> dict[str, Any]:
    """Return the template's variables of the two tables; empty where the summary holds no explanation.

    Args:
        study: A summary; its ``explained`` is `road.explain.Explanation` as data, or None.
    """
    found = study.get("explained")
    if not found:
        return {}
    typical, predicted = found["typical_error"], reading_from(found["predicted"])
    off = "" if typical is None else f", and such predictions are {100 * typical:.1f} % off in the median"
    latency = show(predicted.value, "s") if predicted.value is not None else ""
    return {
        "groups": [{"title": title, "rows": [_row(c) for c in found[key]]} for title, key in _MADE if found[key]],
        "left": [{"title": title, "rows": [_row(c) for c in found[key]]} for title, key in _LEFT if found[key]],
        "beaten": [
            {"what": row["what"], "smaller": f"{row['times_smaller']['value']:.2f}", "faster": _text(row["times_faster"])}
            for row in found["beaten"]
        ],
        "hint": f"The tables put this plan at {latency}{off}." if latency else predicted.note,
        "points": found["points_per_loss"]["note"],
        "unit": found["unit"],
    }


_MADE = (("All of a technique", "techniques"), ("Each change", "changes"))
_LEFT = (("Next: least quality for time", "next"), ("Gains no time here", "rejected"))


def layer_times(study: Mapping[str, Any]) -> dict[str, str]:
    """Return layer -> its predicted time before and after, as text; empty where none was timed."""
    pairs = (study.get("explained") or {}).get("layer_seconds") or {}
    out = {}
    for name, (before, after) in pairs.items():
        old, new = show(before, "s"), show(after, "s")
        out[name] = f"≈ {old}" if old == new else f"≈ {old} → {new if after else '0'}"
    return out


def _row(change: Mapping[str, Any]) -> dict[str, Any]:
    rate = change["rate"]
    cells = {key: _cell(reading_from(change[key])) for key in (*GAINS, "points")}
    loss = reading_from(change["loss"])
    said = MISSING if loss.value is None else _marked(loss, figure(loss.value))
    cells["loss"] = {"text": said, "spread": "", "why": loss.note}
    return {
        "where": change["where"],
        "layers": f"{len(change['layers'])} layers" if len(change["layers"]) > 1 else "",
        "what": change["what"].partition(":")[0],
        "cells": [cells[key] for key in (*GAINS, "loss", "points")],
        "rate": MISSING if rate is None else f"≈ {figure(rate)}",
        "remark": change["remark"],
    }


def _cell(found: Reading) -> dict[str, str]:
    """A figure with its interval below it, and how it was read."""
    if found.value is None:
        return {"text": MISSING, "spread": "", "why": found.note}
    known = found.low is not None and found.high is not None
    spread = f"{show(found.low, found.unit)} to {show(found.high, found.unit)}" if known else ""  # type: ignore[arg-type]
    return {"text": _marked(found, show(found.value, found.unit)), "spread": spread, "why": found.note}


def _marked(found: Reading, text: str) -> str:
    return f"≈ {text}" if found.provenance == "estimated" else text


def _text(data: Mapping[str, Any]) -> str:
    low, high = data.get("low"), data.get("high")
    return f"{data['value']:.2f}" + (f" [{low:.2f}, {high:.2f}]" if low is not None and high is not None else "")
