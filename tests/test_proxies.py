"""Small runs for the advisor: recorded with weights that load again, also where two layers share one tensor."""

from __future__ import annotations

from pathlib import Path

import torch

from equipoise.proxies import Proxies, recipe_for
from equipoise.scaling import PlannedRun
from equipoise.store import Store
from equipoise.workloads import load_task
from equipoise.workloads.families import family


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
