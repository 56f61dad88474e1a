"""Models of every family can be compressed and shipped: ONNX with a free batch axis, BatchNorm folded, channels cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from equipoise.batch import Inputs, call, mapped, named, take
from equipoise.built_in import FAMILIES
from equipoise.compress.fold import fold
from equipoise.compress.prune import prune
from equipoise.runtimes.export import Exporter
from equipoise.testing.families import samples, shape_of, smallest
from equipoise.workloads import Shape, family

IMAGES, TEXT = Shape((3, 16, 16), 5), Shape((12,), 20, 20, dense=True)


def ready(name: str, **more: float) -> tuple[nn.Module, Inputs]:
    """A small model in evaluation mode, its BatchNorms having seen data, and a batch."""
    kind = family(name)
    shape = IMAGES if "images" in kind.kinds else shape_of(kind)
    generator = torch.Generator().manual_seed(0)
    model = kind.model({**smallest(kind), **more}, shape, generator=generator)
    batch = samples(shape, 8)
    with torch.no_grad():
        call(model.train(), batch)
    return model.eval(), batch


CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in FAMILIES if not FAMILIES[name].data),
    ("resnet", {"resolution": 0.75}),
    ("cnn", {"resolution": 1.25}),
    ("gpt", {"context": 0.4}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "more"), CASES)
def test_onnx_answers_like_torch_at_any_batch(name: str, more: dict[str, float]) -> None:
    model, batch = ready(name, **more)
    two = take(batch, slice(2))
    content = Exporter().onnx(fold(model, two), two, topology=name)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for n in (1, 5, 8):
        few = take(batch, slice(n))
        (found,) = session.run(["output"], {key: value.numpy() for key, value in named(few).items()})
        wanted = call(model, few).detach().numpy()
        assert found.shape == wanted.shape
        assert np.allclose(found, wanted, atol=2e-4 * np.abs(wanted).max())
    turned = call(model, mapped(batch, lambda value: value.flip(0))).detach().numpy()
    assert not np.allclose(found, turned, atol=2e-4 * np.abs(wanted).max())  # control


@pytest.mark.parametrize("name", ["cnn", "resnet", "mobilenet", "shufflenet", "efficientnet"])
def test_every_norm_folds(name: str) -> None:
    model, batch = ready(name)
    folded = fold(model, batch[:2])
    assert [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        assert torch.allclose(folded(batch), model(batch), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FAMILIES if not FAMILIES[name].data and name not in ("gru", "seq2seq")])
def test_channels_can_be_cut(name: str) -> None:  # those of recurrent units are left whole
    kind = family(name)
    model, batch = ready(name, **kind.grow(4, **smallest(kind)))  # the smallest may be of 8 channels, which go together
    smaller = prune(model, take(batch, slice(2)), ratio=0.5)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, smaller))
    assert after < 0.9 * before
    assert call(smaller, batch).shape == call(model, batch).shape
