"""From plans to models: deterministic, nested, refused where they cannot be built, and repaired on the real ResNet-20."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from nets import ResNet20, fingerprint, made
from torch import Tensor, nn

from equipoise.compress.bits import Bits
from equipoise.compress.builder import Builder
from equipoise.compress.factorize import factorize
from equipoise.compress.subject import Subject
from equipoise.compress.technique import Draft
from equipoise.errors import InputError
from equipoise.records import Plan


def ready(model: nn.Module, inputs: Tensor) -> Builder:
    return Builder(Subject.prepare(model, inputs[:2], inputs))


def narrow(builder: Builder, **changes: int | str) -> Plan:
    """Every group at 8 channels, with more knobs set by ``kind_place``."""
    widths = {f"width.{group.name}": 8 for group in builder.subject.groups if group.prunable}
    return Plan(widths | {name.replace("_", ".", 1): choice for name, choice in changes.items()})


def test_builds_are_the_same_every_time_and_leave_everything_as_it_was() -> None:
    model, inputs = made("option_a")
    before = fingerprint(model)
    builder = ready(model, inputs)
    assert fingerprint(model) == before
    teacher = fingerprint(builder.subject.model)
    plan = narrow(builder).but({"depth.layer1.1": "drop"})
    first, again = builder.build(plan).model, builder.build(plan).model
    afresh = ready(model, inputs).build(plan).model
    assert fingerprint(first) == fingerprint(again) == fingerprint(afresh)
    assert fingerprint(builder.subject.model) == teacher
    assert fingerprint(builder.build(plan, repair=False).model) != fingerprint(first)
    with torch.no_grad():
        torch.testing.assert_close(builder.build(Plan({})).model(inputs), model(inputs), atol=1e-5, rtol=1e-4)


def test_narrower_widths_keep_a_part_of_what_wider_ones_keep() -> None:
    model, inputs = made("cnn")
    builder = ready(model, inputs)
    drafts = [builder.build(Plan({"width.4": width}), repair=False) for width in (16, 8)]
    wide, narrower = (draft.model[4].bias.detach().tolist() for draft in drafts)
    assert set(narrower) < set(wide)
    assert set(drafts[1].keep["4", "out"].tolist()) < set(drafts[0].keep["4", "out"].tolist())


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"width.nope": 3}, "plan knob must be one of"),
        ({"width.conv1": 3}, "left whole"),
        ({"width.layer1.0.conv1": 0}, r"in \[1, 8\]"),
        ({"depth.layer2.0": "drop"}, "plan knob must be one of"),
    ],
)
def test_wrong_plans_are_told(choices: dict[str, int | str], message: str) -> None:
    model, inputs = made("option_a")
    builder = ready(model, inputs)
    with pytest.raises(InputError, match=message):
        builder.build(Plan(choices))


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
    builder = ready(model, inputs)
    plan = narrow(builder)
    repaired, bare = builder.build(plan).model, builder.build(plan, repair=False).model
    assert repaired[2].bias is not None
    bare.load_state_dict(repaired.state_dict())
    with torch.no_grad():
        assert torch.equal(bare(inputs), repaired(inputs))
    assert builder.build(Plan({})).model[0].bias is None
    assert model[2].bias is None
    shapes = Builder(Subject.of_shapes(model, inputs[:2], inputs)).build(plan, repair=False).model
    assert {k: v.shape for k, v in shapes.state_dict().items()} == {k: v.shape for k, v in repaired.state_dict().items()}


def test_bits_are_asked_for_in_every_part_of_a_layer_that_was_put_in_another_form() -> None:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    inputs = torch.randn(40, 12, generator=generator)
    subject = Subject.of_shapes(model, inputs[:2], inputs)
    draft = Draft(factorize(subject.model, inputs[:2], ranks={"2": 3}, data=inputs))
    asked = Bits().apply(draft, subject, {"2": 8, "4": 8}).request
    assert asked == {"2.0": 8, "2.1": 8, "4": 8}
    assert draft.request == {}
    whole = Bits().apply(Draft(subject.model), subject, {"2": 8}).request
    assert whole == {"2": 8}


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
    builder = ready(model.eval(), calibration)
    half = Plan({f"width.{group.name}": group.size // 2 for group in builder.subject.groups if group.prunable})

    def accuracy(candidate: nn.Module) -> float:
        with torch.no_grad():
            return float((candidate(inputs).argmax(1) == labels).float().mean())

    assert accuracy(model) > 0.84
    assert accuracy(builder.build(half, repair=False).model) < 0.5
    assert accuracy(builder.build(half).model) > 0.7


def test_a_group_without_a_dense_reader_costs_its_own_order_only_and_is_noted() -> None:
    generator = torch.Generator().manual_seed(0)
    layers = (nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 24, 3, 1, 1), nn.ReLU(), nn.ConvTranspose2d(24, 1, 4, 2, 1))
    model, inputs = nn.Sequential(*layers).eval(), torch.randn(100, 1, 8, 8, generator=generator)
    builder = ready(model, inputs)
    (note,) = builder.subject.notes
    assert note.startswith("group '2' is ordered by criterion 'l2', not 'obs': no dense layer")
    smaller = builder.build(Plan({"width.0": 8, "width.2": 8})).model
    with torch.no_grad():
        assert smaller(inputs).shape == model(inputs).shape
