"""What `verify` found on the test split, in one sentence, and where a study finds it again.

A search reads the validation split over and over, so the figures that matter are those of the test split, which only
`verify` reads. It writes them into ``verify.json`` beside the manifest; the study remembers in ``exports.json`` where its
artifacts went.
Needs no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equipoise.records import Reading

EXPORTS = "exports.json"
RESULT = "verify.json"
MOST_BYTES = 4_000_000


@dataclass(frozen=True, slots=True)
class Verified:
    """The test figures of one artifact of a study.

    Attributes:
        key: Of the evaluation that was exported.
        path: The artifact's folder.
        headline: The figures in one sentence.
        broken, cannot_tell: Names of the checks that ended so.
        figures: Axis -> reading, as JSON data.
    """

    key: str
    path: str
    headline: str
    broken: tuple[str, ...]
    cannot_tell: tuple[str, ...]
    figures: Mapping[str, Any]


def headline(found: Mapping[str, Reading], metric: Mapping[str, Any]) -> str:
    """Say what the test split shows: drop with its interval, times faster with its interval, times smaller.

    Example:
        >>> from equipoise.records import measured
        >>> drop = measured(3.33, "points", low=0.18, high=6.49, n=300)
        >>> headline({"drop": drop}, {"name": "accuracy", "unit": "points"})
        'on 300 test samples that the search never saw: drop 3.33 [0.18, 6.49] points of accuracy'
    """
    said = []
    drop, speed, smaller = (found.get(axis) for axis in ("drop", "speed_up", "times_smaller"))
    if drop is not None and drop.known:
        said.append(f"drop {_spread(drop)} {metric['unit']} of {metric['name']}")
    if speed is not None and speed.known:
        said.append(_speed(speed))
    if smaller is not None and smaller.known:
        factor = smaller.get()
        said.append(f"{factor:.2f}× smaller" if factor >= 1 else f"{1 / factor:.2f}× larger")
    if not said:
        return ""
    return (f"on {drop.n} test samples that the search never saw: " if drop is not None and drop.known else "") + ", ".join(
        said
    )


def exports_of(study: Path) -> list[dict[str, str]]:
    """Return where the study's artifacts went: path (relative to the study), evaluation key and digest; oldest first."""
    rows = _json(study / EXPORTS)
    if not isinstance(rows, list):
        return []
    whole = [
        row for row in rows if isinstance(row, dict) and all(isinstance(row.get(k), str) for k in ("path", "key", "digest"))
    ]
    return [{k: row[k] for k in ("path", "key", "digest")} for row in whole]


def verified(study: str | Path) -> list[Verified]:
    """Return the test figures of the study's artifacts that stand where they were written and were verified since."""
    found = []
    for row in exports_of(Path(study)):
        folder = Path(study) / row["path"]
        result, manifest = tested(folder, row["digest"]), _json(folder / "manifest.json")
        if not result or not isinstance(manifest, dict) or manifest.get("digest") != row["digest"]:
            continue
        broken, untold = (tuple(str(name) for name in result.get(k) or ()) for k in ("broken", "cannot_tell"))
        figures = result.get("test") if isinstance(result.get("test"), dict) else {}
        found.append(Verified(row["key"], str(folder), str(result["headline"]), broken, untold, figures or {}))
    return found


def tested(artifact: Path, digest: str) -> dict[str, Any]:
    """Return the ``verify.json`` with test figures that stands beside a manifest of this digest; empty where there is none."""
    result = _json(artifact / RESULT)
    same = isinstance(result, dict) and result.get("digest") == digest and bool(result.get("headline"))
    return result if same else {}


def _json(file: Path) -> Any:
    """The content of a small JSON file, or None."""
    try:
        return json.loads(file.read_bytes()) if file.is_file() and file.stat().st_size <= MOST_BYTES else None
    except (OSError, ValueError, RecursionError):
        return None


def _spread(reading: Reading) -> str:
    inside = f" [{reading.low:.2f}, {reading.high:.2f}]" if reading.low is not None and reading.high is not None else ""
    return f"{reading.get():.2f}{inside}"


def _speed(speed: Reading) -> str:
    """Times faster or slower, as the interval allows."""
    value, low, high = speed.get(), speed.low, speed.high
    if low is None or high is None or not 0 < low <= high < math.inf:
        return f"{value:.2f}× as fast (no interval)"
    if high < 1:
        return f"{1 / value:.2f}× slower [{1 / high:.2f}, {1 / low:.2f}]"
    if low > 1:
        return f"{value:.2f}× faster [{low:.2f}, {high:.2f}]"
    return f"{value:.2f}× as fast [{low:.2f}, {high:.2f}], which cannot be told from 1"
