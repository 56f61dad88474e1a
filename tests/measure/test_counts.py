"""Counts against two oracles, a count by hand and torch's own counter, with planted operators that must not pass unseen."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from equipoise.errors import InputError
from equipoise.measure.counts import count
from equipoise.workloads.models import ResNet


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Block(nn.Module):
    """A residual block whose shortcut strides."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, padding=1, bias=False)
        self.short = nn.Conv2d(cin, cout, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.bn1(self.conv1(x)))) + self.short(x))


class Sequence(nn.Module):
    """The last state of a recurrent layer, classified."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.layer(x)
        return self.head(states[:, -1])


class Attention(nn.Module):
    """Scaled dot product attention called as a function, with values wider than keys."""

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, torch.cat([x, x], -1), is_causal=True)


def _encoder(norm_first: bool = False) -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=norm_first)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


ENCODER = 2 * (3 * 16 * 48 + 2 * 3 * 3 * 16 + 3 * 16 * 16 + 2 * 3 * 16 * 32)
CASES: dict[str, tuple[nn.Module, tuple[int, ...], int]] = {
    # name: model, shape of a batch, MACs of one sample by hand
    "mlp": (nn.Sequential(nn.Linear(10, 50), nn.ReLU(), nn.Linear(50, 3)), (2, 10), 10 * 50 + 50 * 3),
    "cnn": (
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3, groups=4, dilation=2), nn.Flatten(), nn.Linear(64, 5)),
        (2, 3, 8, 8),
        6 * 6 * 8 * 27 + 2 * 2 * 16 * (2 * 9) + 64 * 5,
    ),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (2, 4, 5, 5), 5 * 5 * 4 * 3 * 9),
    "conv1d": (nn.Conv1d(4, 6, 5, stride=2), (2, 4, 11), 4 * 6 * 4 * 5),
    "resnet": (
        nn.Sequential(Block(3, 8), Block(8, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)),
        (2, 3, 16, 16),
        64 * 8 * (27 + 72 + 3) + 16 * 16 * (72 + 144 + 8) + 64,
    ),
    "gru": (Sequence(nn.GRU(5, 7, num_layers=2, batch_first=True), 7), (2, 3, 5), 3 * 21 * (5 + 7 + 7 + 7) + 14),
    "lstm": (Sequence(nn.LSTM(5, 7, bidirectional=True, batch_first=True), 14), (2, 3, 5), 2 * 3 * 28 * (5 + 7) + 28),
    "attention": (Attention(), (2, 4, 3, 8), 4 * 3 * 3 * (8 + 16)),
    "encoder": (_encoder(), (2, 3, 16), ENCODER),
    "encoder, norm first": (_encoder(norm_first=True), (2, 3, 16), ENCODER),
}


def _torchs_count(model: nn.Module, sample: Tensor) -> float:
    """Half of torch's FLOPs, with fused kernels it has no formula for switched off."""
    torch.backends.mha.set_fastpath_enabled(False)
    torch._C._set_mkldnn_enabled(False)  # the public context manager warns on builds without Intel GPU
    try:
        with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.eval()(sample)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
        torch._C._set_mkldnn_enabled(True)
    return counter.get_total_flops() / 2


@pytest.mark.parametrize("name", CASES)
def test_macs_are_those_by_hand_and_those_of_torch(name: str) -> None:
    model, shape, by_hand = CASES[name]
    batch = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = count(model.eval(), batch)
    assert found.complete, found.unsupported
    assert found.macs == by_hand
    assert found.macs == _torchs_count(model, batch[:1])
    assert found.reading().provenance == "measured"


@pytest.mark.parametrize("name", CASES)
def test_layers_add_up_to_the_totals(name: str) -> None:
    model, shape, _ = CASES[name]
    found = count(model, torch.zeros(shape))
    assert sum(layer.macs for layer in found.by_layer) == found.macs
    assert sum(layer.params for layer in found.by_layer) == found.params == sum(p.numel() for p in model.parameters())


