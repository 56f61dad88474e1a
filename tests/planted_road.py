"""A road whose model, costs and losses are formulas: an executor that answers each of its jobs in no time."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from record_in_memory import Memory

from equipoise.budget import parse_budget
from equipoise.events import Event
from equipoise.ops import Op
from equipoise.records import (
    Evaluation,
    Knob,
    LayerRow,
    Plan,
    ProgramRef,
    Reading,
    Training,
    as_data,
    evaluation_from,
    measured,
)
from equipoise.road.bench import failed
from equipoise.road.decisions import Asked, Road
from equipoise.road.facts import TARGET, Act, Facts, Layer
from equipoise.road.jobs import Job
from equipoise.study.header import Offered, header_from
from equipoise.study.record import Study, evaluated, following

ONE = "onnxruntime:cpu?threads=1&batch=1"
TWO = "onnxruntime:cpu?threads=2&batch=1"
POINT = "one point is 0.01 of accuracy"
ABOUT = {
    "workload": "planted.py:make",
    "name": "planted",
    "damage_unit": "nats",
    "metric": {"name": "accuracy", "unit": "points", "maximize": True, "scale": 100, "point": POINT},
}

# ---- what is planted ---------------------------------------------------------------------------------------------------------

SIZES = {"a": (64, 40.0), "b.one": (32, 30.0), "b.two": (32, 30.0), "c": (64, 60.0)}
"""Layer -> channels, and microseconds that it takes whole in floats."""
WIDTHS = {"width.a": ("a", (64, 48, 32, 16)), "width.b.one": ("b.one", (32, 24, 16, 8)), "width.c": ("c", (64, 48, 32, 16))}
STEEP = {"width.a": 0.8, "width.b.one": 0.15, "width.c": 0.4}
"""Loss where a whole group is gone; it grows with the square of the share."""


def facts(*targets: str) -> Facts:
    """Four layers: three widths, one block that can be dropped, a precision each."""
    rows = [Offered(Knob(TARGET, targets))] if len(targets) > 1 else []
    rows += [Offered(Knob(name, menu), (layer,)) for name, (layer, menu) in WIDTHS.items()]
    rows += [Offered(Knob("depth.b", ("keep", "drop")), ("b.one", "b.two"))]
    rows += [Offered(Knob(f"bits.{layer}", (32, 8)), (layer,)) for layer in SIZES]
    layers = []
    for name, (channels, _) in SIZES.items():
        op, acts = Op("conv", 16, channels, height=8, width=8), []
        for knob, (layer, menu) in WIDTHS.items():
            if layer == name:
                acts.append(Act(knob, menu, tuple((replace(op, cout=int(width)),) for width in menu)))
        if name.startswith("b."):
            acts.append(Act("depth.b", ("keep", "drop"), ((op,), ())))
        layers.append(Layer(name, op, op.weights, tuple(acts), f"bits.{name}"))
    moot = (("depth.b", "drop", ("width.b.one", "bits.b.one", "bits.b.two")),)
    return Facts(tuple(rows), tuple(layers), moot, {"head": "it feeds the model's output"})


def kept(plan: Plan, layer: str) -> float:
    """Share of a layer that a plan keeps."""
    if layer.startswith("b.") and plan.choices.get("depth.b") == "drop":
        return 0.0
    shares = [int(plan.choices.get(k, menu[0])) / int(menu[0]) for k, (name, menu) in WIDTHS.items() if name == layer]
    return shares[0] if shares else 1.0


def cost_of(plan: Plan) -> tuple[float, float]:
    """Seconds and bytes of a plan."""
    seconds, size = 5e-6, 500.0
    for layer, (channels, us) in SIZES.items():
        eight = plan.choices.get(f"bits.{layer}") == 8
        seconds += us * 1e-6 * kept(plan, layer) * (0.45 if eight else 1.0)
        size += 16 * channels * kept(plan, layer) * (1 if eight else 4)
    return seconds * (0.6 if plan.choices.get(TARGET) == TWO else 1.0), size


def loss_of(plan: Plan) -> float:
    """Nats that a plan loses to the untouched model, before any training."""
    total = 0.06 if plan.choices.get("depth.b") == "drop" else 0.0
    for knob, (layer, menu) in WIDTHS.items():
        total += STEEP[knob] * (1 - int(plan.choices.get(knob, menu[0])) / int(menu[0])) ** 2 * (kept(plan, layer) > 0)
    total += sum(0.004 for layer in SIZES if plan.choices.get(f"bits.{layer}") == 8 and kept(plan, layer))
    return total**1.05  # what several changes cost together is not quite their sum


POINTS_PER_NAT = 30.0

# ---- the executor ------------------------------------------------------------------------------------------------------------


@dataclass
class Formula:
    """Answers each job from the planted problem; its seconds are what it says they are."""

    record: Memory
    road: Road | None = None
    facts: Facts = field(default_factory=lambda: facts(ONE))
    fails: tuple[str, ...] = ()
    trial_s: float = 1.0
    probe_s: float = 0.4
    known_to: float = 1.02
    """Half of the interval of a latency, as a factor."""
    done: list[Job] = field(default_factory=list)

    def run(self, job: Job) -> dict[str, Any]:
        self.done.append(job)
        json.dumps(job.args)  # a job is plain data
        return {**getattr(self, job.kind)(job)}

    def prepare(self, _: Job) -> dict[str, Any]:
        return {"facts": as_data(self.facts), "seconds": 3.0}

    def notes(self, _: Job) -> dict[str, Any]:
        return {"notes": ["few samples"], "seconds": 0.1}

    def study(self, job: Job) -> dict[str, Any]:
        return {"header": {**job.args["header"], "probe": "0" * 64, "machine": {"cpu": "planted"}}, "seconds": 0.2}

    def table(self, job: Job) -> dict[str, Any]:
        knob, choice = job.args["knob"], job.args["choice"]
        row = {"knob": knob, "choice": choice, "samples": job.args["samples"], "loss": None, "seconds": self.probe_s}
        if job.key in self.fails:
            return {**row, "error": "RuntimeError: planted"}
        return {**row, "loss": loss_of(Plan({knob: choice})), "se": 0.0}

    def guess(self, job: Job) -> dict[str, Any]:
        found = [[*key, loss_of(Plan({key[0]: key[1]})) / 2, 0.0] for key in job.args["entries"]]
        return {"estimated": found, "seconds": self.probe_s}

    def lut(self, job: Job) -> dict[str, Any]:
        return {"times": {}, "failed": {}, "seconds": job.args["seconds"]}

    def proposal(self, _: Job) -> dict[str, Any]:
        assert self.road is not None
        return {**self.road.proposal(), "seconds": 0.05}

    def meter(self, job: Job) -> dict[str, Any]:
        (found,) = (e for e in evaluations(self.record) if e.key == job.args["evaluation"])
        return {**job.args, "reading": as_data(memory_of(found)), "seconds": 0.2}

    def leg(self, job: Job) -> dict[str, Any]:
        legs = [row["leg"] for row in self.record.all("leg") if row["plan"] == job.args["plan"]]
        return {"plan": job.args["plan"], "leg": 1 + max(legs, default=0), "seconds": 0.0}

    def extent(self, job: Job) -> dict[str, Any]:
        return {**job.args, "seconds": 0.0}

    def untrained(self, job: Job) -> dict[str, Any]:
        return {**job.args, "seconds": 0.0}

    def final(self, job: Job) -> dict[str, Any]:
        rows = {e.key: e for e in evaluations(self.record)}
        base = rows[job.args["baseline"]].axis("latency_s").get()
        ratios = {}
        for key in job.args["keys"]:
            ratio = base / rows[key].axis("latency_s").get()
            ratios[key] = {"value": ratio, "low": 0.98 * ratio, "high": 1.02 * ratio, "n": 12, "confidence": 0.95}
        reference = as_data(rows[job.args["baseline"]].axis("latency_s"))
        return {"ratios": ratios, "reference": reference, "elasticity": {}, "seconds": job.args["seconds"]}

    def evaluation(self, job: Job) -> dict[str, Any]:
        plan, fidelity, trained_s = Plan(job.args["plan"]), job.args["fidelity"], job.args.get("training_s", 0.0)
        took = self.trial_s + trained_s
        fails = {fidelity, "searched" if job.args["predicted"] else "by hand"}
        fails |= {plan.choices.get("width.a")} if fidelity == "one-shot" else set()
        if fails & set(self.fails):
            error = "Traceback (most recent call last)\n  at x\nValueError: planted"
            broken = failed(plan, fidelity, error, leg=job.args["leg"], predicted=job.args["predicted"])
            broken = replace(broken, seconds=took)
            return {"evaluation": as_data(broken), "seconds": took}
        seconds, size = cost_of(plan)
        loss = 0.0 if fidelity == "untouched" else loss_of(plan)
        drop = POINTS_PER_NAT * loss * (1 + trained_s) ** -0.4
        found = Evaluation(
            plan,
            fidelity,
            measured(95 - drop, "points"),
            measured(drop, "points", low=drop - 0.1, high=drop + 0.1),
            {
                "latency_s": measured(seconds, "s", low=seconds / self.known_to, high=self.known_to * seconds),
                "size_bytes": measured(size, "B"),
                "params": measured(size / 4, "1"),
                "macs": measured(size * 64, "1"),
            },
            predicted=job.args["predicted"],
            damage=loss,
            weights="w" * 64,
            program=ProgramRef("onnxruntime", "fp32", str(plan.choices.get(TARGET, ONE)), {"model.onnx": "p" * 64}),
            layers=tuple(LayerRow(n, "Conv2d", c, 16 * c, 1024 * c, 32) for n, (c, _) in SIZES.items()),
            training=Training(job.args["rung"], trained_s, 100) if trained_s else None,
            seconds=took,
            leg=job.args["leg"],
        )
        if self.road is not None and self.road.budget.bound("memory") is not None:
            found = replace(found, cost={**found.cost, "peak_memory_bytes": memory_of(found)})
        return {"evaluation": as_data(found), "seconds": took}


def memory_of(found: Evaluation) -> Reading:
    return measured(5 * found.axis("size_bytes").get(), "B")


def evaluations(record: Memory) -> list[Evaluation]:
    return [evaluation_from(row["evaluation"]) for row in record.all("evaluation")]


def asked(budget: str = "drop<=1", limit_s: float = 120.0, *, targets: tuple[str, ...] = (ONE,), **more: Any) -> Asked:
    given = {"seed": 0, "recovery": True, "samples": 1000, "about": ABOUT, **more}
    return Asked(dict.fromkeys(targets, (32, 8)), parse_budget(budget), limit_s, **given)


def road(what: Asked, said: list[Event] | None = None) -> Road:
    return Road(what, [].append if said is None else said.append)


def walked(what: Asked, record: Memory | None = None, said: list[Event] | None = None, **changes: Any) -> Formula:
    """Walk to the end of the road."""
    record = Memory() if record is None else record
    here = road(what, said)
    formula = Formula(record, here, facts(*what.targets), **changes)
    while jobs := here.next(record):
        for job in jobs:
            record.put(job, formula.run(job))
    return formula


def study_of(record: Memory) -> Study:
    header = header_from(record.all("study")[-1]["header"])
    extent, untrained = ((record.all(kind) or [{}])[-1] for kind in ("extent", "untrained"))
    rows = following(evaluated(record.all("evaluation"), record.all("meter")), parse_budget(header.budget), header.meters)
    return Study(Path(), header, rows, {}, {}, extent, untrained)
