"""Families: parameters against published counts and hand formulas, growth, determinism, and what a scale may be."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equipoise.batch import call
from equipoise.built_in import FAMILIES, BuiltIn
from equipoise.errors import InputError
from equipoise.generated import languages
from equipoise.measure.counts import count
from equipoise.testing import check_family
from equipoise.testing.families import SOUND, samples, smallest
from equipoise.workloads import Dimension, Family, Shape, Task, family, load_task
from equipoise.workloads.families.layers import Resize, fan_in, share_out, strides, to_eight
from equipoise.workloads.families.shuffle import shufflenet

DIGITS, CIFAR, IMAGENET = Shape((1, 8, 8), 10), Shape((3, 32, 32), 10), Shape((3, 224, 224), 1000)
VECTORS, TEXT = Shape((10,), 3), Shape((16,), 20, 20, dense=True)
SENTENCES, ARRAYS = Shape((16,), 2, 30), Shape((4, 6), 3)
PAIRS = Shape((12,), 20, 20, dense=True, written=9)


def built(name: str, shape: Shape, seed: int = 0, **scale: float) -> nn.Module:
    return family(name).model(scale, shape, generator=torch.Generator().manual_seed(seed))


def shape_for(name: str, images: Shape = CIFAR) -> Shape:
    """Images where they are what the family is for, else what it takes first."""
    kind = family(name)
    first = "images" if "resolution" in kind.scale() else kind.kinds[0]
    return {
        "images": images,
        "vectors": SOUND if kind.dense else VECTORS,
        "tokens": TEXT if kind.dense else SENTENCES,
        "arrays": ARRAYS,
        "pairs": PAIRS,
    }[first]


def params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def batch(shape: Shape, n: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if shape.vocabulary:
        return torch.randint(0, shape.vocabulary, (n, *shape.sample), generator=generator)
    return torch.randn((n, *shape.sample), generator=generator)


# Parameters. The published counts are those of the reference implementations in torchvision, timm and transformers.

PUBLISHED: dict[str, tuple[str, Shape, dict[str, float], int]] = {
    "mlp 10-50-3": ("mlp", VECTORS, {"width": 50, "depth": 1}, 703),
    "ResNet-20, option B": ("resnet", CIFAR, {}, 269_722 + 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64),
    "MobileNetV2": ("mobilenet", IMAGENET, {"width": 32}, 3_504_872),
    "EfficientNet-B0": ("efficientnet", IMAGENET, {}, 5_288_548),
    "ConvNeXt-T without layer scale": (
        "convnext",
        IMAGENET,
        {"width": 96, "depth": 18},
        28_589_128 - (3 * 96 + 3 * 192 + 9 * 384 + 3 * 768),
    ),
    "ViT-Ti without class token": (
        "encoder",
        IMAGENET,
        {"width": 192, "depth": 12, "heads": 3, "kernel": 16},
        5_717_416 - 2 * 192,
    ),
}


@pytest.mark.parametrize("case", PUBLISHED)
def test_published_sizes(case: str) -> None:
    name, shape, scale, wanted = PUBLISHED[case]
    assert params(built(name, shape, **scale)) == wanted


def test_published_sizes_of_the_others() -> None:
    x1 = shufflenet(IMAGENET, side=224, first=24, widths=(116, 232, 464), units=(4, 8, 4), last=1024)
    assert sum(map(params, x1.values())) == 2_278_604
    assert decoder(768, 12, vocabulary=50257, context=1024) == 124_439_808  # GPT-2


def conv(inputs: int, outputs: int, kernel: int, groups: int = 1) -> int:
    """A convolution with BatchNorm."""
    return inputs // groups * outputs * kernel**2 + 2 * outputs


def by_hand(name: str, w: int, d: int, outputs: int) -> int:
    """Parameters on 3-channel images (vectors of 10, 16 tokens of 20), other dimensions at their defaults."""
    if name == "mlp":
        return 10 * w + w + (d - 1) * (w * w + w) + w * outputs + outputs
    if name == "cnn":
        n = d // 3
        inner = sum((n - 1) * conv(c, c, 3) for c in (w, 2 * w, 4 * w))
        return conv(3, w, 3) + inner + conv(w, 2 * w, 3) + conv(2 * w, 4 * w, 3) + 4 * w * outputs + outputs
    if name == "resnet":
        n = (d - 2) // 6
        inner = (2 * n) * conv(w, w, 3) + (2 * n - 1) * (conv(2 * w, 2 * w, 3) + conv(4 * w, 4 * w, 3))
        steps = conv(w, 2 * w, 3) + conv(w, 2 * w, 1) + conv(2 * w, 4 * w, 3) + conv(2 * w, 4 * w, 1)
        return conv(3, w, 3) + inner + steps + 4 * w * outputs + outputs
    if name == "shufflenet":
        total, c = conv(3, w // 2, 3), w // 2
        for width, units in zip((w, 2 * w, 4 * w), share_out(d, (4, 8, 4)), strict=True):
            h = width // 2
            total += conv(c, c, 3, c) + conv(c, h, 1) + conv(c, h, 1) + conv(h, h, 3, h) + conv(h, h, 1)
            total += (units - 1) * (conv(h, h, 1) + conv(h, h, 3, h) + conv(h, h, 1))
            c = width
        return total + conv(c, 16 * w, 1) + 16 * w * outputs + outputs
    if name == "convnext":
        total = 27 * w + w + 2 * w
        for stage, blocks in enumerate(share_out(d, (3, 3, 9, 3))):
            c = w * 2**stage
            total += blocks * (49 * c + c + 2 * c + 4 * c * c + 4 * c + 4 * c * c + c)
            total += (2 * (c // 2) + 4 * (c // 2) * c + c) if stage else 0
        return total + 2 * 8 * w + 8 * w * outputs + outputs
    if name == "gpt":
        return decoder(w, d, vocabulary=20, context=16)
    body = d * (12 * w * w + 13 * w) + 2 * w
    if name == "encoder":
        return 3 * 16 * w + w + 64 * w + body + w * outputs + outputs
    return inverted(name, w, d, outputs)


def decoder(w: int, d: int, *, vocabulary: int, context: int) -> int:
    return vocabulary * w + context * w + d * (12 * w * w + 13 * w) + 2 * w


def inverted(name: str, w: int, d: int, outputs: int) -> int:
    """MobileNetV2 and EfficientNet from the tables of their papers; depth 7 is one block in each stage."""
    assert d == 7
    channels = {"mobilenet": (16, 24, 32, 64, 96, 160, 320), "efficientnet": (16, 24, 40, 80, 112, 192, 320)}[name]
    kernels = {"mobilenet": (3,) * 7, "efficientnet": (3, 3, 5, 3, 5, 5, 3)}[name]
    total, c = conv(3, w, 3), w
    for stage, (out, k) in enumerate(zip([to_eight(n * w / 32) for n in channels], kernels, strict=True)):
        h = 6 * c if stage else c
        total += (conv(c, h, 1) if stage else 0) + conv(h, h, k, h) + conv(h, out, 1)
        if name == "efficientnet":
            total += 2 * h * max(1, c // 4) + max(1, c // 4) + h
        c = out
    return total + conv(c, 40 * w, 1) + 40 * w * outputs + outputs


COUNTED = ("mlp", "cnn", "resnet", "mobilenet", "shufflenet", "convnext", "efficientnet", "gpt", "encoder")
"""Families whose params are counted by hand, too; `speed` has a test file of its own. The contract asks it of none."""
SMALL = {"resnet": (8, 14), "mobilenet": (16, 7), "efficientnet": (24, 7), "shufflenet": (32, 8), "convnext": (16, 6)}


@pytest.mark.parametrize("name", COUNTED)
def test_params_by_hand(name: str) -> None:
    shape = shape_for(name)
    width, depth = SMALL.get(name, (48, 3))
    model = built(name, shape, width=width, depth=depth)
    assert params(model) == by_hand(name, width, depth, shape.outputs)
    assert params(model) != by_hand(name, width, depth, shape.outputs + 1) or name == "gpt"  # control


def test_token_encoder_by_hand() -> None:
    model = built("encoder", SENTENCES, width=32, depth=2)
    assert params(model) == 30 * 32 + 16 * 32 + 2 * (12 * 32**2 + 13 * 32) + 2 * 32 + 32 * 2 + 2
    assert model(batch(SENTENCES)).shape == (3, 2)


# Growth.


def body(name: str, scale: Mapping[str, float]) -> float:
    """What `grow` multiplies, counted on a model: matrices outside stem, embedding and logits, or MACs of one pixel."""
    model = built(name, shape_for(name), **scale)
    ends = ("stem", "conv1", "patches", "head", "linear", "embed") if name != "mlp" else ("0", str(2 * int(scale["depth"])))
    if name == "efficientnet":
        layers = count(model, batch(CIFAR)).by_layer
        inside = [layer for layer in layers if layer.name.split(".")[0] not in ends and ".excite." not in layer.name]
        return sum(layer.macs for layer in inside) / 32**2
    weights = [(key, p.numel()) for key, p in model.named_parameters() if p.ndim > 1]
    return sum(n for key, n in weights if key.split(".")[0] not in ends)


@pytest.mark.parametrize("name", [*COUNTED, "speed"])
def test_cost_is_what_a_model_has(name: str) -> None:
    kind = family(name)
    for change in ({}, {"width": kind.scale()["width"] * 2}, {"depth": kind.dimensions[1].menu[-2]}):
        scale = kind.scale(**change)
        assert kind.cost(scale) == pytest.approx(body(name, scale), rel=0.03 if name == "speed" else 1e-9)
    assert kind.cost(kind.scale()) != pytest.approx(body(name, kind.grow(2)), rel=0.3)  # control


@pytest.mark.parametrize("name", [*COUNTED, "speed"])
def test_growth_hits_its_factor(name: str) -> None:
    kind = family(name)
    start = kind.cost(kind.scale())
    assert kind.grow(1) == kind.scale()
    step = kind.dimensions[0].multiple or 1
    for factor in (0.25, 0.5, 1.5, 2, 3, 4, 6, 8, 16, 64):
        scale = kind.grow(factor)
        miss = kind.cost(scale) / start / factor
        assert abs(math.log(miss)) <= math.log(scale["width"] / max(scale["width"] - step, step / 2)), (factor, scale)
        assert factor not in (2, 4, 8, 16, 64) or miss == pytest.approx(1, abs=0.13)
    sizes = [kind.cost(kind.grow(2**step)) for step in range(-2, 7)]
    assert sizes == sorted(sizes)
    with pytest.raises(InputError, match="comes no nearer"):
        kind.grow(1e-6)
    with pytest.raises(InputError, match="a number from"):
        kind.grow(0)


def test_growth_from_another_start_and_by_compound_rule() -> None:
    resnet = family("resnet")
    assert resnet.grow(4, depth=44, width=8) == {"width": 16, "depth": 44, "resolution": 1.0}
    gpt = family("gpt").grow(8)
    assert (gpt["width"], gpt["depth"]) == (288, 6)  # depth as the root of the width
    compound = family("efficientnet").grow((1.2 * 1.1**2 * 1.15**2) ** 4)
    assert compound["depth"] == pytest.approx(16 * 1.2**4, rel=0.1)
    assert compound["width"] == pytest.approx(32 * 1.1**4, rel=0.15)
    assert compound["resolution"] == pytest.approx(1.15**4, rel=0.1)


# Behavior.


@pytest.fixture(scope="module")
def text() -> Task:
    found = importlib.util.find_spec("pydoc_data.topics")
    assert found is not None
    return load_task(f"text:{found.origin}?context=16")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return load_task(f"translation:{languages.write(tmp_path_factory.mktemp('pairs'))}?vocabulary=300&length=24")


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in FAMILIES
        if not FAMILIES[name].data
        and family(name).kinds != ("vectors",)
        and (family(name).dense or "images" in family(name).kinds)
    ],
)
def test_learns_real_data(name: str, text: Task, pairs: Task) -> None:
    task = pairs if "pairs" in family(name).kinds else text if family(name).dense else load_task("digits")
    kind = family(name)
    scale = {d.name: d.menu[0] for d in kind.dimensions if d.name in ("width", "depth")}
    model = kind.model(scale, task, generator=torch.Generator().manual_seed(0)).train()
    inputs, targets = task.train.take(48).tensors()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        outputs = call(model, inputs)
        loss = task.loss(outputs, targets)
        torch.autograd.backward(loss)
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters() if p.requires_grad)
        optimizer.step()
        losses.append(loss.item())
    assert outputs.shape == (48, task.outputs, *task.shape.places)
    assert losses[0] == pytest.approx(math.log(task.outputs), rel=0.2)  # starts at guessing
    assert losses[-1] < losses[0]
    assert task.metric.ask or math.isfinite(task.metric.score(outputs.detach(), targets))


def test_weights_are_drawn_by_fan_in() -> None:
    net = nn.Sequential(nn.Conv2d(64, 128, 3), nn.Conv2d(128, 128, 5, groups=128), nn.Linear(400, 300), nn.Linear(300, 200))
    with torch.no_grad():
        fan_in(net, torch.Generator().manual_seed(0))
    spreads = [layer.weight.std().item() for layer in net]
    wanted = [math.sqrt(2 / 576), math.sqrt(2 / 25), math.sqrt(2 / 400), math.sqrt(0.1 / 300)]
    assert spreads == pytest.approx(wanted, rel=0.05)
    assert not any(layer.bias.any() for layer in net)


def test_channels_are_multiples_of_eight() -> None:
    for name in ("cnn", "resnet", "mobilenet", "shufflenet", "convnext", "efficientnet", "speed"):
        for width in family(name).dimensions[0].menu[1:3]:
            convs = [m for m in built(name, CIFAR, width=width).modules() if isinstance(m, nn.Conv2d)]
            inner = [m for m in convs if m.kernel_size != (1, 1) or m.bias is None]  # not inside squeeze-and-excite
            assert all(m.out_channels % 8 == 0 for m in inner), (name, width)


IMAGE_FAMILIES = [name for name in FAMILIES if not FAMILIES[name].data and "resolution" in family(name).scale()]


@pytest.mark.parametrize("name", IMAGE_FAMILIES)
def test_resolution_is_changed_inside(name: str) -> None:
    half, whole = built(name, CIFAR, resolution=0.5), built(name, CIFAR)
    assert [m.size for m in half.modules() if isinstance(m, Resize)] == [(16, 16)]
    assert not [m for m in whole.modules() if isinstance(m, Resize)]
    assert half.eval()(batch(CIFAR)).shape == (3, 10)
    work = count(whole, batch(CIFAR)).macs / count(half, batch(CIFAR)).macs
    assert 1.9 < work < 4.5  # less than 4 where the last maps cannot shrink further


@pytest.mark.parametrize("name", IMAGE_FAMILIES)
def test_every_side_fits(name: str) -> None:
    for sample in ((1, 4, 4), (1, 7, 9), (3, 28, 28), (2, 64, 48), (3, 130, 130)):
        shape = Shape(sample, 5)
        assert built(name, shape, **smallest(family(name))).eval()(batch(shape, 1)).shape == (1, 5), sample


def test_stem_and_stages_follow_the_resolution() -> None:
    def behind_stem(name: str, side: int) -> int:
        model = built(name, Shape((3, side, side), 5), width=16)
        return int(model.get_submodule("stem")(torch.zeros(1, 3, side, side)).shape[2])

    assert [behind_stem("mobilenet", side) for side in (8, 32, 63, 64, 128, 224)] == [8, 32, 63, 32, 64, 112]
    for name in ("cnn", "shufflenet", "convnext"):
        assert [behind_stem(name, side) for side in (8, 32, 64, 128, 224)] == [8, 32, 32, 32, 56], name
    small = family("mobilenet").model({"resolution": 0.5}, Shape((3, 64, 64), 5), generator=torch.Generator())
    assert small[1](small[0](torch.zeros(1, 3, 64, 64))).shape[2:] == (16, 16)  # stride 2 for 64 pixels, resized or not
    assert strides(8, (1, 2, 2, 2, 1, 2)) == [1, 2, 2, 1, 1, 1]
    assert strides(32, (2, 2, 2, 2, 2)) == [2, 2, 2, 2, 1]


def test_share_out_adds_up() -> None:
    for pattern in ((1, 1, 1), (4, 8, 4), (1, 2, 3, 4, 3, 3, 1), (3, 3, 9, 3)):
        assert share_out(sum(pattern), pattern) == list(pattern)
        for total in range(len(pattern), 60):
            shares = share_out(total, pattern)
            assert sum(shares) == total
            assert min(shares) >= 1


def test_gpt_sees_the_past_alone() -> None:
    model = built("gpt", TEXT, width=32, depth=2).eval()
    tokens = batch(TEXT, 1)
    changed = tokens.clone()
    changed[0, 9] = (changed[0, 9] + 1) % 20
    differs = (model(tokens) != model(changed)).any(1)[0]
    assert not differs[:9].any()
    assert differs[9:].any()
    assert model.get_parameter("head.logits.weight") is model.get_parameter("embed.token.weight")


def test_encoder_sees_everything() -> None:
    model = built("encoder", SENTENCES, width=32, depth=1).eval()
    tokens = batch(SENTENCES, 1)
    changed = tokens.clone()
    changed[0, -1] = (changed[0, -1] + 1) % 30
    assert (model(tokens) != model(changed)).any()


@pytest.mark.parametrize(("share", "context"), [(0.5, 8), (0.3, 5)])
def test_short_context_is_the_same_as_short_windows(share: float, context: int) -> None:
    model = built("gpt", TEXT, width=32, depth=1, context=share).eval()
    short = built("gpt", Shape((context,), 20, 20, dense=True), width=32, depth=1).eval()
    short.load_state_dict(model.state_dict())
    tokens = batch(TEXT)
    whole = model(tokens)
    assert whole.shape == (3, 20, 16)
    parts = [short(tokens[:, start : start + context]) for start in range(0, 16, context)]
    assert torch.allclose(whole, torch.cat(parts, dim=2), atol=1e-5)


@pytest.mark.parametrize("name", [name for name in FAMILIES if not FAMILIES[name].data])
def test_flops_are_twice_the_macs(name: str) -> None:
    """Our counts and torch's counter agree; attention must be told to run in its open form for torch's."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    shape = shape_for(name, DIGITS)
    model = built(name, shape).eval()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        call(model, samples(shape, 1))
    counts = count(model, samples(shape))
    assert counter.get_total_flops() == 2 * counts.macs
    assert counts.complete