def test_an_mlp_10_50_3_has_703_params() -> None:
    found = count(CASES["mlp"][0], torch.zeros(2, 10))
    assert found.params == 703
    assert found.activations == 53
    assert [(layer.name, layer.kind, layer.params, layer.macs, layer.output) for layer in found.by_layer] == [
        ("0", "Linear", 550, 500, (1, 50)),
        ("2", "Linear", 153, 150, (1, 3)),
    ]


def test_resnet20_has_the_published_counts() -> None:
    """He et al. 2015, option A shortcuts: 0.27 M params; 40.55 M MACs by hand."""
    by_hand = 1024 * 16 * 27 + 6 * 1024 * 16 * 144 + 256 * 32 * (144 + 5 * 288) + 64 * 64 * (288 + 5 * 576) + 640
    found = count(ResNet(20), torch.zeros(2, 3, 32, 32))
    assert (found.params, found.macs, found.complete) == (269_722, by_hand, True)


def test_fused_attention_is_seen_and_left_switched_on() -> None:
    """Negative control: on the fast path torch's counter sees nothing of the encoder layer."""
    model = _encoder().eval()
    assert torch.backends.mha.get_fastpath_enabled()
    with torch.no_grad(), FlopCounterMode(display=False) as blind:
        model(torch.zeros(1, 3, 16))
    assert blind.get_total_flops() == 0
    assert count(model, torch.zeros(1, 3, 16)).macs == ENCODER
    assert torch.backends.mha.get_fastpath_enabled()


def test_inference_mode_inside_the_model_hides_nothing() -> None:
    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = CASES["cnn"][0]

        def forward(self, x: Tensor) -> Tensor:
            with torch.inference_mode():
                return self.body(x)

    assert count(Inside(), torch.zeros(2, 3, 8, 8)).macs == CASES["cnn"][2]


def test_an_unknown_operator_makes_the_total_a_lower_bound() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.pair = nn.Bilinear(4, 4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.linear(x)
            return self.pair(x, x) + self.pair(x, x)

    found = count(Odd(), torch.zeros(2, 4))
    assert not found.complete
    assert found.unsupported == {"aten._trilinear": 2}
    reading = found.reading()
    assert reading.provenance == "estimated"
    assert "lower bound" in reading.note
    assert "aten._trilinear ×2" in reading.note


def test_ignored_operators_are_listed() -> None:
    found = count(CASES["resnet"][0], torch.zeros(2, 3, 16, 16))
    assert {"aten.relu", "aten.native_batch_norm", "aten.add"} <= set(found.ignored)
    assert found.counted == {"aten.addmm": 1, "aten.convolution": 6}


def test_a_shared_module_counts_its_work_twice_and_its_params_once() -> None:
    linear = nn.Linear(6, 6)
    found = count(nn.Sequential(linear, nn.ReLU(), linear), torch.zeros(2, 6))
    assert (found.params, found.macs) == (42, 72)
    tied = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
    tied[1].weight = tied[0].weight
    assert count(tied, torch.zeros(2, 6)).params == 36


def test_one_sample_is_counted_whatever_the_batch() -> None:
    model, _, by_hand = CASES["gru"]
    assert {count(model, torch.zeros(n, 3, 5)).macs for n in (1, 2, 9)} == {by_hand}


def test_several_inputs() -> None:
    class Two(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a @ b

    assert count(Two(), (torch.zeros(2, 3, 4), torch.zeros(2, 4, 5))).macs == 60


def test_the_model_is_left_as_it_was_found() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
    model.train()
    model[2].eval()
    before = copy.deepcopy(model.state_dict())
    count(model, torch.randn(2, 3, 8, 8))
    assert [m.training for m in model.modules()] == [True, True, True, False]
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_model_that_fails_is_left_as_it_was_found() -> None:
    model = nn.Sequential(nn.Linear(4, 4)).train()
    with pytest.raises(RuntimeError):
        count(model, torch.zeros(2, 5))
    assert model.training
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("example", [torch.tensor(1.0), torch.zeros(0, 4)])
def test_an_example_without_a_sample_is_refused(example: Tensor) -> None:
    with pytest.raises(InputError, match="example"):
        count(nn.Linear(4, 4), example)
