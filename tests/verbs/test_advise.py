"""``equipoise advise``: what it tells is measured where it can be, has a range where it is not, and ends in its time."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from planted_study import FACTS, TARGET, TIMES, UNTOUCHED, evaluation, seconds, times
from torch import nn

import equipoise as eq
from equipoise.cli import advise as command
from equipoise.cli import main
from equipoise.errors import EXIT_BAD_INPUT, InputError
from equipoise.records import Reading, dumps, estimated, measured, unavailable
from equipoise.road.features import Features
from equipoise.runtimes.base import RUNTIMES, get
from equipoise.runtimes.onnxruntime import OnnxRuntime
from equipoise.verbs import advise as adviser
from equipoise.verbs.outlook import RUINED, Telling, _verdict, uniform
from equipoise.verbs.prospect import Contest, Level, Part, Prospect, Prospects
from equipoise.workloads import Workload


def net() -> nn.Module:
    """A small residual net that is good at telling three kinds of stripes."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 3),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def images():
    return torch.randn(64, 1, 12, 12, generator=torch.Generator().manual_seed(1))


ENOUGH = "10min"
"""Time for all of it on any machine: nothing is begun without need, so it ends in well under one."""


@pytest.fixture(autouse=True, scope="module")
def short():
    """Time operators and races no longer than a test needs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adviser, "TIMES_MOST_S", 1.0)
        patch.setattr(adviser, "STEADY_S", 0.5)
        yield


@pytest.fixture(scope="module")
def told(images, short):
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = eq.advise(model, images, target="onnxruntime:cpu", time=ENOUGH, on_step=lambda _: None)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return found


@pytest.mark.slow
def test_the_whole_of_a_small_net(told) -> None:
    assert told.inputs == 64
    assert {"channels", "bits"} <= {row.technique for row in told.techniques}
    first = told.contests[0]
    assert first.latency.known
    int8 = next(row for row in told.contests if row.precision == "int8" and row.target.startswith("onnxruntime"))
    assert 0 <= int8.loss.get() < 0.1
    bits = next(row for row in told.techniques if row.technique == "bits")
    whole = next(level for level in bits.levels if level.loss.get() == int8.loss.get())
    assert whole.times_faster.provenance == "measured"  # every layer in int8 was built and timed
    assert whole.times_smaller.get() > 1
    for row in told.techniques:
        for level in row.levels:
            assert level.times_faster.low is not None, level
            assert level.times_faster.low <= level.times_faster.get() <= level.times_faster.high
    widths = next(row for row in told.techniques if row.technique == "channels")
    assert widths.levels[-1].times_fewer_macs.get() > widths.levels[-2].times_fewer_macs.get() > 1
    assert widths.refused == {"6": "it feeds the model's output"}
    assert told.command.startswith("equipoise optimize WORKLOAD --target ")
    assert told.parts[0].seconds.known
    assert sum(part.share or 0 for part in told.parts) == pytest.approx(1)
    assert json.loads(dumps(told))["techniques"]


@pytest.mark.slow
def test_losses_that_were_read_are_those_of_the_whole_change(told) -> None:
    """All layers in int8 are read as a whole, on the runtime; their one-knob losses add up to about as much."""
    whole = next(row.loss.get() for row in told.contests if row.precision == "int8" and "onnxruntime" in row.target)
    assert told.read == told.entries  # all fit
    assert whole < 0.01
    strong = next(row for row in told.techniques if row.technique == "channels").levels[-1].loss
    assert strong.provenance == "estimated"
    assert strong.low <= strong.get() <= strong.high
    assert strong.get() > 10 * whole  # a quarter of the channels is not as good as int8


@pytest.mark.slow
def test_a_few_inputs_tell_no_loss(images) -> None:
    found = eq.advise(net(), images[:2], time=ENOUGH, on_step=lambda _: None)
    assert found.inputs == 0
    assert all(not level.loss.known for row in found.techniques for level in row.levels)
    assert all("inputs or more" in level.loss.note for row in found.techniques for level in row.levels)
    assert found.together == ()


@pytest.mark.slow
def test_what_fails_is_a_row_and_what_does_not_fit_is_named(images, monkeypatch) -> None:
    compiled = OnnxRuntime.compile

    def refuse(self, source, *, calibration=None, float_layers=None):
        if float_layers is not None:
            raise InputError("planted: this net cannot be quantized")
        return compiled(self, source)

    monkeypatch.setattr(OnnxRuntime, "compile", refuse)
    found = eq.advise(net(), images, time="0.5s", on_step=lambda _: None)  # only what must be is measured
    assert any("there was no time to measure int8" in text for text in found.skipped)
    absent = {get(name).unavailable() for name in RUNTIMES}
    assert {row.reason for row in found.contests if row.reason} - absent == {"there was no time to compile it"}
    found = eq.advise(net(), images, time=ENOUGH, on_step=lambda _: None)
    assert any("planted" in text for text in found.skipped)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["advise", "digit"], "digits"),
        (["advise", "digits", "--target", "onnxruntim"], "onnxruntime"),
        (["advise", "digits", "--target", "onnxruntime,torch"], "one target"),
        (["advise", "digits", "--time", "soon"], "--time"),
    ],
)
def test_bad_input_is_one_error(words, told, capsys) -> None:
    assert main(words) == EXIT_BAD_INPUT
    said = capsys.readouterr()
    assert said.out == ""
    assert told in said.err


def test_a_module_needs_inputs_and_a_workload_brings_them(images) -> None:
    with pytest.raises(InputError, match=r"advise\(example\)"):
        eq.advise(net())
    labels = torch.arange(64) % 3
    work = Workload(model=net(), train=(images, labels), test=(images, labels))
    with pytest.raises(InputError, match=r"advise\(example\)"):
        eq.advise(work, images)
    broken = images.clone()
    broken[3] = float("nan")
    with pytest.raises(InputError, match="example must be finite; got 'NaN or infinity in row 3'"):
        eq.advise(net(), broken)
    with pytest.raises(InputError, match="model must be a model that takes inputs"):
        eq.advise(net(), images[:, 0])


# ---- what it says, of figures made by hand ----------------------------------------------------------------------------------


def level(faster, low, high, *, smaller=2.0, loss=0.01, what="all 3") -> Level:
    read = measured(loss, "1") if loss is not None else unavailable("1", "not read")
    ratio = estimated(faster, "1", low=low, high=high, note="planted")
    return Level(what, ratio, measured(smaller, "1"), measured(1.0, "1"), read)


@pytest.mark.parametrize(
    ("levels", "said"),
    [
        ([level(1.5, 1.2, 1.9)], "worth trying"),
        ([level(0.7, 0.6, 0.8)], "slower here: for its size alone"),
        ([level(0.7, 0.6, 0.8, smaller=1.0)], "slower here"),
        ([level(1.1, 0.9, 1.3)], "may pay: cannot tell from none"),
        ([level(3.0, 2.0, 4.0, loss=2 * RUINED)], "does not pay: even the mildest use ruins the answers"),
        ([level(0.9, 0.8, 0.95), level(3.0, 2.0, 4.0, loss=2 * RUINED)], "slower here: for its size alone"),
        ([level(3.0, 2.0, 4.0, loss=None)], "worth trying"),
    ],
)
def test_the_verdict_follows_from_the_levels(levels, said) -> None:
    assert _verdict(levels) == said


def prospect() -> Prospect:
    where = "onnxruntime:cpu?threads=1&batch=1"
    contests = (
        Contest(where, "fp32", measured(1e-3, "s"), measured(1.0, "1"), "", measured(4e5, "B"), measured(0.0, "1")),
        Contest(
            where.replace("onnxruntime", "openvino"), "int8", measured(2e-3, "s"), measured(0.5, "1", low=0.45, high=0.55, n=6),
            "slower", measured(1e5, "B"), measured(0.004, "1", n=64),
        ),
        Contest(where.replace("onnxruntime", "torch"), "fp32", unavailable("s", "x"), unavailable("1", "x"), "",
                unavailable("B", "x"), unavailable("1", "x"), "no such runtime"),
    )  # fmt: skip
    widths = Prospects("channels", 3, {"fc": "it feeds the output"}, (level(1.5, 1.2, 1.9),), "worth trying")
    return Prospect(
        "planted", where, 64, "nats", contests, (Part("conv [1]", "Conv2d", 100, 2000, measured(1e-4, "s"), 1.0),), (widths,),
        (level(2.0, 1.5, 2.6, what="all together, losing at most 0.02"),), {"fc": "it feeds the output"}, 10, 12,
        ("there was no time to measure int8 as a whole",), 'equipoise optimize planted --budget "drop<=1"', 600.0, 59.4,
    )  # fmt: skip


SAID = """\
planted on onnxruntime:cpu?threads=1&batch=1

