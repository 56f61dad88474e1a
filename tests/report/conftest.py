"""A study that looks like a real one: 40 evaluations of a small residual net, seeded, no torch."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from equipoise.records import Evaluation, Plan, Reading, as_data, estimated, measured, unavailable

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
        evaluations.append(_failed(Plan({**_choices(0.25, 8, called), "runtime": f"broken{number}"})))
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
        "schema": 1,
        "header": {
            "workload": "cifar10:resnet20",
            "target": "onnxruntime:cpu?threads=1&batch=1",
            "budget": "latency<=700us, drop<=1",
            "seed": 0,
            "metric": {"name": "accuracy", "maximize": True, "unit": "points"},
            "started": "2026-11-22 21:50 UTC",
            "machine": {
                "cpu": "Example 8-core at 2.6 GHz",
                "flags": ["avx2", "avx512f", "avx512_vnni"],
                "cores": 2,
                "load": 0.31,
                "versions": {"equipoise": "0.1.0", "torch": "2.13.0", "onnxruntime": "1.32.0", "numpy": "2.4.6"},
            },
            "protocol": {
                "rounds": 12,
                "calls": 40,
                "discard": 10,
                "order": "blocks shuffled in every round",
                "interval": "95 %",
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
        predicted={"latency_s": latency * rng.uniform(0.92, 1.08), "size_bytes": size, "loss": 0.02 + 0.4 * (1 - kept)},
        seconds=2.5 + (rng.uniform(12, 40) if fidelity == "recovered" else rng.uniform(0, 2)),
        details={"epochs": 2} if fidelity == "recovered" else {},
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
                "saved_s": 4.1e-5 * (1 - kept / width) + 1.9e-5 * eight,
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
            "saved_s": None,
            "why": "the block it fed was dropped",
        }
    )
    return rows


@pytest.fixture
def study() -> Callable[..., dict[str, Any]]:
    """The generator of studies."""
    return make_study
