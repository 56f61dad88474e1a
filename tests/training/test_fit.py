"""The loop makes the steps that a plain torch loop makes, looks, stops, and leaves everything else alone."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from toys import Accuracy, classes, jitter, mlp, same_weights, seeded

from equipoise.errors import EquipoiseError, InputError
from equipoise.training import Progress, Recipe, Samples, Trained, fit
from equipoise.training import checkpoint as saved
from equipoise.training.distribution import OneProcess
from equipoise.training.randomness import deterministic
from equipoise.training.samples import bears_channels_last

DATA = classes()
PLAIN = Recipe(batch=256, warmup=0, schedule="constant", clip=None, weight_decay=0.0, lr=0.01)
"""One batch is the whole data, so that the order in it does not matter."""


def by_hand(
    make: Callable[[list[dict[str, object]]], torch.optim.Optimizer],
    *,
    decay: float = 0.0,
    steps: int = 12,
    penalty: Callable[[nn.Module], Tensor | float] = lambda model: 0.0,
    clip: float | None = None,
    smoothing: float = 0.0,
    lr_at: Callable[[int], float] | None = None,
) -> tuple[nn.Module, list[float]]:
    """The slow reference: a loop in plain torch."""
    model, losses = mlp().train(), []
    matrices, others = ([p for p in model.parameters() if (p.ndim > 1) is want] for want in (True, False))
    optimizer = make([{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}])
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step) if lr_at else group["lr"]
        optimizer.zero_grad()
        loss = F.cross_entropy(model(DATA.inputs), DATA.targets, label_smoothing=smoothing)
        (loss + penalty(model)).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        losses.append(loss.item())
    return model, losses


def ours(recipe: Recipe, *, steps: int = 12, **more: object) -> list[float]:
    return list(fit(mlp(), DATA, loss=F.cross_entropy, steps=steps, recipe=recipe, **more).log)  # type: ignore[arg-type]


OPTIMIZERS = {
    "sgd": lambda g: torch.optim.SGD(g, lr=0.01, momentum=0.8, nesterov=True),
    "heavy ball": lambda g: torch.optim.SGD(g, lr=0.01, momentum=0.8),
    "adam": lambda g: torch.optim.Adam(g, lr=0.01, betas=(0.8, 0.99)),
    "adamw": lambda g: torch.optim.AdamW(g, lr=0.01, betas=(0.8, 0.99)),
    "rmsprop": lambda g: torch.optim.RMSprop(g, lr=0.01, alpha=0.99, momentum=0.8),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_make_the_steps_of_torch(name: str) -> None:
    optimizer = "sgd" if name == "heavy ball" else name
    settings = replace(PLAIN, momentum=0.8, second_beta=0.99, weight_decay=0.1, nesterov=name != "heavy ball")
    found = ours(replace(settings, optimizer=optimizer))  # type: ignore[arg-type]
    assert found == pytest.approx(by_hand(OPTIMIZERS[name], decay=0.1)[1], abs=1e-5)
    assert found != pytest.approx(by_hand(OPTIMIZERS[name])[1], abs=1e-5)  # control: without the decay
    assert found[-1] < found[0]


def test_penalty_smoothing_and_clipping_as_by_hand() -> None:
    def absolute(model: nn.Module) -> Tensor:
        return 0.01 * torch.stack([p.abs().sum() for p in model.parameters() if p.ndim > 1]).sum()

    recipe = replace(PLAIN, optimizer="sgd", momentum=0.0, lr=0.1, l1=0.01, label_smoothing=0.2, clip=0.5, nesterov=False)
    found = ours(recipe)
    plain = lambda g: torch.optim.SGD(g, lr=0.1)  # noqa: E731
    assert found == pytest.approx(by_hand(plain, penalty=absolute, smoothing=0.2, clip=0.5)[1], abs=1e-5)
    for missing in (
        {"smoothing": 0.2, "clip": 0.5},
        {"penalty": absolute, "clip": 0.5},
        {"penalty": absolute, "smoothing": 0.2},
    ):
        assert found != pytest.approx(by_hand(plain, **missing)[1], abs=1e-4)  # type: ignore[arg-type]


def test_schedule_and_warmup_reach_the_optimizer() -> None:
    recipe = replace(PLAIN, optimizer="sgd", momentum=0.0, lr=0.5, schedule="cosine", warmup=3)
    found = ours(recipe)
    rates = lambda step: 0.5 * (1 + math.cos(math.pi * step / 12)) / 2 * min(1, (step + 1) / 4)  # noqa: E731
    assert found == pytest.approx(by_hand(lambda g: torch.optim.SGD(g, lr=0.5), lr_at=rates)[1], abs=1e-5)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_accumulated_gradients_are_those_of_the_whole_batch(count: int) -> None:
    recipe = replace(PLAIN, batch=50)
    assert ours(replace(recipe, accumulate=count)) == pytest.approx(ours(recipe), rel=1e-5)


def test_control_an_average_of_unequal_parts_is_not_the_mean() -> None:
    """50 rows in 7 parts of 8 and 7: weighing parts alike must be seen by the tolerance above."""
    batch = DATA.inputs[:50], DATA.targets[:50]
    model = mlp()
    whole = F.cross_entropy(model(batch[0]), batch[1]).item()
    parts = [F.cross_entropy(model(x), y).item() for x, y in zip(*(part.tensor_split(7) for part in batch), strict=True)]
    assert sum(parts) / 7 != pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("which", [True, ("0",), ("0", "1")])
def test_recomputed_activations_change_nothing(which: bool | tuple[str, ...]) -> None:
    recipe = replace(PLAIN, batch=64)
    runs = [
        fit(mlp(norm=True, dropout=0.3), DATA, loss=F.cross_entropy, steps=8, recipe=r)
        for r in (recipe, replace(recipe, activation_checkpointing=which))
    ]
    assert runs[1].log == pytest.approx(runs[0].log, rel=1e-6)
    for key, value in runs[0].model.state_dict().items():
        assert torch.allclose(runs[1].model.state_dict()[key], value, atol=1e-6), key
    assert "forward" not in runs[1].model.get_submodule("0").__dict__


def test_recomputation_takes_place() -> None:
    calls: list[int] = []
    model = mlp()
    model[0].register_forward_hook(lambda *_: calls.append(0))
    model[0][0].register_forward_hook(lambda *_: calls.append(1))
    fit(model, DATA, loss=F.cross_entropy, steps=3, recipe=replace(PLAIN, activation_checkpointing=True))
    assert (calls.count(0), calls.count(1)) == (3, 6)
    with pytest.raises(InputError, match="activation_checkpointing must be one of"):
        ours(replace(PLAIN, activation_checkpointing=("zero",)))
    with pytest.raises(InputError, match="No block was found"):
        fit(nn.Linear(4, 3), DATA, loss=F.cross_entropy, steps=1, recipe=replace(PLAIN, activation_checkpointing=True))


def test_average_of_the_weights_by_hand() -> None:
    seen: list[dict[str, Tensor]] = []
    keep = lambda model, fraction: seen.append(copy.deepcopy(model.state_dict()))  # noqa: E731
    recipe = replace(PLAIN, ema=0.5, batch=64)
    done = fit(mlp(), DATA, loss=F.cross_entropy, steps=9, recipe=recipe, before_step=keep, validation=DATA, evaluate_steps=9)
    last = fit(mlp(), DATA, loss=F.cross_entropy, steps=9, recipe=replace(recipe, ema=None)).model.state_dict()
    average = seen[0]
    for t, weights in enumerate([*seen[1:], last]):
        d = min(0.5, (1 + t) / (10 + t))
        average = {key: d * average[key] + (1 - d) * value for key, value in weights.items()}
    for key, value in done.model.state_dict().items():
        assert torch.allclose(value, average[key], atol=1e-6), key
    assert not same_weights(done.model, fit(mlp(), DATA, loss=F.cross_entropy, steps=9, recipe=replace(recipe, ema=None)).model)
    with torch.no_grad():  # what was looked at is the average
        assert done.curve[-1].validation_loss == pytest.approx(F.cross_entropy(done.model(DATA.inputs), DATA.targets).item())


def test_curve_says_what_the_data_say() -> None:
    held = classes(100, seed=5)
    recipe = replace(PLAIN, batch=32)
    done = fit(mlp(dropout=0.5), DATA, loss=F.cross_entropy, steps=20, recipe=recipe, validation=held, metric=Accuracy())
    assert [p.step for p in done.curve] == [8, 16, 20]  # an epoch has 8 steps
    assert [p.epoch for p in done.curve] == [1.0, 2.0, 2.5]
    assert done.curve[1].train_loss == pytest.approx(sum(done.log[8:16]) / 8)
    with torch.no_grad():
        outputs = done.model(held.inputs)
    assert done.curve[-1].validation_loss == pytest.approx(F.cross_entropy(outputs, held.targets).item(), abs=1e-6)
    assert done.curve[-1].validation_metric == Accuracy().score(outputs, held.targets)
    assert done.best == max(done.curve, key=lambda p: p.validation_metric or 0)
    assert done.stopped == "steps"


def test_looking_changes_nothing() -> None:
    recipe = replace(PLAIN, batch=32)
    model = mlp(norm=True, dropout=0.5)
    blind = fit(model, DATA, loss=F.cross_entropy, steps=12, recipe=recipe, augment=jitter)
    seeing = fit(model, DATA, loss=F.cross_entropy, steps=12, recipe=recipe, augment=jitter, validation=DATA, evaluate_steps=5)
    assert seeing.log == blind.log
    assert same_weights(seeing.model, blind.model)


def test_patience_stops_and_gives_the_best_weights_back() -> None:
    """Targets of noise: the validation loss soon rises."""
    noise = Samples(DATA.inputs[:64], torch.randint(3, (64,), generator=seeded(9)))
    held = classes(200, seed=7)
    recipe = replace(PLAIN, batch=64, lr=0.02, patience=3)
    done = fit(mlp(), noise, loss=F.cross_entropy, steps=400, recipe=recipe, validation=held, evaluate_steps=2)
    assert done.stopped == "patience"
    assert done.steps == done.best.step + 3 * 2 < 400  # type: ignore[union-attr]
    with torch.no_grad():
        now = F.cross_entropy(done.model(held.inputs), held.targets).item()
    assert now == pytest.approx(min(p.validation_loss for p in done.curve), abs=1e-6)
    assert now < done.curve[-1].validation_loss
    last = fit(mlp(), noise, loss=F.cross_entropy, steps=done.steps, recipe=replace(recipe, patience=None))
    assert not same_weights(done.model, last.model)  # control: without patience the last weights come back
    with pytest.raises(InputError, match="validation must be given"):
        fit(mlp(), noise, loss=F.cross_entropy, steps=4, recipe=recipe)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_learns_and_keeps_float32_weights(precision: str) -> None:
    recipe = Recipe(batch=64, lr=0.02, precision=precision)  # type: ignore[arg-type]
    low = fit(mlp(norm=True), DATA, loss=F.cross_entropy, epochs=30, recipe=recipe)
    full = fit(mlp(norm=True), DATA, loss=F.cross_entropy, epochs=30, recipe=replace(recipe, precision="fp32"))
    assert low.log != full.log
    assert low.log == pytest.approx(full.log, abs=0.15)
    assert all(p.dtype == torch.float32 for p in low.model.parameters())
    assert low.log[-1] < 0.3 * low.log[0]


def test_layer_without_the_precision_is_told() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            if torch.is_autocast_enabled("cpu"):
                raise RuntimeError("\"odd_kernel\" not implemented for 'Half'")
            return self.inner(x)

    with pytest.raises(InputError, match=r"recipe\.precision must be one that every layer has on cpu"):
        fit(Odd(), DATA, loss=F.cross_entropy, steps=1, recipe=replace(PLAIN, precision="fp16"))
    fit(Odd(), DATA, loss=F.cross_entropy, steps=1, recipe=PLAIN)


def test_deterministic_runs_agree_to_the_bit_and_the_switch_is_put_back() -> None:
    recipe = replace(PLAIN, batch=32, deterministic=True, optimizer="muon")
    seen: list[bool] = []
    watch = lambda model, fraction: seen.append(torch.are_deterministic_algorithms_enabled())  # noqa: E731
    one, two = (
        fit(mlp(dropout=0.2), DATA, loss=F.cross_entropy, steps=9, recipe=recipe, augment=jitter, before_step=watch)
        for _ in range(2)
    )
    assert one.log == two.log
    assert same_weights(one.model, two.model)
    assert all(seen)
    assert not torch.are_deterministic_algorithms_enabled()


def broken_from(step: int) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    made = iter(range(1, 1000))

    def objective(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(model(inputs), targets) * (math.nan if next(made) >= step else 1)

    return objective


def test_lost_loss_names_step_and_remedy_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "run"

    def go(objective: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> list[float]:
        return list(
            fit(
                mlp(),
                DATA,
                loss=F.cross_entropy,
                objective=objective,
                steps=12,
                recipe=replace(PLAIN, batch=64),
                checkpoint=path,
                every_s=0.0,
            ).log
        )

    with pytest.raises(EquipoiseError, match=r"got nan at step 7\. Lower the learning rate .* clip .*is from before") as caught:
        go(broken_from(7))
    assert caught.value.exit_code == 1
    assert saved.read(path)[1]["step"] == 6  # type: ignore[index]
    whole = fit(mlp(), DATA, loss=F.cross_entropy, steps=12, recipe=replace(PLAIN, batch=64)).log
    assert go(broken_from(1000)) == pytest.approx(list(whole))
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_bad_labels_and_bad_lengths_are_one_clear_error() -> None:
    wrong = Samples(DATA.inputs, DATA.targets + 1)
    with pytest.raises(InputError, match=r"targets must be labels .*Target 3 is out of bounds"):
        fit(mlp(), wrong, loss=F.cross_entropy, steps=2)
    with pytest.raises(InputError, match=r"recipe\.accumulate must be at most the batch"):
        ours(replace(PLAIN, batch=2, accumulate=3))
    with pytest.raises(InputError, match="at least one sample"):
        fit(mlp(), DATA, loss=F.cross_entropy, steps=2, validation=Samples(torch.empty(0, 4), torch.empty(0)))
    with pytest.raises(InputError, match="as many as inputs"):
        Samples(DATA.inputs, DATA.targets[:3])
    with pytest.raises(InputError, match="evaluate_steps must be"):
        fit(mlp(), DATA, loss=F.cross_entropy, steps=2, validation=DATA, evaluate_steps=0)
    with pytest.raises(InputError, match="label_smoothing"):
        fit(mlp(), Samples(DATA.inputs, DATA.inputs[:, :3]), loss=F.mse_loss, steps=1, recipe=Recipe(label_smoothing=0.1))


def test_data_that_give_no_batch_do_not_hang() -> None:
    class Empty(Samples):
        def batches(self, size, *, shuffle_with=None):  # type: ignore[no-untyped-def]
            return iter(())

    with pytest.raises(InputError, match=r"Lower recipe\.batch"):
        fit(mlp(), Empty(DATA.inputs, DATA.targets), loss=F.cross_entropy, steps=2)


def test_arguments_and_global_generator_are_left_alone() -> None:
    model = mlp(norm=True, dropout=0.5).train()
    before, state = copy.deepcopy(model), torch.get_rng_state()
    recipe = Recipe(batch=32, ema=0.9, patience=1, activation_checkpointing=True)
    fit(model, DATA, loss=F.cross_entropy, steps=4, recipe=recipe, validation=DATA)
    assert same_weights(model, before)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_rates_scale_the_steps_of_single_parameters() -> None:
    model = mlp()
    recipe = replace(PLAIN, optimizer="sgd", momentum=0.0, lr=0.1)
    rates = {"2.weight": 0.5, "0.0.weight": 0.0}
    plain, scaled = (
        fit(model, DATA, loss=F.cross_entropy, steps=1, recipe=recipe, rates=r).model.state_dict() for r in (None, rates)
    )
    start = model.state_dict()
    for key, value in start.items():
        assert torch.allclose(scaled[key] - value, rates.get(key, 1.0) * (plain[key] - value), atol=1e-7), key


def test_progress_tells_time_left() -> None:
    seen: list[Progress] = []
    fit(mlp(), DATA, loss=F.cross_entropy, steps=4, recipe=PLAIN, on_step=seen.append, validation=DATA, evaluate_steps=2)
    assert [p.fraction for p in seen] == [0.25, 0.5, 0.75, 1.0]
    assert seen[1].left_s == pytest.approx(seen[1].seconds)
    assert seen[3].left_s == 0
    assert [p.point is not None for p in seen] == [False, True, False, True]
    assert "50 % of training" in str(seen[1])


def test_seconds_and_epochs_end_at_the_first() -> None:
    assert fit(mlp(), DATA, loss=F.cross_entropy, epochs=2, steps=100, recipe=Recipe(batch=64)).steps == 8
    assert fit(mlp(), DATA, loss=F.cross_entropy, epochs=2, steps=3, recipe=Recipe(batch=64)).steps == 3
    done = fit(mlp(), DATA, loss=F.cross_entropy, seconds=0.05, steps=10**9, recipe=Recipe(batch=64))
    assert done.stopped == "seconds"
    assert done.seconds >= 0.05


class Far:
    """Computes here, but says that it does so on a device whose losses are read late, and holds a copy of the model."""

    rank, world, device = 0, 1, torch.device("mps")

    def __init__(self) -> None:
        self.near = OneProcess()

    def place(self, model: nn.Module) -> nn.Module:
        return copy.deepcopy(model)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.near, name)

    def gradients(self, *rest: Any, **named: Any) -> Tensor:
        return self.near.gradients(*rest, **named)


def test_losses_read_late_are_the_same_and_none_is_forgotten(tmp_path: Path) -> None:
    recipe = replace(PLAIN, batch=32, ema=0.5, patience=9)

    def go(where: Any, seen: list[Progress], **more: Any) -> Trained:
        return fit(
            mlp(dropout=0.2),
            DATA,
            loss=F.cross_entropy,
            steps=27,
            recipe=recipe,
            distribution=where,
            on_step=seen.append,
            validation=DATA,
            evaluate_steps=12,
            **more,
        )

    here: list[Progress] = []
    there: list[Progress] = []
    one, other = go(OneProcess(), here), go(Far(), there, checkpoint=tmp_path / "run", every_s=0.0)
    assert other.log == one.log
    assert same_weights(other.model, one.model)
    assert [(p.step, p.loss, p.lr, p.fraction) for p in there] == [(p.step, p.loss, p.lr, p.fraction) for p in here]
    assert [p.step for p in there if p.point] == [12, 24, 27]
    seen: list[Progress] = []
    with pytest.raises(EquipoiseError, match="got nan at step 7"):
        go(Far(), seen, objective=broken_from(7))
    assert seen == []  # the ten steps read together are given up together


class Queued(Tensor):
    """The loss of a step that a device is still busy with: who reads it waits."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.tolist, Tensor.__float__):
            time.sleep(0.2)
        return super().__torch_function__(func, types, args, kwargs or {})


