"""The answer of the scale advisor, read off its record: needs no torch, so it can be opened and reported on anywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from equipoise.axes import SCALE_AXES
from equipoise.budget import Budget, parse_budget
from equipoise.errors import StoreError
from equipoise.measure import energy, money
from equipoise.records import SCHEMA, Reading, as_data, estimated, measured, reading_from, unavailable
from equipoise.runtimes.base import Target
from equipoise.scaling import Available, Candidate, Decision, Fit, Option, Run, decide, describe, fit, link
from equipoise.scaling.decide import REACH
from equipoise.scaling.runs import BACKWARD
from equipoise.stats import Interval
from equipoise.study.store import Store
from equipoise.units import show

HEADER_SCHEMA = 1
"""Version of the answer's header and of what it is read from. History: 1 = first."""
LEVEL = 0.9
WORST_PENALTY = 0.5
"""Nats beyond which a compressed model is no contender."""
COMPRESSED = "compressed"
CAUTIOUS = 0.67
"""Standard deviations above the mean at which an untried shape is judged: the upper quartile."""
UNTOLD = ("schema", "compute", "recipe", "tuned_at", "requests")
"""Of the header, what a report does not show as it is."""
NO_PRICE = unavailable("$", "no price of the machine was given (--price-per-hour)")


