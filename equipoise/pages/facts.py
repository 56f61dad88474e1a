"""Where and how the figures were taken: the study, the machine, the versions, and the origin of each axis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from equipoise.axes import LABELS
from equipoise.pages.axes import MISSING
from equipoise.records import Evaluation, Reading, unavailable
from equipoise.units import show

EXACT = ("size_bytes", "params", "macs", "flops_per_sample", "compute", "samples")
"""Figures that are counted: one reading of them has no spread to know."""


def facts(header: Mapping[str, Any], evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """Return the titled lists that say where and how the figures were taken."""
    metric = header.get("metric") or {}
    told = ("price_per_hour", "grid")
    study = {
        "workload": header.get("workload"),
        "target": header.get("target"),
        "budget": header.get("budget") or "none: the knee is picked",
        "metric": f"{metric.get('name', MISSING)}, {'larger' if metric.get('maximize', True) else 'smaller'} is better"
        + (f"; {metric['point']}" if metric.get("point") else ""),
        **({"time limit": show(header["time_s"], "s")} if header.get("time_s") else {}),
        "seed": header.get("seed"),
        "evaluations": len(evaluations),
        "time in evaluations": show(sum(e.seconds for e in evaluations), "s"),
        "knobs": len(header.get("space") or ()),
        **{name: header[name] for name in told if header.get(name) is not None},
    }
    return titled([("Study", study), *surroundings(header)])


def surroundings(header: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the machine and the versions of a header as groups; a machine may bring its versions along."""
    machine = dict(header.get("machine") or {})
    versions = machine.pop("versions", None) or {}
    return [("Machine", machine), ("Versions", versions)]


def titled(groups: Iterable[tuple[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Return named groups of facts as titled lists of text, empty groups left out; nested names are joined."""
    return [{"title": title, "items": list(_flat(group))} for title, group in groups if group]


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in data.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flat(value, f"{key} ")
        elif isinstance(value, (list, tuple)):
            yield name, ", ".join(str(v) for v in value) or MISSING
        elif isinstance(value, bool):
            yield name, "yes" if value else "no"
        else:
            yield name, MISSING if value is None or value == "" else str(value)


def provenance(evaluations: Sequence[Evaluation], shown: Evaluation | None) -> list[dict[str, str]]:
    """Return for each axis whether it is measured, estimated or unavailable, with the note of the reading shown."""
    if shown is None:
        return []
    rows = []
    for key, label in LABELS.items():
        if key not in ("drop", "quality") and not any(key in e.cost for e in evaluations):
            continue
        reading = (
            shown.axis(key) if key in shown.cost or key in ("drop", "quality") else unavailable("1", "not read for this plan")
        )
        rows.append({"label": label, "provenance": reading.provenance, "reading": str(reading.n), "note": how(key, reading)})
    return rows


def how(key: str, reading: Reading) -> str:
    """Return how a figure was read, or why it could not be."""
    return reading.note or ("" if reading.n > 1 else "counted" if key in EXACT else "read once, so its spread is not known")
