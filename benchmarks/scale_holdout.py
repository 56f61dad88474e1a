"""How well a dozen small runs foretell the loss of a model four times the largest, and which size they choose.

    python benchmarks/scale_holdout.py runs speed --data CIFAR.zip --store runs/h-speed     # 12 runs, 25 min unless --minutes
    python benchmarks/scale_holdout.py held speed --data CIFAR.zip --store runs/h-speed     # the truth: larger runs, 30 min
    python benchmarks/scale_holdout.py runs text --data TEXT --store runs/h-text            # the same for a character GPT
    python benchmarks/scale_holdout.py held text --data TEXT --store runs/h-text
    python benchmarks/scale_holdout.py score --store runs/h-speed runs/h-text               # a minute; writes the result

*runs* plans and makes the fitted runs (isoFLOP levels, sizes twice apart, one trunk a size). *held* makes runs that the fit
never sees: a level of `BEYOND` times the compute with sizes around the best, and a size `BEYOND` times the largest. *score*
fits, foretells the held-out runs beside four rules, counts how often the 90 % interval covers them over resampled runs, and
lets random subsets of the runs choose a size for the compute of the held-out level: the regret is what the choice loses
against the best run there.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from equipoise.measure import machine
from equipoise.records import as_data, digest
from equipoise.scaling import Available, PlannedRun, Run, fit, for_compute, hold_out, plan, predict, rules
from equipoise.scaling.decide import decide
from equipoise.scaling.runs import BACKWARD
from equipoise.sizing.costs import sample_time
from equipoise.sizing.small_runs import (
    FEWEST_STEPS,
    SmallRuns,
    in_quick_precision,
    quickest,
    rates_to_try,
    recipe_for,
    step_seconds,
)
from equipoise.study.store import Store
from equipoise.workloads import family, load_task

BEYOND = 4.0
MINUTES = 25.0
SETS: dict[str, tuple[str, str, dict[str, int]]] = {
    "speed": ("speed", "cifar10:{}", {}),
    "resnet": ("resnet", "cifar10:{}", {"depth": 8}),
    "text": ("gpt", "text:{}?context=64", {}),
}
"""Set -> family, grown in its width alone, task, and what is not the family's default."""
RESULT = Path(__file__).parent / "results" / "scale_holdout.json"
SUBSETS, RESAMPLES = 40, 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("runs", "held", "score"))
    parser.add_argument("set", nargs="?", choices=tuple(SETS))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--store", type=Path, nargs="+", required=True)
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for the fitted runs")
    args = parser.parse_args()
    if args.stage == "score":
        score(args.store)
        return
    if args.set is None or args.data is None:
        parser.error("runs and held need a set and --data")
    with Store.open(args.store[0]) as store:
        (runs if args.stage == "runs" else held)(args.set, args.data, store, args.minutes)


def prepared(name: str, data: Path, store: Store) -> tuple[SmallRuns, tuple[Available, ...], list[float]]:
    """The small_runs, the ladder of sizes and the training FLOP/s of each."""
    kind, spec, base = SETS[name]
    task, grown = load_task(spec.format(data)), replace(family(kind), growth={"width": 1.0})
    usual = recipe_for(task)
    recipe = in_quick_precision(usual, store.once("precision", "precision", partial(step_seconds, usual, grown, task)))
    small_runs = SmallRuns(grown, task, recipe, 0, store)
    sizes: dict[float, Available] = {}
    for number in range(-10, 5):
        try:
            size = small_runs.available(small_runs.family.grow(2.0**number, **base))
        except ValueError:
            continue
        sizes[size.flops_per_sample] = size
    menu = tuple(sizes[work] for work in sorted(sizes))
    rates = []
    for size in menu:
        row = store.once(
            "rate",
            str(size.scale),
            lambda s=size: {"sample_s": sample_time(small_runs.model(s.scale), task, small_runs.recipe).get()},
        )
        rates.append(BACKWARD * size.flops_per_sample / row["sample_s"])
    return small_runs, menu, rates


