"""Small runs for the advisor: recorded with weights that load again, also where two layers share one tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from equipoise.proxies import Proxies, in_quick_precision, recipe_for
from equipoise.scaling import PlannedRun
from equipoise.store import Store
from equipoise.workloads import load_task
from equipoise.workloads.families import Family, family


def test_a_run_of_a_net_with_tied_weights_is_recorded_and_loads_again(tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("the quick brown fox jumps over the lazy dog. " * 300)
    task, kind = load_task(f"text:{words}?context=16"), family("gpt")
    scale = kind.scale(width=16, depth=1, heads=2)
    with Store.open(tmp_path / "store") as store:
        proxies = Proxies(kind, task, recipe_for(kind, task), 0, store)
        size = proxies.available(scale)
        samples = 12.0 * proxies.recipe.batch * proxies.positions
        planned = PlannedRun(size, samples, samples, 6.0 * size.flops_per_sample * samples, 0)
        found = proxies.run(planned)
        model = proxies.trained(found)
        assert found["run"]["loss"] > 0
        inputs, targets = task.validation.tensors()
        with torch.no_grad():
            assert float(task.loss(model(inputs), targets)) < float(task.loss(proxies.model(scale).eval()(inputs), targets))
        assert model.head.logits.weight is model.embed.token.weight


@pytest.mark.parametrize(
    ("fp32", "bf16", "taken"), [(1.0, 0.5, "bf16"), (1.0, 0.95, "fp32"), (1.0, 3.0, "fp32"), (1.0, None, "fp32")]
)
def test_bf16_is_taken_where_a_step_is_clearly_quicker_in_it(fp32: float, bf16: float | None, taken: str) -> None:
    task, kind = load_task("digits"), family("cnn")
    usual = recipe_for(kind, task)
    found = in_quick_precision(usual, kind, task, lambda key, compute: {"fp32": fp32, "bf16": bf16})
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

    told: dict[str, Any] = {}

    def step(key: str, compute: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        told.update(compute())
        return told

    task = load_task("digits")
    in_quick_precision(recipe_for(family("cnn"), task), family("cnn"), task, step)
    assert told["fp32"] > 0
    assert told["bf16"] > 0
    own = Family.of(made)
    assert in_quick_precision(recipe_for(own, task), own, task, step).precision == "fp32"
    assert told["fp32"] > 0
    assert told["bf16"] is None
