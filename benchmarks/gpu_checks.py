"""What one process does on a GPU, each held against the same on the CPU: the nets, the numbers and the checks of `gpu.py`."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equipoise.errors import InputError
from equipoise.measure import device as gpu
from equipoise.measure import energy
from equipoise.measure.counts import count
from equipoise.records import as_data
from equipoise.training import Progress, Recipe, Samples, Trained, distill, fit, refold, unfold
from equipoise.training.distribution import Distribution, OneProcess
from equipoise.training.distribution.launch import connect
from equipoise.training.distribution.offload import Offloaded
from equipoise.training.ensemble import Ensemble, gain
from equipoise.training.filtering import Filtered, filtered
from equipoise.training.multitask import Head, MultiTask
from equipoise.training.resizing import Growing
from equipoise.training.transfer import with_head
from equipoise.workloads import metric_of, shifted
from equipoise.workloads.families import family
from equipoise.workloads.task import Shape

FP32, LOW = 1e-3, 0.05
"""Largest difference from the CPU, relative to the largest of what is compared: a dozen steps in float32; bf16, fp16, Muon."""
CLOSE = 1e-4
"""The same between two ways to compute on one device."""
STEPS, BATCH = 12, 33
CPU = torch.device("cpu")
Facts = dict[str, Any]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Smooth(nn.Module):
    """A small residual net without kinks: rounding that moves a ReLU across 0 moves a bias by a hundredth in a few steps."""

    def __init__(self, width: int, *, batch_norm: bool) -> None:
        super().__init__()

        def layer(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
            norm = nn.BatchNorm2d(outputs) if batch_norm else nn.GroupNorm(4, outputs)
            return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), norm, nn.SiLU())

        self.stem = layer(3, width)
        self.blocks = nn.ModuleList(nn.Sequential(layer(width, width), layer(width, width)) for _ in range(3))
        self.linear = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        out: Tensor = self.linear(x.mean((2, 3)))
        return out


def conv_net(width: int = 16, *, batch_norm: bool = True) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Smooth(width, batch_norm=batch_norm)


def speller(width: int = 32, depth: int = 3, length: int = 24, *, vocabulary: int = 64, heads: int = 4) -> nn.Module:
    scale = {**family("gpt").scale(), "width": width, "depth": depth, "heads": heads}
    return family("gpt").model(scale, Shape((length,), vocabulary, vocabulary, dense=True), generator=seeded())


def pictures(samples: int = 165, *, side: int = 16, seed: int = 1) -> Samples:
    """Noise whose class is where it is brightest."""
    inputs = torch.randn(samples, 3, side, side, generator=seeded(seed))
    targets = torch.randint(10, (samples,), generator=seeded(seed + 1))
    for i, label in enumerate(targets.tolist()):
        inputs[i, label % 3, label : label + 5] += 1.5
    return Samples(inputs, targets)


def text(samples: int = 165, *, length: int = 24, vocabulary: int = 64, seed: int = 1) -> Samples:
    tokens = torch.randint(3, (samples, length + 1), generator=seeded(seed)).cumsum(1) % vocabulary
    return Samples(tokens[:, :-1], tokens[:, 1:])


def cross_entropy(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(model(inputs), targets)


SGD = Recipe(batch=BATCH, lr=0.05, optimizer="sgd", warmup=2, schedule="cosine", clip=1.0)
"""Adam would make rounding as large as any other gradient where there is no other (a bias before a norm)."""
CONV: Facts = {"net": conv_net, "data": pictures}
GPT: Facts = {"net": speller, "data": text}


def trained(where: Distribution, recipe: Recipe = SGD, *, net: Any = conv_net, data: Any = pictures, **more: Any) -> Trained:
    """Train on the numbers that all checks use."""
    more = {"steps": STEPS, "validation": data(40, seed=5), "evaluate_steps": 6, "generator": seeded(3), **more}
    return fit(net(), data(), loss=F.cross_entropy, recipe=recipe, distribution=where, **more)


def apart(found: Trained, expected: Trained) -> float:
    """Return the largest relative difference of losses, looks and weights; those of a norm's counter excepted."""
    assert len(found.log) == len(expected.log), (len(found.log), len(expected.log))
    theirs = expected.model.state_dict()
    assert found.model.state_dict().keys() == theirs.keys()
    pairs = [(torch.tensor(found.log), torch.tensor(expected.log))]
    pairs += [
        (torch.tensor(a.validation_loss), torch.tensor(b.validation_loss))
        for a, b in zip(found.curve, expected.curve, strict=True)
    ]
    pairs += [
        (value.cpu(), theirs[name].cpu()) for name, value in found.model.state_dict().items() if value.is_floating_point()
    ]
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-6)) for a, b in pairs)


