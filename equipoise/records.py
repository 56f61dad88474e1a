"""The values that travel the road: frozen, printable, hashable, storable.

Every number that reaches a user is a `Reading`: value, unit, interval, and where it came from. An unknown is
``unavailable(reason)``; it never looks like a number, and arithmetic on it raises.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Any, Literal

from equipoise.errors import InputError, UnavailableError, must_be
from equipoise.units import show

SCHEMA = 2
"""Version of every JSON document we write. History: 1 = first; 2 = the parts of an evaluation are records."""

LONGEST_REASON = 300
"""Characters of what a failed trial raised that are shown in one line."""

Provenance = Literal["measured", "estimated", "told", "unavailable"]
Choice = int | str
Fidelity = Literal["untouched", "untrained", "one-shot", "recovered", "told"]


@dataclass(frozen=True, slots=True)
class Reading:
    """One number with its base unit, its interval and its provenance.

    Attributes:
        value: In base units; None exactly when `provenance` is ``unavailable``.
        provenance: ``told`` is what a user measured elsewhere and said; nothing here has seen it.
        unit: A key of `units.SCALES`.
        low, high: 95 % interval, or None where it is undefined (one sample has no spread).
        n: Samples behind the value.
        note: How it was read, or why it could not be.
    """

    value: float | None
    unit: str
    provenance: Provenance = "measured"
    low: float | None = None
    high: float | None = None
    n: int = 1
    note: str = ""

    def get(self) -> float:
        """Return the value, or raise `UnavailableError` with the reason."""
        if self.value is None:
            raise UnavailableError(f"this number is unavailable: {self.note}")
        return self.value

    @property
    def known(self) -> bool:
        """Whether there is a value."""
        return self.value is not None

    def __str__(self) -> str:
        if self.value is None:
            return f"unavailable ({self.note})"
        text = show(self.value, self.unit)
        if self.low is not None and self.high is not None:
            text += f" [{show(self.low, self.unit)}, {show(self.high, self.unit)}]"
        return text + {"estimated": " (estimate)", "told": " (told)"}.get(self.provenance, "")


def measured(
    value: float, unit: str, *, low: float | None = None, high: float | None = None, n: int = 1, note: str = ""
) -> Reading:
    """Return a measured reading; `value` must be finite."""
    if not math.isfinite(value):
        raise InputError(f"a measured reading must be finite; got {value!r}. Use unavailable(reason) instead.")
    return Reading(float(value), unit, "measured", low, high, n, note)


def estimated(
    value: float, unit: str, *, low: float | None = None, high: float | None = None, n: int = 1, note: str
) -> Reading:
    """Return an estimate; `note` says from what."""
    return dataclasses.replace(measured(value, unit, low=low, high=high, n=n, note=note), provenance="estimated")


def unavailable(unit: str, reason: str) -> Reading:
    """Return the reading of what cannot be measured here, and why."""
    return Reading(None, unit, "unavailable", n=0, note=reason)


@dataclass(frozen=True, slots=True)
class Plan:
    """One choice for every knob: pure data, replayable, hashable.

    Args:
        choices: Knob name -> choice. Names are ``kind.place`` (``width.layer1.0.conv1``, ``bits.fc``, ``depth.layer1.1``)
            or a bare kind (``runtime``).
    """

    choices: Mapping[str, Choice]
    _digest: str = field(default="", init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", dict(sorted(self.choices.items())))

    def __hash__(self) -> int:
        return hash(tuple(self.choices.items()))

    def __getitem__(self, knob: str) -> Choice:
        return self.choices[knob]

    def of(self, kind: str) -> dict[str, Choice]:
        """Return the choices of one kind, keyed by place, empty for the whole model: ``plan.of("width")["layer1.0.conv1"]``."""
        return {k[len(kind) + 1 :]: v for k, v in self.choices.items() if k == kind or k.startswith(kind + ".")}

    def but(self, changes: Mapping[str, Choice]) -> Plan:
        """Return this plan with some choices changed."""
        return Plan({**self.choices, **changes})

    def __repr__(self) -> str:
        kinds = Counter(name.partition(".")[0] for name in self.choices)
        return f"Plan({self.digest[:8]}: {', '.join(f'{n} {kind}' for kind, n in kinds.items())})"

    @property
    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON."""
        if not self._digest:
            object.__setattr__(self, "_digest", digest(dict(self.choices)))
        return self._digest


