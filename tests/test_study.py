"""A study's answers, on records made by hand."""

from __future__ import annotations

import math

import pytest

from equipoise.errors import EXIT_FAILED, EquipoiseError, InputError, StoreError
from equipoise.records import Evaluation, Plan, as_data, measured, unavailable
from equipoise.store import Store
from equipoise.study import Study
from equipoise.summary import summarize

UNTOUCHED = {"width.conv1": 64, "bits.conv1": 32, "depth.block1": "keep"}
LAYERS = [{"name": "conv1", "kind": "Conv2d", "out": 64, "params": 640, "macs": 6400, "bits": 32}]


def evaluation(latency_ms, drop, *, size=1000, fidelity="one-shot", error="", **choices) -> Evaluation:
    plan = Plan({**UNTOUCHED, **{k.replace("_", ".", 1): v for k, v in choices.items()}})
    cost = {"latency_s": measured(latency_ms / 1e3, "s"), "size_bytes": measured(size, "B")}
    reading = measured(drop, "points", low=drop - 0.5, high=drop + 0.5, n=400)
    details = {"runtime": "onnxruntime", "precision": "fp32", "loss": drop / 10, "layers": LAYERS}
    return Evaluation(plan, fidelity, measured(90 - drop, "points"), reading, cost, details=details, error=error)


BASE = evaluation(2.0, 0.0, fidelity="untouched")
HALF = evaluation(1.0, 0.5, size=500, width_conv1=32)
TINY = evaluation(0.5, 6.0, size=200, width_conv1=8)
TRAINED = evaluation(0.5, 1.5, size=200, fidelity="recovered", width_conv1=8)
SLOWER = evaluation(3.0, 0.1, size=1100, bits_conv1=8)
BROKEN = evaluation(0.1, 0.0, error="Traceback\nValueError: no", width_conv1=16)


def study(tmp_path, *rows, budget="") -> Study:
    with Store.open(tmp_path / "study") as store:
        fill(store, rows, budget)
        return Study.read(store)


def fill(store, rows, budget) -> None:
    header = {
        "budget": budget,
        "metric": {"name": "accuracy", "unit": "points"},
        "left_whole": {"fc": "it feeds the model's output"},
    }
    store.put("study", "1", {"header": header}, seconds=0)
    for row in rows:
        store.put("evaluation", row.key, {"evaluation": as_data(row)}, seconds=1)


def test_the_front_holds_what_nothing_beats_and_no_failure(tmp_path) -> None:
    found = study(tmp_path, BASE, HALF, TINY, TRAINED, SLOWER, BROKEN).front
    assert [e.key for e in found] == [TRAINED.key, HALF.key, BASE.key]  # slower than the untouched: caught


def test_only_the_furthest_fidelity_of_a_plan_competes(tmp_path) -> None:
    assert TINY.key not in {e.key for e in study(tmp_path, BASE, TINY, TRAINED).usable}


@pytest.mark.parametrize(
    ("budget", "best"),
    [("drop<=1", HALF), ("drop<=2", TRAINED), ("latency<=1.5ms", HALF), ("latency<=0.6ms", TRAINED), ("drop<=0.2", BASE)],
)
def test_the_best_is_what_the_budget_asks_for(tmp_path, budget, best) -> None:
    found = study(tmp_path, BASE, HALF, TINY, TRAINED, SLOWER, budget=budget)
    assert found.met
    assert found.best.key == best.key


def test_a_missed_budget_names_the_nearest_point_and_what_binds(tmp_path) -> None:
    found = study(tmp_path, BASE, HALF, TRAINED, budget="latency<=0.6ms, drop<=1")
    assert not found.met
    assert found.best.key == TRAINED.key
    assert "NOT met" in found.verdict()
    assert "binding constraint is drop" in found.verdict()


