"""A study on disk whose every figure follows from a formula: what a change gains and costs is known in closed form."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from equipoise.ops import Op
from equipoise.records import Evaluation, Knob, LayerRow, Plan, ProgramRef, as_data, measured
from equipoise.road.facts import Act, Facts, Layer
from equipoise.road.features import entry
from equipoise.study.header import Header, Offered
from equipoise.study.store import Store

TARGET = "onnxruntime:cpu?threads=1&batch=1"
CALL, BORDER = 5e-6, 3e-6
"""Seconds of a call, and of each place where the precision changes."""
A, B, C = (Op("conv", 16, 32, height=8, width=8), Op("conv", 32, 16, height=8, width=8), Op("linear", 16, 10))
NARROW_A, NARROW_B = replace(A, cout=16), replace(B, cin=16)
HALVES = (replace(B, cout=8), replace(B, cin=8))
TIMES = {
    (A, 32): 40e-6, (A, 8): 20e-6, (NARROW_A, 32): 22e-6, (NARROW_A, 8): 12e-6,
    (B, 32): 30e-6, (B, 8): 16e-6, (NARROW_B, 32): 16e-6, (NARROW_B, 8): 9e-6,
    (HALVES[0], 32): 19e-6, (HALVES[0], 8): 11e-6, (HALVES[1], 32): 15e-6, (HALVES[1], 8): 9e-6,
    (C, 32): 4e-6, (C, 8): 3e-6,
}  # fmt: skip
LOSSES = {
    ("width.a", 16): 0.04, ("rank.b", 50): 0.01, ("bits.a", 8): 0.001, ("bits.b", 8): 0.002, ("bits.c", 8): 0.0005,
}  # fmt: skip
SPACE = (
    Offered(Knob("width.a", (32, 16)), ("a", "b")),
    Offered(Knob("rank.b", (100, 50)), ("b",)),
    Offered(Knob("bits.a", (32, 8)), ("a",)),
    Offered(Knob("bits.b", (32, 8)), ("b",)),
    Offered(Knob("bits.c", (32, 8)), ("c",)),
)
FACTS = Facts(
    SPACE,
    (
        Layer("a", A, 512, (Act("width.a", (32, 16), ((A,), (NARROW_A,))),), "bits.a"),
        Layer(
            "b", B, 512,
            (Act("width.a", (32, 16), ((B,), (NARROW_B,))), Act("rank.b", (100, 50), ((B,), HALVES))), "bits.b",
        ),
        Layer("c", C, 160, (), "bits.c"),
    ),
    (),
    {"head": "it feeds the model's output"},
)  # fmt: skip
UNTOUCHED = Plan({row.knob.name: row.knob.menu[0] for row in SPACE})
POINTS = 50.0
"""Points of drop for a nat."""


def times(factor: Mapping[Op, float] | None = None) -> dict[str, float]:
    """What each operator takes in a whole model; `factor` makes some of them slower there."""
    return {entry(op, bits): seconds * (factor or {}).get(op, 1.0) for (op, bits), seconds in TIMES.items()}


def seconds(plan: Plan, took: Mapping[str, float]) -> float:
    """Seconds of a plan: a call, its operators (what two knobs make of one layer is a product), and the borders."""
    bits = [int(plan[f"bits.{name}"]) for name in "abc"]
    narrow, halved = plan["width.a"] == 16, plan["rank.b"] == 50
    first = took[entry(NARROW_A if narrow else A, bits[0])]
    whole = took[entry(B, bits[1])]
    second = whole * (took[entry(NARROW_B, bits[1])] / whole if narrow else 1.0)
    second *= sum(took[entry(op, bits[1])] for op in HALVES) / whole if halved else 1.0
    borders = sum(left != right for left, right in itertools.pairwise(bits))
    return CALL + first + second + took[entry(C, bits[2])] + BORDER * borders


def evaluation(plan: Plan, took: Mapping[str, float], *, half: float = 0.2) -> Evaluation:
    """One evaluation, exact but for the interval of its drop."""
    loss = sum(LOSSES.get(choice, 0.0) for choice in plan.choices.items())
    drop = POINTS * loss
    kept = {"a": 16 if plan["width.a"] == 16 else 32, "b": 16, "c": 10}
    weights = {"a": kept["a"] * 16, "b": kept["a"] * 16, "c": 160}
    size = sum(count * (1 if plan[f"bits.{name}"] == 8 else 4) for name, count in weights.items())
    macs = 64 * (weights["a"] + weights["b"]) + 160
    return Evaluation(
        plan,
        "untouched" if plan == UNTOUCHED else "one-shot",
        measured(90 - drop, "points"),
        measured(drop, "points", low=drop - half, high=drop + half, n=400),
        {
            "latency_s": measured(seconds(plan, took), "s"),
            "size_bytes": measured(float(size), "B"),
            "params": measured(float(sum(weights.values())), "1"),
            "macs": measured(float(macs), "1"),
        },
        damage=loss,
        program=ProgramRef("onnxruntime", "mixed", TARGET, {"model.onnx": "0" * 64}),
        layers=tuple(
            LayerRow(name, "Conv2d", kept[name], weights[name], 64 * weights[name], int(plan[f"bits.{name}"])) for name in "abc"
        ),
        seconds=1.0,
    )


def plans(count: int, *, seed: int = 0) -> list[Plan]:
    """Different plans, the untouched one first."""
    random = np.random.default_rng(seed)
    found = {UNTOUCHED: None}
    while len(found) < count:
        found[Plan({row.knob.name: row.knob.menu[random.integers(len(row.knob.menu))] for row in SPACE})] = None
    return list(found)


def record(
    folder: Path,
    rows: list[Evaluation],
    *,
    timed: bool = True,
    prepared: bool = True,
    budget: str = "",
    targets: Mapping[str, Mapping[str, float]] | None = None,
    students: tuple[str, ...] = (),
) -> Path:
    """Write a study; several `targets` (each with its times) make a knob of it, and so do `students`."""
    luts = targets or {TARGET: times()}
    space = (Offered(Knob("target", tuple(luts))), *SPACE) if len(luts) > 1 else SPACE
    if students:
        space = (Offered(Knob("student", ("teacher", *students)), ("a", "b", "c")), *space)
    new = tuple(("student", name) for name in students)
    header = Header(
        "planted.py:make", "planted", ",".join(luts), budget, 60.0, 0, rows[0].key,
        {"name": "accuracy", "unit": "points", "maximize": True}, space, left_whole=FACTS.left_whole,
    )  # fmt: skip
    with Store.open(folder) as store:
        if prepared:
            store.put("prepare", "0", {"facts": as_data(replace(FACTS, offered=space, untrained=new))}, seconds=1)
        store.put("study", header.asked, {"header": as_data(header)}, seconds=0)
        for row in rows:
            store.put("evaluation", row.key, {"evaluation": as_data(row)}, seconds=1)
        for (knob, choice), loss in LOSSES.items():
            found: dict[str, Any] = {"knob": knob, "choice": choice, "samples": 64, "loss": loss, "se": 0.1 * loss}
            store.put("table", f"{knob}={choice}", found, seconds=0.1)
        for target, lut in luts.items() if timed else ():
            store.put("lut", target, {"times": lut, "failed": {}}, seconds=1)
    return folder