@dataclass(frozen=True)
class Advice:
    """How large a model the data and the limits deserve.

    Attributes:
        header: What was asked, where.
        fit: The law, its uncertainty and the runs behind it.
        decision: The range, the recommended size, or why there is none.
        rows: Costs of each of the decision's options, by its place there.
        branch: What the compressor made of the largest run, or the ``reason`` why it did not.
        rounds: The least loss so far, run by run.
    """

    path: Path
    header: Mapping[str, Any]
    fit: Fit
    decision: Decision
    rows: Mapping[int, Mapping[str, Reading]]
    branch: Mapping[str, Any]
    rounds: tuple[Mapping[str, Any], ...]

    def __repr__(self) -> str:
        return f"Advice({self.path}: {self.sentence()})"

    @classmethod
    def load(cls, path: str | Path) -> Advice:
        """Open the record at `path`.

        Raises:
            StoreError: No finished answer there, or one of another version of Equipoise.
        """
        with Store.open(path, create=False, readonly=True) as store:
            return read(store)

    @property
    def recommended(self) -> dict[str, float] | None:
        """The scale to train, or None."""
        option = self.decision.recommended
        return None if option is None else dict(option.candidate.available.scale)

    @property
    def shown(self) -> list[int]:
        """Places of the options worth a row: each size as it is trained, and the best version of it that was compressed."""
        found = self.decision
        inside = {id(option) for option in found.range}
        kept: dict[Any, int] = {}
        for i, option in sorted(
            enumerate(found.options), key=lambda row: (id(row[1]) not in inside, not row[1].allowed, row[1].regret)
        ):
            kept.setdefault((tuple(option.candidate.available.scale.items()), option.candidate.label), i)
        answers = {id(found.recommended), id(found.nearest)}
        return sorted({*kept.values(), *(i for i, option in enumerate(found.options) if id(option) in answers)})

    def sentence(self) -> str:
        """Return the answer in words."""
        found = self.decision
        if found.recommended is None:
            return f"No size is recommended. {found.reason}"

        def params(o: Option) -> float:
            return o.candidate.costs["params"] or 0.0

        ends = [params(o) for o in found.range]
        option = found.recommended
        quality = "" if option.quality is None else f", {self.header['metric']['name']} {_ends(option.quality, '.1f')}"
        way = ", compressed from it" if option.candidate.label == COMPRESSED else ""
        size = f"{show(params(option), '1')} params ({_words(option.candidate.available.scale)}{way})"
        low, high = show(min(ends), "1"), show(max(ends), "1")
        choice = size if low == high else f"{low} to {high} params; {size} is the cheapest to serve"
        return f"Train {choice}: expected loss {_ends(option.loss, '.4g')}{quality}."

    def summary(self) -> dict[str, Any]:
        """Return what `report.render_scale` shows, as JSON data."""
        told = describe(self.fit, level=LEVEL)
        constants, shown = told["law"]["constants"], self.shown
        more = len(self.decision.options) - len(shown)
        return {
            "schema": SCHEMA,
            "header": {k: v for k, v in self.header.items() if k not in UNTOLD},
            "level": LEVEL,
            "law": {
                **{name: constants[name]["value"] for name in ("E", "A", "B", "a", "b", "repetition")},
                "size": self.fit.law.size,
                "intervals": {name: [c["low"], c["high"]] for name, c in constants.items() if name != "exponent"},
                "note": told["law"]["text"],
            },
            "runs": [_run(row) for row in told["runs"]],
            "curves": [_curve(entry) for entry in told["isoflop"]],
            "frontier": _frontier(told["frontier"]),
            "answer": self._answer(),
            "candidates": [self._option(i) for i in shown],
            "compress_branch": self._branch(),
            "progress": list(self.rounds),
            "notes": [
                *told["notes"],
                *([] if not more else [f"{more} more compressed versions were compared; each size is shown with its best."]),
                *([] if not self.branch["reason"] else [f"Compressing down was not tried: {self.branch['reason']}"]),
            ],
        }

    @cached_property
    def budget(self) -> Budget:
        """The limits that were asked for."""
        return parse_budget(self.header["limits"], axes=SCALE_AXES)

    def breaks(self, option: Option) -> list[str]:
        """Return what keeps an option from being recommended, whatever its regret: limits, and how far the runs reach."""
        limits = {c.axis: str(c) for c in self.budget.constraints}
        beyond = [f"the reach of the runs ({REACH:g}×)"] if option.reach > REACH else []
        return [*(limits[axis] for axis in option.excess), *beyond]

    def _answer(self) -> dict[str, Any]:
        found = self.decision
        ends = [o.candidate.available.size(self.fit.law.size) for o in found.range]
        shown = found.recommended or found.nearest or found.best
        limits = []
        for c in self.budget.constraints:
            value = None if shown is None else shown.candidate.costs.get(c.axis)
            limits.append(
                {
                    "text": str(c),
                    "reads": "unknown" if value is None else show(value, c.unit),
                    "holds": shown is not None and c.axis not in shown.excess,
                }
            )
        row = {"recommended": found.recommended, "nearest": found.nearest}
        return {
            "status": "recommended" if found.answered else "refused",
            "reason": found.reason,
            "range": [min(ends), max(ends)] if ends else None,
            **{name: None if o is None else self._option(found.options.index(o)) for name, o in row.items()},
            "limits": limits,
            "binding": found.binding[0] if found.binding else "",
            "requests": self.header["requests"],
            "add_runs": [
                {
                    "scale": dict(a.available.scale),
                    "params": a.available.params,
                    "samples": a.samples,
                    "compute": a.flops,
                    "why": f"leaves {a.left:.0%} of the decision's variance",
                }
                for a in found.add
            ],
        }

    def _option(self, index: int) -> dict[str, Any]:
        """One candidate as a row of the report."""
        option = self.decision.options[index]
        c = option.candidate
        flops = BACKWARD * c.available.flops_per_sample * c.samples
        return {
            "scale": {k: float(v) for k, v in c.available.scale.items()},
            "label": c.label,
            "breaks": self.breaks(option),
            "flops_per_sample": as_data(measured(c.available.flops_per_sample, "1", note="counted")),
            "samples": as_data(measured(c.samples, "1", note="planned")),
            "compute": as_data(measured(flops, "1", note="planned")),
            "loss": as_data(_foretold(option.loss, "1")),
            "quality": as_data(_foretold(option.quality, "points", "too few runs with a quality")),
            "regret": as_data(estimated(option.regret, "1", high=option.regret_high, low=0.0, note="of the law")),
            **{name: as_data(reading) for name, reading in self.rows[index].items()},
        }

    def _branch(self) -> dict[str, Any] | None:
        """The best that is trained as it is beside the best that is trained larger and compressed."""
        kept = [(i, o) for i, o in enumerate(self.decision.options) if o.allowed]
        direct = [(i, o) for i, o in kept if o.candidate.label != COMPRESSED]
        down = [(i, o) for i, o in kept if o.candidate.label == COMPRESSED]
        if not direct or not down:
            return None
        here, option = min(direct, key=lambda row: _price(row[1], self.decision))
        there, other = min(down, key=lambda row: _price(row[1], self.decision))
        serve = (option.candidate.serve or math.nan) / (other.candidate.serve or math.nan)
        verdict = (
            f"Trained larger and compressed it serves at {1 / serve:.2f} times the cost, at a loss "
            f"{100 * (other.loss.value / option.loss.value - 1):+.2f} % against training this size. No recovery is counted."
        )
        return {
            "direct": self._option(here),
            "compressed": self._option(there),
            "plan": "one shot, by the compressor's own front",
            "verdict": verdict,
        }