class Behind(Far):
    """A device that makes its steps long after they were asked for."""

    def gradients(self, *rest: Any, **named: Any) -> Tensor:
        return super().gradients(*rest, **named).as_subclass(Queued)


@pytest.mark.parametrize("steps", [1, 12])
def test_seconds_count_the_steps_that_a_device_still_owes(steps: int) -> None:
    seen: list[Progress] = []
    done = fit(
        mlp(),
        DATA,
        loss=F.cross_entropy,
        steps=steps,
        recipe=PLAIN,
        distribution=Behind(),
        on_step=seen.append,
        validation=DATA,
        evaluate_steps=steps,
    )
    waited = 0.2 * math.ceil(steps / 10)
    assert done.seconds >= waited
    assert done.curve[-1].seconds >= waited
    assert seen[-1].seconds >= waited
    assert seen[0].seconds < 0.2 or steps == 1  # control: a step is told with the time at which it was asked for


def test_a_model_is_trained_where_it_lies_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []

    def stop(model: nn.Module, *rest: Any) -> Trained:
        asked.append(rest[-1].distribution.device)
        return Trained(model, (), 0.0, 0)

    monkeypatch.setattr("equipoise.training.supervised.run", stop)
    fit(mlp().to("meta"), DATA, loss=F.cross_entropy, steps=1)
    fit(mlp().to("meta"), DATA, loss=F.cross_entropy, steps=1, distribution=OneProcess())
    fit(mlp(), DATA, loss=F.cross_entropy, steps=1)
    assert [device.type for device in asked] == ["meta", "cpu", "cpu"]


