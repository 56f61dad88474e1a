"""Recovery inside the loop: survivors of the one-shot search are distilled from the untouched model, in rungs.

A model that looks ruined after pruning may come back in minutes while another does not, so ranking before recovery is wrong.
Several candidates get a short training, the promising ones a longer one (successive halving). What training will bring is
forecast from what it has brought; its time counts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from equipoise.batch import Inputs, mapped, parts
from equipoise.pareto import non_dominated
from equipoise.records import Evaluation, Plan, digest
from equipoise.training.loop import Trained
from equipoise.training.normalize import refold, unfold
from equipoise.training.recipe import Recipe
from equipoise.training.recover import distill

if TYPE_CHECKING:
    from equipoise.road.walk import Road

WITH_NORM = Recipe(optimizer="sgd", lr=0.05, schedule="cosine", weight_decay=5e-4, temperature=4.0, channels_last=True)
"""For models with BatchNorm. Chosen after one short single-seed pilot on ResNet-20; no benchmark stands behind it yet."""
FOLDED = Recipe(optimizer="adamw", lr=1e-3, schedule="linear", temperature=2.0)

RUNGS = ((4, 0.12), (2, 0.13), (1, 0.75))
"""(candidates, share of the recovery time) of each rung."""
DECAY = 0.4
"""Believed exponent of ``drop ~ time**-DECAY`` until two rungs of the same plan tell better (ResNet-20: 0.34 and 0.40)."""
LEAST_S = 2.0
"""A rung that would give a candidate less than this is not worth its overhead."""
MARGIN = 0.8
"""Share of the allowed drop that a forecast must stay within: forecasts err, and validation is a sample."""
HOPE = 10.0
"""A one-shot drop of more than this many times the allowed one is not worth training."""
CANDIDATE_LOSS = 0.02
"""Nats under which a one-shot model needs no recovery to speak of."""


def recover(road: Road, *, reserve: float) -> None:
    """Train the candidates rung by rung until `reserve` seconds of the run are left; each leg is one evaluation.

    A rung too short to be worth its overhead trains fewer candidates, or leaves its time to the next; so does one that ended
    early. Nothing is trained on after a rung in which every training failed.
    """
    alive = candidates(road, RUNGS[0][0])
    trained: dict[str, list[tuple[float, float]]] = {e.plan.digest: [] for e in alive}
    shares = [share for _, share in RUNGS]
    carried = 0.0
    for rung, (count, share) in enumerate(RUNGS, start=1):
        if not alive:
            return
        carried += share
        room = road.left() - reserve
        last = rung == len(RUNGS)
        overhead = max(road.expected("recovered"), road.expected("one-shot"))
        time = room * carried / (carried + sum(shares[rung:]))
        fit = min(count, len(alive), int(time / (LEAST_S + overhead)))
        if fit < 1:
            continue
        alive = promote(road, alive, trained, fit, horizon=room if last else 0.5 * room)
        seconds = time / len(alive) - overhead
        road.tell("recover", f"rung {rung}: distil {len(alive)} for {seconds:.0f} s each")
        done = [_leg(road, e, rung, seconds) for e in alive]
        for before, after in zip(alive, done, strict=True):
            if after.ok:
                history = trained[before.plan.digest]
                history.append(((history[-1][0] if history else 0.0) + seconds, max(after.drop.get(), 0.05)))
        alive = [e for e in done if e.ok]
        carried = 0.0


def candidates(road: Road, count: int) -> list[Evaluation]:
    """Return the one-shot evaluations to train first: within the bounds that training cannot change, spread over the loss."""
    fixed = [c for c in road.budget.constraints if c.axis in ("latency_s", "size_bytes", "params", "macs")]
    rows = [
        e for e in road.evaluations
        if e.ok and e.fidelity == "one-shot" and all(c.excess(e.axis(c.axis).get()) == 0 for c in fixed)
    ]  # fmt: skip
    bound = road.budget.bound("drop")
    if bound:
        kept = any(e.drop.get() <= MARGIN * bound for e in rows)  # then the search has a better use for the time
        rows = [e for e in rows if bound < e.drop.get() <= HOPE * bound] or [e for e in rows if not kept]
    axes = ("latency_s",) if road.budget.bound("size") is None else ("latency_s", "size_bytes")
    front = [rows[i] for i in non_dominated([[e.details["loss"], *(e.axis(a).get() for a in axes)] for e in rows])]
    front = sorted((e for e in front if e.details["loss"] >= CANDIDATE_LOSS), key=lambda e: float(e.details["loss"]))
    if road.budget.bound("latency") is not None or len(front) <= count:
        return front[:count]  # at a given latency the least loss is the best start
    logs = np.log([e.details["loss"] for e in front])
    wanted = np.linspace(logs[0], logs[-1], count)
    return [front[i] for i in sorted({int(np.argmin(np.abs(logs - w))) for w in wanted})]


def promote(
    road: Road, alive: Sequence[Evaluation], trained: dict[str, list[tuple[float, float]]], count: int, *, horizon: float
) -> list[Evaluation]:
    """Return the `count` candidates to train on: the fastest that are forecast to keep the drop, then those forecast best.

    Args:
        trained: Plan digest -> (seconds trained in all, drop then), oldest first.
        horizon: Seconds of training that the survivor may still get.
    """
    if len(alive) <= count or not all(trained[e.plan.digest] for e in alive):
        return list(alive)[:count]
    decay = _decay(trained)
    forecast = {e.key: _forecast(trained[e.plan.digest], horizon, decay) for e in alive}
    bound = road.budget.bound("drop")
    if bound is None:
        ranked = sorted(alive, key=lambda e: forecast[e.key])
        if road.budget.bound("latency") is None:  # no bound at all: balance, by the distance to the ideal corner
            ranked = sorted(alive, key=lambda e: _distance(e, alive, forecast))
        return ranked[:count]
    keeps = sorted((e for e in alive if forecast[e.key] <= MARGIN * bound), key=lambda e: e.axis("latency_s").get())
    rest = sorted((e for e in alive if forecast[e.key] > MARGIN * bound), key=lambda e: forecast[e.key])
    return [*keeps, *rest][:count]


def _forecast(history: list[tuple[float, float]], horizon: float, decay: float) -> float:
    seconds, drop = history[-1]
    return drop * math.pow((seconds + horizon) / seconds, -decay)


def _decay(trained: dict[str, list[tuple[float, float]]]) -> float:
    """Return the exponent that plans with two rungs show, averaged with the prior."""
    seen = [DECAY]
    for history in trained.values():
        for (s0, d0), (s1, d1) in itertools.pairwise(history):
            seen.append(math.log(d0 / d1) / math.log(s1 / s0))
    return min(2.0, max(0.2, sum(seen) / len(seen)))


def _distance(e: Evaluation, alive: Sequence[Evaluation], forecast: dict[str, float]) -> float:
    """Distance to the corner of least latency and least forecast drop, both scaled to 0..1."""
    times = [math.log(a.axis("latency_s").get()) for a in alive]
    drops = [forecast[a.key] for a in alive]
    x = (math.log(e.axis("latency_s").get()) - min(times)) / ((max(times) - min(times)) or 1.0)
    y = (forecast[e.key] - min(drops)) / ((max(drops) - min(drops)) or 1.0)
    return math.hypot(x, y)


def _leg(road: Road, start: Evaluation, rung: int, seconds: float) -> Evaluation:
    plan = start.plan
    leg = _number(road, start, seconds)
    checkpoint = road.store.scratch(f"{plan.digest}-{leg}")
    trained: dict[str, Any] = {"rung": rung}

    def make() -> nn.Module:
        student = road.bench.restore(plan, road.store.read_blob(start.files["weights"]))
        done = train(road, plan, student, seconds=seconds, checkpoint=checkpoint, leg=leg)
        for note in done.notes:
            road.tell("recover", note)
        trained.update(
            trained_steps=done.steps, trained_s=done.seconds, **({"trained_notes": done.notes} if done.notes else {})
        )
        return refold(done.model).eval()

    predicted = {k: v for k, v in start.predicted.items() if k != "loss"}
    found = road.evaluate(plan, "recovered", make, leg=leg, predicted=predicted, details=trained, training_s=seconds)
    checkpoint.unlink(missing_ok=True)  # only now that its result is stored
    return found


def _number(road: Road, start: Evaluation, seconds: float) -> int:
    """Return which training of its plan this is, from 1: the same start and time find their number again."""

    def following() -> dict[str, Any]:
        legs = [row["leg"] for row in road.store.all("leg") if row["plan"] == start.plan.digest]
        return {"plan": start.plan.digest, "leg": 1 + max(legs, default=0)}

    return int(road.store.once("leg", digest([start.key, round(seconds, 6)]), following)["leg"])


def train(road: Road, plan: Plan, student: nn.Module, *, seconds: float, checkpoint: Path, leg: int) -> Trained:
    """Distil `student` from the untouched model for `seconds`, with a checkpoint that a killed run goes on from.

    Where the user's model had BatchNorm it is put back for the training: a folded net only bears small learning rates.
    """
    generator = torch.Generator().manual_seed(int(plan.digest[:8], 16) ^ (road.seed * 1000 + leg))
    normed = any(isinstance(m, _BatchNorm) for m in road.work.model.modules())
    return distill(
        unfold(student, parts(mapped(road.bench.calibration, torch.from_numpy), 64)) if normed else student,
        teacher(road),
        road.work.train,
        seconds=seconds,
        recipe=WITH_NORM if normed else FOLDED,
        divergence=road.work.divergence,
        augment=road.work.augment,
        generator=generator,
        checkpoint=checkpoint,
        every_s=min(20.0, seconds / 5),
        on_step=lambda p: road.tell("recover", f"rung {leg}, step {p.step}, loss {p.loss:.3g}", extra_s=p.seconds),
    )


def teacher(road: Road) -> Callable[[Inputs], Tensor]:
    """Return the untouched model as its own compiled program on all cores: faster than torch for the same answers."""
    session = road.bench.reference_on_all_cores

    def answer(inputs: Inputs) -> Tensor:
        given = mapped(inputs, lambda value: value.contiguous().numpy())
        return torch.from_numpy(np.asarray(session.run(given), dtype=np.float32))

    return answer