def check_version(store: Store) -> None:
    """Raise `StoreError` where a store holds an answer of another version of Equipoise."""
    for found in {row["header"]["schema"] for row in store.all("advice")} - {HEADER_SCHEMA}:
        who, remedy = ("a newer", "upgrade equipoise") if found > HEADER_SCHEMA else ("an earlier", "name another --store")
        raise StoreError(f"{store.path} holds advice of {who} Equipoise (schema {found}, here {HEADER_SCHEMA}): {remedy}.")


def read(store: Store) -> Advice:
    """Read the last answer out of an open store.

    Raises:
        StoreError: The advisor has not finished there, or another version of Equipoise wrote it.
    """
    check_version(store)
    asked = store.all("asked")
    last = store.get("advice", asked[-1]["advice"]) if asked else None
    if last is None:
        raise StoreError(f"the record at {store.path} has no answer yet. Run `equipoise scale` on it to the end.")
    header = last["header"]
    rows = store.all("run")
    runs = [Run(**row["run"]) for row in rows if not row["label"]]
    fitted = fit(runs, seed=header["seed"])
    metric = header["metric"]
    bounded = (0.0, 100.0) if metric["name"] in ("accuracy", "f1") else None
    joined = link(runs, bounds=bounded, seed=header["seed"])
    candidates = [*(_direct(row, header) for row in last["costs"]), *_compressed(last, header)]
    budget = parse_budget(header["limits"], axes=SCALE_AXES)
    limits = {c.axis: c.bound for c in budget.constraints}
    decision = decide(fitted, [c for c, _ in candidates], limits=limits, requests=header["requests"], link=joined, level=LEVEL)
    readings = {i: next(r for c, r in candidates if c is o.candidate) for i, o in enumerate(decision.options)}
    return Advice(Path(store.path), header, fitted, decision, readings, last["branch"], _rounds(rows))


def _direct(row: Mapping[str, Any], header: Mapping[str, Any]) -> tuple[Candidate, dict[str, Reading]]:
    """A size trained as it is."""
    available, each = Available(**row["available"]), reading_from(row["sample_s"])
    compute = header["compute"]
    work = BACKWARD * available.flops_per_sample
    samples = compute["flops"] / work if compute["seconds"] is None else compute["seconds"] / each.get()
    costs = _readings(row, header, each.get() * samples)
    penalty = row["shift"] + CAUTIOUS * row["shift_sd"]
    return _candidate(available, samples, costs, header, penalty, ""), costs


def _compressed(last: Mapping[str, Any], header: Mapping[str, Any]) -> list[tuple[Candidate, dict[str, Reading]]]:
    """Sizes trained and then compressed as the largest run was."""
    out = []
    for row in last["costs"]:
        if row["shift"] or row["shift_sd"] or last["branch"]["reason"]:
            continue
        direct, costs = _direct(row, header)
        for point in last["branch"]["points"]:
            if not 0 <= point["loss"] <= WORST_PENALTY:
                continue
            note = "the largest run's compression, carried over by ratio"
            made = dict(costs)
            for name, ratio in (("latency_s", point["latency"]), ("size_bytes", point["size"])):
                made[name] = estimated(costs[name].get() * ratio, costs[name].unit, note=note)
            made |= _priced(made["latency_s"], header)
            out.append(
                (_candidate(direct.available, direct.samples, made, header, math.log1p(point["loss"]), COMPRESSED), made)
            )
    return out