def test_a_met_budget_has_no_nearest_point(tmp_path) -> None:
    found = study(tmp_path, BASE, HALF, budget="drop<=1")
    with pytest.raises(InputError, match="some plan meets it"):
        _ = study(tmp_path / "b", HALF, HALF, budget="drop<=1").nearest
    assert found.verdict() == "budget met: drop<=1"


def test_an_unmeasured_axis_never_meets_a_bound(tmp_path) -> None:
    found = study(tmp_path, BASE, HALF, budget="energy<=1mJ")
    assert not found.met
    assert math.isinf(found.nearest[1]["energy"])


def test_the_sentence_says_speed_size_and_drop(tmp_path) -> None:
    found = study(tmp_path, BASE, HALF, SLOWER)
    assert "2.00× smaller, drop 0.50 ± 0.50 points of accuracy" in found.sentence(HALF)


def test_the_sentence_uses_the_final_race(tmp_path) -> None:
    with Store.open(tmp_path / "study") as store:
        fill(store, (BASE, HALF), "")
        ratio = {"value": 0.8, "low": 0.7, "high": 0.9, "n": 12, "confidence": 0.95}
        store.put("final", "x", {"ratios": {HALF.key: ratio}}, seconds=1)
        assert Study.read(store).sentence(HALF).startswith("1.25× slower")


def test_a_raced_latency_is_the_one_that_is_told_and_held_to_the_budget(tmp_path) -> None:
    with Store.open(tmp_path / "study") as store:
        fill(store, (BASE, HALF), "latency<=0.9ms")
        ratio = {"value": 2.5, "low": 2.0, "high": 4.0, "n": 12, "confidence": 0.95}
        store.put("final", "x", {"ratios": {HALF.key: ratio}}, seconds=1)
        found, searched = Study.read(store), Study.read(store, raced=False)
    latency = found.best.axis("latency_s")
    assert (latency.value, latency.low, latency.high) == pytest.approx((0.8e-3, 0.5e-3, 1.0e-3))  # 2 ms over each ratio
    assert found.met
    assert not searched.met  # the search itself read 1 ms: a resumed run must find the shortlist that it found before


def test_a_store_without_a_baseline_says_so(tmp_path) -> None:
    with Store.open(tmp_path / "study") as store, pytest.raises(StoreError, match="no baseline yet"):
        Study.read(store)


def test_the_summary_tells_each_layer_what_happened_to_it(tmp_path) -> None:
    with Store.open(tmp_path / "study") as store:
        fill(store, (BASE, HALF, BROKEN), "drop<=1")
        store.put("table", "width.conv1=32", {"knob": "width.conv1", "choice": 32, "loss": 0.25}, seconds=1)
        found = summarize(store)
    (row,) = found["layers"]
    assert row["loss"] == 0.25
    assert found["pick"] == HALF.key
    assert len(found["progress"]) == 3
    assert found["progress"][1]["hypervolume"] > found["progress"][0]["hypervolume"]
    assert any("1 trial failed" in note for note in found["notes"])
    assert any(note.startswith("fc was left whole") for note in found["notes"])


def test_progress_never_falls(tmp_path) -> None:
    with Store.open(tmp_path / "study") as store:
        fill(store, (BASE, TINY, HALF, SLOWER, TRAINED), "")
        volumes = [row["hypervolume"] for row in summarize(store)["progress"]]
    assert volumes == sorted(volumes)


def test_an_unknown_pick_lists_the_names(tmp_path) -> None:
    with pytest.raises(EquipoiseError, match="fastest") as caught:
        study(tmp_path, BASE, HALF).pick("quickest")
    assert caught.value.exit_code != EXIT_FAILED


def test_unavailable_never_enters_the_front(tmp_path) -> None:
    blind = evaluation(0.01, 0.0, width_conv1=24)
    cost = {"latency_s": unavailable("s", "no clock"), "size_bytes": measured(1, "B")}
    blind = Evaluation(blind.plan, "one-shot", blind.quality, blind.drop, cost, details=blind.details)
    assert blind.key not in {e.key for e in study(tmp_path, BASE, blind).front}