def losses_apart(found: Trained, expected: Trained) -> float:
    """The same of the losses alone: what weights agree on in low precision is little."""
    return max(abs(a - b) / abs(b) for a, b in zip(found.log, expected.log, strict=True))


def held(difference: float, most: float) -> Facts:
    assert difference <= most, f"differs by {difference:.3g}, allowed {most:g}"
    return {"apart": difference, "allowed": most}


VARIANTS: dict[str, Facts] = {
    "conv": CONV,
    "conv, channels last, label smoothing": {**CONV, "recipe": replace(SGD, channels_last=True, label_smoothing=0.1)},
    "conv, augmented": {**CONV, "augment": shifted(2, flip=True)},
    "conv, frozen norm": {**CONV, "recipe": replace(SGD, frozen_norm=True, lr=0.01)},
    "gpt": GPT,
    "gpt, accumulated, recomputed": {**GPT, "recipe": replace(SGD, accumulate=4, activation_checkpointing=True)},
    "gpt, averaged, l1": {**GPT, "recipe": replace(SGD, ema=0.9, l1=1e-4)},
    "gpt, rmsprop": {**GPT, "recipe": replace(SGD, optimizer="rmsprop", lr=1e-4)},
    "conv, adamw": {**CONV, "net": lambda: conv_net(batch_norm=False), "recipe": replace(SGD, optimizer="adamw", lr=1e-4)},
}


def one_process(device: torch.device) -> Iterator[tuple[str, Callable[[], Facts]]]:
    """Yield the checks of one process; the first must be the first product that cuBLAS is asked for."""
    where = OneProcess(device)
    for name, how in {"conv": CONV, "gpt": GPT}.items():
        yield f"deterministic {name}", lambda how=how: deterministic(where, how)
    for name, how in VARIANTS.items():
        yield f"fp32 {name}", lambda how=how: held(apart(trained(where, **how), trained(OneProcess(), **how)), FP32)
    for precision in ("bf16", "fp16"):
        for name, how in {"conv": CONV, "gpt": GPT}.items():
            yield f"{precision} {name}", lambda how=how, precision=precision: low(where, how, precision)
    muon = {**GPT, "recipe": replace(SGD, optimizer="muon", lr=0.01)}
    yield "muon", lambda: held(losses_apart(trained(where, **muon), trained(OneProcess(), **muon)), LOW)
    yield "resume", lambda: resume(where)
    yield "random numbers", lambda: random_numbers(where)
    yield "patience", lambda: patience(where)
    yield "seconds", lambda: seconds(where)
    yield "where the model lies", lambda: lies(device)
    yield "distill", lambda: teaching(device)
    yield "transfer", lambda: transfer(device)
    yield "normalize", lambda: normalize(device)
    yield "tasks, members, filters, sizes", lambda: composed(where)
    for kept in (("activations",), ("optimizer",), ("activations", "optimizer")):
        yield f"offloaded {' and '.join(kept)}", lambda kept=kept: offloaded(where, kept)
    yield "fp16, optimizer offloaded", lambda: low(Offloaded(where, optimizer=True), GPT, "fp16")
    yield "memory", lambda: memory(where)
    yield "peak and share", lambda: share(where)
    yield "energy", lambda: joules(device)
    yield "profile", lambda: profiled(device)
    yield "train verb", train_verb


