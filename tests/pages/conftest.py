"""A study that looks like a real one: 40 evaluations of a small residual net, seeded, no torch."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from equipoise.records import (
    SCHEMA,
    Evaluation,
    Plan,
    ProgramRef,
    Reading,
    Training,
    as_data,
    estimated,
    measured,
    unavailable,
)

TARGET = "onnxruntime:cpu?threads=1&batch=1"

LAYERS = [("stem", 16, 0.9)] + [
    (f"layer{s}.{b}.conv{c}", 16 * 2 ** (s - 1), 1.0) for s in (1, 2, 3) for b in (0, 1, 2) for c in (1, 2)
]
PRUNABLE = [name for name, _, _ in LAYERS if name.endswith("conv1")]


def make_study(count: int = 40, *, seed: int = 0, names: dict[str, str] | None = None, **header: Any) -> dict[str, Any]:
    """Return a summary as `summary.summarize` would give it; `names` renames layers, to plant hostile ones."""
    rng = random.Random(seed)
    called = names or {}
    base = Plan(_choices(1.0, 32, called))
    evaluations = [_evaluation(base, "untouched", rng, called)]
    while len(evaluations) < count - 2:
        share = rng.choice([0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0])
        plan = Plan(_choices(share, rng.choice([8, 8, 8, 32]), called, rng))
        for fidelity in ("one-shot", "recovered")[: rng.choice([1, 1, 2])]:
            evaluations.append(_evaluation(plan, fidelity, rng, called))
    for number in range(count - len(evaluations)):
        evaluations.append(_failed(Plan({**_choices(0.25, 8, called), "target": f"broken{number}"})))
    ok = {e.key: e for e in evaluations if e.ok}
    within = [e for e in ok.values() if e.drop.get() <= 1.0]
    pick = min(within, key=lambda e: e.cost["latency_s"].get())
    knee = min(ok.values(), key=lambda e: e.cost["latency_s"].get() / 1.1e-3 + max(0.0, e.drop.get()) / 6)
    first = evaluations[0]
    sentence = (
        f"{first.cost['latency_s'].get() / pick.cost['latency_s'].get():.1f}× faster, "
        f"{first.cost['size_bytes'].get() / pick.cost['size_bytes'].get():.1f}× smaller, "
        f"drop {pick.drop.get():.2f} ± {(pick.drop.high or 0) - pick.drop.get():.2f}"
    )
    return {
        "schema": SCHEMA,
        "header": {
            "workload": "cifar10:resnet20",
            "name": "resnet20",
            "target": TARGET,
            "budget": "latency<=700us, drop<=1",
            "time_s": 600.0,
            "seed": 0,
            "baseline": first.key,
            "notes": [],
            "metric": {"name": "accuracy", "maximize": True, "unit": "points"},
            "space": [{"knob": {"name": name, "menu": [choice]}, "layers": []} for name, choice in base.choices.items()],
            "machine": {
                "cpu": "Example 8-core at 2.6 GHz",
                "flags": ["avx2", "avx512f", "avx512_vnni"],
                "cores": 2,
                "load": 0.31,
                "versions": {"equipoise": "0.1.0", "torch": "2.13.0", "onnxruntime": "1.32.0", "numpy": "2.4.6"},
            },
            **header,
        },
        "evaluations": [as_data(e) for e in evaluations],
        "baseline": first.key,
        "knee": knee.key,
        "pick": pick.key,
        "pick_rule": "The fastest model that keeps the drop within one point.",
        "layers": _layers(pick.plan, called),
        "progress": [
            {"n": n, "seconds": 11.0 * n, "hypervolume": 0.42 + 0.4 * (1 - 0.9 ** (n - n % 3))}
            for n in range(1, len(evaluations) + 1)
        ],
        "sentence": sentence,
        "notes": ["Quality is read on 5,000 validation images; the test split is touched once, by verify."],
    }


def _choices(share: float, bits: int, called: dict[str, str], rng: random.Random | None = None) -> dict[str, int | str]:
    out: dict[str, int | str] = {}
    for name, width, _ in LAYERS:
        place = called.get(name, name)
        if name in PRUNABLE:
            wobble = rng.choice([-0.125, 0, 0, 0.125]) if rng else 0
            out[f"width.{place}"] = max(4, round(width * min(1.0, share + wobble) / 4) * 4)
        out[f"bits.{place}"] = bits if not rng or rng.random() > 0.12 else 32
    return out


def _share(plan: Plan, called: dict[str, str]) -> tuple[float, float]:
    widths = plan.of("width")
    kept = sum(int(widths[called.get(n, n)]) / w for n, w, _ in LAYERS if n in PRUNABLE) / len(PRUNABLE)
    eight = sum(b == 8 for b in plan.of("bits").values()) / len(LAYERS)
    return kept, eight


def _evaluation(plan: Plan, fidelity: str, rng: random.Random, called: dict[str, str]) -> Evaluation:
    kept, eight = _share(plan, called)
    latency = 1.13e-3 * (0.12 + 0.88 * kept) * (1 - 0.45 * eight) * rng.uniform(0.96, 1.04)
    size = 1_094_288 * (0.06 + 0.94 * kept) * (1 - 0.73 * eight)
    drop = 0.0
    if fidelity != "untouched":
        drop = (40 if fidelity == "one-shot" else 3.2) * (1 - kept) ** 1.9 + 0.25 * eight + rng.uniform(-0.25, 0.35)
    return Evaluation(
        plan=plan,
        fidelity=fidelity,  # type: ignore[arg-type]
        quality=_around(92.6 - drop, "points", 0.35, n=5000),
        drop=_around(drop, "points", 0.0 if fidelity == "untouched" else 0.28, n=5000),
        cost={
            "latency_s": _around(latency, "s", 0.014 * latency, n=144),
            "size_bytes": measured(round(size), "B", note="the file that ships"),
            "params": measured(round(272_474 * (0.05 + 0.95 * kept)), "1"),
            "macs": measured(round(40.8e6 * (0.05 + 0.95 * kept)), "1"),
            "peak_memory_bytes": estimated(4.1e6 * (0.5 + 0.5 * kept), "B", note="sum of live activations"),
            "energy_j": unavailable("J", "no RAPL counter is readable on this machine"),
        },
        predicted={"latency_s": latency * rng.uniform(0.92, 1.08), "size_bytes": size, "damage": 0.02 + 0.4 * (1 - kept)},
        seconds=2.5 + (rng.uniform(12, 40) if fidelity == "recovered" else rng.uniform(0, 2)),
        damage=0.0 if fidelity == "untouched" else 0.025 + 0.38 * (1 - kept),
        program=ProgramRef("onnxruntime", "mixed" if 0 < eight < 1 else "fp32", TARGET, {"model.onnx": "0" * 64}),
        weights="1" * 64,
        training=Training(1, 31.5, 412) if fidelity == "recovered" else None,
        leg=int(fidelity == "recovered"),
    )


def _around(value: float, unit: str, spread: float, *, n: int) -> Reading:
    return measured(value, unit, low=value - spread, high=value + spread, n=n)


def _failed(plan: Plan) -> Evaluation:
    none = unavailable("points", "the trial failed")
    return Evaluation(plan, "one-shot", none, none, {}, seconds=1.2, error="export failed: Shape mismatch at <Conv_12> & 'x'")


def _layers(plan: Plan, called: dict[str, str]) -> list[dict[str, Any]]:
    rows = []
    widths, bits = plan.of("width"), plan.of("bits")
    for name, width, _ in LAYERS:
        place = called.get(name, name)
        kept = int(widths.get(place, width))
        params, macs = 9 * width * width, 9 * width * width * 1024 // (width // 16) ** 2
        cut = kept < width
        eight = bits[place] == 8
        rows.append(
            {
                "name": place,
                "kind": "Conv2d",
                "before": {"out": width, "params": params, "macs": macs, "bits": 32},
                "after": {"out": kept, "params": params * kept // width, "macs": macs * kept // width, "bits": bits[place]},
                "loss": 0.0031 * (1 - kept / width) + 0.0002 * eight,
                "why": "cheapest channels by the loss table"
                if cut
                else "8 bits cost nothing here"
                if eight
                else "every cut cost more than it saved",
            }
        )
    rows.append(
        {
            "name": "layer3.2.shortcut",
            "kind": "Identity",
            "before": {"out": 64, "params": 4096, "macs": 262144, "bits": 32},
            "after": None,
            "loss": None,
            "why": "the block it fed was dropped",
        }
    )
    return rows


@pytest.fixture
def visit(chromium, tmp_path):
    """Write a page, open it at a fragment, return the DOM; any complaint on the console fails the test."""

    def go(page: str, fragment: str = "", *, clean: bool = True, width: int = 1280) -> str:
        path = tmp_path / "report.html"
        path.write_text(page, encoding="utf-8")
        done = chromium(path.as_uri() + fragment, f"--window-size={width},900")
        complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        assert bool(complaints) != clean, complaints
        return done.stdout

    return go


@pytest.fixture
def study() -> Callable[..., dict[str, Any]]:
    """The generator of studies."""
    return make_study


LAW = {"E": 0.21, "A": 95.0, "B": 310.0, "a": 0.42, "b": 0.39}


def make_scale(*, refused: bool = False, **fields: Any) -> dict[str, Any]:
    """Return a scale advisor's summary that looks like a real one: 12 runs on three levels of compute, one held out."""
    rng = random.Random(3)
    levels = (3e12, 1e13, 3e13)
    runs = [_run(n * 10 ** (0.45 * i), level, rng) for i, level in enumerate(levels) for n in (6e4, 1.2e5, 2.4e5, 4.8e5)]
    runs.append({**_run(1.9e6, 1.2e14, rng), "held_out": True})
    runs[3] = {**runs[3], "annealed": False, "quality": as_data(unavailable("points", "the run was cut short"))}
    ladder = [0.7e6, 1.1e6, 1.6e6, 2.2e6, 3.4e6]
    candidates = [_candidate(n, 7e14) for n in ladder]
    answer: dict[str, Any] = {
        "status": "recommended",
        "reason": "Within 0.5 % of the least loss that two hours buy, the size that is cheapest over a million requests.",
        "range": [1.2e6, 2.3e6],
        "recommended": candidates[2],
        "limits": [
            {"text": "train ≤ 2 h", "reads": "1.63 h", "holds": True},
            {"text": "latency ≤ 5 ms", "reads": "3.1 ms", "holds": True},
        ],
        "binding": "train ≤ 2 h",
        "requests": 2e6,
    }
    if refused:
        answer = {
            "status": "refused",
            "reason": "The 90 % interval of the best size spans a factor of 11; at most 8 can be trusted.",
            "add_runs": [
                {
                    "scale": {"width": w, "depth": 3},
                    "params": n,
                    "samples": 2e6,
                    "compute": 6 * n * 2e6,
                    "seconds": as_data(estimated(95.0, "s", note="from the runs made")),
                    "why": why,
                }
                for w, n, why in ((48, 4e5, "pins the bend"), (64, 8e5, "pins the bend"), (96, 1.7e6, "reaches nearer"))
            ],
        }
    return {
        "schema": SCHEMA,
        "header": {
            "family": "resnet",
            "task": "cifar10",
            "target": "onnxruntime:cpu?threads=1",
            "limits": "train<=2h, latency<=5ms",
            "metric": {"name": "accuracy", "maximize": True},
            "seed": 0,
            "machine": {"cpu": "Example 8-core at 2.6 GHz", "cores": 2, "versions": {"torch": "2.13.0"}},
            "started": "2026-11-23 00:40 UTC",
            "seconds": 1630.0,
            "plan": "12 runs on 3 levels",
        },
        "statement": "",
        "law": {**LAW, "size": "params", "intervals": {k: [0.9 * v, 1.12 * v] for k, v in LAW.items()}, "repetition": 15.0},
        "runs": runs,
        "curves": [_curve_of(c) for c in (*levels, 7e14)],
        "frontier": _frontier_of([10**e for e in (12.2, 12.6, 13.0, 13.4, 13.8, 14.2, 14.6, 15.0)]),
        "answer": answer,
        "candidates": [] if refused else candidates,
        "compress_branch": None
        if refused
        else {
            "direct": candidates[2],
            "compressed": {
                **candidates[2],
                "scale": {"width": 160},
                "train_s": as_data(estimated(9100.0, "s", note="counted")),
            },
            "plan": "train 3.4 M parameters, then cut 45 % of the channels and quantize to int8",
            "verdict": "Compressing down is no better here: it trains longer for the same loss.",
        },
        "progress": [
            {
                "round": r,
                "proposed": 64,
                "trained": 3,
                "loss": 0.71 - 0.02 * r,
                "hypervolume": 0.3 + 0.05 * r,
                "seconds": 9.0 * r,
            }
            for r in range(4)
        ],
        "notes": ["Every fitted run was annealed to the end of its schedule."],
        **fields,
    }


