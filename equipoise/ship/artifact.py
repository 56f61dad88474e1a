"""What ships: a folder with the very file that was scored, what it promises, and what is needed to check it.

    out/
      manifest.json       plan, promised figures, baseline, SHA-256 of every file; apart from these what is only recorded
                          (`equipoise.ship.manifest` is its schema); a digest over itself
      README.md           model card
      model.onnx          the scored program (onnxruntime), or the same plan in fp32 where another runtime was scored
      openvino/           the scored program, where the runtime is OpenVINO (torch/ likewise)
      model.safetensors   the compressed weights
      probe.safetensors   real inputs with the program's answers
      tokenizer.json ...  what the workload has beside its model, and labels.json, the names of its classes
      reference/          the untouched model's program, so that the ratio can be measured again on the spot, and its weights
                          where the workload trains it on loading

Nothing here is a pickle, and nothing imports torch. The folder is written beside its place and renamed: it is never half there.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

from equipoise.axes import AXES, on_request
from equipoise.batch import mapped, named, restored, stored
from equipoise.budget import Budget, Constraint, parse_budget
from equipoise.errors import InputError, StoreError, must_be
from equipoise.measure.machine import describe
from equipoise.meters import Meters
from equipoise.records import Evaluation, Plan, Reading, as_data, dumps, program_ref
from equipoise.road.racing import race_stored
from equipoise.runtimes.base import Program, get
from equipoise.ship.agreement import divided
from equipoise.ship.card import card
from equipoise.ship.manifest import KIND, PROBE, SCHEMA, SOURCE_STATE, WEIGHTS, WIDEST_RATIO, Manifest, checked, parse
from equipoise.stats import Interval
from equipoise.study.files import write_atomic
from equipoise.study.record import Study, latency_beside
from equipoise.study.store import Store
from equipoise.study.tested import EXPORTS, exports_of

OWN_FILES = ("manifest.json", "README.md", "verify.json")
"""Files of a folder that the manifest does not list: itself, the card, and what `verify` wrote."""
AGAIN = "Run `equipoise optimize` on it again, with more --time."
MANIFEST_BYTES, FILE_BYTES = 4_000_000, 4_000_000_000
"""Larger files are refused before they are read."""


@dataclass(frozen=True)
class Artifact:
    """An exported folder; make one with `equipoise.export`, open one with `Artifact.load`.

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
        return cls(folder, parse(file.read_bytes()))

    @property
    def digest(self) -> str:
        """SHA-256 over the manifest's own canonical content, its recorded digest left out."""
        return sha256(dumps({k: v for k, v in self.manifest.items() if k != "digest"}).encode()).hexdigest()

    @cached_property
    def claims(self) -> Manifest:
        """The manifest as a typed record."""
        return checked(self.manifest)

    @property
    def unlisted(self) -> tuple[str, ...]:
        """Files and links of the folder that the manifest does not know."""
        found = []
        for root, folders, names in os.walk(self.path, followlinks=False):
            here = Path(root)
            links = [name for name in folders if (here / name).is_symlink()]
            found += [(here / name).relative_to(self.path).as_posix() for name in (*names, *links)]
        return tuple(sorted(set(found) - set(OWN_FILES) - set(self.manifest["files"])))

    @property
    def plan(self) -> Plan:
        """What was chosen for every knob."""
        return Plan(self.manifest["plan"])

    @property
    def promise(self) -> dict[str, Reading]:
        """Promised figures by axis: quality and drop on validation, cost, and ``speed_up`` over the reference."""
        return {axis: figure.reading for axis, figure in self.claims.promise.items()}

    @property
    def baseline(self) -> dict[str, Reading]:
        """Figures of the untouched model by axis."""
        return {axis: figure.reading for axis, figure in self.claims.baseline.items()}

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

    def _program(self, which: str) -> Program:
        entry = self.manifest[which]
        files = {PurePosixPath(name).name: self.read(name) for name in entry["files"]}
        return Program(entry["runtime"], entry["precision"], files)


RACE_S, PATIENCE = 20.0, 3.0
"""Seconds for the race of a pick that the study's own last race left out; so many times that until eight processes have run."""


