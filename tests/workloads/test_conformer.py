"""The Conformer: params by hand, what each part sees, its parts against a slow form, and what ships of it."""

from __future__ import annotations

import math

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equipoise.compress.fold import fold
from equipoise.errors import InputError
from equipoise.runtimes.export import Exporter
from equipoise.testing import check_family
from equipoise.workloads import Shape, family
from equipoise.workloads.families.conformer import STEP, Attend, Block, Convolve, Front

WORDS, ROWS = Shape((10 * STEP,), 5), Shape((10 * STEP,), 11, dense=True, aligned=False)


def built(shape: Shape = WORDS, **scale: float) -> nn.Module:
    return family("conformer").model(scale, shape, generator=torch.Generator().manual_seed(0))


def sound(n: int = 3, samples: int = 10 * STEP) -> Tensor:
    return 0.1 * torch.randn(n, samples, generator=torch.Generator().manual_seed(1))


def lively(model: nn.Module) -> nn.Module:
    """In evaluation mode, its normalizations having seen data."""
    with torch.no_grad():
        for _ in range(20):
            model.train()(sound(16))
    return model.eval()


def test_params_by_hand() -> None:
    """At width w, expansion e, kernel k: two feed-forwards, attention, convolution, five norms inside and one behind."""
    w, e, k, depth, classes = 32, 2, 5, 2, 5
    feed = 2 * w + (w * e * w + e * w) + (e * w * w + w)
    attend = 2 * w + (w * 3 * w + 3 * w) + (w * w + w)
    convolve = 2 * w + 3 * (w * w + w) + (w * k + w) + 2 * w
    front = (32 * 3 * w + w) + (w * 3 * w + w)
    wanted = front + depth * (2 * feed + attend + convolve + 2 * w) + 2 * w + w * classes + classes
    net = built(width=w, depth=depth, expansion=e, kernel=k)
    assert sum(p.numel() for p in net.parameters()) == wanted
    default = built(Shape((7360,), 10))
    assert sum(p.numel() for p in default.parameters()) < 300_000


def test_both_answers_keep_the_contract() -> None:
    check_family(family("conformer"), ROWS)


def test_rows_have_a_frame_for_each_40_ms_and_any_length() -> None:
    net = built(ROWS, width=32, depth=1).eval()
    for samples, frames in ((STEP, 1), (STEP + 1, 2), (7360, 23), (10, 1)):
        assert net(sound(2, samples)).shape == (2, 11, frames)
    assert built(width=32, depth=1).eval()(sound(2, 1000)).shape == (2, 5)


def test_the_front_looks_back_alone() -> None:
    front, samples = Front(32).eval(), sound(1)
    changed = samples.clone()
    changed[:, 4 * STEP :] *= -0.5
    differs = (front(samples) - front(changed)).abs().amax(2)[0] > 1e-6
    assert differs.tolist() == [False] * 4 + [True] * 6


def test_attention_against_torchs_own() -> None:
    layer = Attend(32, 4).eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    own = nn.MultiheadAttention(32, 4, batch_first=True).eval()
    own.load_state_dict(
        {
            "in_proj_weight": layer.attend.weight,
            "in_proj_bias": layer.attend.bias,
            "out_proj.weight": layer.merge.weight,
            "out_proj.bias": layer.merge.bias,
        }
    )
    x = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(0))
    seen = layer.norm(x)
    assert torch.allclose(layer(x), own(seen, seen, seen, need_weights=False)[0], atol=1e-5)
    assert not torch.allclose(layer(x), own(x, x, x, need_weights=False)[0], atol=1e-2)  # without the norm


def test_convolution_against_a_slow_sum() -> None:
    layer = Convolve(16, 5).eval()
    x = torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        normal = layer.norm(x)[0]
        gated = F.glu(torch.cat((layer.value(normal), layer.gate(normal)), 1), 1)  # torch's own gated linear unit
        rows = []
        for place in range(6):
            near = [(place + by, by + 2) for by in range(-2, 3) if 0 <= place + by < 6]
            assert layer.deep.bias is not None
            heard = layer.deep.bias + sum(gated[there] * layer.deep.weight[:, 0, tap] for there, tap in near)
            rows.append(layer.out(F.silu(layer.settle(heard[None]))))
        assert torch.allclose(layer(x)[0], torch.cat(rows), atol=1e-5)
        assert not torch.allclose(layer(x)[0], torch.cat(rows).roll(1, 0), atol=1e-2)


def test_a_block_adds_half_of_each_feed_forward() -> None:
    block = Block(16, heads=2, expansion=2, kernel=3).eval()
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))

    def half(layer: nn.Module, x: Tensor) -> Tensor:
        made: Tensor = layer.narrow(F.silu(layer.widen(layer.norm(x))))  # type: ignore[operator, union-attr]
        return 0.5 * made

    with torch.no_grad():
        y = x + half(block.before, x)
        y = y + block.attend(y)
        y = y + block.convolve(y)
        y = block.norm(y + half(block.after, y))
        assert torch.allclose(block(x), y, atol=1e-6)


def test_what_is_added_is_small_at_first() -> None:
    deep = built(width=64, depth=6)
    block = deep.get_submodule("block1")
    assert isinstance(block, Block)
    ratio = float(block.after.narrow.weight.detach().std()) * math.sqrt(128)
    assert ratio == pytest.approx(24**-0.5, rel=0.05)


@pytest.mark.slow
def test_the_file_takes_samples_and_answers_as_the_model() -> None:
    model = lively(built(width=32, depth=1))
    folded = fold(model, sound(2))
    assert not [m for m in folded.modules() if isinstance(m, nn.BatchNorm1d)]
    content = Exporter().onnx(folded, sound(2), topology="conformer")
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (taken,) = session.get_inputs()
    assert taken.shape == ["batch", 10 * STEP]
    for n in (1, 3):
        (found,) = session.run(None, {"input": sound(n).numpy()})
        assert np.allclose(found, model(sound(n)).detach().numpy(), atol=1e-4)


def test_a_label_for_each_sample_is_refused() -> None:
    with pytest.raises(InputError, match="one that does not ask for each sample in conformer"):
        built(Shape((640,), 4, dense=True))
    with pytest.raises(InputError, match="one of vectors"):
        built(Shape((3, 32, 32), 4))
    with pytest.raises(InputError, match="divisor of the width"):
        built(width=48, heads=5)
    with pytest.raises(InputError, match=r"1 \+ a multiple of 2"):
        built(kernel=4)
