"""What a model is weighed by: one row for each axis of quality and cost, by the word that a budget uses for it.

A new axis is a row here and a file with its meter.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis.

    Attributes:
        key: Its name in `records.Evaluation.cost`; ``drop`` and ``quality`` are fields of their own.
        unit: Base unit, a key of `units.SCALES`.
        label: What a page calls it.
        smaller: Whether less is better, so that a bound is a most; None: the metric decides.
        trained: Whether training changes it.
        predicted: Whether the tables tell it of any plan beforehand; such a bound steers search, recovery and pick.
        of: The word of the axis that it follows from, whose row stands before; empty for one that is read by itself.
        meter: ``module:class`` of what reads it (`meters.Meter`), imported when it is first used; empty for one that
            every evaluation has, or that follows from another.
        better: Words for better and for worse.
    """

    key: str
    unit: str
    label: str
    smaller: bool | None = True
    trained: bool = False
    predicted: bool = False
    of: str = ""
    meter: str = ""
    better: tuple[str, str] = ("smaller", "larger")


AXES: dict[str, Axis] = {
    "latency": Axis("latency_s", "s", "Latency", predicted=True, better=("faster", "slower")),
    "size": Axis("size_bytes", "B", "File size", predicted=True),
    "params": Axis("params", "1", "Params", predicted=True),
    "macs": Axis("macs", "1", "MACs", predicted=True),
    "memory": Axis("peak_memory_bytes", "B", "Peak memory", predicted=True, meter="equipoise.road.appetite:Appetite"),
    "energy": Axis("energy_j", "J", "Energy", predicted=True, meter="equipoise.road.consumption:Consumption"),
    "carbon": Axis("carbon_g", "g", "Carbon", predicted=True, of="energy"),
    "throughput": Axis(
        "throughput_per_s", "1/s", "Throughput", smaller=False, predicted=True, of="latency", better=("more", "less")
    ),
    "prefill": Axis("prefill_s", "s", "Prefill", meter="equipoise.road.generation:Prefill", better=("faster", "slower")),
    "decode": Axis(
        "decode_per_s", "1/s", "Decode", smaller=False, meter="equipoise.road.generation:Decode", better=("more", "less")
    ),
    "price": Axis("price_per_million", "$", "Price per million", predicted=True, of="latency", better=("cheaper", "dearer")),
    "drop": Axis("drop", "points", "Drop", trained=True),
    "quality": Axis("quality", "points", "Quality", smaller=None, trained=True),
}
"""Word in a budget -> its axis; the order is that of columns."""

ALWAYS = ("latency", "size", "params", "macs", "drop", "quality")
"""What every evaluation measures; the others only where the budget names them."""

TRADED = ("latency_s", "size_bytes", "drop")
"""What a study's front trades off."""

SCALE_AXES: dict[str, Axis] = {
    "train": Axis("train_s", "s", "Training time"),
    "cost": Axis("train_cost", "$", "Training cost"),
    **{word: AXES[word] for word in ("latency", "size", "price", "params", "macs")},
    "memory": Axis("train_memory_bytes", "B", "Training memory"),
}
"""The same for the limits of a model that is not trained yet."""

LABELS: dict[str, str] = {axis.key: axis.label for axis in AXES.values()}
"""Key -> label."""


def on_request(keys: Container[str]) -> tuple[str, ...]:
    """Return the words of the axes among `keys` that are measured only where a budget names them, as the table orders them."""
    return tuple(word for word, axis in AXES.items() if word not in ALWAYS and axis.key in keys)