@dataclass(frozen=True, slots=True)
class Knob:
    """One thing that may be changed.

    Args:
        name: ``kind.place`` (``width.layer1.0.conv1``) or a bare kind (``target``).
        menu: The choices, the untouched one first; integers in falling order are *nested* (each takes away more).
    Raises:
        InputError: An empty name or menu, or a choice that is listed twice.
    """

    name: str
    menu: tuple[Choice, ...]

    def __post_init__(self) -> None:
        if not self.name or not self.menu:
            raise must_be(
                f"knob {self.name!r}", "named, with at least one choice", self.menu, "Put the untouched choice first."
            )
        if len(set(self.menu)) != len(self.menu):
            raise must_be(f"{self.name} menu", "free of copies", self.menu, "List each choice once.")

    @property
    def kind(self) -> str:
        """What is changed: the text before the first dot."""
        return self.name.partition(".")[0]

    @property
    def place(self) -> str:
        """Where: the text after the first dot; empty for a knob of the whole model."""
        return self.name.partition(".")[2]

    @property
    def nested(self) -> bool:
        """Whether later choices take away strictly more: integers in falling order."""
        numbers = [c for c in self.menu if isinstance(c, int)]
        return len(numbers) == len(self.menu) and all(a > b for a, b in pairwise(numbers))


@dataclass(frozen=True, slots=True)
class ProgramRef:
    """The program that was scored, by its blobs.

    Attributes:
        runtime, precision: As `runtimes.Program`'s.
        target: Where it was timed, as `runtimes.Target` writes it.
        files: File name -> SHA-256 of its content.
        onnx: SHA-256 of the same plan's ONNX file, where the runtime compiled another form from it; else empty.
        left: Why a layer was left in floating point although the plan asks for int8, by name.
    """

    runtime: str
    precision: str
    target: str
    files: Mapping[str, str]
    onnx: str = ""
    left: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One layer of a plan's model: channels out, params, MACs of one sample, bits that it was asked to compute in."""

    name: str
    kind: str
    out: int
    params: int
    macs: int
    bits: int


