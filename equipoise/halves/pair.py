"""Two halves that ship together, and the folder that holds them beside the whole model.

The folder is flat: ``manifest.json`` says what each cut is, how its tensors pass and the hash of every file; both machines are
given the same folder and load their own half of it. What the end-to-end times are measured with is such a folder too.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.batch import Inputs, mapped, named, restored, size, stored
from equipoise.errors import EquipoiseError, must_be
from equipoise.halves.coding import Field, packed, unpacked
from equipoise.records import as_data
from equipoise.runtimes.base import Program, Session, Target, get
from equipoise.study.files import write_atomic

KIND, SCHEMA = "equipoise split", 1
MANIFEST, PROBE = "manifest.json", "probe.npz"
HERE = "here"
"""What the whole model on the device is called where a cut is named by its number."""


@dataclass(frozen=True)
class Pair:
    """A model cut in two.

    Attributes:
        number: Of the cut, in the order of the model; 0 sends the inputs.
        fields: What passes, and how: the tensor of the cut first, then the inputs beside it.
        device, server: The programs before and behind the cut; no first one where inputs pass as they are.
        tolerance: Largest difference of an answer from the whole model's, as a fraction of the largest answer.
    """

    number: int
    fields: tuple[Field, ...]
    device: Program | None = field(repr=False)
    server: Program = field(repr=False)
    tolerance: float

    def begin(self, session: Session | None, inputs: Inputs) -> bytes:
        """Return what the device sends for `inputs` (N, ...); `session` is of its half."""
        given = named(inputs)
        if session is not None:
            given = {**given, self.fields[0].name: session.run(inputs)}
        return packed(self.fields, given)

    def end(self, session: Session, body: bytes) -> NDArray[Any]:
        """Return the answers (N, ...) to what was sent; `session` is of the server's half.

        Raises:
            InputError: What was sent is none of this cut.
        """
        return session.run(unpacked(self.fields, body))


@dataclass(frozen=True)
class Bundle:
    """The whole model, its cuts, and inputs with the answers that are expected to them.

    Attributes:
        name: Of the workload.
        device, server: Where the halves run.
        whole: The model's program for the device.
        pairs: Number -> cut.
        probe: Inputs (N, ...).
        answers: What the whole model answers to them.
        recorded: What else was found, for the reader: figures and picks; plain data, no part of what is checked.
    """

    name: str
    device: Target
    server: Target
    whole: Program
    pairs: Mapping[int, Pair]
    probe: Inputs = field(repr=False)
    answers: NDArray[Any] = field(repr=False)
    recorded: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def files(self) -> dict[str, bytes]:
        """Return the files of the folder, by name."""
        held = io.BytesIO()
        np.savez_compressed(held, outputs=self.answers, **stored(mapped(self.probe, np.asarray)))
        found = {PROBE: held.getvalue()} | {f"whole.{name}": content for name, content in self.whole.files.items()}
        for pair in self.pairs.values():
            for side, program in (("device", pair.device), ("server", pair.server)):
                files = {} if program is None else program.files
                found |= {f"{pair.number}.{side}.{name}": content for name, content in files.items()}
        manifest = {
            "kind": KIND,
            "schema_version": SCHEMA,
            "name": self.name,
            "device": str(self.device),
            "server": str(self.server),
            "whole": _described(self.whole),
            "cuts": [
                {
                    "number": pair.number,
                    "fields": as_data(pair.fields),
                    "device": None if pair.device is None else _described(pair.device),
                    "server": _described(pair.server),
                    "tolerance": pair.tolerance,
                }
                for pair in self.pairs.values()
            ],
            "files": {name: hashlib.sha256(content).hexdigest() for name, content in found.items()},
            "recorded": as_data(self.recorded),
        }
        return {MANIFEST: (json.dumps(manifest, indent=1, allow_nan=False) + "\n").encode(), **found}

    def write(self, folder: Path) -> Path:
        """Write the folder, made when absent; the manifest last.

        Raises:
            InputError: It holds something else.
        """
        check_out(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in reversed(self.files().items()):
            write_atomic(folder / name, content)
        return folder

    @classmethod
    def read(cls, folder: Path) -> Bundle:
        """Read a folder; every file must be the one that was written.

        Raises:
            InputError: It is none that `write` wrote, or a file was changed since.
        """
        try:
            claims = json.loads((folder / MANIFEST).read_bytes())
            if claims["kind"] != KIND or claims["schema_version"] != SCHEMA:
                raise ValueError(f"kind {claims['kind']!r}, version {claims['schema_version']!r}")
            held = {name: _held(folder, name, digest) for name, digest in claims["files"].items()}
            device, server = Target.parse(claims["device"]), Target.parse(claims["server"])
            pairs = [_pair(claim, held, device, server) for claim in claims["cuts"]]
            whole = _program(claims["whole"], device, held, "whole")
            probe = dict(np.load(io.BytesIO(held[PROBE]), allow_pickle=False))
            answers = probe.pop("outputs")
            by_number = {pair.number: pair for pair in pairs}
            return cls(claims["name"], device, server, whole, by_number, restored(probe), answers, claims["recorded"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"[:300]
            raise must_be("folder", "one that split wrote, unchanged", f"{folder}: {reason}", "Export it again.") from error

    def check(self) -> dict[int, float]:
        """Return for each cut how far the answers of its halves, run here one after the other, are from the whole model's.

        Raises:
            EquipoiseError: Further than its tolerance.
        """
        found = {}
        given = mapped(self.probe, np.ascontiguousarray)
        for pair in self.pairs.values():
            sent = pair.begin(first(pair, self.device, size(given)), given)
            answers = pair.end(load(pair.server, self.server, size(given)), sent)
            found[pair.number] = held(pair, answers, self.answers)
        return found


def check_out(folder: Path) -> None:
    """Raise `InputError` where a folder to write holds something else than what `Bundle.write` wrote."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).is_file():
        raise must_be("out", "an empty folder, or one that split wrote", str(folder), "Name another folder.")