@pytest.mark.parametrize(
    "said",
    [
        "Deterministic behavior was enabled, but this operation uses CuBLAS. To enable it, set CUBLAS_WORKSPACE_CONFIG",
        "nll_loss2d_forward_out_cuda_template does not have a deterministic implementation, but you set ...",
    ],
)
def test_what_cannot_be_deterministic_is_told(said: str) -> None:
    def objective(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        raise RuntimeError(said)

    with pytest.raises(InputError, match=r"recipe\.deterministic must be false"):
        fit(mlp(), DATA, loss=F.cross_entropy, objective=objective, steps=1, recipe=replace(PLAIN, deterministic=True))


def test_deterministic_asks_cublas_too_and_leaves_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with deterministic(True):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with deterministic(True):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


class Viewing(nn.Module):
    """Reads its map by ``view``, which does not bear channels that lie last."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.norm, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8 * 36, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.wide(x)))
        return self.head(x.view(len(x), -1))  # type: ignore[no-any-return]


def test_channels_lie_last_only_where_the_model_bears_it() -> None:
    images = torch.randn(48, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    data, asked = Samples(images, torch.arange(48) % 4), Recipe(batch=16, lr=1e-2, channels_last=True)
    model = Viewing()
    held = {name: value.clone() for name, value in model.state_dict().items()}
    assert not bears_channels_last(model, images[:2])
    assert all(torch.equal(value, held[name]) for name, value in model.state_dict().items())
    assert model.training
    done, plain = (
        fit(model, data, loss=F.cross_entropy, steps=6, recipe=r) for r in (asked, replace(asked, channels_last=False))
    )
    assert same_weights(done.model, plain.model)
    bearing = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(128, 4))
    assert bears_channels_last(bearing, images[:2])
    assert bears_channels_last(mlp(), DATA.inputs[:2])
