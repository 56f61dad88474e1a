"""Images that are read as they are needed, random crops, and ImageNet's own layouts."""

from __future__ import annotations

import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import equipoise as eq
from equipoise.errors import InputError
from equipoise.workloads.image_files import read_images
from equipoise.workloads.image_layout import members
from equipoise.workloads.image_stream import Streamed, _box, stream_images
from equipoise.workloads.images import image_task

KINDS = {"n01": (200, 30, 30), "n02": (30, 200, 30), "n03": (30, 30, 200)}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def picture(file: Path, color: tuple[int, int, int], seed: int) -> None:
    draw = np.random.default_rng(seed)
    height, width = draw.integers(40, 70, 2)
    pixels = draw.integers(0, 60, (height, width, 3)) + np.array(color)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Photographs of three kinds and many sizes, as PNG so that decoding loses nothing."""
    root, seed = tmp_path / "set", 0
    for role, count in (("train", 16), ("val", 4), ("test", 4)):
        for kind, color in KINDS.items():
            for number in range(count):
                picture(root / role / kind / f"{number:02}.png", color, seed := seed + 1)
    return root


def streamed(folder: Path, **options: float) -> Streamed:
    return stream_images(folder, size=32, **options).parts["train"]  # type: ignore[arg-type]


@pytest.mark.parametrize("packed", [False, True])
def test_as_they_are_they_are_what_memory_holds(folder: Path, tmp_path: Path, packed: bool) -> None:
    path = folder
    if packed:
        path = tmp_path / "set.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(folder.rglob("*.png")):
                archive.write(file, file.relative_to(folder))
    held, read = read_images(path, size=32), stream_images(path, size=32)
    assert read.classes == held.classes
    for role, (pixels, labels) in held.parts.items():
        source = read.parts[role]
        found, targets = source.fetch(torch.arange(len(source)))
        assert np.array_equal(found.numpy(), pixels)
        assert targets.tolist() == labels.tolist()
    assert any("read as they are needed, by 2 processes" in note for note in read.notes)


def test_crops_are_drawn_from_the_seed_and_the_image_alone(folder: Path) -> None:
    source = streamed(folder, crop=0.3)
    rows = [torch.arange(5), torch.arange(5, 9)]
    one, again, other = (list(source.stream(some, seed)) for some, seed in ((rows, 1), (rows, 1), (rows, 2)))
    alone = next(iter(source.stream([torch.tensor([5])], 1)))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one[0][0], other[0][0])
    assert torch.equal(alone[0][0], one[1][0][0])
    assert [targets.tolist() for _, targets in one] == [source.labels[some].tolist() for some in rows]
    assert one[0][0].shape == (5, 3, 32, 32)


def test_a_crop_has_the_share_and_the_shape_that_it_may_have() -> None:
    drawn = random.Random(0)
    boxes = [_box(400, 300, 0.25, drawn) for _ in range(500)]
    shares = [(right - left) * (bottom - top) / (400 * 300) for left, top, right, bottom in boxes]
    ratios = [(right - left) / (bottom - top) for left, top, right, bottom in boxes]
    assert 0.24 < min(shares) < 0.3
    assert 0.9 < max(shares) <= 1.0
    assert 0.74 < min(ratios) < 0.8
    assert 1.25 < max(ratios) < 1.35
    assert all(0 <= left < right <= 400 and 0 <= top < bottom <= 300 for left, top, right, bottom in boxes)
    assert _box(1000, 10, 0.9, drawn) == (495, 0, 505, 10)  # nothing fits: the square in the middle


def test_half_of_them_are_mirrored(tmp_path: Path) -> None:
    for role in ("train", "test"):
        for kind in ("a", "b"):
            for number in range(40):
                file = tmp_path / "set" / role / kind / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                ramp = np.broadcast_to(np.arange(0, 256, 4, dtype=np.uint8)[None, :, None], (64, 64, 3))
                Image.fromarray(np.ascontiguousarray(ramp)).save(file)
    images, _ = next(iter(streamed(tmp_path / "set", crop=0.9).stream([torch.arange(80)], 3)))
    falls = (images[:, 0, 16, 0] > images[:, 0, 16, -1]).float().mean()
    assert 0.3 < float(falls) < 0.7


@pytest.mark.slow
def test_a_network_learns_from_them_and_goes_on_as_it_would_have(folder: Path, tmp_path: Path) -> None:
    task = image_task(folder, size=32, stream=2, crop=0.35)
    assert task.augment is None
    assert len(task.train) == 48
    assert task.train.targets().tolist() == task.train.source.labels[task.train.order].tolist()  # type: ignore[attr-defined]
    scale = {"width": 8, "depth": 3}
    whole = eq.train("cnn", task, scale, store=tmp_path / "whole", steps=24, test=True)
    assert whole.reached["test_quality"].get() > 80
    again = eq.train("cnn", image_task(folder, size=32, stream=1, crop=0.35), scale, store=tmp_path / "again", steps=24)
    assert again.run.log == whole.run.log  # whatever the processes are


def test_other_images_are_another_task(folder: Path) -> None:
    one = image_task(folder, size=32, stream=2, crop=0.35).fingerprint
    assert one == image_task(folder, size=32, stream=2, crop=0.35).fingerprint
    assert one != image_task(folder, size=32, stream=2, crop=0.5).fingerprint
    picture(folder / "train" / "n01" / "99.png", (9, 9, 9), 99)
    assert one != image_task(folder, size=32, stream=2, crop=0.35).fingerprint


def test_a_broken_image_is_named(folder: Path) -> None:
    (folder / "train" / "n01" / "03.png").write_bytes(b"no image")
    source = streamed(folder)
    with pytest.raises(InputError, match=r"1 broken: train/n01/03\.png"):
        list(source.stream([torch.arange(16)], 0))
    with pytest.raises(InputError, match=r"train/n01/03\.png"):
        source.fetch(torch.tensor([3]))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"stream": 0, "crop": 0.5}, "crop must be given with stream"),
        ({"stream": 1, "crop": 1.5}, "above 0 and at most 1"),
        ({"stream": -1}, "at least 1 process"),
        ({"stream": 1, "size": 0}, "from 1 to 4096"),
    ],
)
def test_options_that_cannot_be_used_are_told(folder: Path, options: dict[str, float], told: str) -> None:
    with pytest.raises(InputError, match=told):
        image_task(folder, **options)  # type: ignore[arg-type]


def imagenet(root: Path) -> dict[str, str]:
    """Synset folders of training images, and six flat ``val`` images; returns the class of each of these."""
    for place, (kind, color) in enumerate(KINDS.items()):
        for number in range(8):
            picture(root / "train" / kind / f"{kind}_{number}.JPEG", color, place * 10 + number)
    told = {}
    for number, kind in enumerate(["n03", "n01", "n02", "n01", "n03", "n02"], 1):
        name = f"ILSVRC2012_val_{number:08}.JPEG"
        picture(root / "val" / name, KINDS[kind], 100 + number)
        told[name] = kind
    return told


def _kit(root: Path, told: dict[str, str]) -> None:
    numbers = {"n01": 2, "n02": 3, "n03": 1}  # a kit's numbers do not follow the alphabet
    (root / "map_clsloc.txt").write_text("".join(f"{kind} {number} thing\n" for kind, number in numbers.items()))
    lines = "".join(f"{numbers[told[name]]}\n" for name in sorted(told))
    (root / "ILSVRC2012_validation_ground_truth.txt").write_text(lines)


def _competition(root: Path, told: dict[str, str]) -> None:
    rows = "".join(f"{name[:-5]},{kind} 1 2 3 4 {kind} 5 6 7 8\n" for name, kind in reversed(told.items()))
    (root / "LOC_val_solution.csv").write_text(f"ImageId,PredictionString\n{rows}")


def _tiny(root: Path, told: dict[str, str]) -> None:
    (root / "val" / "val_annotations.txt").write_text("".join(f"{name}\t{kind}\t0\t0\t9\t9\n" for name, kind in told.items()))


@pytest.mark.parametrize("write", [_kit, _competition, _tiny])
def test_imagenet_is_taken_as_it_comes(tmp_path: Path, write: object) -> None:
    told = imagenet(tmp_path / "set")
    write(tmp_path / "set", told)  # type: ignore[operator]
    names = sorted(str(file.relative_to(tmp_path / "set")) for file in (tmp_path / "set").rglob("*") if file.is_file())
    found = members(names, lambda name: (tmp_path / "set" / name).read_bytes(), tmp_path)
    assert {name.rpartition("/")[2]: kind for role, kind, name in found if role == "test"} == told
    task = image_task(tmp_path / "set", size=32)
    assert (len(task.test), task.labels) == (6, ("n01", "n02", "n03"))
    hue = [int(image.mean((1, 2)).argmax()) for image in task.test.source.inputs.float()]  # type: ignore[attr-defined]
    assert hue == task.test.source.targets.tolist()  # type: ignore[attr-defined]  # red, green and blue are the classes


def test_flat_images_without_a_list_or_with_another_are_told(tmp_path: Path) -> None:
    root = tmp_path / "set"
    told = imagenet(root)
    with pytest.raises(InputError, match=r"6 flat ones.*LOC_val_solution\.csv"):
        read_images(root, size=32)
    _kit(root, told)
    kit = root / "ILSVRC2012_validation_ground_truth.txt"
    lines = kit.read_text()
    kit.write_text(lines + "1\n")
    with pytest.raises(InputError, match=r"of 6 lines, one for each image; got 7"):
        read_images(root, size=32)
    kit.write_text(lines.replace("1", "9"))
    with pytest.raises(InputError, match=r"some of map_clsloc\.txt; got '9'"):
        read_images(root, size=32)
    _competition(root, dict(list(told.items())[:4]))
    with pytest.raises(InputError, match=r"2 that are not, val/ILSVRC2012_val_00000005\.JPEG first"):
        read_images(root, size=32)


def test_tiny_imagenet_has_a_folder_of_images_in_each_class(tmp_path: Path) -> None:
    for role in ("train", "test"):
        for kind, color in KINDS.items():
            for number in range(4):
                picture(tmp_path / "set" / role / kind / "images" / f"{number}.JPEG", color, number)
    assert read_images(tmp_path / "set", size=32).classes == tuple(KINDS)