def runs(name: str, data: Path, store: Store, minutes: float) -> None:
    """Make the runs that are fitted."""
    small_runs, menu, rates = prepared(name, data, store)
    options: dict[str, Any] = {
        "flops_per_s": rates,
        "unique": small_runs.unique,
        "cooldown": small_runs.recipe.decay_share,
        "fewest_samples": float(FEWEST_STEPS) * small_runs.recipe.batch * small_runs.positions,
    }
    first = plan(menu, seconds=minutes * 60 * 0.85, **options)
    speed = {size.flops_per_sample: rate for size, rate in zip(menu, rates, strict=True)}
    small_runs = _with_best_rate(small_runs, quickest(first.runs, lambda a: speed[a.flops_per_sample]), store)
    row = store.once(
        "plan", "0", lambda: {"lr": small_runs.recipe.lr, "tuned_at": small_runs.tuned_at, "runs": as_data(first.runs)}
    )
    planned = [PlannedRun(**{**r, "available": Available(**r["available"])}) for r in row["runs"]]
    for number, run in enumerate(sorted(planned, key=lambda r: r.flops), start=1):
        same = [r for r in planned if r.available == run.available and r.unique is None and r.samples < run.samples]
        _make(store, small_runs, run, same, "fitted", f"{number}/{len(planned)}")


def _with_best_rate(small_runs: SmallRuns, run: PlannedRun, store: Store) -> SmallRuns:
    """The small_runs at the learning rate that is best on `run`."""
    start, losses = small_runs.recipe.lr, dict[float, float]()
    best, to_try = rates_to_try(start, losses)
    while to_try:
        for lr in to_try:
            tried = replace(small_runs, recipe=replace(small_runs.recipe, lr=lr))
            losses[lr] = store.once("tune", f"lr={lr:.3g}", partial(tried.short, run))["loss"]
        best, to_try = rates_to_try(start, losses)
    return tuned(small_runs, {"lr": best, "tuned_at": run.available.scale})


def tuned(small_runs: SmallRuns, row: dict[str, Any]) -> SmallRuns:
    return replace(small_runs, recipe=replace(small_runs.recipe, lr=row["lr"]), tuned_at=row["tuned_at"])


def held(name: str, data: Path, store: Store, minutes: float) -> None:
    """Make the runs that the fit never sees."""
    small_runs, menu, _ = prepared(name, data, store)
    row = store.get("plan", "0")
    if row is None:
        raise SystemExit("make the fitted runs first")
    small_runs = tuned(small_runs, row)
    made = [Run(**r["run"]) for r in store.all("run") if r["label"] == "fitted"]
    flops = BEYOND * max(r.flops for r in made)
    largest = max(r.flops_per_sample for r in made)
    fitted = fit(made, seed=0)
    best = fitted.optimum(flops)["size"].value
    near = sorted(menu, key=lambda a: abs(np.log(a.size(fitted.law.size) / best)))[:3]
    biggest = min(menu, key=lambda a: abs(np.log(a.flops_per_sample / (BEYOND * largest))))
    for number, size in enumerate({a.flops_per_sample: a for a in (*near, biggest)}.values(), start=1):
        samples = flops / (BACKWARD * size.flops_per_sample)
        run = PlannedRun(size, samples, samples * (1 - small_runs.recipe.decay_share), flops, 9)
        _make(store, small_runs, run, [], "held", str(number))


def _make(store: Store, small_runs: SmallRuns, run: PlannedRun, same: list[PlannedRun], label: str, told: str) -> None:
    key = digest({"scale": dict(run.available.scale), "samples": run.samples, "unique": run.unique})
    row = store.once("run", key, lambda: {**small_runs.run(run, same), "label": label})
    found = Run(**row["run"])
    print(
        f"{label} {told}: {dict(found.scale)} {found.samples:.3g} samples, {found.seconds:.0f} s, loss {found.loss:.4f}",
        flush=True,
    )


