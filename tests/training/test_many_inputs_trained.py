"""Training and distilling models of several inputs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from many_inputs import Encoder, paired, pairs, sentences, trained
from torch import nn

from equipoise.batch import Inputs, call, mapped, positional
from equipoise.training.recipe import Recipe
from equipoise.training.recover import distill
from equipoise.training.samples import Samples
from equipoise.training.supervised import fit
from equipoise.workloads.divergence import Divergence
from equipoise.workloads.outputs import Chosen


def apart(a: nn.Module, b: nn.Module, inputs: Inputs) -> float:
    with torch.inference_mode():
        return float((call(a, inputs) - call(b, inputs)).square().mean())


@pytest.mark.parametrize("session", [False, True])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_student_learns_from_ids_and_mask(session: bool, accumulate: int) -> None:
    teacher = Chosen(trained(steps=40), "logits").eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        student = Chosen(Encoder(width=16), "logits")
    inputs, targets = sentences(512, seed=5)

    def answer(given: Inputs) -> torch.Tensor:
        return call(teacher, mapped(given, torch.Tensor.contiguous)).detach().numpy()

    guide = answer if session else teacher
    recipe = Recipe(batch=64, accumulate=accumulate, lr=1e-2)
    done = distill(student, guide, Samples(inputs, targets), steps=100, recipe=recipe, divergence=Divergence("softmax"))
    held = sentences(128, seed=6)[0]
    assert apart(done.model, teacher, held) < 0.5 * apart(student.eval(), teacher, held), done.log[::10]


def test_labels_are_learned_from_an_image_and_a_row() -> None:
    both, targets = pairs(512, seed=7)
    data = Samples(positional(both), targets)
    done = fit(paired(), data, loss=F.cross_entropy, steps=60, recipe=Recipe(lr=3e-3, channels_last=True), validation=data)
    assert done.curve[-1].validation_loss < 0.8 * done.log[0]
