"""What ships: a folder with the very file that was scored, what it promises, and what is needed to check it.

    out/
      manifest.json       plan, promised figures, baseline, SHA-256 of every file, versions, CPU; a digest over itself
      README.md           model card
      model.onnx          the scored program (onnxruntime), or the same plan in fp32 where another runtime was scored
      openvino/           the scored program, where the runtime is OpenVINO (torch/ likewise)
      model.safetensors   the compressed weights
      probe.safetensors   real inputs with the program's answers, where the study kept inputs for it
      reference/          the untouched model's program, so that the ratio can be measured again on the spot, and its weights
                          where the workload trains it on loading

Nothing here is a pickle, and nothing imports torch. The folder is written beside its place and renamed: it is never half there.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from equipoise.budget import Budget, Constraint, parse_budget
from equipoise.card import card
from equipoise.errors import InputError, StoreError, must_be
from equipoise.measure.machine import describe
from equipoise.records import Evaluation, Plan, Reading, as_data, dumps, reading_from
from equipoise.runtimes.base import Program, get
from equipoise.store import Store, write_atomic
from equipoise.study import Study

if TYPE_CHECKING:
    from equipoise.verify import Verification

SCHEMA = 1
"""Version of ``manifest.json``. History: 1 = first."""

KIND = "equipoise artifact"
SOURCE_STATE = "reference/source.safetensors"
"""Weights of a source model that is trained when it is loaded (``digits``), so that `verify` rebuilds the very same one."""
MANIFEST_BYTES, FILE_BYTES = 4_000_000, 4_000_000_000
"""Larger files are refused before they are read."""

_PROMISED = ("latency_s", "size_bytes", "params", "macs")


@dataclass(frozen=True)
class Artifact:
    """An exported folder; make one with `export`, open one with `Artifact.load`.

    Attributes:
        path: The folder.
        manifest: The content of ``manifest.json``.
    """

    path: Path
    manifest: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"Artifact({self.path})"

    @classmethod
    def load(cls, path: str | Path) -> Artifact:
        """Read the manifest in folder `path`; the other files are read when they are asked for.

        Raises:
            InputError: No artifact, written by a newer Equipoise, or its manifest is damaged.
        """
        folder = Path(path)
        file = folder / "manifest.json"
        if not file.is_file() or file.is_symlink():
            raise must_be("ARTIFACT", "a folder with a manifest.json", str(folder), "Name what `equipoise export --out` wrote.")
        if file.stat().st_size > MANIFEST_BYTES:
            raise must_be("manifest.json", f"under {MANIFEST_BYTES} bytes", file.stat().st_size, "Export it again.")
        try:
            manifest = json.loads(file.read_bytes())
            schema = manifest["schema"]
            if manifest["kind"] == KIND and schema > SCHEMA:
                raise InputError(
                    f"{file} was written by a newer Equipoise (schema {schema}, here {SCHEMA}). Upgrade equipoise."
                )
            artifact = cls(folder, manifest)
            artifact._touch()
        except InputError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise must_be(
                "manifest.json", "an Equipoise manifest", f"{type(error).__name__}: {error}", "Export it again."
            ) from error
        return artifact

    @property
    def digest(self) -> str:
        """SHA-256 over the manifest's own canonical content, its recorded digest left out."""
        return sha256(dumps({k: v for k, v in self.manifest.items() if k != "digest"}).encode()).hexdigest()

    @property
    def plan(self) -> Plan:
        """What was chosen for every knob."""
        return Plan(self.manifest["plan"])

    @property
    def promise(self) -> dict[str, Reading]:
        """Promised figures by axis: quality and drop on validation, cost, and ``speed_up`` over the reference."""
        return {axis: reading_from(data) for axis, data in self.manifest["promise"].items()}

    @property
    def baseline(self) -> dict[str, Reading]:
        """Figures of the untouched model by axis."""
        return {axis: reading_from(data) for axis, data in self.manifest["baseline"].items()}

    @property
    def bounds(self) -> tuple[Constraint, ...]:
        """The bounds of the budget that are promised."""
        return parse_budget(self.manifest["bounds"]).constraints

    @property
    def program(self) -> Program:
        """The deployable program, read from its files."""
        return self._program("deployable")

    @property
    def reference(self) -> Program:
        """The untouched model's program."""
        return self._program("reference")

    def read(self, name: str) -> bytes:
        """Return one file of the folder.

        Raises:
            InputError: The name leads out of the folder, or it is missing, a link, or too large.
        """
        parts = PurePosixPath(name).parts
        if not parts or ".." in parts or PurePosixPath(name).is_absolute() or "\\" in name or "\0" in name:
            raise must_be("a file of an artifact", "a path inside it", name, "Export it again.")
        file = self.path.joinpath(*parts)
        links = any(self.path.joinpath(*parts[: i + 1]).is_symlink() for i in range(len(parts)))
        if links or not file.is_file():
            raise must_be(f"{name} of the artifact", "a regular file", "a link" if links else "nothing", "Export it again.")
        if file.stat().st_size > FILE_BYTES:
            raise must_be(f"{name} of the artifact", f"under {FILE_BYTES} bytes", file.stat().st_size, "Export it again.")
        return file.read_bytes()

    def verify(self, *, workload: Any = None, seconds: float = 10.0) -> Verification:
        """Check every promise on the files, in a clean process; see `equipoise.verify.verify`."""
        from equipoise.verify import verify

        return verify(self.path, workload=workload, seconds=seconds)

    def _program(self, which: str) -> Program:
        entry = self.manifest[which]
        files = {PurePosixPath(name).name: self.read(name) for name in entry["files"]}
        return Program(entry["runtime"], entry["precision"], files)

    def _touch(self) -> None:
        """Read every field once, so that a damaged manifest is told when it is loaded."""
        _ = (self.plan, self.promise, self.baseline, self.bounds, self.digest)
        for which in ("deployable", "reference"):
            entry = self.manifest[which]
            _ = (entry["runtime"], entry["precision"], entry["target"], [str(name) for name in entry["files"]])
        for entry in self.manifest["files"].values():
            _ = (int(entry["bytes"]), str(entry["sha256"]))
        _ = (
            self.manifest["study"]["workload"],
            self.manifest["study"]["name"],
            self.manifest["study"]["fingerprint"],
            dict(self.manifest["machine"]),
        )