def score(stores: list[Path]) -> None:
    """Fit, foretell, choose; write the result file."""
    out: dict[str, Any] = {}
    for path in stores:
        with Store.open(path, create=False, readonly=True) as store:
            rows = store.all("run")
        fitted_on = [Run(**r["run"]) for r in rows if r["label"] == "fitted"]
        unseen = [Run(**r["run"]) for r in rows if r["label"] == "held"]
        out[path.name] = scored(fitted_on, unseen)
        print(path.name, json.dumps({k: v for k, v in out[path.name].items() if k != "runs"}, indent=1))
    result = {
        "what": "held-out larger runs foretold from a dozen small ones",
        "beyond": BEYOND,
        "sets": out,
        "machine": machine.describe(),
    }
    RESULT.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")


def scored(known: list[Run], unseen: list[Run]) -> dict[str, Any]:
    fitted = fit(known, seed=0)
    largest = max(unseen, key=lambda r: r.flops_per_sample)
    foretold = []
    for run in unseen:
        said = predict(fitted, run.size(fitted.law.size), run.samples, run.unique)
        foretold.append(
            {
                "params": run.params,
                "samples": run.samples,
                "loss": run.loss,
                "said": as_data(said),
                "largest": run is largest,
                "error": said.value / run.loss - 1,
                "excess_error": (said.value - run.loss) / (run.loss - float(fitted.law.E)),
                "covered": said.low <= run.loss <= said.high,
                "rules": {
                    k: None if v is None else v / run.loss - 1 for k, v in rules(known, run, size=fitted.law.size).items()
                },
            }
        )
    inner = hold_out(known, seed=0, size=fitted.law.size)
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(RESAMPLES):
        part = _subset(known, rng, len(known) - 2)
        again = fit(part, seed=0, size=fitted.law.size, starts=25)
        for run in unseen:
            said = predict(again, run.size(again.law.size), run.samples, run.unique)
            covered.append(said.low <= run.loss <= said.high)
    return {
        "n": len(known),
        "seconds": sum(r.seconds for r in known),
        "size": fitted.law.size,
        "noise": fitted.noise,
        "foretold": foretold,
        "inner_hold_out": [{"error": f.error, "covered": f.covered} for f in inner],
        "coverage": float(np.mean(covered)),
        "coverage_n": len(covered),
        "decision": decisions(known, unseen),
        "runs": [as_data(r) for r in (*known, *unseen)],
    }


def _subset(known: list[Run], rng: np.random.Generator, count: int) -> list[Run]:
    """A random part that still has three sizes and two amounts of data."""
    while True:
        part = [known[i] for i in sorted(rng.choice(len(known), size=count, replace=False))]
        if len({round(np.log(r.params), 2) for r in part}) >= 3 and len({round(np.log(r.samples), 2) for r in part}) >= 2:
            return part


def decisions(known: list[Run], unseen: list[Run]) -> dict[str, Any]:
    """Let subsets of the runs choose among the held-out sizes at equal compute; the truth is what those runs reached."""
    flops = float(np.median([r.flops for r in unseen]))
    menu = [Available(r.params, r.flops_per_sample, r.scale) for r in unseen]
    truth = {r.params: r.loss for r in unseen}
    rng = np.random.default_rng(1)
    regrets, answered = [], 0
    for _ in range(SUBSETS):
        part = _subset(known, rng, max(8, len(known) - 3))
        unique = max((r.unique or r.samples) for r in unseen)
        found = decide(fit(part, seed=0, starts=25), for_compute(menu, flops, unique=unique))
        answered += found.answered
        chosen = min(found.options, key=lambda o: o.regret).candidate.available.params
        regrets.append(truth[chosen] / min(truth.values()) - 1)
    return {
        "subsets": SUBSETS,
        "median_regret": float(np.median(regrets)),
        "p90_regret": float(np.quantile(regrets, 0.9)),
        "answered": answered,
    }


if __name__ == "__main__":
    main()
