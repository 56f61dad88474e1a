"""Real architectures through everything that compresses: each right (numbers compared), or refused as it must be.

A fixed sample runs by default. `EQUIPOISE_ZOO=all` runs every model here in one process; `EQUIPOISE_ZOO=swin,own:` those whose
names hold one of the words. `python benchmarks/zoo.py` runs them in processes of their own and writes docs/zoo.md.
"""

from __future__ import annotations

import copy
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from vision_zoo import lively
from zoo_models import ZOO, missing, record_of
from zoo_page import page
from zoo_walk import EXACT, STAGES, apart, noise, walk, wrong_maps

from equipoise.compress.graph import groups
from equipoise.compress.group_proof import prove

SAMPLE = (
    "timm:test_resnet",
    "torchvision:shufflenet_v2_x0_5",
    "transformers:Llama",
    "own:unet",
    "own:three-heads",
    "own:masked-encoder",
    "own:mlp-mixer",
    "own:two-towers",
    "own:conv1d",
    "own:tied-autoencoder",
    "own:routed-by-index",
    "own:where",
    "own:branches-on-values",
    "own:draws-at-random",
)
"""Quick ones that differ in kind: shuffles, grouped heads, several inputs and outputs, weights read twice, what is refused."""


def chosen() -> list[str]:
    asked = os.environ.get("EQUIPOISE_ZOO", "")
    if asked == "all":
        return list(ZOO)
    return [name for name in ZOO if (any(word in name for word in asked.split(",")) if asked else name in SAMPLE)]


@pytest.mark.slow
@pytest.mark.parametrize("name", chosen())
def test_all_that_applies_is_right_and_what_is_refused_is_told(name: str) -> None:
    if why := missing(name):
        pytest.skip(why)
    found = record_of(name)
    print(f"{name}: {found['verdict']} at {found['stage']} after {found['seconds']} s {found['why']}")
    assert found["kept"], f"{found['verdict']} at {found['stage']}: {found['why']}"


def test_the_page_is_what_the_result_file_gives(checkout: Path) -> None:
    found = json.loads((checkout / "benchmarks" / "results" / "zoo.json").read_text(encoding="utf-8"))
    assert (checkout / "docs" / "zoo.md").read_text(encoding="utf-8") == page(found)
    assert list(found["models"]) == [name for name in ZOO if name in found["models"]]
    assert [name for name, record in found["models"].items() if not record["kept"]] == []
    assert set(SAMPLE) <= found["models"].keys()
    assert len(found["models"]) >= 60


# ---- whatever the walk compares, something wrong is planted in it ------------------------------------------------------------


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(8, 32), nn.Linear(32, 24), nn.Linear(24, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


def plain() -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    return Plain().eval(), lambda count: torch.randn(count, 8, generator=torch.Generator().manual_seed(count))


def fails(monkeypatch: pytest.MonkeyPatch, of: Any, name: str, wrong: Any) -> dict[str, Any]:
    monkeypatch.setattr(of, name, wrong)
    return walk(plain)


def test_a_plain_net_passes_every_stage_that_applies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("equipoise.road.bench.liked_channels", lambda: 16)  # at 8 the second layer has a rank that pays
    found = walk(plain)
    assert (found["verdict"], found["why"]) == ("right", "")
    assert set(found["stages"]) == set(STAGES)
    assert found["stages"]["survey"]["offered"] == {"width": 2, "bits": 3}
    assert found["stages"]["planted"] == {**found["stages"]["planted"], "planted": 4, "of_heads": 0}


def test_a_proof_that_believes_everything_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    import zoo_walk

    found = fails(monkeypatch, zoo_walk, "prove", lambda _model, _example, some: {group.name: "" for group in some})
    assert (found["verdict"], found["stage"]) == ("wrong", "planted")
    assert "first: first out turned by one; first: second in turned by one" in found["why"]


def test_a_wrong_map_that_was_believed_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    from equipoise.compress import subject

    def turned(model: nn.Module, example: Any, **more: Any) -> Any:
        found = groups(model, example, **more)
        return (*(plant for _, plant in list(wrong_maps(found[0]))[:1]), *found[1:])

    found = fails(monkeypatch, subject, "groups", turned)
    assert (found["verdict"], found["stage"]) == ("wrong", "by hand")


@pytest.mark.parametrize(("part", "stage"), [("build", "untouched"), ("restore", "shrunk")])
def test_a_plan_that_builds_another_model_is_caught(part: str, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from equipoise.road.bench import Workbench

    own = getattr(Workbench, part)

    def off(bench: Workbench, *given: Any, **more: Any) -> Any:
        return replace(draft := own(bench, *given, **more), model=shifted(draft.model))

    found = fails(monkeypatch, Workbench, part, off)
    assert (found["verdict"], found["stage"]) == ("wrong", stage), found["why"]


def shifted(model: Any) -> nn.Module:
    other = copy.deepcopy(model)
    other.head.bias.data[0] += 0.5
    return other


@pytest.mark.parametrize(("scheme", "stage"), [("4-weights", "4 bits"), (8, "int8")])
def test_a_file_in_few_bits_of_another_model_is_caught(scheme: Any, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from equipoise.road.bench import Workbench

    own = Workbench.compile

    def off(bench: Workbench, draft: Any, source: Any, *given: Any, **more: Any) -> Any:
        other = bench.source(shifted(draft.model)) if scheme in draft.request.values() else source
        return own(bench, draft, other, *given, **more)

    found = fails(monkeypatch, Workbench, "compile", off)
    assert (found["verdict"], found["stage"]) == ("wrong", stage), found["why"]


def test_a_file_that_computes_something_else_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    from equipoise.runtimes.onnxruntime import OnnxRuntime

    own = OnnxRuntime.load

    class Swapped:
        def __init__(self, session: Any) -> None:
            self.session = session

        def run(self, inputs: Any) -> Any:
            return self.session.run(inputs)[::-1]

    found = fails(monkeypatch, OnnxRuntime, "load", lambda self, *given, **more: Swapped(own(self, *given, **more)))
    assert found["verdict"] != "right"
    assert found["stage"] == "untouched"


def test_what_is_raised_is_told_apart() -> None:
    def broken() -> Any:
        raise IndexError("list index out of range")

    found = walk(broken)
    assert (found["verdict"], found["stage"]) == ("broken", "build")
    assert found["why"].startswith("IndexError: list index out of range (broken:")


def test_wrong_maps_are_wrong_and_the_right_one_is_not() -> None:
    model, inputs = plain()
    found = [group for group in groups(model, inputs(2)) if group.prunable]
    assert prove(model, inputs(2), found) == {"first": "", "second": ""}
    for group in found:
        for what, plant in wrong_maps(group):
            assert prove(model, inputs(2), [plant])[plant.name], what


def test_the_measures_see_what_is_lost() -> None:
    """An answer of a model that lost its activations, its statistics or its order must be far from the right one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 7)).eval()
    inputs = torch.randn(32, 3, 8, 8)
    lively(model, inputs)
    model.eval()
    with torch.no_grad():
        whole = model(inputs)
        lost = nn.Sequential(model[0], model[1], model[3], model[4])(inputs)
        unnormed = nn.Sequential(model[0], model[2], model[3], model[4])(inputs)
    wrong = (lost, unnormed, whole.flip(0), whole[:-1], whole / 0)
    assert noise(whole + 1e-6, whole) < EXACT < 10 * EXACT < min(noise(part, whole) for part in wrong[:3])
    assert apart(whole + 1e-6, whole) < EXACT < 10 * EXACT < min(apart(part, whole) for part in wrong)