def _loss(size: float, compute: float) -> float:
    return LAW["E"] + LAW["A"] * size ** -LAW["a"] + LAW["B"] * (compute / (6 * size)) ** -LAW["b"]


def _run(size: float, compute: float, rng: random.Random) -> dict[str, Any]:
    loss = _loss(size, compute) * (1 + rng.gauss(0, 0.004))
    return {
        "scale": {"width": round(size**0.5 / 12), "depth": 3},
        "params": round(size),
        "flops_per_sample": 2 * size,
        "samples": compute / (6 * size),
        "unique": 45_000,
        "compute": compute,
        "loss": as_data(_around(loss, "1", 0.01 * loss, n=5000)),
        "quality": as_data(_around(100 - 22 * loss, "points", 0.4, n=5000)),
        "seconds": as_data(measured(compute / 4e11, "s")),
        "seed": 0,
    }


def _curve_of(compute: float) -> dict[str, Any]:
    sizes = [3e4 * 1.35**i for i in range(18)]
    best = min(sizes, key=lambda n: _loss(n, compute))
    wide = 0.01 + 0.004 * max(0.0, compute / 3e13)
    loss = [_loss(n, compute) for n in sizes]
    return {
        "compute": compute,
        "sizes": sizes,
        "loss": loss,
        "low": [v * (1 - wide) for v in loss],
        "high": [v * (1 + wide) for v in loss],
        "best": {"size": best, "low": best / 1.4, "high": best * 1.5},
        **({"label": "your limit"} if compute > 1e14 else {}),
    }


