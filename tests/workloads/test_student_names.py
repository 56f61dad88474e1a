"""Students: a text names a family and a scale, and always the same net of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from equipoise.errors import InputError
from equipoise.workloads.families import family
from equipoise.workloads.students import drawn, ladder, named, read_student, shape_of
from equipoise.workloads.task import Shape

IMAGES = Shape((3, 16, 16), 7)


def test_a_text_names_a_family_and_perhaps_its_scale() -> None:
    assert read_student("cnn")[1] is None
    assert read_student("cnn:width=16, depth=9")[1] == family("cnn").scale(width=16, depth=9)
    assert read_student("resnet:0.25")[1] == family("resnet").grow(0.25)
    full = named("cnn:width=16", family("cnn").scale(width=16))
    assert full == "cnn:width=16,depth=6,kernel=3,resolution=1"
    assert read_student(full)[1] == family("cnn").scale(width=16)


def test_a_users_own_family_is_read_from_its_file(tmp_path) -> None:
    (tmp_path / "mine.py").write_text("import torch\ndef net(shape, width=8):\n    return torch.nn.Linear(4, shape.outputs)\n")
    found, scale = read_student(f"{tmp_path}/mine.py:net:width=16")
    assert (found.name, scale) == ("net", {"width": 16})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("cnnn", "Did you mean 'cnn'"),
        ("cnn:width=7", "multiple of 8"),
        ("cnn:breadth=8", "dimension of cnn"),
        ("cnn:1e10", "factor must be"),
    ],
)
def test_a_bad_text_is_told_with_every_family_and_its_range(text: str, told: str) -> None:
    with pytest.raises(InputError, match="student must be FAMILY, FAMILY:FACTOR or FAMILY:width=16,depth=8") as caught:
        read_student(text)
    assert told in str(caught.value)
    assert "resnet (width 8 to 64, depth 8 to 110, resolution 0.5 to 1.5)" in str(caught.value)


def test_a_name_is_always_the_same_net_and_another_name_another_one() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, again, other = (drawn(name, IMAGES) for name in ("cnn:width=8", "cnn:width=8,depth=6", "cnn:width=8,depth=3"))
    assert torch.equal(torch.get_rng_state(), before)
    x = torch.randn(2, 3, 16, 16)
    assert one(x).shape == (2, 7)
    assert torch.equal(one(x), again(x))
    assert not torch.equal(one(x), other(x))
    with pytest.raises(InputError, match="student must suit the data and the answers of the model; for gpt"):
        drawn("gpt", IMAGES)


def test_the_shape_is_read_off_a_batch_and_the_answers() -> None:
    images = torch.zeros(2, 3, 16, 16)
    assert shape_of(images, torch.zeros(2, 7), nn.Identity()) == IMAGES
    words = nn.Sequential(nn.Embedding(50, 8, padding_idx=3), nn.Embedding(12, 8))
    found = shape_of(torch.zeros(2, 12, dtype=torch.int64), torch.zeros(2, 3), words)
    assert found == Shape((12,), 3, 50, padding=3)
    with pytest.raises(InputError, match="table of its tokens"):
        shape_of(torch.zeros(2, 12, dtype=torch.int64), torch.zeros(2, 3), nn.Identity())
    with pytest.raises(InputError, match="several inputs"):
        shape_of({"a": images, "b": images}, torch.zeros(2, 7), nn.Identity())


def test_a_ladder_climbs_and_holds_the_default() -> None:
    for name in ("cnn", "resnet", "encoder", "textcnn"):
        found = family(name)
        costs = [found.cost(scale) for scale in ladder(found)]
        assert costs == sorted(set(costs))
        assert found.cost(found.scale()) in costs
        assert len(costs) >= 3
