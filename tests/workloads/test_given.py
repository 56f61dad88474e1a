"""What a call may be given in place of a workload, a family or a task; and one clear error for the rest."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import equipoise as eq
from equipoise.errors import InputError
from equipoise.training import Recipe
from equipoise.verbs.train import recipe_of
from equipoise.workloads import as_family, as_task, as_workload

X, Y = torch.randn(90, 4, generator=torch.Generator().manual_seed(0)), torch.arange(90) % 3


def work(**more) -> eq.Workload:
    return eq.Workload(model=nn.Linear(4, 3), train=(X[:60], Y[:60]), test=(X[60:], Y[60:]), name="toy", **more)


def net(width=8):
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))


def test_a_family_is_itself_its_name_or_a_function():
    assert as_family(eq.family("mlp")) is as_family("mlp")
    assert as_family(net).scale() == {"width": 8}


def test_a_task_is_itself_its_name_or_that_of_a_workload():
    assert as_task("digits").name == "digits"
    assert as_task(as_task(work())).outputs == 3


def test_a_model_is_trained_by_names_alone(tmp_path):
    found = eq.train("mlp", "digits", {"width": 8, "depth": 1}, store=tmp_path / "run", steps=5)
    assert found.header["model"] == "mlp"
    assert found.run.steps == 5
    own = eq.train(net, work(), store=tmp_path / "own", steps=5)
    assert own.header["task"] == "toy"


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda s: eq.train("mlq", "digits", store=s), "Did you mean 'mlp'"),
        (lambda s: eq.train(3, "digits", store=s), "family must be"),
        (lambda s: eq.train(nn.Linear, "digits", store=s), "family must be"),
        (lambda s: eq.train("mlp", 3, store=s), "task must be"),
        (lambda s: eq.train("mlp", (X, Y), store=s), "Task.of"),
        (lambda s: eq.train("mlp", "digits", store=s, epochs=float("nan")), "epochs must be"),
        (lambda s: eq.train("mlp", "digits", store=s, epochs=-1), "epochs must be"),
        (lambda s: eq.train("mlp", "digits", store=s, steps=1.5), "steps must be a whole number"),
        (lambda s: eq.train("mlp", "digits", store=s, steps="many"), "steps must be"),
        (lambda s: eq.train("mlp", "digits", store=s, seconds=float("inf")), "seconds must be"),
        (lambda s: eq.train("mlp", "digits", store=s, price_per_hour=-5), "price_per_hour must be"),
        (lambda s: eq.train("mlp", "digits", {"width": 10**15}, store=s), "scale must be"),
        (lambda s: eq.train("mlp", "digits", store=s, seed=10**30), "seed must be a whole number of at least 0 and at most"),
        (lambda s: eq.train("mlp", "digits", store=s, seed=-1), "seed must be a whole number of at least 0; got"),
        (lambda s: eq.scale("mlp", "digits", store=s, seed=10**30), "seed must be a whole number of at least 0 and at most"),
        (lambda s: eq.scale("mlp", "digits", store=s, time=None), "time must be finite and above 0"),
        (lambda s: eq.scale("cnm", "digits", store=s), "Did you mean 'cnn'"),
        (lambda s: eq.scale("cnn", None, store=s), "task must be"),
        (lambda s: eq.scale("cnn", "digits", store=s, time=float("nan")), "time must be"),
        (lambda s: eq.scale("cnn", "digits", store=s, time=float("inf")), "time must be"),
        (lambda s: eq.scale("cnn", "digits", store=s, requests=-1), "requests must be"),
        (lambda s: eq.scale("cnn", "digits", store=s, price_per_hour=0), "price_per_hour must be"),
        (lambda s: eq.scale("cnn", "digits", store=s, target="torch?threads=100000"), "target.threads must be"),
        (lambda s: eq.optimize("digitz", store=s), "digits"),
        (lambda s: eq.optimize(nn.Linear(4, 3), store=s), "work must be a Workload"),
        (lambda s: eq.optimize(nn.Linear(4, 3).state_dict(), store=s), "got 'OrderedDict'"),
        (lambda s: eq.profile({"weight": X}, X), "work must be a Workload"),
        (lambda s: eq.profile("digitz"), "digits"),
    ],
)
def test_anything_else_is_one_clear_error_before_any_work(tmp_path, call, told):
    with pytest.raises(InputError) as caught:
        call(tmp_path / "store")
    assert told in str(caught.value)
    assert len(str(caught.value)) < 400
    assert not (tmp_path / "store" / "study.db").exists()


def test_a_workload_is_itself_or_its_name(monkeypatch):
    made = work()
    assert as_workload(made) is made


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("lr=abc", "recipe lr must be a finite number; got 'abc'"),
        ("lr=none", "recipe lr must be a finite number"),
        ("lr=true", "recipe lr must be a finite number"),
        ("batch=1.5", "recipe batch must be a whole number"),
        ("clip=high", "recipe clip must be a finite number or none"),
        ("nesterov=1", "recipe nesterov must be true or false"),
        ("optimizer=3", "recipe optimizer must be one of"),
        ("optimizer=sdg", "Did you mean 'sgd'"),
        ("activation_checkpointing=3", "recipe activation_checkpointing must be true or false"),
        ("lr=1,lr=2", "once"),
    ],
)
def test_a_recipe_entry_of_the_wrong_kind_is_told_by_its_name(text, told):
    with pytest.raises(InputError, match="recipe") as caught:
        recipe_of(text, Recipe())
    assert told in str(caught.value)


def test_a_recipe_of_the_right_kinds_is_taken():
    found = recipe_of("lr=1, clip=none, batch=7, nesterov=false, ema=0.9, schedule=wsd, warmup=0", Recipe())
    assert (found.lr, found.clip, found.batch, found.nesterov, found.ema, found.warmup) == (1, None, 7, False, 0.9, 0)
