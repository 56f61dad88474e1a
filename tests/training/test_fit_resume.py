"""A run killed anywhere goes on to the same curve; a trunk serves cool-downs of several lengths."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch.nn.functional as F
from toys import Accuracy, Killed, classes, jitter, kill_at, mlp, same_weights, seeded

from equipoise.errors import InputError
from equipoise.training import Recipe, Samples, Trained, fit
from equipoise.training.transfer import discriminative, unfreezing

DATA, HELD = classes(), classes(90, seed=5)
NOISE = Samples(DATA.inputs[:96], classes(96, seed=8).targets)
"""Labels that say nothing of the inputs: patience soon ends."""
STEPS = 24  # 3 epochs of 8

RECIPES = {
    "sgd averaged": Recipe(batch=32, optimizer="sgd", lr=0.05, schedule="onecycle", ema=0.9),
    "muon accumulated": Recipe(batch=32, optimizer="muon", lr=0.01, schedule="cosine", accumulate=3),
    "adam wsd, deterministic": Recipe(batch=32, optimizer="adam", schedule="wsd", deterministic=True, l1=1e-3),
    "rmsprop fp16": Recipe(batch=32, optimizer="rmsprop", lr=1e-3, precision="fp16", label_smoothing=0.1),
    "adamw bf16 recomputed": Recipe(batch=32, precision="bf16", activation_checkpointing=True, ema=0.5),
}


def leg(recipe: Recipe, path: Path | None = None, *, at: int = 0, noise: bool = False, **more: object) -> Trained:
    return fit(
        mlp(dropout=0.2, norm=True),
        NOISE if noise else DATA,
        **({"steps": STEPS} | more),
        loss=F.cross_entropy,
        recipe=recipe,
        augment=jitter,
        validation=HELD,
        metric=Accuracy(),
        evaluate_steps=5,
        generator=seeded(7),
        checkpoint=path,
        every_s=0.0,
        on_step=kill_at(at) if at else None,
    )  # type: ignore[arg-type]


def same(one: Trained, other: Trained) -> bool:
    """Everything but the clock, to the bit."""
    curves = ([replace(p, seconds=0.0) for p in run.curve] for run in (one, other))
    ends = ((run.log, run.steps, run.stopped) for run in (one, other))
    return next(curves) == next(curves) and next(ends) == next(ends) and same_weights(one.model, other.model)


@pytest.mark.parametrize("name", RECIPES)
def test_killed_runs_resume_to_the_same_bits(name: str, tmp_path: Path) -> None:
    recipe, path = RECIPES[name], tmp_path / "run"
    whole = leg(recipe)
    for at in (1, 6, 9, 17, 24):  # one run, killed five times
        with pytest.raises(Killed):
            leg(recipe, path, at=at)
    done = leg(recipe, path)
    assert same(done, whole)
    again = leg(recipe, path)  # the finished file answers at once
    assert same(again, done)
    assert again.seconds == done.seconds
    assert not same(whole, leg(replace(recipe, lr=2 * recipe.lr)))  # control


@pytest.mark.parametrize("at", [1, 8, 11, 16, 21])
def test_patience_goes_on_counting(at: int, tmp_path: Path) -> None:
    recipe = Recipe(batch=32, lr=0.02, patience=3, schedule="constant")
    whole = leg(recipe, noise=True, steps=500)
    assert whole.stopped == "patience"
    assert whole.steps > 21
    path = tmp_path / "run"
    with pytest.raises(Killed):
        leg(recipe, path, at=at, noise=True, steps=500)
    assert same(leg(recipe, path, noise=True, steps=500), whole)
    assert same(leg(recipe, path, noise=True, steps=500), whole)


@pytest.mark.parametrize("order", ["gradual", "greedy"])
def test_unfreezing_and_rates_go_on_too(order: str, tmp_path: Path) -> None:
    recipe = Recipe(batch=32, optimizer="sgd", lr=0.1)

    def go(path: Path | None = None, at: int = 0) -> Trained:
        model = mlp(dropout=0.2, norm=True)
        hook = unfreezing(model, order=order, recipe=recipe)  # type: ignore[arg-type]
        return leg(recipe, path, at=at, before_step=hook, rates=discriminative(model, 0.4))

    whole, path = go(), tmp_path / "run"
    for at in (3, 8, 13):
        with pytest.raises(Killed):
            go(path, at)
    assert same(go(path), whole)


WSD = Recipe(batch=32, optimizer="sgd", lr=0.1, schedule="wsd", decay_share=0.25, ema=0.8)


def test_branches_of_one_trunk_are_the_whole_runs(tmp_path: Path) -> None:
    trunk = replace(WSD, decay_share=0.0)
    first, second = tmp_path / "12", tmp_path / "18"
    leg(trunk, first, steps=12)
    leg(trunk, second, steps=18, start=first)
    short = leg(WSD, steps=16, start=first)
    long = leg(WSD, steps=24, start=second)
    for branch, steps in ((short, 16), (long, 24)):
        whole = leg(WSD, steps=steps)
        assert branch.log == whole.log
        assert same_weights(branch.model, whole.model)
    assert short.log[:12] == long.log[:12]
    assert short.log[14:] != long.log[14:16]  # control: the cool-down had begun in one of them


def test_killed_branch_goes_on_from_its_own_file(tmp_path: Path) -> None:
    trunk, branch = tmp_path / "trunk", tmp_path / "branch"
    leg(replace(WSD, decay_share=0.0), trunk, steps=12)
    with pytest.raises(Killed):
        leg(WSD, branch, at=15, steps=16, start=trunk)
    assert same_weights(leg(WSD, branch, steps=16, start=trunk).model, leg(WSD, steps=16).model)


def test_branches_that_cannot_be_are_refused(tmp_path: Path) -> None:
    trunk, cooled = tmp_path / "trunk", tmp_path / "cooled"
    leg(replace(WSD, decay_share=0.0), trunk, steps=12)
    leg(WSD, cooled, steps=12)
    with pytest.raises(InputError, match=r"steps must be at least 16; got 15.*The trunk has made 12"):
        leg(WSD, steps=15, start=trunk)
    with pytest.raises(InputError, match="steps must be at least 13"):
        leg(replace(WSD, decay_share=0.0), steps=12, start=trunk)
    with pytest.raises(InputError, match="schedule must be wsd or constant"):
        leg(replace(WSD, decay_share=1.0), steps=40, start=trunk)
    with pytest.raises(InputError, match="one of this same run"):
        leg(WSD, steps=16, start=cooled)  # its rate has come down
    with pytest.raises(InputError, match="one of this same run"):
        leg(replace(WSD, lr=0.2), steps=16, start=trunk)
    with pytest.raises(InputError, match="schedule must be wsd or constant"):
        leg(replace(WSD, schedule="cosine"), steps=16, start=trunk)
    with pytest.raises(InputError, match="start must be a checkpoint"):
        leg(WSD, steps=16, start=tmp_path / "nothing")
    with pytest.raises(InputError, match="one of this same run"):
        leg(WSD, trunk, steps=16)  # a trunk is not the branch's own checkpoint
