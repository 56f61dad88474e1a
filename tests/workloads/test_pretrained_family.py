"""Trained models as families: timm's by name and a file of weights, and any module."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from vision_names import declare

from equipoise.errors import InputError
from equipoise.workloads import Task, as_family, load_family
from equipoise.workloads.families.pretrained import head_of, pretrained
from equipoise.workloads.image_files import Normalize
from equipoise.workloads.task import Shape

KIND = "test_efficientnet"
SHAPE = Shape((3, 32, 32), 4)

needs_timm = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("timm", "torchvision")), reason="the extra vision"
)


@pytest.fixture(scope="module")
def library() -> Any:
    declare()
    import timm

    return timm


@pytest.fixture(scope="module")
def trained(library: Any) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net = library.create_model(KIND, num_classes=1000)
    return {name: value.clone() for name, value in net.state_dict().items()}


def drawn() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@needs_timm
def test_weights_by_name_and_a_fresh_last_layer(trained: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(trained, tmp_path / "w.safetensors")
    family = load_family(f"timm:{KIND}?weights={tmp_path / 'w.safetensors'}")
    assert (family.pretrained, family.frozen_first, family.side) == (True, True, 160)
    assert family.normalize == Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert load_family("timm:tf_efficientnet_lite0").normalize == Normalize((0.5,) * 3, (0.5,) * 3)
    net = family.model({}, SHAPE, generator=drawn())
    state = net.state_dict()
    assert state["classifier.weight"].shape[0] == 4
    assert all(torch.equal(state[name], value) for name, value in trained.items() if not name.startswith("classifier"))
    assert head_of(net, torch.randn(2, 3, 32, 32)) == "classifier"
    same = family.model({}, Shape((3, 32, 32), 1000), generator=drawn())
    assert torch.equal(same.state_dict()["classifier.weight"], trained["classifier.weight"])  # of the same classes: kept
    assert not load_family(f"timm:{KIND}").pretrained


@needs_timm
def test_weights_of_other_names_in_the_same_order(trained: dict[str, torch.Tensor], tmp_path: Path) -> None:
    names = {name: f"net.{i}.{name.rpartition('.')[2]}" for i, name in enumerate(trained) if "num_batches" not in name}
    torch.save({new: trained[old] for old, new in names.items()}, tmp_path / "w.pth")
    net = load_family(f"timm:{KIND}?weights={tmp_path / 'w.pth'}").model({}, SHAPE, generator=drawn())
    assert all(torch.equal(net.state_dict()[name], trained[name]) for name in names if not name.startswith("classifier"))
    order = list(names)
    place = next(i for i, name in enumerate(order) if name.endswith("bn1.weight"))
    order[place], order[place + 1] = order[place + 1], order[place]  # planted: scale and shift of a norm, of one shape
    torch.save({names[old]: trained[old] for old in order}, tmp_path / "swapped.pth")
    with pytest.raises(InputError, match="name every tensor of the model"):
        load_family(f"timm:{KIND}?weights={tmp_path / 'swapped.pth'}").model({}, SHAPE, generator=drawn())


@needs_timm
def test_what_does_not_fit_is_told(trained: dict[str, torch.Tensor], tmp_path: Path, library: Any) -> None:
    with pytest.raises(InputError, match=r"timm model.*tset_efficientnet.*Did you mean 'test_efficientnet'"):
        load_family("timm:tset_efficientnet")
    save_file({name: value for name, value in trained.items() if "conv_head" not in name}, tmp_path / "few.safetensors")
    with pytest.raises(InputError, match=r"name every tensor of the model; .*conv_head.weight"):
        load_family(f"timm:{KIND}?weights={tmp_path / 'few.safetensors'}").model({}, SHAPE, generator=drawn())
    with pytest.raises(InputError, match="weights must be an existing file"):
        load_family(f"timm:{KIND}?weights={tmp_path / 'none.pth'}")
    with pytest.raises(InputError, match=r"size must be the 160 that test_vit takes; got \(32, 32\)"):
        load_family("timm:test_vit").model({}, SHAPE, generator=drawn())


class Double(nn.Module):
    """Answers with two of its layers, under names."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.other = nn.Linear(12, 8), nn.Linear(8, 1000), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        z = self.body(x.flatten(1)).relu()
        return {"logits": self.head(z), "aside": self.other(z)}


def test_any_module_gets_a_last_layer_of_its_own() -> None:
    before = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 1000), nn.Identity())
    family = as_family(before)
    net = family.model({}, Shape((3, 2, 2), 5), generator=drawn())
    assert net[3].out_features == 5  # type: ignore[index]
    assert torch.equal(net[1].weight, before[1].weight)  # type: ignore[index]
    assert before[3].out_features == 1000
    assert head_of(net, torch.randn(2, 3, 2, 2)) == "3"
    assert pretrained(Double()).model({}, Shape((3, 2, 2), 5), generator=drawn())(torch.randn(2, 3, 2, 2)).shape == (2, 5)


def test_a_model_that_does_not_end_in_a_linear_layer_is_refused() -> None:
    for end in (nn.Softmax(1), nn.ReLU()):
        family = pretrained(nn.Sequential(nn.Flatten(), nn.Linear(12, 8), end), name="soft")
        with pytest.raises(InputError, match=r"one that answers by a linear layer.*without a softmax"):
            family.model({}, Shape((3, 2, 2), 5), generator=drawn())
    with pytest.raises(InputError, match=r"model must run; it raised RuntimeError.*\(2, 3, 9, 9\)"):
        pretrained(nn.Sequential(nn.Flatten(), nn.Linear(12, 8))).model({}, Shape((3, 9, 9), 5), generator=drawn())


def test_images_are_normalised_as_the_model_saw_them() -> None:
    images, labels = torch.randint(256, (60, 3, 4, 4), dtype=torch.uint8, generator=drawn()), torch.arange(60) % 2
    pair, rest = (images[:40], labels[:40]), (images[40:], labels[40:])
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 7))
    net.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "input_size": (3, 8, 8)}  # type: ignore[assignment]
    family = pretrained(net)
    assert family.side == 8
    task = family.prepared(Task.of(train=pair, test=rest, transform=Normalize(), name="toy"))
    wanted = (task.test.source.fetch(task.test.order)[0].float() / 255 - 0.5) / 0.25  # type: ignore[union-attr]
    assert torch.allclose(task.test.tensors()[0], wanted, atol=1e-6)  # type: ignore[arg-type]
    own = Task.of(train=pair, test=rest, transform=lambda x: x.float() / 255, name="toy")
    assert family.prepared(own) is own  # the user's own transform stays
    plain = Task.of(train=pair, test=rest, transform=Normalize(), name="toy")
    assert pretrained(nn.Sequential(nn.Flatten(), nn.Linear(48, 7))).prepared(plain) is plain