def held(pair: Pair, answers: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Return how far answers are from those wanted, as a fraction of the largest.

    Raises:
        EquipoiseError: Further than the pair's tolerance.
    """
    off = apart(answers, wanted)
    if not off <= pair.tolerance:
        what = f"the halves of cut {pair.number} must answer as the whole model, to {pair.tolerance:.2g} of the largest answer"
        raise EquipoiseError(f"{what}; got {off:.2g}. Do not ship them: split the model again, with more samples.")
    return off


def apart(answers: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Return the largest difference as a fraction of the largest answer wanted; infinite where shapes or infinities differ."""
    steady = np.isfinite(wanted)
    if answers.shape != wanted.shape or not np.array_equal(np.isfinite(answers), steady):
        return float("inf")
    largest = max(float(np.abs(wanted[steady]).max(initial=0.0)), 1e-30)
    return float(np.abs(answers[steady] - wanted[steady]).max(initial=0.0) / largest)


def first(pair: Pair, device: Target, batch: int | None = None) -> Session | None:
    """Return a session of the device's half; None where there is nothing to run."""
    return None if pair.device is None else load(pair.device, device, batch)


def load(program: Program, target: Target, batch: int | None = None) -> Session:
    """Return a session of a program where it is to run."""
    return get(program.runtime).load(program, threads=target.threads, batch=batch)


def _described(program: Program) -> dict[str, Any]:
    return {"precision": program.precision, "files": list(program.files)}


def _program(claim: Mapping[str, Any], target: Target, held: Mapping[str, bytes], prefix: str) -> Program:
    return Program(target.row, claim["precision"], {name: held[f"{prefix}.{name}"] for name in claim["files"]})


def _pair(claim: Mapping[str, Any], held: Mapping[str, bytes], device: Target, server: Target) -> Pair:
    number = int(claim["number"])
    return Pair(
        number=number,
        fields=tuple(Field(**each) for each in claim["fields"]),
        device=_program(claim["device"], device, held, f"{number}.device") if claim["device"] else None,
        server=_program(claim["server"], server, held, f"{number}.server"),
        tolerance=float(claim["tolerance"]),
    )


def _held(folder: Path, name: str, digest: str) -> bytes:
    if Path(name).name != name or (folder / name).is_symlink():
        raise ValueError(f"{name} is no plain file")
    content = (folder / name).read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(f"{name} is not the file that was written")
    return content
