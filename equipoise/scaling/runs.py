"""One training run as the laws see it, and a table of them from a file."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from equipoise.errors import InputError, must_be

Floats = NDArray[np.float64]
Size = Literal["params", "flops"]

BACKWARD = 3.0
"""Training FLOPs of a sample over its forward FLOPs: forward once, backward twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one finished training run cost and reached.

    Attributes:
        params: Trainable parameters, embeddings left out.
        samples: Samples (images, tokens) seen in training, repeats counted: D.
        flops_per_sample: *Forward* FLOPs of one sample (2 per multiply-accumulate).
        loss: Loss on held-out data at the end, above 0 (nats for cross entropy).
        unique: Distinct samples among them: U. None where none was seen twice.
        quality: The user's metric at the end, or None.
        seconds: Wall time, 0 where it was not kept.
        scale: Named dimensions of the model (width, depth, ...).
        annealed: Whether the learning rate had come down at the end; `fit` leaves out what was not.
    """

    params: float
    samples: float
    flops_per_sample: float
    loss: float
    unique: float | None = None
    quality: float | None = None
    seconds: float = 0.0
    seed: int = 0
    scale: Mapping[str, float] = field(default_factory=dict)
    annealed: bool = True
    label: str = ""

    def __post_init__(self) -> None:
        for name in ("params", "samples", "flops_per_sample", "loss"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise must_be(f"run.{name}", "finite and above 0", value, "Leave out runs that diverged or were cut short.")
        if self.unique is not None and not 0 < self.unique <= self.samples * (1 + 1e-9):
            raise must_be(
                "run.unique", f"above 0 and at most samples = {self.samples:g}", self.unique, "Count distinct samples."
            )
        if self.quality is not None and not math.isfinite(self.quality):
            raise must_be("run.quality", "finite or None", self.quality, "Leave the field empty where it is not known.")

    @property
    def flops(self) -> float:
        """Training FLOPs: `BACKWARD` × forward FLOPs × samples."""
        return BACKWARD * self.flops_per_sample * self.samples

    def size(self, kind: Size) -> float:
        """Return N as a law takes it: parameters, or forward FLOPs of a sample."""
        return self.params if kind == "params" else self.flops_per_sample


@dataclass(frozen=True)
class Columns:
    """Runs as arrays, `(n,)` each."""

    params: Floats
    flops_per_sample: Floats
    samples: Floats
    unique: Floats
    loss: Floats

    @property
    def flops(self) -> Floats:
        """Training FLOPs of each run."""
        return BACKWARD * self.flops_per_sample * self.samples

    def size(self, kind: Size) -> Floats:
        """Return N of each run."""
        return self.params if kind == "params" else self.flops_per_sample


def columns(runs: Sequence[Run]) -> Columns:
    """Return the runs as arrays; where nothing repeats, unique = samples."""

    def take(values: Iterable[float]) -> Floats:
        return np.array(list(values), dtype=float)

    return Columns(
        take(r.params for r in runs),
        take(r.flops_per_sample for r in runs),
        take(r.samples for r in runs),
        take(r.samples if r.unique is None else r.unique for r in runs),
        take(r.loss for r in runs),
    )


REQUIRED = ("params", "samples", "loss")
OPTIONAL = ("unique", "flops_per_sample", "flops", "quality", "seconds", "seed", "annealed", "label")
ALIASES = {"tokens": "samples", "n": "params", "d": "samples", "compute": "flops"}
TRUTH = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


def read_csv(path: str | Path) -> tuple[Run, ...]:
    """Read runs from a CSV file with a header.

    Needed: `params`, `samples` (or `tokens`), `loss`. Optional: `flops_per_sample` (forward) or `flops` (of the training);
    where both are missing, 2 FLOPs per parameter and sample are taken, which holds for a dense transformer and for no other.
    Also `unique`, `quality`, `seconds`, `seed`, `annealed`, `label`, and `scale.NAME` for each dimension. Empty optional fields
    are unknown; other columns are ignored.

    Raises:
        InputError: No such file, a missing column, or a field that is no usable number, with its row and column; all
            mistakes are reported together.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise must_be("runs", "a readable UTF-8 CSV file", str(path), f"{type(error).__name__}: check the path.") from None
    reader = csv.DictReader(text.splitlines())
    names = {name: _canonical(name) for name in reader.fieldnames or ()}
    missing = [name for name in REQUIRED if name not in names.values()]
    if missing:
        raise InputError(
            f"{file.name} must have the columns {', '.join(REQUIRED)}; {', '.join(missing)} missing among "
            f"{', '.join(names) or 'none'}. The first line names the columns."
        )
    runs: list[Run] = []
    mistakes: list[str] = []
    for row in reader:
        where = f"{file.name}, line {reader.line_num}"
        fields = {names[name]: (value or "").strip() for name, value in row.items() if name in names}
        try:
            if None in row:
                raise InputError(f"{len(names)} fields are expected and there are more. Quote fields that hold commas.")
            runs.append(_run(fields))
        except InputError as error:
            mistakes.append(f"{where}: {error}")
    if mistakes:
        more = [f"... and {len(mistakes) - 10} more lines"] if len(mistakes) > 10 else []
        raise InputError("\n".join(mistakes[:10] + more))
    if not runs:
        raise must_be(file.name, "at least one run", "no lines below the header", "Write one line for each training run.")
    return tuple(runs)


def _canonical(name: str) -> str:
    word = name.strip().lower().replace(" ", "_")
    return name.strip() if word.startswith("scale.") else ALIASES.get(word, word)


def _run(fields: Mapping[str, str]) -> Run:
    """One run from text; every message names the column."""

    def number(name: str) -> float | None:
        text = fields.get(name, "")
        if not text:
            return None
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise must_be(f"column {name}", "a finite number", text, "Remove the line if the run failed.")
        return value

    def needed(name: str) -> float:
        value = number(name)
        if value is None:
            raise must_be(f"column {name}", "filled in", "nothing", "Remove the line if the run has no result.")
        return value

    params, samples = needed("params"), needed("samples")
    forward, flops = number("flops_per_sample"), number("flops")
    if forward is None:
        forward = 2.0 * params if flops is None else flops / (BACKWARD * samples) if samples > 0 else flops
    annealed = fields.get("annealed", "").lower() or "1"
    if annealed not in TRUTH:
        raise must_be("column annealed", "1 or 0", annealed, "Write 1 where the learning rate had come down at the end.")
    seed = number("seed") or 0.0
    if seed != int(seed):
        raise must_be("column seed", "a whole number", seed, "Number the repeats 0, 1, 2, ...")
    scale = {
        name[len("scale.") :]: value for name in fields if name.startswith("scale.") if (value := number(name)) is not None
    }
    return Run(
        params=params,
        samples=samples,
        flops_per_sample=forward,
        loss=needed("loss"),
        unique=number("unique"),
        quality=number("quality"),
        seconds=number("seconds") or 0.0,
        seed=int(seed),
        scale=scale,
        annealed=TRUTH[annealed],
        label=fields.get("label", ""),
    )