def deterministic(where: Distribution, how: Facts) -> Facts:
    """The same bits twice, or one sentence that says why not."""
    recipe = replace(SGD, deterministic=True)
    try:
        one, two = (trained(where, recipe, **how) for _ in range(2))
    except InputError as error:
        return {"told": named(error, "recipe.deterministic")}
    assert one.log == two.log
    assert apart(one, two) == 0
    return {"same bits": True}


def named(error: InputError, setting: str) -> str:
    assert str(error).startswith(setting), error
    return str(error)


def low(where: Distribution, how: Facts, precision: Any) -> Facts:
    found, full = trained(where, replace(SGD, precision=precision), **how), trained(OneProcess(), **how)
    assert found.log != full.log
    assert all(parameter.dtype == torch.float32 for parameter in found.model.parameters())
    return held(losses_apart(found, full), LOW)


class Killed(Exception):
    """Stands for a kill."""


def kill(progress: Progress) -> None:
    if progress.step == 20:
        raise Killed


def resume(where: Distribution) -> Facts:
    """Killed on the device and resumed there, with dropout, is the whole run; and so, without, on the other device."""
    facts: Facts = {}
    for name, second, recipe, most in (
        ("here", where, replace(SGD, dropout=0.2, ema=0.9), CLOSE),
        ("on the CPU", OneProcess(), replace(SGD, ema=0.9), FP32),
    ):
        with tempfile.TemporaryDirectory() as folder:
            how: Facts = {**GPT, "steps": 24, "checkpoint": Path(folder) / "run", "every_s": 0.0}
            with suppress(Killed):
                trained(where, recipe, **how, on_step=kill)
            facts[name] = held(apart(trained(second, recipe, **how), trained(where, recipe, **GPT, steps=24)), most)
    other = trained(where, replace(SGD, dropout=0.3), **GPT)
    assert apart(other, trained(where, **GPT)) > FP32  # control: dropout drops
    return facts


def random_numbers(where: Distribution) -> Facts:
    """The caller's generators, the GPU's too, are as they were."""
    states = [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if where.device.type == "cuda" else [])]
    trained(where, replace(SGD, dropout=0.2), **GPT)
    after = [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if where.device.type == "cuda" else [])]
    assert all(torch.equal(one, other) for one, other in zip(states, after, strict=True))
    return {"generators": len(states)}


def patience(where: Distribution) -> Facts:
    """Stops where the CPU stops, and gives the same weights back."""
    how: Facts = {**CONV, "metric": metric_of("accuracy"), "evaluate_steps": 2, "steps": 40}
    found, expected = (trained(place, replace(SGD, patience=2, lr=0.02), **how) for place in (where, OneProcess()))
    assert (found.stopped, found.steps) == (expected.stopped, expected.steps)
    assert found.curve[-1].validation_metric is not None
    return {"steps": found.steps, **held(losses_apart(found, expected), LOW)}


def seconds(where: Distribution) -> Facts:
    """What a run says it took is what it took."""
    wide = 256 if where.device.type == "cuda" else 32
    net, data = speller(wide, 6, 128, heads=8), text(512, length=128)
    how: Facts = {"net": lambda: net, "data": lambda *_, **__: data, "validation": None}
    trained(where, replace(SGD, batch=64), **how, steps=2)
    gpu.finish(where.device)
    began = time.perf_counter()
    done = trained(where, replace(SGD, batch=64), **how, steps=8)
    gpu.finish(where.device)
    took = time.perf_counter() - began
    assert 0.5 * took < done.seconds <= took, (done.seconds, took)
    return {"said": done.seconds, "took": took}


def lies(device: torch.device) -> Facts:
    """A model on the device is trained there and comes back there."""
    gpu.forget_peak(device)
    done = fit(conv_net().to(device), pictures(), loss=F.cross_entropy, steps=3, recipe=SGD, generator=seeded(3))
    assert {value.device for value in done.model.state_dict().values()} == {device}
    peak = gpu.peak_memory(device)
    assert device.type == "cpu" or peak.get() > 1e6
    return {"peak_memory": as_data(peak)}