def _readings(row: Mapping[str, Any], header: Mapping[str, Any], train_s: float) -> dict[str, Reading]:
    latency = reading_from(row["latency_s"])
    note = "measured seconds of a training step, times the steps"
    access = energy.rapl()
    price = header["price_per_hour"]
    return {
        "params": measured(row["params"], "1", note="counted, embeddings too, which the law leaves out"),
        "macs": measured(row["macs"], "1", note="one input, forward"),
        "train_s": estimated(train_s, "s", note=note),
        "train_cost": NO_PRICE if price is None else estimated(price * train_s / 3600, "$", note=note),
        "train_energy_j": unavailable("J", access.reason or "the meter was not read while the step was timed"),
        "train_memory_bytes": reading_from(row["train_memory_bytes"]),
        "latency_s": latency,
        "size_bytes": reading_from(row["size_bytes"]),
        **_priced(latency, header),
    }


def _priced(latency: Reading, header: Mapping[str, Any]) -> dict[str, Reading]:
    price = header["price_per_hour"]
    if price is None:
        return {"price_per_million": NO_PRICE}
    return {"price_per_million": money.price_per_million(latency, price, batch=Target.parse(header["target"]).batch)}


def _candidate(
    available: Available, samples: float, costs: Mapping[str, Reading], header: Mapping[str, Any], penalty: float, label: str
) -> Candidate:
    rate = 1.0 if header["price_per_hour"] is None else header["price_per_hour"] / 3600
    return Candidate(
        available=available,
        samples=samples,
        unique=min(samples, header["unique"]),
        costs={name: reading.value for name, reading in costs.items()},
        serve=rate * costs["latency_s"].get(),
        train=rate * costs["train_s"].get(),
        penalty=penalty,
        label=label,
    )


def _price(option: Option, decision: Decision) -> tuple[bool, float]:
    return option not in decision.range, option.candidate.serve or math.inf


def _run(row: Mapping[str, Any]) -> dict[str, Any]:
    quality = row["quality"]
    return {
        "scale": row["scale"],
        "params": row["params"],
        "flops_per_sample": row["flops_per_sample"],
        "samples": row["samples"],
        "compute": row["flops"],
        "unique": row["unique"],
        "seed": row["seed"],
        "annealed": row["annealed"],
        "loss": as_data(measured(row["loss"], "1", note="validation split")),
        "quality": None if quality is None else as_data(measured(quality, "points", note="validation split")),
        "seconds": as_data(measured(row["seconds"], "s", note="training")),
    }


def _curve(entry: Mapping[str, Any]) -> dict[str, Any]:
    points = entry["curve"]
    return {
        "compute": entry["flops"],
        "sizes": [p["size"] for p in points],
        **{name: [p[name] for p in points] for name in ("loss", "low", "high")},
        "best": {"size": entry["size"]["value"], "low": entry["size"]["low"], "high": entry["size"]["high"]},
    }


def _frontier(points: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    names = {"compute": "flops", "loss": "loss_value", "low": "loss_low", "high": "loss_high"}
    return {name: [p[key] for p in points] for name, key in names.items()}


def _rounds(rows: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """Best loss so far, run by run."""
    out: list[Mapping[str, Any]] = []
    best, seconds = math.inf, 0.0
    for number, row in enumerate(rows, start=1):
        best, seconds = min(best, row["run"]["loss"]), seconds + row["seconds"]
        out.append({"round": number, "loss": best, "trained": number, "seconds": seconds})
    return tuple(out)


def _foretold(interval: Interval | None, unit: str, reason: str = "") -> Reading:
    if interval is None:
        return unavailable(unit, reason)
    return estimated(interval.value, unit, low=interval.low, high=interval.high, n=interval.n, note="predicted by the law")


def _ends(interval: Interval, form: str) -> str:
    return f"{interval.value:{form}} ({interval.low:{form}} to {interval.high:{form}})"


def _words(scale: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in scale.items())