def _frontier_of(computes: list[float]) -> dict[str, Any]:
    loss = [min(_loss(3e4 * 1.2**i, c) for i in range(40)) for c in computes]
    wide = [0.01 + 0.012 * max(0.0, i - 4) for i in range(len(computes))]
    ends = {end: [v * (1 + s * w) for v, w in zip(loss, wide, strict=True)] for end, s in (("low", -1), ("high", 1))}
    return {"compute": computes, "loss": loss, **ends}


def _candidate(size: float, compute: float) -> dict[str, Any]:
    loss, least = _loss(size, compute), min(_loss(n * 1e5, compute) for n in range(5, 60))
    law, table = "from the fitted law", "from the latency of the scales timed"
    row = {
        "params": measured(size, "1"),
        "flops_per_sample": measured(2 * size, "1"),
        "quality": estimated(100 - 22 * loss, "points", low=98.9 - 22 * loss, high=100.9 - 22 * loss, note=law),
        "loss": estimated(loss, "1", low=0.97 * loss, high=1.03 * loss, note=law),
        "regret": estimated(loss / least - 1, "1", note=law),
        "compute": estimated(compute, "1", note="what the time limit buys"),
        "train_s": estimated(5870.0, "s", low=5500.0, high=6300.0, note="from the runs made"),
        "train_cost": estimated(0.82, "$", note="$0.50 an hour"),
        "latency_s": estimated(1.9e-3 * size / 1e6, "s", note=table),
        "size_bytes": estimated(4.05 * size, "B", note="4 bytes a parameter"),
        "peak_memory_bytes": estimated(11 * size, "B", note="live activations"),
        "energy_j": unavailable("J", "no energy counter is readable on this machine"),
        "price_per_million": estimated(0.26 * size / 1e6, "$", note="latency × $0.50 an hour"),
    }
    width = round(size**0.5 / 12)
    breaks = ["latency<=5ms"] if size > 3e6 else []
    return {"scale": {"width": width, "depth": 3}, "breaks": breaks, **{k: as_data(v) for k, v in row.items()}}


