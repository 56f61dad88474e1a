"""Recommendation on real interactions: our families beside popularity, item-kNN and EASE, and month by month.

    export EQUIPOISE_DATA=DATA      # DATA/recommender/{xwines-slim-ratings,online-retail-purchases}.csv.gz
    python benchmarks/recommend.py wines                     # the baselines
    python benchmarks/recommend.py wines twotower --seed 0   # ours; sasrec; --tune leaves the test split alone
    python benchmarks/recommend.py retail twotower           # the last day out; --repeats 1: what was bought counts again
    python benchmarks/recommend.py months                    # 2021: trained anew each month, or gone on with
    python benchmarks/recommend.py wines twotower --tune     # for the search: what it measures drops on must not be learned
    W=runs/recommend/wines-twotower-0-tune/model.safetensors F=DATA/recommender/xwines-slim-ratings.csv.gz
    equipoise optimize "recommend:$F?model=twotower&weights=$W" --target "onnxruntime:cpu?batch=64" --budget "drop<=0.3" \\
        --time 22min --store runs/recommend-small            # requests come 64 at a time

X-Wines Slim, leave one out by time, users with 5 or more, every item ranked, what a user has is no answer. Online Retail: the
last day of each customer out, a sample for each product of it. What was chosen (recipe, epochs) was chosen on the validation
split; the final runs train on it as well (``refit=1``), as the baselines do, and the test split is read once at the end.
CPU seconds are those of the process, one thread.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import time
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from equipoise.measure import machine
from equipoise.measure.counts import count
from equipoise.training import Recipe, fit
from equipoise.verbs.train import train
from equipoise.workloads import Shape, Split, Task, load_family, load_task, predict
from equipoise.workloads.interactions import DAY_S, read_interactions
from equipoise.workloads.ranking import Ranked
from equipoise.workloads.recommend import LEAST, histories
from equipoise.workloads.sentiment import Trimmed
from equipoise.workloads.weights import go_on_from

RESULTS = Path(__file__).parent / "results" / "recommend.json"
RECIPE = Recipe(lr=3e-3, batch=1024, weight_decay=0.01, warmup=50)
EPOCHS = {"twotower": 10.0, "sasrec": 10.0}
EASE_L2 = 500.0
NEIGHBOURS = 100
HIT, NDCG = Ranked("hit"), Ranked("ndcg")
MONTHS = [f"2021-{month:02d}-01" for month in range(1, 13)] + ["2022-01-01"]
REPLAY, ONWARD = 2.0, {"epochs": 1.5, "lr": 1e-3}
"""How a model is gone on with each month: older samples for each new one, epochs over both, and the rate."""


def data(name: str) -> Path:
    files = {"wines": "xwines-slim-ratings.csv.gz", "retail": "online-retail-purchases.csv.gz"}
    return Path(os.environ["EQUIPOISE_DATA"]) / "recommender" / files[name]


# ---- baselines: users by items, 0 or 1 --------------------------------------------------------------------------------------


def popularity(gram: np.ndarray, rows: Tensor) -> Tensor:
    return torch.from_numpy(np.diag(gram).copy()).float().expand(len(rows), -1)


def ease(gram: np.ndarray, rows: Tensor) -> Tensor:
    """Steck 2019, "Embarrassingly shallow autoencoders for sparse data", equation 8."""
    inverse = np.linalg.inv(gram + EASE_L2 * np.eye(len(gram), dtype=gram.dtype))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return held(rows, len(gram)) @ torch.from_numpy(weights).float()


def neighbours(gram: np.ndarray, rows: Tensor) -> Tensor:
    """Cosine of items, the nearest of each alone."""
    size = np.sqrt(np.maximum(np.diag(gram), 1))
    alike = gram / size / size[:, None]
    np.fill_diagonal(alike, 0)
    least = np.sort(alike, 0)[-NEIGHBOURS]
    return held(rows, len(gram)) @ torch.from_numpy(np.where(alike >= least, alike, 0)).float()


def held(rows: Tensor, items: int) -> Tensor:
    found = torch.zeros(len(rows), items).scatter(1, rows, 1.0)
    found[:, 0] = 0
    return found


BASELINES = {"popularity": popularity, "item_knn": neighbours, "ease": ease}


def baselines(task: Task, gram: np.ndarray, *, unseen: bool = True) -> dict[str, dict[str, float]]:
    rows, targets = task.test.tensors()
    found = {}
    for name, make in BASELINES.items():
        scores = make(gram, rows)
        found[name] = read(scores.scatter(1, rows, -math.inf) if unseen else scores, targets)
    if not unseen:  # what was bought, by how often, then by popularity
        often = torch.zeros(len(rows), task.outputs).scatter_add(1, rows, torch.ones_like(rows, dtype=torch.float32))
        often[:, 0] = 0
        found["own_then_popular"] = read(often + popularity(gram, rows) / (gram.max() + 1), targets)
    return found


def together(name: str, *, days: bool) -> np.ndarray:
    """How many users have both of two items, in all that is not held out for the test."""
    every = read_interactions(data(name))
    moment = np.floor_divide(every.time, DAY_S) if days else every.time
    last = np.full(len(every.users), -math.inf)
    np.maximum.at(last, every.user, moment)
    held_out = (moment == last[every.user]) & (np.bincount(every.user)[every.user] >= LEAST)
    known = np.zeros((len(every.users), len(every.items) + 1), np.float32)
    known[every.user[~held_out], every.item[~held_out] + 1] = 1.0
    return known.T @ known


def read(scores: Tensor, targets: Tensor) -> dict[str, float]:
    return {"hit_at_10": HIT.read(scores, targets).value, "ndcg_at_10": NDCG.read(scores, targets).value, "n": len(targets)}


# ---- ours -------------------------------------------------------------------------------------------------------------------


def ours(task: Task, name: str, *, seed: int, store: Path, split: str) -> dict[str, float]:
    began = time.process_time()
    found = train(name, task, store=store, epochs=EPOCHS[name], recipe=RECIPE, seed=seed)
    spent = time.process_time() - began
    scores, targets = predict(found.model, getattr(task, split))
    row = {"seed": seed, **read(scores, targets), "cpu_s": spent, "epochs": EPOCHS[name]}
    return row | {key: found.reached[key].get() for key in ("params", "flops_per_sample", "samples")}


def keep(part: str, name: str, row: dict[str, Any]) -> None:
    """Put a run into the result file, in place of an earlier one of the same seed."""
    held_ = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    rows = held_.setdefault(part, {}).setdefault(name, [])
    held_[part][name] = sorted([*(r for r in rows if r.get("seed") != row.get("seed")), row], key=lambda r: r.get("seed", 0))
    held_["machine"] = {k: v for k, v in machine.describe().items() if k in ("cpu", "cores", "flags", "memory_bytes")}
    held_["threads"] = torch.get_num_threads()
    held_["versions"] = {p: version(p) for p in ("torch", "numpy")} | {"python": platform.python_version()}
    RESULTS.write_text(json.dumps(held_, indent=1, sort_keys=True) + "\n")
    print(part, name, json.dumps(row), flush=True)


def wines(name: str | None, *, seed: int, store: Path, tune: bool) -> None:
    task = load_task(f"recommend:{data('wines')}{'' if tune else '?refit=1'}")
    if name is None:
        for key, row in baselines(task, together("wines", days=False)).items():
            keep("wines", key, row)
        return
    folder = store / f"wines-{name}-{seed}{'-tune' if tune else ''}"
    row = ours(task, name, seed=seed, store=folder, split="validation" if tune else "test")
    keep("wines-validation" if tune else "wines", name, row)


def retail(name: str | None, *, seed: int, store: Path, repeats: int) -> None:
    task = load_task(f"recommend:{data('retail')}?refit=1&hold=day&repeats={repeats}")
    part = f"retail-repeats-{repeats}"
    if name is None:
        for key, row in baselines(task, together("retail", days=True), unseen=not repeats).items():
            keep(part, key, row)
        return
    keep(part, name, ours(task, name, seed=seed, store=store / f"{part}-{name}-{seed}", split="test"))


# ---- month by month ---------------------------------------------------------------------------------------------------------


def months(*, seed: int, many: int, name: str = "twotower") -> None:
    """2021, each month judged by models that know what was before it: anew each month, gone on with, and frozen."""
    every = read_interactions(data("wines"))
    made = histories(every)
    kind = load_family(name)
    sums = {way: {"hit": [], "ndcg": [], "cpu_s": 0.0, "samples": 0.0, "flops": 0.0} for way in ("anew", "onward", "frozen")}
    kept: dict[str, Any] = {}
    for month, (start, end) in enumerate(itertools.pairwise(MONTHS[: many + 1])):
        begin, stop = seconds(start), seconds(end)
        before = torch.from_numpy(made.time < begin)
        judged = torch.from_numpy((made.time >= begin) & (made.time < stop))
        size = len(every.until(begin).items) + 1
        rows = torch.where(made.rows < size, made.rows, 0)  # an item that is not known yet is passed over
        known = made.targets < size
        for way in sums:
            if way == "frozen" and month:
                continue
            if way == "onward" and month:
                recent = before & torch.from_numpy(made.time >= seconds(MONTHS[month - 1]))
                older = torch.nonzero(before & ~recent)[:, 0]
                drawn = older[torch.randperm(len(older), generator=torch.Generator().manual_seed(month))]
                chosen = torch.cat([torch.nonzero(recent)[:, 0], drawn[: round(REPLAY * int(recent.sum()))]])
                model, cost = learned(kind, size, rows[chosen], made.targets[chosen], seed=seed, start=kept[way], **ONWARD)
            elif way != "anew":
                model, cost = kept["anew"], {}  # all begin with the same
            else:
                chosen = torch.nonzero(before)[:, 0]
                model, cost = learned(
                    kind, size, rows[chosen], made.targets[chosen], seed=seed, epochs=EPOCHS[name], lr=RECIPE.lr
                )
                cost = cost if month else {}
            kept[way] = model
            for key, value in cost.items():
                sums[way][key] += value
        for way, model in kept.items():
            outputs = model.head.out_features
            part = judged & known
            given = torch.where(rows[part] < outputs, rows[part], 0)
            with torch.inference_mode():
                scores = torch.nn.functional.pad(model(given), (0, size - outputs), value=-math.inf)
            targets = made.targets[part]
            missed = int(judged.sum()) - len(targets)  # what was never seen cannot be told: it counts as missed
            for key, quality in (("hit", HIT), ("ndcg", NDCG)):
                each = quality.read(scores, targets).each
                sums[way][key] += [*each.tolist(), *[0.0] * missed]
        print(start, {way: round(float(np.mean(row["hit"])), 2) for way, row in sums.items()}, flush=True)
    for way, row in sums.items():
        n = len(row["hit"])
        told = {"hit_at_10": np.mean(row["hit"]), "ndcg_at_10": np.mean(row["ndcg"]), "n": n}
        told["standard_error"] = float(np.std(row["hit"]) / math.sqrt(n))
        keep("months", way, {"seed": seed, "months": many, **told, **{key: row[key] for key in ("cpu_s", "samples", "flops")}})


def learned(
    kind: Any, size: int, rows: Tensor, targets: Tensor, *, seed: int, epochs: float, lr: float, start: Any = None
) -> tuple[Any, dict[str, float]]:
    """Train on samples; what it cost is counted from the second month on, where the ways part."""
    shape = Shape((rows.shape[1],), size, size, unseen=True)
    model = kind.model({}, shape, generator=torch.Generator().manual_seed(seed))
    if start is not None:
        go_on_from(model, start.state_dict(), name="start")
    split = replace(Split.of((rows, targets)), alike=(rows != 0).sum(1))
    recipe = replace(RECIPE, lr=lr)
    began = time.process_time()
    generator = torch.Generator().manual_seed(seed)
    loss = torch.nn.functional.cross_entropy
    done = fit(model, split, loss=loss, epochs=epochs, recipe=recipe, augment=Trimmed(0), generator=generator)
    spent, samples = time.process_time() - began, float(done.steps * recipe.batch)
    return done.model, {"cpu_s": spent, "samples": samples, "flops": 6.0 * count(done.model, rows[:2]).macs * samples}


def seconds(day: str) -> float:
    return datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("wines", "retail", "months"))
    parser.add_argument("name", nargs="?", choices=tuple(EPOCHS), default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, choices=(0, 1), default=0)
    parser.add_argument("--months", type=int, default=12, help="of 2021, from January")
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--store", type=Path, default=Path("runs/recommend"))
    given = parser.parse_args()
    if given.what == "wines":
        wines(given.name, seed=given.seed, store=given.store, tune=given.tune)
    elif given.what == "retail":
        retail(given.name, seed=given.seed, store=given.store, repeats=given.repeats)
    else:
        months(seed=given.seed, many=given.months)
