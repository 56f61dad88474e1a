"""Small runs for the advisor: recorded with weights that load again, also where two layers share one tensor."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from equipoise.scaling import PlannedRun
from equipoise.sizing.small_runs import SmallRuns, in_quick_precision, rates_to_try, recipe_for, step_seconds
from equipoise.study.store import Store
from equipoise.workloads import load_task
from equipoise.workloads.families import Family, family


def test_a_run_of_a_net_with_tied_weights_is_recorded_and_loads_again(tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("the quick brown fox jumps over the lazy dog. " * 300)
    task, kind = load_task(f"text:{words}?context=16"), family("gpt")
    scale = kind.scale(width=16, depth=1, heads=2)
    with Store.open(tmp_path / "store") as store:
        runs = SmallRuns(kind, task, recipe_for(task), 0, store)
        size = runs.available(scale)
        samples = 12.0 * runs.recipe.batch * runs.positions
        planned = PlannedRun(size, samples, samples, 6.0 * size.flops_per_sample * samples, 0)
        found = runs.run(planned)
        model = runs.trained(scale, found["weights"])
        assert found["run"]["loss"] > 0
        inputs, targets = task.validation.tensors()
        with torch.no_grad():
            assert float(task.loss(model(inputs), targets)) < float(task.loss(runs.model(scale).eval()(inputs), targets))
        assert model.head.logits.weight is model.embed.token.weight


@pytest.mark.parametrize(
    ("fp32", "bf16", "taken"), [(1.0, 0.5, "bf16"), (1.0, 0.95, "fp32"), (1.0, 3.0, "fp32"), (1.0, None, "fp32")]
)
def test_bf16_is_taken_where_a_step_is_clearly_quicker_in_it(fp32: float, bf16: float | None, taken: str) -> None:
    usual = recipe_for(load_task("digits"))
    found = in_quick_precision(usual, {"fp32": fp32, "bf16": bf16})
    assert found.precision == taken
    assert found.batch == usual.batch


def test_both_precisions_are_timed_and_one_that_the_model_cannot_take_is_left_out() -> None:
    class Fussy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if torch.is_autocast_enabled("cpu"):
                raise RuntimeError("\"own_kernel\" not implemented for 'BFloat16'")
            out: torch.Tensor = self.layer(x.flatten(1))
            return out

    def made(width: int = 8) -> torch.nn.Module:
        return Fussy()

    task = load_task("digits")
    usual = recipe_for(task)
    told = step_seconds(usual, family("cnn"), task)
    assert told["fp32"]
    assert told["fp32"] > 0
    assert told["bf16"]
    assert told["bf16"] > 0
    told = step_seconds(usual, Family.of(made), task)
    assert told["fp32"]
    assert told["fp32"] > 0
    assert told["bf16"] is None
    assert in_quick_precision(usual, told).precision == "fp32"


@pytest.mark.parametrize(
    ("name", "optimizer", "times"),
    [
        ("mlp", "muon", 0.5),  # four times the width: its root
        ("mlp", "adamw", 0.25),
        ("mlp", "sgd", 1.0),
        ("cnn", "muon", 1.0),  # BatchNorm
    ],
)
def test_a_rate_tuned_on_one_width_moves_by_the_rule_of_its_optimizer(
    tmp_path: Path, name: str, optimizer: Any, times: float
) -> None:
    task, kind = load_task("digits"), family(name)
    recipe = replace(recipe_for(task), optimizer=optimizer)
    with Store.open(tmp_path / "store") as store:
        runs = SmallRuns(kind, task, recipe, 0, store, tuned_at=kind.scale(width=8))
        wide = kind.scale(width=32)
        assert runs._rate(runs.model(wide), wide) == pytest.approx(times * recipe.lr)
        assert replace(runs, tuned_at=None)._rate(runs.model(wide), wide) == recipe.lr


def test_half_the_depth_allows_muon_a_larger_rate(tmp_path: Path) -> None:
    task, kind = load_task("digits"), family("mlp")
    with Store.open(tmp_path / "store") as store:
        runs = SmallRuns(kind, task, recipe_for(task), 0, store, tuned_at=kind.scale(width=8, depth=4))
        shallow = kind.scale(width=8, depth=1)
        assert runs._rate(runs.model(shallow), shallow) == pytest.approx(2 * runs.recipe.lr)


@pytest.mark.parametrize(
    ("losses", "taken"),
    [
        ({1.0: 2.0, 2.0: 1.9, 4.0: 1.8, 8.0: 1.95}, 4.0),  # goes on while the best is at an end
        ({0.5: 1.999, 1.0: 2.0, 2.0: 2.1}, 1.0),  # what two seeds would differ by changes nothing
        ({0.25: 2.0, 0.5: 1.8, 1.0: 2.0, 2.0: 2.1}, 0.5),
    ],
)
def test_another_rate_is_taken_where_it_is_clearly_better(losses: dict[float, float], taken: float) -> None:
    start, known = 0.02, dict[float, float]()
    best, to_try = rates_to_try(start, known)
    while to_try:
        known |= {rate: losses.get(rate / start, 3.0) for rate in to_try}
        best, to_try = rates_to_try(start, known)
    assert best == pytest.approx(taken * start)
    assert set(known) >= {best / 2, best, best * 2}
