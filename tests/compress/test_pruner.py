"""The prepared pruner: deterministic, nested, and on the real ResNet-20 as good as docs/search.md tells."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from nets import ResNet20, fingerprint, made
from torch import Tensor, nn

from equipoise.compress.pruner import Pruner
from equipoise.errors import InputError


def test_builds_are_the_same_every_time_and_leave_everything_as_it_was() -> None:
    model, inputs = made("option_a")
    before = fingerprint(model)
    pruner = Pruner.prepare(model, inputs[:2], inputs)
    assert fingerprint(model) == before
    teacher = fingerprint(pruner.teacher)
    widths = {group.name: 8 for group in pruner.groups if group.prunable}
    first, again = pruner.build(widths, ["layer1.1"]), pruner.build(widths, ["layer1.1"])
    afresh = Pruner.prepare(model, inputs[:2], inputs).build(widths, ["layer1.1"])
    assert fingerprint(first) == fingerprint(again) == fingerprint(afresh)
    assert fingerprint(pruner.teacher) == teacher
    assert fingerprint(pruner.build(widths, ["layer1.1"], repair=False)) != fingerprint(first)
    with torch.no_grad():
        torch.testing.assert_close(pruner.build({})(inputs), model(inputs), atol=1e-5, rtol=1e-4)


def test_narrower_widths_keep_a_part_of_what_wider_ones_keep() -> None:
    model, inputs = made("cnn")
    pruner = Pruner.prepare(model, inputs[:2], inputs)
    wide, narrow = (pruner.build({"4": width}, repair=False)[4].bias.detach() for width in (16, 8))
    assert set(narrow.tolist()) < set(wide.tolist())


@pytest.mark.parametrize(
    ("widths", "drops", "message"),
    [
        ({"nope": 3}, [], "group must be one of"),
        ({"conv1": 3}, [], "left whole"),
        ({"layer1.0.conv1": 0}, [], r"in \[1, 8\]"),
        ({}, ["layer2.0"], "block must be one of"),
    ],
)
def test_wrong_plans_are_told(widths: dict[str, int], drops: list[str], message: str) -> None:
    model, inputs = made("option_a")
    with pytest.raises(InputError, match=message):
        Pruner.prepare(model, inputs[:2], inputs).build(widths, drops)


def test_stored_weights_of_a_repaired_model_fit_the_plan_built_without_repair() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, bias=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 4, bias=False),
    ).eval()
    inputs = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    pruner = Pruner.prepare(model, inputs[:2], inputs)
    widths = {group.name: 8 for group in pruner.groups if group.prunable}
    repaired, bare = pruner.build(widths), pruner.build(widths, repair=False)
    assert repaired[2].bias is not None
    bare.load_state_dict(repaired.state_dict())
    with torch.no_grad():
        assert torch.equal(bare(inputs), repaired(inputs))
    assert pruner.build({})[0].bias is None


def pictures(archive: Path, part: str, count: int) -> tuple[Tensor, Tensor]:
    """Read a fixed random sample of the pictures, normalized as the network was trained."""
    image = pytest.importorskip("PIL.Image", reason="needs pillow")
    with zipfile.ZipFile(archive) as files:
        names = sorted(name for name in files.namelist() if f"{part}/" in name and name.endswith(".jpg"))
        classes = sorted({name.split("/")[-2] for name in names})
        chosen = [names[i] for i in np.random.default_rng(0).permutation(len(names))[:count]]
        pixels = np.stack([np.asarray(image.open(io.BytesIO(files.read(name))).convert("RGB")) for name in chosen])
    values = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    labels = torch.tensor([classes.index(name.split("/")[-2]) for name in chosen])
    return (values - mean.view(3, 1, 1)) / deviation.view(3, 1, 1), labels


@pytest.mark.slow
@pytest.mark.data
def test_half_of_a_real_resnet_is_repaired_without_training(data_folder: Path) -> None:
    from safetensors.torch import load_file

    calibration, _ = pictures(data_folder / "cifar10-jpeg.zip", "train", 256)
    inputs, labels = pictures(data_folder / "cifar10-jpeg.zip", "test", 500)
    model = ResNet20()
    model.load_state_dict(load_file(data_folder.parent / "models" / "resnet20-cifar10jpeg.safetensors"))
    pruner = Pruner.prepare(model.eval(), calibration[:2], calibration)
    half = {group.name: group.size // 2 for group in pruner.groups if group.prunable}

    def accuracy(candidate: nn.Module) -> float:
        with torch.no_grad():
            return float((candidate(inputs).argmax(1) == labels).float().mean())

    assert accuracy(model) > 0.84
    assert accuracy(pruner.build(half, repair=False)) < 0.5
    assert accuracy(pruner.build(half)) > 0.7


def test_a_group_without_a_dense_reader_costs_its_own_order_only_and_is_noted() -> None:
    generator = torch.Generator().manual_seed(0)
    layers = (nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 24, 3, 1, 1), nn.ReLU(), nn.ConvTranspose2d(24, 1, 4, 2, 1))
    model, inputs = nn.Sequential(*layers).eval(), torch.randn(100, 1, 8, 8, generator=generator)
    pruner = Pruner.prepare(model, inputs[:2], inputs)
    (note,) = pruner.notes
    assert note.startswith("group '2' is ordered by criterion 'l2', not 'obs': no dense layer")
    smaller = pruner.build({"0": 8, "2": 8})
    with torch.no_grad():
        assert smaller(inputs).shape == model(inputs).shape