def teaching(device: torch.device) -> Facts:
    """A student on the device learns from a teacher there, from one on the CPU and from a function, as it does on the CPU."""
    teacher, facts = trained(OneProcess(), **CONV).model, {}
    for name, kind, guide in (
        ("there", "softmax", copy.deepcopy(teacher).to(device)), ("on the CPU", "values", teacher),
        ("function", "softmax", lambda x: teacher(x.cpu()).detach().numpy()),
    ):  # fmt: skip
        features = () if name == "function" else ("blocks.0",)
        how: Facts = {"steps": STEPS, "recipe": SGD, "kind": kind, "features": features}
        found, expected = (distill(conv_net().to(d), guide, pictures(), **how, generator=seeded(3)) for d in (device, CPU))
        facts[name] = held(apart(found, expected), FP32)
    return facts


def transfer(device: torch.device) -> Facts:
    found, expected = (with_head(conv_net().to(d), 7, generator=seeded()) for d in (device, CPU))
    assert torch.equal(found.linear.weight.cpu(), expected.linear.weight)
    x = pictures(8).inputs
    return held(float((found.eval()(x.to(device)).cpu() - expected.eval()(x)).detach().abs().max()), FP32)


def normalize(device: torch.device) -> Facts:
    """Norms put in and folded away again give the same answers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(1152, 4)
        )
    net, x = plain.eval().to(device), pictures(32).inputs.to(device)
    normed = unfold(net, [x], names=["0", "2"])
    assert sum(isinstance(module, nn.BatchNorm2d) for module in normed.modules()) == 2
    return held(max(float((made(x) - net(x)).abs().max()) for made in (normed, refold(normed))), FP32)


def composed(where: Distribution) -> Facts:
    """Objectives and nets that hold several."""
    facts, device = {}, where.device
    data = pictures()
    both = Samples(data.inputs, torch.stack([data.targets.float(), data.inputs.mean((1, 2, 3))], dim=1))

    def tasks() -> MultiTask:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            heads = {"label": Head(nn.Linear(10, 10), 10), "value": Head(nn.Linear(10, 1), 1, labels=False)}
        return MultiTask(conv_net(), heads, learn_weights=True)

    runs = [fit(tasks(), both, loss=tasks().loss, steps=STEPS, recipe=SGD, distribution=d) for d in (where, OneProcess())]
    facts["tasks"] = held(apart(*runs), FP32)
    growing = Growing(cross_entropy, [(0, 8), (0.5, 16)])
    how: Facts = {**CONV, "objective": growing, "before_step": growing.before_step}
    facts["sizes"] = held(apart(trained(where, **how), trained(OneProcess(), **how)), FP32)
    pair: Facts = {"net": lambda: Filtered(conv_net(), conv_net(8)), "data": pictures}
    plain = replace(SGD, clip=None, lr=0.005)
    runs = [trained(d, plain, objective=filtered(cross_entropy, F.cross_entropy), **pair) for d in (where, OneProcess())]
    facts["filters"] = held(losses_apart(*runs), LOW)  # a tie broken the other way is another sample
    here = Samples(data.inputs.to(device), data.targets.to(device))
    members = [trained(OneProcess(), replace(SGD, lr=lr), **CONV).model for lr in (0.02, 0.05)]
    scores = [
        gain(Ensemble(copy.deepcopy(members)).to(d), some, metric_of("accuracy")).together
        for d, some in ((device, here), (CPU, data))
    ]
    facts["members"] = held(abs(scores[0] - scores[1]), 1.0)
    run = fit(conv_net(), here, loss=F.cross_entropy, steps=STEPS, recipe=SGD, augment=shifted(2), distribution=where)
    expected = fit(conv_net(), data, loss=F.cross_entropy, steps=STEPS, recipe=SGD, augment=shifted(2))
    facts["data there"] = held(apart(run, expected), FP32)
    return facts


def offloaded(where: Distribution, kept: tuple[str, ...]) -> Facts:
    """What lies on the host changes no number, and the device holds less."""
    wide = 256 if where.device.type == "cuda" else 32
    net = lambda: speller(wide, 4, 64, heads=8)  # noqa: E731
    how: Facts = {"net": net, "data": lambda n=64, **named: text(n, length=64, **named), "steps": 4}
    recipe, peaks, runs = replace(SGD, optimizer="adam", lr=1e-4, batch=32), [], []
    for place in (where, Offloaded(where, **dict.fromkeys(kept, True))):
        gpu.finish(where.device)
        gpu.forget_peak(where.device)
        runs.append(trained(place, recipe, **how))
        peaks.append(as_data(gpu.peak_memory(where.device)))
    assert where.device.type == "cpu" or peaks[1]["value"] < peaks[0]["value"], peaks
    return {"bytes": [peak["value"] for peak in peaks], **held(losses_apart(runs[1], runs[0]), CLOSE)}


def memory(where: Distribution) -> Facts:
    """Recomputed activations are not held."""
    peaks, how = (
        [],
        {
            "net": lambda: speller(128 if where.device.type == "cuda" else 16, 8, 128),
            "data": lambda n=64, **more: text(n, length=128, **more),
            "steps": 2,
        },
    )
    for recomputed in (False, True):
        gpu.forget_peak(where.device)
        trained(where, replace(SGD, batch=64, activation_checkpointing=recomputed), **how)
        peaks.append(gpu.peak_memory(where.device))
    assert not peaks[0].known or peaks[1].get() < 0.7 * peaks[0].get()
    return {"bytes": [peak.value for peak in peaks]}


def share(where: Distribution) -> Facts:
    facts: Facts = {}
    for dtype in (torch.float32, torch.bfloat16):
        peak = gpu.peak_flops(where.device, dtype)
        assert peak.low is not None
        assert peak.high < 2 * peak.low
        facts[str(dtype)[6:]] = as_data(peak)
    assert where.device.type == "cpu" or facts["bfloat16"]["value"] > 3 * facts["float32"]["value"]
    counts = [count(conv_net().to(d), pictures(1).inputs.to(d)).macs for d in (where.device, CPU)]
    assert counts[0] == counts[1]
    return facts


def joules(device: torch.device) -> Facts:
    """Energy by the board's counter: a product of matrices costs some, and a longer one more."""
    access = energy.nvml()
    if access.meter is None:
        return {"none": access.reason}
    a = torch.randn(4096, 4096, device=device)

    def work(products: int) -> Callable[[], None]:
        def call() -> None:
            for _ in range(products):
                a @ a
            gpu.finish(device)

        return call

    found = [energy.read(work(products), access, windows=6, window_s=0.4) for products in (10, 30)]
    if all(reading.known for reading in found):
        assert found[1].get() > 1.5 * found[0].get()
    return {"joules of 10 and 30 products": [as_data(reading) for reading in found]}


def profiled(device: torch.device) -> Facts:
    """A model on the device is profiled on the CPU's runtimes, the device being none of their targets."""
    try:
        import equipoise as eq

        found = eq.profile(conv_net().to(device), pictures(4).inputs.to(device), targets=["torch"], seconds=2)
    except ImportError as error:
        return {"left out": str(error)}
    assert "unavailable" not in str(found), found
    return {"said": str(found)}


def train_verb() -> Facts:
    """The verb of the command line, as `connect` places it."""
    try:
        from equipoise.verbs.train import train

        with tempfile.TemporaryDirectory() as folder:
            found = train("mlp", "digits", store=folder, epochs=3, distribution=connect())
    except ImportError as error:
        return {"left out": str(error)}
    assert found.reached["quality"].get() > 80
    assert 0 < found.reached["utilization"].get() < 1
    assert found.reached["train_memory_bytes"].known == torch.cuda.is_available()
    return {name: as_data(found.reached[name]) for name in ("quality", "utilization", "train_memory_bytes", "throughput_per_s")}
