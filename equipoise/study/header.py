"""What a study was asked and of what: written once the untouched model is measured, read by everything after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from equipoise.meters import Meters
from equipoise.records import Choice, Knob, Plan, as_data, digest

SCHEMA = 4
"""Version of the header. History: 1 = first; 2 = what was asked is recorded each time; 3 = a record, with the space; 4 = the
files that ship beside the model, none in a header of version 3."""


@dataclass(frozen=True, slots=True)
class Offered:
    """One knob of the space as the model offers it, with the layers that it acts on."""

    knob: Knob
    layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Header:
    """What a study was asked, of which model, and where.

    Attributes:
        workload: How the command line names it, or its name.
        name: Its name.
        target: The targets, separated by commas; the first is the reference.
        budget: As its user wrote it; empty for none.
        time_s: Wall time asked for.
        seed: Of every random choice.
        baseline: Key of the untouched model's evaluation.
        metric: `workloads.Metric.about`.
        space: Every knob, the untouched choice first in its menu.
        damage_unit: What the loss to the untouched model is counted in.
        left_whole: What can not be changed -> why.
        notes: What was done to the model and its data so that they can be used.
        batch, price_per_hour, grid: As `meters.Meters`.
        probe: SHA-256 of real inputs, with which files are tried.
        source_state: SHA-256 of the weights of a model that loading would train anew; empty for one that is loaded.
        files: Name -> SHA-256 of what belongs to the workload and ships beside the model.
        machine: `measure.machine.describe`.
    """

    workload: str
    name: str
    target: str
    budget: str
    time_s: float
    seed: int
    baseline: str
    metric: Mapping[str, Any]
    space: tuple[Offered, ...]
    damage_unit: str = "nats"
    left_whole: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    batch: int = 1
    price_per_hour: float | None = None
    grid: float | None = None
    probe: str = ""
    source_state: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def asked(self) -> str:
        """Identity of what was asked: 16 hex digits."""
        kept = ("probe", "source_state", "files", "machine")
        return digest({k: v for k, v in as_data(self).items() if k not in kept})

    @property
    def meters(self) -> Meters:
        """What follows from a latency or an energy here."""
        return Meters(self.batch, self.price_per_hour, self.grid)

    @property
    def untouched(self) -> Plan:
        """The plan that changes nothing."""
        return Plan({row.knob.name: row.knob.menu[0] for row in self.space})

    def changed(self, plan: Plan) -> dict[str, tuple[Choice, Choice]]:
        """Return knob -> (untouched, chosen) for each knob that `plan` changes, in the order of the space."""
        rows = {row.knob.name: row.knob.menu[0] for row in self.space}
        return {name: (old, plan.choices[name]) for name, old in rows.items() if plan.choices.get(name, old) != old}

    def acting_on(self, layer: str) -> tuple[Knob, ...]:
        """Return the knobs that act on a layer."""
        return tuple(row.knob for row in self.space if layer in row.layers)


def header_from(data: Mapping[str, Any]) -> Header:
    """Rebuild a `Header` from `records.as_data`."""
    space = tuple(Offered(Knob(row["knob"]["name"], tuple(row["knob"]["menu"])), tuple(row["layers"])) for row in data["space"])
    return Header(**{**data, "space": space, "notes": tuple(data["notes"])})
