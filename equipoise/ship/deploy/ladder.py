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
        path: The folder in which it will stand.
        artifacts: Of the rungs, the best first; each a folder ``rungs/rungN``.
    """

    name: str
    path: Path
    artifacts: tuple[Artifact, ...]

    @property
    def folders(self) -> tuple[str, ...]:
        """The rungs' folders inside of `path`."""
        return tuple(f"rungs/{artifact.path.name}" for artifact in self.artifacts)


def written(study: Path, folder: Path, *, out: Path, pick: str = "best") -> Rungs:
    """Export each rung of a study's front into a folder of its own below `folder`.

    Args:
        out: Where that will stand.
        pick: ``best``, the front within what the study's budget says of quality and drop, or such bounds: ``drop<=1``.
    Raises:
        InputError: No such pick.
        EquipoiseError: No point of the front keeps the bounds.
        StoreError: The study lacks a file, or the disk refused.
    """
    with Store.open(study, create=False, readonly=True) as store:
        read = Study.read(store).made
        chosen = _chosen(read, pick)
        name = served_name(read.header.name)
        places = [Path("rungs", f"rung{number}") for number in range(len(chosen))]
        packed = (pack(e, store, folder / at, pick=pick, stands=out / at) for e, at in zip(chosen, places, strict=True))
        return Rungs(name, out, tuple(packed))


def served_name(name: str) -> str:
    """Return the name that clients give a study's model, wherever its front is served: small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "model"


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