def export(
    evaluation: Evaluation,
    store: Store,
    out: str | Path,
    *,
    pick: str = "",
    budget: Budget | None = None,
    overwrite: bool = False,
) -> Artifact:
    """Write an evaluation as a folder that can ship.

    Args:
        evaluation: One of the study's.
        store: The study, open for reading at least.
        out: The folder to write: absent or empty.
        pick: How the evaluation was chosen, for the record.
        budget: Bounds to promise; None takes the study's. Bounds that the evaluation misses are recorded as not promised.
        overwrite: Replace an artifact that stands there; anything else is never replaced.
    Raises:
        InputError: A failed evaluation, or `out` is taken.
        StoreError: The study lacks a file, or the disk refused; `out` is as it was.
    """
    folder = Path(out)
    _must_be_free(folder, overwrite=overwrite)
    if not evaluation.ok:
        raise InputError(f"only a trial that ended well can be exported; this one failed: {evaluation.error.splitlines()[-1]}")
    study = Study.read(store)
    program, place = _program_of(evaluation, store), _place(str(evaluation.details["runtime"]))
    reference = _program_of(study.baseline, store)
    contents = {f"reference/{name}": content for name, content in reference.files.items()}
    contents |= {place + name: content for name, content in program.files.items()}
    extras = {"weights": "model.safetensors", "onnx": "model.onnx"}
    for role, name in extras.items():
        if role in evaluation.files and name not in contents:
            contents[name] = store.read_blob(evaluation.files[role])
    if "source_state" in study.header:
        contents[SOURCE_STATE] = store.read_blob(study.header["source_state"])
    if "probe" in study.header:
        contents["probe.safetensors"] = _answered(program, store.read_blob(study.header["probe"]))
    manifest = _manifest(study, evaluation, budget=budget or study.budget, pick=pick)
    manifest["study"]["fingerprint"] = (store.get("identity", "study") or {}).get("workload")
    manifest["deployable"] = _entry(evaluation, program, place)
    manifest["reference"] = _entry(study.baseline, reference, "reference/")
    manifest["files"] = {
        name: {"bytes": len(content), "sha256": sha256(content).hexdigest()} for name, content in sorted(contents.items())
    }
    manifest["digest"] = Artifact(folder, manifest).digest
    contents["manifest.json"] = (json.dumps(manifest, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()
    contents["README.md"] = card(manifest).encode()
    _write(folder, contents)
    return Artifact.load(folder)


def _manifest(study: Study, evaluation: Evaluation, *, budget: Budget, pick: str) -> dict[str, Any]:
    """Everything but the files."""
    missed = budget.excesses(evaluation)
    promise = {axis: evaluation.axis(axis) for axis in ("quality", "drop", *_PROMISED)}
    promise = {axis: reading for axis, reading in promise.items() if reading.known}
    speed_up = study.ratio(evaluation)
    if speed_up.n:
        promise["speed_up"] = speed_up.reading("1", note="time of the reference / time of this program, interleaved blocks")
    baseline = {axis: study.baseline.axis(axis) for axis in ("quality", *_PROMISED) if study.baseline.axis(axis).known}
    header = study.header
    manifest: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": KIND,
        "study": {k: header.get(k) for k in ("workload", "name", "metric", "target", "budget", "seed")},
        "pick": pick,
        "plan": evaluation.plan,
        "changed": {
            k: [study.baseline.plan.choices.get(k), v]
            for k, v in evaluation.plan.choices.items()
            if study.baseline.plan.choices.get(k) != v
        },
        "fidelity": evaluation.fidelity,
        "promise": promise,
        "loss": evaluation.details.get("loss"),
        "baseline": baseline,
        "bounds": ", ".join(part for part, word in _parts(budget) if word not in missed),
        "bounds_missed": ", ".join(part for part, word in _parts(budget) if word in missed),
        "machine": header.get("machine") or describe(),
        "exported": {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "equipoise": describe()["versions"].get("equipoise"),
        },
    }
    data: dict[str, Any] = json.loads(dumps(as_data(manifest)))
    return data


def _parts(budget: Budget) -> list[tuple[str, str]]:
    """Each bound as its user wrote it, with its word."""
    return [(part.strip(), c.word) for part, c in zip(budget.text.split(","), budget.constraints, strict=False)]


def _program_of(evaluation: Evaluation, store: Store) -> Program:
    """Put the program together from its blobs, each hashed again."""
    if not any(role.startswith("program:") for role in evaluation.files):
        raise StoreError(f"the study {store.path} holds no program of this evaluation. Run `equipoise optimize` on it again.")
    return Program.stored(evaluation, store.read_blob)


def _place(runtime: str) -> str:
    """Folder of a runtime's program: the root for ONNX, which most tools look for there."""
    return "" if runtime == "onnxruntime" else f"{runtime}/"


def _entry(evaluation: Evaluation, program: Program, place: str) -> dict[str, Any]:
    return {
        "runtime": program.runtime,
        "precision": program.precision,
        "target": str(evaluation.details["target"]),
        "files": [place + name for name in program.files],
    }


def _answered(program: Program, probe: bytes) -> bytes:
    """Return the probe with the program's answers to its inputs."""
    import numpy as np
    from safetensors.numpy import load, save

    inputs = np.ascontiguousarray(load(probe)["inputs"])
    outputs = np.ascontiguousarray(get(program.runtime).load(program).run(inputs))
    return bytes(save({"inputs": inputs, "outputs": outputs}))


def _must_be_free(folder: Path, *, overwrite: bool) -> None:
    """Refuse to write over anything but, with `overwrite`, an artifact."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise must_be("--out", "a folder", str(folder), "Name another folder.")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise must_be(
            "--out", "absent or empty", str(folder), "Name another folder, or add --overwrite to replace an artifact."
        )
    try:
        Artifact.load(folder)
    except InputError as error:
        raise must_be("--out", "an artifact, to be overwritten", str(folder), "Name another folder.") from error


def _write(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write all files into a folder beside `folder`, then rename it there."""
    beside = folder.absolute().with_name(f".{folder.absolute().name}.{os.getpid()}.part")
    old = beside.with_suffix(".old")
    try:
        for name, content in contents.items():
            file = beside / name
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, content)
        if folder.exists() and any(folder.iterdir()):
            folder.rename(old)
        beside.rename(folder)
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(f"cannot write {folder}: {error}. Free space there, or name another --out.") from error
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        for leftover in (beside, old):
            shutil.rmtree(leftover, ignore_errors=True)
