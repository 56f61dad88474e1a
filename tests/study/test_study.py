"""A study's answers, on records made by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from equipoise.errors import EXIT_FAILED, EquipoiseError, InputError, StoreError
from equipoise.pages.view import client_data, evaluations_of, page_data
from equipoise.records import Evaluation, Knob, LayerRow, Plan, ProgramRef, as_data, measured, unavailable
from equipoise.study.header import Header, Offered
from equipoise.study.record import Study, describe
from equipoise.study.store import Store
from equipoise.study.summary import layer_rows, summarize

UNTOUCHED = {"width.conv1": 64, "bits.conv1": 32, "depth.block1": "keep"}
LAYERS = (LayerRow("conv1", "Conv2d", 64, 640, 6400, 32),)
PROGRAM = ProgramRef("onnxruntime", "fp32", "onnxruntime:cpu?threads=1&batch=1", {"model.onnx": "0" * 64})


def evaluation(latency_ms, drop, *, size=1000, fidelity="one-shot", error="", leg=0, **choices) -> Evaluation:
    plan = Plan({**UNTOUCHED, **{k.replace("_", ".", 1): v for k, v in choices.items()}})
    cost = {"latency_s": measured(latency_ms / 1e3, "s"), "size_bytes": measured(size, "B")}
    reading = measured(drop, "points", low=drop - 0.5, high=drop + 0.5, n=400)
    made = {"damage": drop / 10, "program": PROGRAM, "layers": LAYERS}
    return Evaluation(plan, fidelity, measured(90 - drop, "points"), reading, cost, error=error, leg=leg, **made)


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


SPACE = tuple(
    Offered(Knob(name, menu), (layer,))
    for name, menu, layer in (
        ("width.conv1", (64, 40, 32, 24, 16, 8), "conv1"),
        ("bits.conv1", (32, 8), "conv1"),
        ("depth.block1", ("keep", "drop"), "block1.a"),
    )
)


def asked(budget, **more) -> Header:
    given = {"workload": "digits", "name": "digits", "target": PROGRAM.target, "time_s": 60.0, "seed": 0, "baseline": BASE.key}
    metric, left = {"name": "accuracy", "unit": "points", "maximize": True}, {"fc": "it feeds the model's output"}
    return Header(**{**given, "budget": budget, "metric": metric, "space": SPACE, "left_whole": left, **more})


def fill(store, rows, budget, **more) -> None:
    store.put("study", "1", {"header": as_data(asked(budget, **more))}, seconds=0)
    for row in rows:
        store.put("evaluation", row.key, {"evaluation": as_data(row)}, seconds=1)


def raced(key, ratio) -> dict:
    """A last race: one ratio, and the untouched model as fast as it was before."""
    return {"ratios": {key: ratio}, "reference": as_data(BASE.axis("latency_s")), "elasticity": {}}


def test_the_verdict_names_what_cannot_be_told_apart_from_the_pick(tmp_path) -> None:
    like = evaluation(1.0, 0.5, size=510, width_conv1=40)
    said = study(tmp_path, BASE, HALF, like, TINY, budget="drop<=1").verdict()
    assert said == (
        "budget met: drop<=1; in speed and drop the pick cannot be told apart from 1 other plan "
        f"({like.plan.digest[:8]})"
    )  # fmt: skip


def test_the_front_holds_what_nothing_beats_and_no_failure(tmp_path) -> None:
    found = study(tmp_path, BASE, HALF, TINY, TRAINED, SLOWER, BROKEN).front
    assert [e.key for e in found] == [TRAINED.key, HALF.key, BASE.key]  # slower than the untouched: caught


def test_only_the_furthest_fidelity_of_a_plan_competes(tmp_path) -> None:
    assert TINY.key not in {e.key for e in study(tmp_path, BASE, TINY, TRAINED).usable}


@pytest.mark.parametrize(("after", "kept"), [(0.3, 1), (0.1, 2)])
def test_of_a_plan_trained_twice_the_one_that_loses_less_competes(tmp_path, after, kept) -> None:
    legs = [replace(TRAINED, leg=1, damage=0.2), replace(TRAINED, leg=2, damage=after)]
    usable = {e.key for e in study(tmp_path, BASE, TINY, *legs).usable}
    assert usable == {BASE.key, legs[kept - 1].key}


@pytest.mark.parametrize(
    ("drop", "damage", "kept"), [(0.3, 0.01, False), (0.3, 0.3, False), (0.8, 0.01, False), (0.8, 0.3, True)]
)
def test_a_plan_that_training_made_worse_competes_as_it_was(tmp_path, drop, damage, kept) -> None:
    reading = measured(drop, "points", low=drop - 0.5, high=drop + 0.5, n=400)
    after = replace(HALF, fidelity="recovered", leg=1, drop=reading, damage=damage)
    usable = {e.key for e in study(tmp_path, BASE, HALF, after).usable}
    assert usable == {BASE.key, HALF.key if kept else after.key}


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
        store.put("final", "x", raced(HALF.key, ratio), seconds=1)
        assert Study.read(store).sentence(HALF).startswith("1.25× slower")


def test_races_of_different_states_of_the_machine_are_told_in_that_of_the_last(tmp_path) -> None:
    with Store.open(tmp_path / "study") as store:
        fill(store, (BASE, HALF, TINY), "")
        for name, key, seconds in (("x", HALF.key, 2e-3), ("y", TINY.key, 2.42e-3)):
            ratio = {"value": 2.0, "low": 1.9, "high": 2.1, "n": 12, "confidence": 0.95}
            row = {"ratios": {key: ratio}, "reference": as_data(measured(seconds, "s")), "elasticity": {key: [0.5, 0.1]}}
            store.put("final", name, row, seconds=1)
        found = Study.read(store)
    carried = found.ratio(HALF)
    assert carried.value == pytest.approx(2.2)
    assert carried.high / carried.value > 2.1 / 2.0, "what is not known of the elasticity is in the interval"
    assert (found.ratio(TINY).value, found.ratio(TINY).low) == (2.0, 1.9)
    shown = {e.key: e.axis("latency_s").get() for e in found.evaluations}
    assert shown[HALF.key] == pytest.approx(2.42e-3 / 2.2)


def test_the_untouched_model_is_as_fast_as_itself_give_or_take_what_its_race_spreads(tmp_path) -> None:
    with Store.open(tmp_path / "study") as store:
        fill(store, (BASE, HALF), "")
        ratio = {"value": 1.04, "low": 0.936, "high": 1.144, "n": 12, "confidence": 0.95}
        store.put("final", "x", raced(BASE.key, ratio), seconds=1)
        found = Study.read(store)
    told = found.ratio(found.baseline)
    assert (told.value, told.low, told.high, told.n) == pytest.approx((1.0, 0.9, 1.1, 12))
    assert found.sentence(found.baseline).startswith("1.00× as fast (cannot tell from 1), 1.00× smaller, drop 0.00")


def test_a_raced_latency_is_the_one_that_is_told_and_held_to_the_budget(tmp_path) -> None:
    with Store.open(tmp_path / "study") as store:
        fill(store, (BASE, HALF), "latency<=0.9ms")
        ratio = {"value": 2.5, "low": 2.0, "high": 4.0, "n": 12, "confidence": 0.95}
        store.put("final", "x", raced(HALF.key, ratio), seconds=1)
        found, searched = Study.read(store), Study.read(store, raced=False)
    latency = found.best.axis("latency_s")
    assert (latency.value, latency.low, latency.high) == pytest.approx((0.8e-3, 0.5e-3, 1.0e-3))  # 2 ms over each ratio
    assert found.met
    assert not searched.met  # the search itself read 1 ms: a resumed run must find the shortlist that it found before


def test_what_follows_from_the_latency_follows_from_the_raced_one(tmp_path) -> None:
    half = replace(HALF, cost={**HALF.cost, "energy_j": measured(1e-3, "J")})  # at 1 ms
    with Store.open(tmp_path / "study") as store:
        fill(store, (BASE, half), "price<=0.42$, throughput>=1200/s", price_per_hour=1.8)
        store.put(
            "final", "x", raced(HALF.key, {"value": 2.5, "low": 2.0, "high": 4.0, "n": 12, "confidence": 0.95}), seconds=1
        )
        found, searched = Study.read(store), Study.read(store, raced=False)
    price, rate = (found.evaluations[1].axis(axis) for axis in ("price_per_million", "throughput_per_s"))
    assert (price.value, price.low, price.high) == pytest.approx((0.4, 0.25, 0.5))  # 0.8 ms, from 0.5 to 1.0
    assert (rate.value, rate.low, rate.high) == pytest.approx((1250.0, 1000.0, 2000.0))
    assert found.evaluations[1].axis("energy_j") == measured(1e-3, "J")
    assert (found.met, searched.met) == (True, False)


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


def test_what_became_of_each_layer_is_told_from_the_space() -> None:
    rows = {
        "conv1": LayerRow("conv1", "Conv2d", 64, 640, 6400, 32),
        "conv2": LayerRow("conv2", "Conv2d", 8, 50, 500, 32),
        "block1.a": LayerRow("block1.a", "Linear", 8, 64, 64, 32),
        "fc": LayerRow("fc", "Linear", 10, 90, 90, 32),
    }
    knobs = (
        ("width.conv1", (64, 32), ("conv1", "conv2")),
        ("bits.fc", (32, 8), ("fc",)),
        ("depth.block1", ("keep", "drop"), ("block1.a",)),
    )
    header = asked(
        "", space=tuple(Offered(Knob(name, menu), layers) for name, menu, layers in knobs), damage_unit="squared spreads"
    )
    base = replace(BASE, plan=header.untouched, layers=tuple(rows.values()))
    half = replace(rows["conv1"], out=32, params=320, macs=3200)
    parts = [LayerRow(f"fc.{i}", "Linear", out, 20, 20, 8) for i, out in enumerate((3, 10))]  # put into two thin ones
    plan = header.untouched.but({"width.conv1": 32, "bits.fc": 8, "depth.block1": "drop"})
    pick = replace(base, plan=plan, layers=(half, replace(rows["conv2"], params=25), *parts))
    found = {row["name"]: row for row in layer_rows(header, pick, base, {"width.conv1=32": 0.25, "bits.fc=8": 0.5})}
    assert found["conv1"]["why"].startswith("32 of 64 channels cut")
    assert found["conv1"]["why"].endswith("(alone: 0.25 squared spreads)")
    assert found["conv2"]["why"] == "reads fewer channels (alone: 0.25 squared spreads)"
    assert (found["block1.a"]["after"], found["block1.a"]["why"], found["block1.a"]["loss"]) == (
        None,
        "its block was dropped",
        None,
    )
    assert found["fc"]["after"] == {"out": 10, "params": 40, "macs": 40, "bits": 8}
    assert found["fc"]["why"] == "8-bit weights and inputs, ranges known beforehand (alone: 0.5 squared spreads)"
    assert [row["why"] for row in layer_rows(header, base, base, {})] == ["left whole"] * 4


def test_a_plan_is_described_in_a_few_words() -> None:
    two = replace(PROGRAM, runtime="openvino", precision="mixed", target="openvino:cpu?threads=2&batch=1")
    dropped = replace(evaluation(1.0, 0.5, width_conv1=32, depth_block1="drop"), program=two)
    assert describe(BASE, BASE) == "untouched, onnxruntime, fp32"
    assert describe(HALF, BASE) == "onnxruntime, fp32, 50% channels cut"
    assert describe(dropped, BASE) == "openvino threads=2, mixed, 50% channels cut, 1 block dropped"
    assert describe(replace(BROKEN, program=None), BASE) == "75% channels cut"


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
    blind = replace(blind, cost=cost)
    assert blind.key not in {e.key for e in study(tmp_path, BASE, blind).front}


LEGS = [evaluation(0.5, drop, size=200, fidelity="recovered", width_conv1=8, leg=leg) for leg, drop in ((1, 1.5), (2, -0.25))]


def test_every_number_of_a_pick_trained_in_rungs_is_of_one_training(tmp_path) -> None:
    with Store.open(tmp_path / "study") as store:
        fill(store, (BASE, HALF, TINY, *LEGS), "drop<=1")
        ratio = {"value": 4.2, "low": 4.0, "high": 4.4, "n": 12, "confidence": 0.95}
        store.put("final", "x", raced(LEGS[1].key, ratio), seconds=1)
        summary = summarize(store)
    evaluations = evaluations_of(summary)
    page, client = page_data(summary, evaluations), client_data(summary, evaluations)
    assert summary["pick"] == LEGS[1].key
    assert "4.20× faster" in summary["sentence"]
    assert "drop -0.25" in summary["sentence"]
    assert [row["key"] for row in page["rows"] if "pick" in row["roles"]] == [LEGS[1].key]
    assert [bound["holds"] for bound in page["bounds"]] == [True]
    assert page["bounds"][0]["reads"].startswith("-0.25")
    assert any("drop -0.25" in row["change"] for row in page["comparison"])
    assert len({point["key"] for point in client["points"]}) == len(client["points"])


def test_failures_are_counted_with_the_commonest_reason(tmp_path) -> None:
    trained = [
        evaluation(1, 0, fidelity="recovered", error="Traceback\nTypeError: tuple has no shape", width_conv1=8, leg=leg)
        for leg in (1, 2)
    ]
    broken = [
        evaluation(1, 0, error=f"Traceback\n{why}", width_conv1=w)
        for w, why in ((16, "A: a"), (24, "B: shape [4, 8] of 32"), (40, "B: shape [4, 16] of 2.5"))
    ]
    with Store.open(tmp_path / "study") as store:
        fill(store, (BASE, HALF, *broken, *trained), "")
        store.put("table", "bits.fc=8", {"knob": "bits.fc", "choice": 8, "loss": None, "error": "C: c"}, seconds=1)
        store.put("lut", "onnxruntime:cpu", {"times": {}, "failed": {"32:x": "conv 3x8, 32 bits: D: d"}}, seconds=1)
        found, summary = Study.read(store), summarize(store)
    said = found.failed()
    assert f"3 trials failed of 4, most often 2 times: B: shape [4, 8] of 32 (plan {broken[1].plan.digest})" in said
    assert "all 2 trainings failed: TypeError: tuple has no shape" in said
    assert "1 choice could not be probed and was left out: C: c (bits.fc=8)" in said
    assert any(said in note for note in summary["notes"])
    assert "bits.fc=8 was left out: its probe failed (C: c)" in summary["notes"]
    assert any(note.startswith("1 operator could not be timed") and "D: d" in note for note in summary["notes"])
    assert study(tmp_path / "b", BASE, HALF).failed() == ""


def test_a_study_with_nothing_but_failures_answers_in_sentences(tmp_path) -> None:
    found = study(tmp_path, BASE, BROKEN, budget="drop<=1")
    assert found.best.key == found.knee.key == BASE.key
    assert found.failed() == f"1 trial failed of 1: ValueError: no (plan {BROKEN.plan.digest})"
    only = study(tmp_path / "b", BASE, BROKEN)
    assert only.verdict().startswith("no budget given")
    with Store.open(tmp_path / "c") as store:
        fill(store, (BROKEN,), "")
        with pytest.raises(StoreError, match="no usable baseline"):
            Study.read(store)


EXTENT = {"entries": 40, "read": 0, "before_s": 8.2, "enough_s": 61.0}


def test_where_nothing_was_searched_that_is_the_answer(tmp_path) -> None:
    with Store.open(tmp_path / "study") as store:
        fill(store, (BASE,), "drop<=1", time_s=1.0)
        store.put("asking", "0", {"header": "1"}, seconds=0)
        store.put("extent", "1", EXTENT, seconds=0)
        found = Study.read(store)
        assert found.verdict() == (
            "nothing was searched: preparing and the baseline took 8.2 s where 1 s was given; give --time 70s"
        )
        assert not found.answered
        fill(store, (HALF,), "drop<=1", time_s=1.0)  # int8 by hand is part of the baseline: an answer, though none of a search
        found = Study.read(store)
    assert found.answered
    assert found.verdict().startswith("budget met: drop<=1; nothing was searched: ")


@pytest.mark.parametrize(
    ("plans", "answered", "said"),
    [
        (2, True, "nothing was left to search: all 2 plans that there are were tried"),
        (3, False, "nothing was searched: there was time for it, but the run was ended or nothing was proposed"),
    ],
)
def test_where_time_was_enough_none_is_asked_for(plans, answered, said, tmp_path) -> None:
    with Store.open(tmp_path / "study") as store:
        fill(store, (BASE, evaluation(12.0, 0.1, bits_conv1=8)), "", time_s=25.0)
        store.put("asking", "0", {"header": "1"}, seconds=0)
        store.put("extent", "1", {**EXTENT, "read": 40, "enough_s": 14.4, "plans": plans}, seconds=0)
        found = Study.read(store)
    assert found.answered == answered  # where all was tried, the untouched model is the answer
    assert found.verdict().endswith(said)
    assert found.verdict().startswith("no budget given") == answered


def test_a_pick_slower_than_the_untouched_model_is_announced(tmp_path) -> None:
    small = evaluation(3.0, 0.1, size=100, bits_conv1=8)
    with Store.open(tmp_path / "study") as store:
        fill(store, (BASE, small), "size<=200B")
        ratio = {"value": 0.67, "low": 0.6, "high": 0.7, "n": 12, "confidence": 0.95}
        store.put("final", "x", raced(small.key, ratio), seconds=1)
        found = Study.read(store)
    assert found.verdict() == "budget met: size<=200B; this pick is SLOWER than the untouched model"
    assert "1.49× slower" in found.sentence(found.best)


def test_what_was_asked_last_counts(tmp_path) -> None:
    with Store.open(tmp_path / "study") as store:
        fill(store, (BASE, HALF), "drop<=1")
        header = store.get("study", "1")["header"]
        store.put("study", "2", {"header": {**header, "budget": "size<=1KB"}}, seconds=0)
        assert Study.read(store).budget.text == "size<=1KB"  # before askings were recorded: the newest header
        for number, key in enumerate(("1", "2", "1")):
            store.put("asking", str(number), {"header": key}, seconds=0)
        assert Study.read(store).budget.text == "drop<=1"


def test_tables_that_took_all_the_time_are_named_and_a_model_without_choices_is_told_apart(tmp_path) -> None:
    with Store.open(tmp_path / "study") as store:
        fill(store, (BASE,), "drop<=1", time_s=60.0)
        store.put("asking", "0", {"header": "1"}, seconds=0)
        store.put("extent", "1", {"entries": 1, "read": 1, "before_s": 59.0, "enough_s": 130.0}, seconds=0)
        found = Study.read(store)
        assert found.unsearched() == (
            "nothing was searched: preparing, the baseline and the tables took 59 s where 1 min was given; give --time 3min"
        )
        store.put("table", "bits.fc=8", {"knob": "bits.fc", "choice": 8, "loss": None, "error": "C: c"}, seconds=1)
        assert "nothing in this model that could be changed" in Study.read(store).unsearched()