@dataclass(frozen=True, slots=True)
class Training:
    """What one training of a plan took: the rung of recovery that it belongs to, wall time, steps, and what went oddly."""

    rung: int
    seconds: float
    steps: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Quality and cost of one plan at one fidelity, with raw samples and what was predicted beforehand.

    Attributes:
        fidelity: ``untouched`` (the user's model), ``one-shot`` (compressed and repaired, no training) or ``recovered``.
            ``untrained`` is a new model that is to be trained: its cost is known, and its quality says nothing. ``told`` is
            one that its user made and measured elsewhere (`Study.tell`).
        leg: Which training of this plan a ``recovered`` evaluation is, from 1; 0 for the other fidelities.
        quality: Metric on the validation split, in points of the metric, read on the target runtime's own file.
        drop: ``baseline - quality`` turned so that larger is worse.
        cost: Axis (``latency_s``, ``size_bytes``, ``params``, ``macs``, ...) -> reading.
        predicted: What the tables said before: axis -> value in base units, and ``damage``.
        samples: Raw samples by axis, so that statistics stay views.
        damage: Divergence of its answers from the untouched model's, in the unit of the workload's; None of a failure.
        speed_up: How many times faster than the untouched model it was, timed side by side; None where nothing bounds it.
        program: The deployable program that was scored; None of a failure.
        weights: SHA-256 of the model's weights (safetensors); empty of a failure.
        layers: Each layer of the model, in the order in which they run.
        training: What its training took; None of a model that was not trained.
        seconds: Wall time it took, recovery included.
        error: Empty, or why the trial failed (such an evaluation is never on a front).
    """

    plan: Plan
    fidelity: Fidelity
    quality: Reading
    drop: Reading
    cost: Mapping[str, Reading]
    predicted: Mapping[str, float] = field(default_factory=dict)
    samples: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    damage: float | None = None
    speed_up: Reading | None = None
    program: ProgramRef | None = None
    weights: str = ""
    layers: tuple[LayerRow, ...] = ()
    training: Training | None = None
    seconds: float = 0.0
    error: str = ""
    leg: int = 0

    def __repr__(self) -> str:
        if self.error:
            return f"Evaluation({self.key[:8]}, {self.fidelity}, failed: {self.reason[:120]})"
        cost = ", ".join(f"{name} {self.cost[name]}" for name in ("latency_s", "size_bytes") if name in self.cost)
        return f"Evaluation({self.key[:8]}, {self.fidelity}, quality {self.quality}, drop {self.drop}, {cost})"

    @property
    def ok(self) -> bool:
        """Whether the trial ended with a usable result."""
        return not self.error

    @property
    def key(self) -> str:
        """Identity in a study: what was tried, how far it was taken and, of a trained one, which training it is."""
        return f"{self.plan.digest}:{self.fidelity}" + (f":{self.leg}" if self.leg else "")

    def axis(self, name: str) -> Reading:
        """Return the reading of a budget axis: ``drop``, ``quality`` or a key of `cost`."""
        if name == "drop":
            return self.drop
        if name == "quality":
            return self.quality
        return self.cost.get(name, unavailable("1", f"{name} was not measured"))

    @property
    def reason(self) -> str:
        """Why the trial failed, in one line: what was raised, with all of its words; empty where it ended well."""
        lines = self.error.strip().rpartition("Traceback (most recent call last)")[2].splitlines()
        raised = next((i for i, line in enumerate(lines[1:], 1) if line and not line.startswith(" ")), 0)  # frames are indented
        return " ".join(" ".join(lines[raised:]).split())[:LONGEST_REASON]


def digest(value: Any) -> str:
    """Return the first 16 hex digits of the SHA-256 of `value`'s canonical JSON."""
    return hashlib.sha256(dumps(value).encode()).hexdigest()[:16]


def dumps(value: Any) -> str:
    """Return canonical JSON (sorted keys, no NaN) of plain data or of a record."""
    return json.dumps(as_data(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


@cache
def _names(kind: type[Any]) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


def as_data(value: Any) -> Any:
    """Turn records into plain JSON data, recursively."""
    if value is None or isinstance(value, (str, int, float)):  # most of what a record holds, and quickest told
        return value
    if isinstance(value, Plan):
        return dict(value.choices)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: as_data(getattr(value, name)) for name in _names(type(value))}
    if isinstance(value, Mapping):
        return {str(k): as_data(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_data(v) for v in value]
    return value


def reading_from(data: Mapping[str, Any]) -> Reading:
    """Rebuild a `Reading` from `as_data`."""
    return Reading(**data)


def program_ref(evaluation: Evaluation) -> ProgramRef:
    """Return the program that an evaluation scored.

    Raises:
        InputError: It failed or was told, and has none.
    """
    if evaluation.fidelity == "told":
        raise InputError(f"the evaluation {evaluation.key} has no program: it was made and measured elsewhere, and told.")
    if evaluation.program is None:
        raise InputError(f"the evaluation {evaluation.key} has no program, because it failed: {evaluation.reason}")
    return evaluation.program


def evaluation_from(data: Mapping[str, Any]) -> Evaluation:
    """Rebuild an `Evaluation` from `as_data`."""
    rest = dict(data)
    speed_up, program, training = (rest.pop(name, None) for name in ("speed_up", "program", "training"))
    return Evaluation(
        plan=Plan(rest.pop("plan")),
        quality=Reading(**rest.pop("quality")),
        drop=Reading(**rest.pop("drop")),
        cost={k: Reading(**v) for k, v in rest.pop("cost").items()},
        samples={k: tuple(v) for k, v in rest.pop("samples").items()},
        speed_up=None if speed_up is None else Reading(**speed_up),
        program=None if program is None else ProgramRef(**program),
        layers=tuple(LayerRow(**row) for row in rest.pop("layers")),
        training=None if training is None else Training(**{**training, "notes": tuple(training["notes"])}),
        **rest,
    )