@pytest.fixture
def scale_summary() -> Callable[..., dict[str, Any]]:
    """The generator of scale summaries."""
    return make_scale


def make_train(**fields: Any) -> dict[str, Any]:
    """Return a training run's summary that looks like a real one: it learns, then over-fits."""
    curve = [
        {
            "step": 50 * i,
            "epoch": 0.25 * i,
            "seconds": 4.1 * i,
            "train_loss": 2.3 * (i + 1) ** -0.9,
            "validation_loss": 2.3 * (i + 1) ** -0.6 + 0.0006 * i * i,
            "validation_metric": 92 - 80 * (i + 1) ** -0.8 - 0.003 * i * i,
            "lr": 0.1 * min(1.0, i / 4) * (1 - i / 31),
        }
        for i in range(1, 31)
    ]
    ahead = [1500 + 100 * i for i in range(7)]
    return {
        "schema": SCHEMA,
        "header": {
            "model": "resnet width 16, depth 3",
            "task": "cifar10",
            "device": "cpu, 2 threads",
            "metric": {"name": "accuracy", "maximize": True},
            "seed": 0,
            "machine": {"cpu": "Example 8-core at 2.6 GHz", "cores": 2},
            "versions": {"torch": "2.13.0"},
            "started": "2026-11-23 00:40 UTC",
        },
        "curve": curve,
        "best": curve[16],
        "stopped": "patience: no better validation loss for 6 looks",
        "reached": {
            "quality": as_data(_around(83.4, "points", 0.7, n=5000)),
            "train_loss": as_data(measured(0.11, "1", note="mean of the last 50 steps")),
            "validation_loss": as_data(measured(0.62, "1", n=5000)),
            "params": as_data(measured(272_474, "1")),
            "train_s": as_data(measured(123.0, "s")),
            "train_energy_j": as_data(unavailable("J", "no RAPL counter is readable on this machine")),
        },
        "diagnosis": {
            "verdict": "over-fit",
            "reason": "Validation loss has risen since step 850 while training loss went on falling.",
            "evidence": [
                {"sign": "gap", "value": as_data(measured(0.51, "1", low=0.44, high=0.58, n=8)), "means": "wide at the end"},
                {"sign": "rise", "value": as_data(measured(0.07, "1", n=8)), "means": "validation loss above its least"},
            ],
            "remedies": [
                {"do": "flip the images", "gain": as_data(estimated(2.1, "points", low=0.8, high=3.4, note="two short runs"))},
                {"do": "weight decay 5e-4", "gain": as_data(unavailable("points", "nothing was run with it")), "why": "cheap"},
            ],
            "outlook": [
                {"change": "twice the data", "value": as_data(estimated(1.9, "points", low=1.1, high=2.6, note="from a curve"))}
            ],
        },
        "extrapolation": {
            "of": "validation_loss",
            "steps": ahead,
            "value": [0.85 + 0.02 * i for i in range(7)],
            "low": [0.85 + 0.01 * i for i in range(7)],
            "high": [0.85 + 0.04 * i for i in range(7)],
        },
        "recipe": {"optimizer": "sgd", "lr": 0.1, "schedule": "linear", "batch": 250, "augment": ["flip"], "nesterov": True},
        "notes": ["Weights were kept from the best look at the validation split."],
        **fields,
    }


@pytest.fixture
def train_summary() -> Callable[..., dict[str, Any]]:
    """The generator of training summaries."""
    return make_train
