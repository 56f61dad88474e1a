"""Real architectures through every technique: each stage right (numbers compared), or refused with a reason.

A fixed sample runs by default. All of them, with a line for each stage (`-s`) and a file of the outcomes where one is named:

    EQUIPOISE_SWEEP=all EQUIPOISE_SWEEP_FILE=sweep.json pytest tests/sweep -q -s

`EQUIPOISE_SWEEP` may also be words, separated by commas: architectures whose names hold one of them run.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import zoo
from stages import EXACT, STAGES, Outcome, noise, outcome
from torch import nn

SAMPLE = (
    "timm:test_byobnet",
    "timm:test_convnext",
    "timm:test_efficientnet_gn",
    "timm:test_nfnet",
    "timm:test_resnet",
    "timm:test_vit2",
    "timm:densenet121",
    "timm:mobilenetv3_small_050",
    "timm:starnet_s050",
    "torchvision:lraspp_mobilenet_v3_large",
    "torchvision:shufflenet_v2_x0_5",
    "torchvision:swin",
)
"""Architectures that differ in kind: built-in activations, weight standardisation, gates, shuffles, concatenations, windows,
dictionaries of outputs, norms of four kinds."""


def chosen() -> list[zoo.Architecture]:
    """The architectures that this run asks for."""
    asked = os.environ.get("EQUIPOISE_SWEEP", "")
    if asked == "all":
        return list(zoo.ALL)
    if asked:
        return [architecture for architecture in zoo.ALL if any(word in str(architecture) for word in asked.split(","))]
    return [architecture for architecture in zoo.ALL if str(architecture) in SAMPLE]


OUTCOMES: dict[str, dict[str, Outcome]] = {}


def keep() -> None:
    """Write the outcomes so far to the file that the environment names."""
    if path := os.environ.get("EQUIPOISE_SWEEP_FILE"):
        rows = [{"architecture": name, "stage": s, **vars(o)} for name, found in OUTCOMES.items() for s, o in found.items()]
        Path(path).write_text(json.dumps(rows, indent=1), encoding="utf-8")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what other people's models say when they are built and run
@pytest.mark.parametrize("architecture", chosen(), ids=str)
def test_every_stage_is_right_or_refused_with_a_reason(architecture: zoo.Architecture) -> None:
    if why := zoo.unknown(architecture):
        pytest.skip(why)
    model = zoo.built(architecture)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inputs = architecture.inputs(32 if architecture.side > 100 else 96)
    found = {stage: outcome(stage, model, inputs) for stage in STAGES}
    OUTCOMES[str(architecture)] = found
    keep()
    for stage, result in found.items():
        print(f"{architecture!s:45} {stage:9} {result.verdict:8} {result.seconds:6.1f} s  {result.detail[:150]}")
    assert [f"{stage}: {result.verdict}, {result.detail}" for stage, result in found.items() if not result.kept] == []
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "the model was changed"


def test_enough_architectures_are_swept() -> None:
    assert len(zoo.TIMM) >= 60
    assert len(zoo.VISION) >= 30
    assert len({str(architecture) for architecture in zoo.ALL}) == len(zoo.ALL)
    assert set(SAMPLE) <= {str(architecture) for architecture in zoo.ALL}


def test_the_sweep_sees_what_is_lost() -> None:
    """A stage that answers with a model that lost its activations, its statistics or its order must be called wrong."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 7)).eval()
    inputs = torch.randn(32, 3, 8, 8)
    zoo.lively(model, inputs)
    model.eval()
    with torch.no_grad():
        whole = model(inputs)
        lost = nn.Sequential(model[0], model[1], model[3], model[4])(inputs)
        unnormed = nn.Sequential(model[0], model[2], model[3], model[4])(inputs)
    assert noise(whole + 1e-6, whole) < EXACT < 10 * EXACT < min(noise(lost, whole), noise(unnormed, whole))
