"""The forms in which servers take a ladder, a row each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from equipoise.errors import must_be, unknown
from equipoise.ship.artifact import whole
from equipoise.ship.deploy import docker, kserve, ray_serve, triton
from equipoise.ship.deploy.ladder import Rungs, written
from equipoise.study.files import write_atomic

FORMS: Mapping[str, Callable[[Rungs], Mapping[str, bytes]]] = {
    "docker": docker.files,
    "kserve": kserve.files,
    "ray-serve": ray_serve.files,
    "triton": triton.files,
}
"""Word of ``--as`` -> what stands around the rungs."""


def deployed(study: Path, form: str, *, out: Path, pick: str = "best") -> Path:
    """Write the front of a study in the form that a server takes, all of it or nothing; return the folder.

    Args:
        study: Its folder.
        form: One of `FORMS`.
        out: Absent or empty.
        pick: See `written`.
    Raises:
        InputError: No such form or pick, `out` is taken, or the form cannot hold this study's programs.
        EquipoiseError: No point of the front keeps the bounds.
        StoreError: The study lacks a file, or the disk refused.
    """
    if form not in FORMS:
        raise unknown("--as", form, FORMS)
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise must_be("out", "absent or empty", str(out), "Name another folder, or remove what stands there.")
    with whole(out) as beside:
        rungs = written(study, beside, out=out, pick=pick)
        for file, content in FORMS[form](rungs).items():
            (beside / file).parent.mkdir(parents=True, exist_ok=True)
            write_atomic(beside / file, content)
    return out