def test_cross_entropy_of_tokens() -> None:
    logits, targets = built("gpt", TEXT, width=32, depth=1)(batch(TEXT)), batch(TEXT, seed=1)
    flat = F.cross_entropy(logits.transpose(1, 2).reshape(-1, 20), targets.reshape(-1))
    assert torch.allclose(F.cross_entropy(logits, targets), flat)


# The contract, and those that break it.


@pytest.mark.parametrize("name", [name for name in FAMILIES if not FAMILIES[name].data])
def test_a_family_keeps_the_contract(name: str) -> None:
    check_family(family(name))


class Plain(nn.Sequential):
    """Two layers, on samples of any shape."""

    def __init__(self, shape: Shape, width: int) -> None:
        super().__init__(
            nn.Flatten(), nn.Linear(math.prod(shape.sample), width), nn.Linear(width, width), nn.Linear(width, shape.outputs)
        )


class Leaks(Plain):
    """Answers a sample by what stands beside it in the batch."""

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = super().forward(x)
        return found - found.mean(0)


class Idle(Plain):
    """Has a weight that nothing reads."""

    def __init__(self, shape: Shape, width: int) -> None:
        super().__init__(shape, width)
        self.more = nn.Parameter(torch.zeros(width))


def secret(shape: Shape, width: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return Plain(shape, width)


def other_dice(shape: Shape, width: int) -> nn.Module:
    net = Plain(shape, width)
    with torch.no_grad():
        net[1].weight.copy_(torch.rand(net[1].weight.shape, generator=DICE))
    return net


def kept(shape: Shape, width: int) -> nn.Module:
    return KEPT.setdefault((shape, width), Plain(shape, width))


DICE, KEPT = torch.Generator(), dict[Any, nn.Module]()
WIDTH = Dimension("width", 32, (8, 16, 32, 64))

LIARS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "does not grow": (lambda shape, width: Plain(shape, 8), {}, "its params do not rise"),
    "grows faster than it says": (lambda shape, width: Plain(shape, width**2 // 8), {}, "its cost rises"),
    "grows by nothing": (Plain, {"growth": {"depth": 1.0}}, "no dimension"),
    "answers too much": (lambda shape, width: nn.Sequential(Plain(shape, width), nn.Linear(3, 4)), {}, "in the shape"),
    "answers by the neighbours": (Leaks, {}, "alone than in a batch"),
    "holds what nothing reads": (Idle, {}, "no gradient reaches"),
    "has a seed of its own": (secret, {}, "another seed gives the same"),
    "draws elsewhere": (other_dice, {}, "the same seed gives other weights"),
    "gives one model twice": (kept, {}, "share their weights"),
    "takes all that comes": (lambda shape, width: Plain(shape, width), {"kinds": ("vectors", "tokens")}, "dtype"),
}


def made_of(builder: Any, **more: Any) -> Family:
    described = {"cost": lambda scale: scale["width"] ** 2, "growth": {"width": 1.0}, "kinds": ("vectors",), **more}
    return Family("own", (WIDTH,), lambda scale, shape: builder(shape, int(scale["width"])), **described)


def test_an_honest_family_of_ones_own_keeps_the_contract() -> None:
    check_family(made_of(Plain))
    check_family(Family.of(lambda shape, width=32: Plain(shape, width), dimensions=(WIDTH,)), CIFAR)


@pytest.mark.parametrize("liar", LIARS)
def test_the_contract_catches_a_liar(liar: str) -> None:
    builder, more, caught = LIARS[liar]
    with pytest.raises(RuntimeError if caught == "dtype" else AssertionError, match=caught):
        check_family(made_of(builder, **more))


@pytest.mark.slow
def test_a_family_is_a_file_and_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from equipoise.cli import main
    from equipoise.workloads import load_family

    text = """
import math
from torch import nn
from equipoise.workloads.families import Dimension, Family

def build(scale, shape):
    width = int(scale["width"])
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape.sample), width), nn.Linear(width, shape.outputs))

TWO = Family("two", (Dimension("width", 32),), build, ("vectors", "images"), lambda scale: scale["width"], {"width": 1.0})
"""
    (tmp_path / "two.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(FAMILIES, "two", BuiltIn("two:TWO"))
    check_family(load_family("two"))
    assert main(["scale", "table", "two", "digits", "--json"]) == 0


# Bad input.

BAD_SCALES: list[tuple[str, dict[str, Any], str]] = [
    ("resnet", {"widht": 16}, "Did you mean 'width'"),
    ("resnet", {"kernel": 3}, "dimension of resnet must be one of depth, resolution, width"),
    ("resnet", {"width": 12}, "a multiple of 8, at least 8; got 12. The nearest is 16"),
    ("resnet", {"depth": 21}, r"2 \+ a multiple of 6, at least 8; got 21. The nearest is 20"),
    ("resnet", {"depth": 2}, "The nearest is 8"),
    ("resnet", {"resolution": 0}, "a number of at least 0.25, 4.0 at most; got 0"),
    ("cnn", {"kernel": 4}, r"1 \+ a multiple of 2, at least 3"),
    ("cnn", {"depth": 2}, "at least 3"),
    ("cnn", {"width": float("nan")}, "a finite number"),
    ("cnn", {"width": True}, "a finite number"),
    ("cnn", {"width": "32"}, "a finite number"),
    ("gpt", {"width": 32, "heads": 5}, "a divisor of the width 32"),
    ("gpt", {"context": 1.5}, "1.0 at most"),
    ("mlp", {"depth": 0}, "a whole number, at least 1"),
    ("mlp", {"width": 2.5}, "a whole number"),
]


@pytest.mark.parametrize(("name", "scale", "message"), BAD_SCALES)
def test_bad_scales_are_refused(name: str, scale: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        family(name).scale(**scale)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("resnet", VECTORS, "one of images for the family resnet; got 'vectors'"),
        ("mlp", TEXT, "vectors or images or arrays"),
        ("gpt", CIFAR, "one of tokens"),
        ("gpt", SENTENCES, "one label for each position"),
        ("encoder", TEXT, "one answer for each sample"),
        ("encoder", VECTORS, "tokens or images"),
        ("gpt", Shape((16,), 4, 20, dense=True), "the vocabulary of 20"),
    ],
)
def test_tasks_that_do_not_fit(name: str, shape: Shape, message: str) -> None:
    with pytest.raises(InputError, match=message):
        built(name, shape)


def test_numpy_numbers_and_whole_floats_are_taken() -> None:
    import numpy as np

    scale = family("cnn").scale(width=np.int64(16), depth=6.0, resolution=np.float32(0.5))
    assert scale == {"width": 16, "depth": 6, "kernel": 3, "resolution": 0.5}
    assert [type(value) for value in scale.values()] == [int, int, int, float]


def test_bad_dimensions() -> None:
    with pytest.raises(InputError, match="ordered"):
        Dimension("width", 8, (16, 8))
    with pytest.raises(InputError, match="a multiple of 8"):
        Dimension("width", 8, (8, 12), multiple=8)
    with pytest.raises(InputError, match="a word"):
        Dimension("the width", 8)
    with pytest.raises(InputError, match="Did you mean 'resnet'"):
        family("resnett")


@pytest.mark.data
def test_real_sentences(data_folder: Path) -> None:
    task = load_task(f"text:{data_folder / 'sst2' / 'train.tsv'}?context=32")
    model = family("gpt").model({"width": 32, "depth": 1}, task, generator=torch.Generator().manual_seed(0))
    inputs, targets = task.validation.take(8).tensors()
    bits = task.metric.score(model(inputs).detach(), targets)
    assert bits == pytest.approx(math.log2(task.outputs), rel=0.1)


def test_a_lower_resolution_is_counted_in_full() -> None:

    shape = Shape((3, 32, 32), 10)
    model = family("cnn").model({"resolution": 0.5}, shape, generator=torch.Generator().manual_seed(0))
    assert count(model, torch.zeros(2, 3, 32, 32)).complete
