"""The front as a folder of exported rungs, the best first: what every form of a deployment is made of."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from equipoise.budget import Budget
from equipoise.errors import EquipoiseError, InputError, must_be
from equipoise.records import Evaluation
from equipoise.ship.artifact import Artifact, pack
from equipoise.study.picks import parse_pick
from equipoise.study.record import Study
from equipoise.study.store import Store

KEPT = ("drop", "quality")
"""The words of a budget that bound a ladder: a rung may be as slow as it likes, for others are there when time is short."""


@dataclass(frozen=True)
class Rungs:
    """What is deployed.

    Attributes:
        name: The model's, of small letters, digits and hyphens.
        path: The folder.
        artifacts: Of the rungs, the best first; each a folder ``rungs/rungN``.
    """

    name: str
    path: Path
    artifacts: tuple[Artifact, ...]

    @property
    def folders(self) -> tuple[str, ...]:
        """The rungs' folders inside of `path`."""
        return tuple(artifact.path.relative_to(self.path).as_posix() for artifact in self.artifacts)


def written(study: Path, out: Path, *, pick: str = "best") -> Rungs:
    """Export each rung of a study's front into a folder of its own below `out`.

    Args:
        out: Absent or empty.
        pick: ``best``, the front within what the study's budget says of quality and drop, or such bounds: ``drop<=1``.
    Raises:
        InputError: No such pick, or `out` is taken.
        EquipoiseError: No point of the front keeps the bounds.
        StoreError: The study lacks a file, or the disk refused.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise must_be("out", "absent or empty", str(out), "Name another folder.")
    with Store.open(study, create=False, readonly=True) as store:
        read = Study.read(store)
        chosen = _chosen(read, pick)
        name = re.sub(r"[^a-z0-9]+", "-", read.header.name.lower()).strip("-") or "model"
        return Rungs(name, out, tuple(pack(e, store, out / "rungs" / f"rung{n}", pick=pick) for n, e in enumerate(chosen)))


def _chosen(study: Study, pick: str) -> list[Evaluation]:
    """Return the points of the front that keep the bounds, the best first."""
    bounds = parse_pick(pick)
    if bounds is None and pick != "best":
        raise must_be("--pick", "best or bounds on drop or quality, for a ladder is more than one pick", pick, "Leave it out.")
    kept = Budget(tuple(c for c in (bounds or study.budget).constraints if c.word in KEPT))
    if bounds is not None and len(kept.constraints) < len(bounds.constraints):
        raise InputError(f"--pick of a ladder bounds {' and '.join(KEPT)}; got {pick}. Leave the others to the load.")
    rungs = [e for e in study.front if e.ok and e.drop.known and kept.met_by(e)]
    if not rungs:
        raise EquipoiseError(f"no point of the front keeps {pick}. Write a looser bound.")
    return sorted(rungs, key=lambda e: (e.drop.get(), e.axis("latency_s").value or 0.0))