def pack(
    evaluation: Evaluation,
    store: Store,
    out: str | Path,
    *,
    pick: str = "",
    budget: Budget | None = None,
    overwrite: bool = False,
    stands: Path | None = None,
) -> Artifact:
    """Write an evaluation as a folder that can ship.

    Args:
        evaluation: One of the study's.
        store: The study, open for reading at least.
        out: The folder to write: absent or empty.
        pick: How the evaluation was chosen, for the record.
        budget: Bounds to promise; None takes the study's. Bounds that the evaluation misses are recorded as not promised.
        overwrite: Replace an artifact that stands there; anything else is never replaced.
        stands: Where the folder will stand, for the study's list of exports, where it is moved once more is written.
    Raises:
        InputError: A failed evaluation, or `out` is taken.
        StoreError: The study lacks a file, or the disk refused; `out` is as it was.
    """
    folder = Path(out)
    _must_be_free(folder, overwrite=overwrite)
    if not evaluation.ok:
        raise InputError(f"only a trial that ended well can be exported; this one failed: {evaluation.reason}")
    study = _raced(evaluation, store)
    evaluation = next((e for e in study.evaluations if e.key == evaluation.key), evaluation)
    program, place = _program_of(evaluation, store), _place(program_ref(evaluation).runtime)
    reference = _program_of(study.baseline, store)
    contents = {f"reference/{name}": content for name, content in reference.files.items()}
    contents |= {place + name: content for name, content in program.files.items()}
    beside = {WEIGHTS: evaluation.weights, "model.onnx": program_ref(evaluation).onnx, SOURCE_STATE: study.header.source_state}
    contents |= {name: store.read_blob(sha) for name, sha in beside.items() if sha and name not in contents}
    contents |= {name: store.read_blob(sha) for name, sha in study.header.files.items()}
    contents[PROBE] = _answered(program, store.read_blob(study.header.probe))
    fingerprint = (store.get("identity", "study") or {}).get("workload")
    if not isinstance(fingerprint, str):
        raise StoreError(f"the study {store.path} does not say what it is about. {AGAIN}")
    manifest = {
        **_manifest(study, evaluation, budget=budget or study.budget, pick=pick, fingerprint=fingerprint),
        "deployable": _entry(evaluation, program, place),
        "reference": _entry(study.baseline, reference, "reference/"),
        "files": {
            name: {"bytes": len(content), "sha256": sha256(content).hexdigest()} for name, content in sorted(contents.items())
        },
    }
    manifest["digest"] = Artifact(folder, manifest).digest
    checked(manifest)
    contents["manifest.json"] = (json.dumps(manifest, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()
    contents["README.md"] = card(manifest, _taken(contents)).encode()
    _write(folder, contents)
    _remember(store, stands or folder, evaluation, manifest["digest"])
    return Artifact.load(folder)


def _raced(evaluation: Evaluation, store: Store) -> Study:
    """Return the study with `evaluation` raced in fresh processes: now, and recorded, where its last race left it out.

    One that was cut so short that it says nothing of its speed counts as left out.
    """
    study = Study.read(store)
    if evaluation.key in (*study.finals, study.baseline.key) and _tells(study.ratio(evaluation)):
        return study
    began = time.perf_counter()
    row = race_stored(store, study.baseline, [evaluation], seconds=RACE_S, seed=study.header.seed, patience=PATIENCE)
    spent = time.perf_counter() - began
    try:
        with contextlib.nullcontext(store) if not store.readonly else Store.open(store.path, create=False) as writable:
            writable.put("final", f"export:{evaluation.key}", row, seconds=spent)
    except StoreError:  # in use by a run that goes on, or read-only: the manifest alone has these figures
        return Study.read(store, race=row)
    return Study.read(store)


def _manifest(study: Study, evaluation: Evaluation, *, budget: Budget, pick: str, fingerprint: str) -> dict[str, Any]:
    """Everything but the files: claims, each of which `verify` computes again, and what is only recorded."""
    header, base = study.header, study.baseline
    promise, baseline = _figures(study, evaluation)
    promise |= _asked(evaluation, promise, header.meters)
    bounds, missed = divided(budget, promise)
    manifest: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": KIND,
        "study": {
            "name": header.name,
            "target": header.target,
            "metric": {k: header.metric[k] for k in ("name", "maximize", "unit")},
            "budget": budget.text,
            "told": header.meters.told(on_request(promise)),
            "fingerprint": fingerprint,
            "source_state": bool(header.source_state),
        },
        "plan": evaluation.plan,
        "changed": header.changed(evaluation.plan),
        "left_float": sorted(program_ref(evaluation).left),
        "fidelity": evaluation.fidelity,
        "promise": {axis: _figure(reading) for axis, reading in promise.items()},
        "loss": evaluation.damage,
        "baseline": {axis: _figure(reading) for axis, reading in baseline.items()},
        "bounds": bounds,
        "bounds_missed": missed,
        "recorded": {
            "workload": header.workload,
            "pick": pick,
            "seed": header.seed,
            "machine": dict(header.machine) or describe(),
            "exported": {
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
                "equipoise": describe()["versions"].get("equipoise"),
            },
            "baseline_latency_s": _figure(base.axis("latency_s")),
        },
    }
    data: dict[str, Any] = json.loads(dumps(as_data(manifest)))
    return data


def _figures(study: Study, evaluation: Evaluation) -> tuple[dict[str, Reading], dict[str, Reading]]:
    """Return what is promised of this model and of the untouched one, each figure in the form in which it can be checked."""
    ratio, base = study.ratio(evaluation), study.baseline
    if not _tells(ratio):
        raise InputError(f"the speed-up was timed too briefly for an interval that says something: no promise. {AGAIN}")
    exact = ("size_bytes", "params", "macs")
    promise = {
        "quality": _alone(evaluation.quality),
        "drop": evaluation.drop,
        "latency_s": latency_beside(base.axis("latency_s").get(), ratio),
        **{axis: evaluation.axis(axis) for axis in exact},
        "speed_up": ratio.reading("1"),
    }
    baseline = {
        "quality": _alone(base.quality),
        "latency_s": replace(_alone(base.axis("latency_s")), n=1),
        **{axis: base.axis(axis) for axis in exact},
    }
    return promise, baseline


def _tells(ratio: Interval) -> bool:
    """Whether an interval is narrow enough to be promised."""
    return ratio.bounded and 0 < ratio.low < ratio.high <= WIDEST_RATIO * ratio.low


def _asked(evaluation: Evaluation, promise: Mapping[str, Reading], meters: Meters) -> dict[str, Reading]:
    """Return the figures that were measured because the budget names them; what follows from another does so as promised."""
    out: dict[str, Reading] = {}
    for word in on_request({key for key, found in evaluation.cost.items() if found.value and found.provenance == "measured"}):
        axis = AXES[word]
        if not axis.of:
            out[axis.key] = evaluation.axis(axis.key)
        elif not meters.untold(word):
            out[axis.key] = meters.follows(word, {**promise, **out})
    return out


def _alone(reading: Reading) -> Reading:
    """The value without its interval: what is promised of it is the value on the same samples."""
    return replace(reading, low=None, high=None)


def _figure(reading: Reading) -> dict[str, Any]:
    """A reading without its note, which no one could check."""
    return {k: v for k, v in as_data(reading).items() if k != "note"}


def _program_of(evaluation: Evaluation, store: Store) -> Program:
    """Put the program together from its blobs, each hashed again."""
    return Program.stored(program_ref(evaluation), store.read_blob)


def _place(runtime: str) -> str:
    """Folder of a runtime's program: the root for ONNX, which most tools look for there."""
    return "" if runtime == "onnxruntime" else f"{runtime}/"


def _entry(evaluation: Evaluation, program: Program, place: str) -> dict[str, Any]:
    return {
        "runtime": program.runtime,
        "precision": program.precision,
        "target": program_ref(evaluation).target,
        "files": [place + name for name in program.files],
    }


def _answered(program: Program, probe: bytes) -> bytes:
    """Return the probe with the program's answers to its inputs."""
    import numpy as np
    from safetensors.numpy import load, save

    inputs = mapped(restored(load(probe)), np.ascontiguousarray)
    outputs = np.ascontiguousarray(get(program.runtime).load(program).run(inputs))
    return bytes(save({**stored(inputs), "outputs": outputs}))


def _taken(contents: Mapping[str, bytes]) -> dict[str, tuple[str | int, ...]]:
    """Return the axes of each input by its name, as the ONNX file tells them: a number is fixed, a word is free."""
    from onnx import load_from_string
    from safetensors.numpy import load

    if "model.onnx" not in contents:
        return dict.fromkeys(named(restored(load(contents[PROBE]))), ())
    shapes = {value.name: value.type.tensor_type.shape.dim for value in load_from_string(contents["model.onnx"]).graph.input}
    return {name: tuple(axis.dim_param or axis.dim_value for axis in shape) for name, shape in shapes.items()}


def _remember(store: Store, folder: Path, evaluation: Evaluation, digest: str) -> None:
    """Note in the study's folder where the artifact went, so that a report of the study finds what `verify` wrote there."""
    file = store.path / EXPORTS
    here = os.path.relpath(folder.absolute(), store.path.absolute())
    rows = [row for row in exports_of(store.path) if row["path"] != here]
    with contextlib.suppress(OSError, StoreError):  # a study that is read-only is reported on without it
        content = dumps([*rows, {"path": here, "key": evaluation.key, "digest": digest}])
        write_atomic(file, content.encode())


def _must_be_free(folder: Path, *, overwrite: bool) -> None:
    """Refuse to write over anything but, with `overwrite`, an artifact."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise must_be("out", "a folder", str(folder), "Name another folder.")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise must_be(
            "out", "absent or empty", str(folder), "Name another folder, or replace an artifact there: overwrite (--overwrite)."
        )
    try:
        strangers = Artifact.load(folder).unlisted
    except InputError as error:
        raise must_be("out", "an artifact, to be overwritten", str(folder), "Name another folder.") from error
    if strangers:
        others = f"{folder} with {', '.join(strangers[:3])}"
        raise must_be("out", "an artifact and nothing else, to be overwritten", others, "Move away what is not the artifact's.")


@contextlib.contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """Give a folder beside `folder` to write into; it takes that one's place at the end, and goes where the end is not reached.

    Raises:
        StoreError: The disk refused; `folder` is as it was.
    """
    beside = folder.absolute().with_name(f".{folder.absolute().name}.{os.getpid()}.part")
    old = beside.with_suffix(".old")
    try:
        beside.mkdir(parents=True, exist_ok=True)
        yield beside
        if folder.exists() and any(folder.iterdir()):
            folder.rename(old)
        beside.rename(folder)
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(f"cannot write {folder}: {error}. Free space there, or name another folder.") from error
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        for leftover in (beside, old):
            shutil.rmtree(leftover, ignore_errors=True)


def _write(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write all files into a folder."""
    with whole(folder) as beside:
        for name, content in contents.items():
            file = beside / name
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, content)