The untouched model, timed side by side
runtime          computes in  latency       times faster    size  loss, nats
onnxruntime:cpu  fp32            1 ms               1.00  400 KB           0
openvino:cpu     int8            2 ms  0.50 [0.45, 0.55]  100 KB       0.004  SLOWER here
torch:cpu        fp32               –                  –       –           –  no such runtime

Where time and bytes are
layer     kind    time alone  share  params  MACs
conv [1]  Conv2d      100 µs   100%     100  2000

What each technique would bring, not trained
technique  use                        times faster  times smaller  times fewer MACs  loss, nats
channels   all 3                ~1.50 [1.20, 1.90]           2.00              1.00        0.01  worth trying
together   losing at most 0.02  ~2.00 [1.50, 2.60]           2.00              1.00        0.01

- there was no time to measure int8 as a whole
- fc is left whole: it feeds the output

~ is an estimate, [ ] its range. Losses are of models that were not trained; 10 of 12 single changes were read, on 64 inputs. \
Took 59 s.
next: equipoise optimize planted --budget "drop<=1"
"""


def test_the_terminal_shows_it_all(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    command.show(prospect())
    said = "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines()) + "\n"
    assert said == SAID, said
    command.show(replace(prospect(), inputs=0))
    assert "no real inputs were given" in capsys.readouterr().out


def ranges(seed: int) -> list[tuple[Reading, float]]:
    """What is told of single changes, and the truth, where operators take 20 % more or less in the model than alone."""
    random = np.random.default_rng(seed)
    took = times({op: float(np.exp(random.normal(0, 0.2))) for op in {op for op, _ in TIMES}})
    anchors = [UNTOUCHED, uniform(FACTS.space, "bits", choice=8), uniform(FACTS.space, "width")]
    tried = {plan: evaluation(plan, took) for plan in anchors}
    features = Features(FACTS.space, FACTS.layers, times(), (32, 8))
    telling = Telling(FACTS.space, TARGET, 64, tried, {}, features, None)
    changes = [UNTOUCHED.but(change) for change in ({"width.a": 16, "bits.b": 8}, {"width.a": 16, "bits.a": 8, "bits.b": 8})]
    return [(telling.level("", plan).times_faster, seconds(UNTOUCHED, took) / seconds(plan, took)) for plan in changes]


def test_ranges_hold_the_truth_and_the_values_alone_do_not() -> None:
    rows = [row for seed in range(20) for row in ranges(seed)]
    inside = [found.low <= truth <= found.high for found, truth in rows]
    exact = [abs(found.get() - truth) < 0.02 * truth for found, truth in rows]
    assert np.mean(inside) >= 0.85
    assert np.mean(exact) < 0.85  # the control: without a range most would be wrong
    assert all(found.provenance == "estimated" for found, _ in rows)


def test_what_was_measured_is_told_as_measured() -> None:
    whole = uniform(FACTS.space, "bits", choice=8)
    speed = measured(1.7, "1", low=1.6, high=1.8, n=12)
    tried = {UNTOUCHED: evaluation(UNTOUCHED, times()), whole: replace(evaluation(whole, times()), speed_up=speed)}
    found = Telling(FACTS.space, TARGET, 64, tried, {}, None, None).technique("bits").levels[-1]
    assert found.times_faster == speed
    assert found.loss.get() == pytest.approx(0.0035)
    assert found.times_smaller.get() > 3
    few = Telling(FACTS.space, TARGET, 0, tried, {}, None, None).technique("bits").levels[-1]
    assert not few.loss.known
