"""``equipoise.export``: one point of a study as a folder that can ship."""

from __future__ import annotations

import re
from pathlib import Path

from equipoise.errors import must_be
from equipoise.ship.artifact import Artifact, pack
from equipoise.study.picks import parse_pick
from equipoise.study.record import Study
from equipoise.study.store import Store, folder_at


def export(
    study: Study | str | Path, pick: str = "best", *, out: str | Path | None = None, overwrite: bool = False
) -> Artifact:
    """Write the very file that was scored, with what it promises and what is needed to check it, into a folder.

    A pick that the study's last race left out is raced in fresh processes first, for some twenty seconds.

    Args:
        study: A study, or its folder.
        pick: ``best`` (within the study's budget), ``knee``, ``fastest``, ``smallest``, or a budget such as
            ``latency<=1ms``, which is then what the artifact promises.
        out: The folder to write: absent or empty. None takes one beside the study, ``runs/a-best`` for ``runs/a``.
        overwrite: Replace an artifact that stands there; anything else is never replaced.
    Raises:
        InputError: No such pick, or `out` is taken.
        StoreError: The study lacks a file, or the disk refused; `out` is as it was.
    Example:
        >>> artifact = export("runs/digits", "knee", out="runs/digits-knee")  # doctest: +SKIP
    """
    folder = folder_of(study)
    bounds = parse_pick(pick)
    target = folder.with_name(f"{folder.name}-{_plain(pick)}") if out is None else out
    with Store.open(folder, create=False, readonly=True) as store:
        return pack(Study.read(store).made.pick(pick), store, target, pick=pick, budget=bounds, overwrite=overwrite)


def folder_of(study: object) -> Path:
    """Return the folder of a study, or of anything else that says where its record lies.

    Raises:
        InputError: It is no path and has none.
    """
    path = getattr(study, "path", study)
    if not isinstance(path, str | Path):
        raise must_be("study", "a study or the path of its folder", study, 'Write for example "runs/a".')
    return folder_at(path)


def _plain(pick: str) -> str:
    """A pick as part of a folder's name."""
    return "-".join(re.findall(r"[A-Za-z0-9.]+", pick))
