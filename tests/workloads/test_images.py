"""Image folders and zips: right order, right values, and every fault named."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from equipoise.errors import InputError
from equipoise.workloads import check, load
from equipoise.workloads import image_files as module
from equipoise.workloads.image_files import Normalize, read_images
from equipoise.workloads.images import image_task, image_workload
from equipoise.workloads.models import ResNet
from equipoise.workloads.weights import read_weights


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "equipoise"


def draw(file: Path, color: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(file)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes; the color tells the image: (class, split, number)."""
    root = tmp_path / "set"
    for kind, shade in (("cat", 0), ("bee", 200)):
        for role, count in (("train", 12), ("test", 3)):
            for number in range(count):
                draw(root / role / kind / f"{number}.png", (shade, 10 if role == "test" else 0, number))
    (root / "train" / "cat" / ".DS_Store").write_text("x")
    (root / "train" / "cat" / "notes.txt").write_text("x")
    return root


@pytest.fixture
def zipped(folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, Path("top") / file.relative_to(folder))
    return path


def test_folder_and_zip_read_the_same(folder: Path, zipped: Path) -> None:
    for path in (folder, zipped):
        found = read_images(path)
        assert found.classes == ("bee", "cat")  # alphabetical
        pixels, labels = found.parts["train"]
        assert pixels.shape == (24, 3, 8, 8)
        assert pixels.dtype == np.uint8
        assert all((pixels[:, 0, 0, 0] == 200) == (labels == 0))
        assert sorted(pixels[labels == 0, 2, 0, 0]) == list(range(12))
        assert (found.parts["test"][0][:, 1] == 10).all()


def test_cache_is_used_keyed_and_outside_the_data(
    folder: Path, zipped: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(p for p in folder.parent.rglob("*") if own_cache not in p.parents)
    first = read_images(zipped)
    assert len(list(own_cache.iterdir())) == 1
    monkeypatch.setattr(module, "square", None)  # decoding again would fail
    again = read_images(zipped)
    assert np.array_equal(first.parts["train"][0], again.parts["train"][0])
    assert again.classes == first.classes
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(own_cache.parent))
    next(own_cache.iterdir()).write_bytes(b"cut off")
    assert np.array_equal(read_images(zipped).parts["test"][0], first.parts["test"][0])
    draw(folder / "train" / "cat" / "99.png", (0, 0, 99))
    read_images(folder)
    (folder / "train" / "cat" / "99.png").unlink()
    assert len(read_images(folder).parts["train"][0]) == 24
    left = sorted(
        p for p in folder.parent.rglob("*") if own_cache not in p.parents and own_cache.parent != p and own_cache != p
    )
    assert left == before


def test_unwritable_cache_is_done_without(zipped: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert len(read_images(zipped, cache=tmp_path / "file").parts["train"][0]) == 24


def spoil(folder: Path, case: str) -> None:
    if case == "corrupt":
        (folder / "train" / "bee" / "3.png").write_bytes(b"\x89PNG no more")
        (folder / "test" / "cat" / "1.png").write_bytes((folder / "test" / "cat" / "1.png").read_bytes()[:50])
    elif case == "one class":
        for role in ("train", "test"):
            (folder / role / "bee").rename(folder / f"gone-{role}")
    elif case == "strange class":
        draw(folder / "test" / "cow" / "1.png", (0, 0, 0))
    elif case == "no test":
        (folder / "test").rename(folder / "tset")


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("corrupt", r"2 broken: .*test/cat/1.png.*train/bee/3.png"),
        ("one class", "at least two"),
        ("strange class", "classes of train/; got .'cow'"),
        ("no test", "some under test/<class>/"),
    ],
)
def test_faults_are_named(folder: Path, case: str, message: str) -> None:
    spoil(folder, case)
    with pytest.raises(InputError, match=message):
        read_images(folder)


def striped(width: int, height: int) -> Image.Image:
    """Red on the left, green in the middle square, blue on the right (or above and below)."""
    side, image = min(width, height), Image.new("RGB", (width, height), (255, 0, 0))
    image.paste((0, 0, 255), (width // 2 if width > height else 0, height // 2 if height > width else 0, width, height))
    image.paste((0, 255, 0), ((width - side) // 2, (height - side) // 2, (width + side) // 2, (height + side) // 2))
    return image


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Two classes of images of many sizes, the smallest far below the others."""
    root = tmp_path / "photographs"
    for kind in ("a", "b"):
        for role, count in (("train", 20), ("test", 4)):
            for i in range(count):
                file = root / role / kind / f"{i}.jpg"
                file.parent.mkdir(parents=True, exist_ok=True)
                size = (300 + i, 40) if i % 2 else (40, 60 + i)
                striped(*((9, 9) if (role, kind, i) == ("train", "a", 0) else size)).save(file, quality=95)
    return root


def test_photographs_of_many_sizes_are_brought_to_squares(photographs: Path) -> None:
    found = read_images(photographs)
    pixels, _ = found.parts["train"]
    assert pixels.shape[1:] == (3, 40, 40)  # the short side of all but one, which is enlarged
    assert "9x9" in found.notes[0]
    assert "40x319" in found.notes[0]
    assert "1 of them enlarged" in found.notes[0]
    inner = pixels[:, :, 4:-4, 4:-4].astype(int)
    assert (inner[:, 1] - inner[:, [0, 2]].max(1) > 120).all()  # the middle alone is green; a whole image squeezed would not be
    assert read_images(photographs, size=16).parts["test"][0].shape == (8, 3, 16, 16)
    assert read_images(photographs, most=24).parts["test"][0].shape == (8, 3, 24, 24)
    with pytest.raises(InputError, match="images size must be from 1 to 4096 pixels; got 0"):
        read_images(photographs, size=0)


def test_images_of_one_size_are_left_unless_they_are_too_large(folder: Path) -> None:
    assert read_images(folder, most=8).parts["train"][0].shape == (24, 3, 8, 8)
    assert read_images(folder, most=8).notes == ()
    assert read_images(folder, most=4).parts["train"][0].shape == (24, 3, 4, 4)


def test_photographs_are_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera turned: what is seen has its columns and rows exchanged
    for role in ("train", "test"):
        for kind in ("a", "b"):
            for i in range(3):
                file = tmp_path / "turned" / role / kind / f"{i}.jpg"
                file.parent.mkdir(parents=True, exist_ok=True)
                image = Image.new("RGB", (16, 8), (200, 0, 0))
                image.paste((0, 0, 200), (0, 0, 8, 8))
                image.save(file, exif=exif, quality=95, subsampling=0)
    pixels = read_images(tmp_path / "turned").parts["train"][0]
    assert pixels.shape[1:] == (3, 16, 8)
    assert (pixels[:, 2, :7].min(), pixels[:, 0, 9:].min()) > (150, 150)  # left went up


def test_shifts_follow_the_size(folder: Path, photographs: Path) -> None:
    for path, wanted in ((folder, 1), (photographs, 5)):
        task = image_task(path)
        assert task.augment is not None
        bright = torch.ones(64, *task.sample)
        moved = task.augment(bright, torch.Generator().manual_seed(0))
        empty = (moved.sum((1, 2)) == 0).sum(1)  # columns that came in over the edge
        assert int(empty.max()) == wanted


def test_not_images_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="an existing folder or zip"):
        read_images(tmp_path / "missing.zip")
    (tmp_path / "text.zip").write_text("hello")
    with pytest.raises(InputError, match="a readable zip"):
        read_images(tmp_path / "text.zip")


def test_normalize_by_hand() -> None:
    images = torch.tensor([0, 128, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    wanted = [(0 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    assert Normalize()(images).flatten().tolist() == pytest.approx(wanted, rel=1e-5)


def test_spec_makes_a_usable_workload(folder: Path, tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    state = {k: v for k, v in ResNet(8, classes=2, shortcut="B").state_dict().items() if "num_batches" not in k}
    save_file(state, weights)
    work = load(f"images:{folder}?weights={weights}&depth=8&shortcut=B")
    check(work)
    assert (len(work.train), len(work.validation), len(work.test)) == (20, 4, 6)
    assert torch.equal(work.model.get_parameter("conv1.weight"), state["conv1.weight"])
    with pytest.raises(InputError, match="10 classes of 32x32"):
        load(f"cifar10:{folder}?weights={weights}&depth=8&shortcut=B")
    with pytest.raises(InputError, match="name every tensor of the model"):
        load(f"images:{folder}?weights={weights}&depth=14")
    with pytest.raises(InputError, match="Did you mean 'depth'"):
        load(f"images:{folder}?weights={weights}&deph=14")
    with pytest.raises(InputError, match="a whole number"):
        load(f"images:{folder}?weights={weights}&depth=deep")
    with pytest.raises(InputError, match=r"images weights must be given"):
        load(f"images:{folder}")
    with pytest.raises(InputError, match=r"depth and shortcut must be left out with model="):
        load(f"images:{folder}?weights={weights}&model=cnn&depth=8")
    with pytest.raises(InputError, match="name every tensor of the model"):
        load(f"images:{folder}?weights={weights}&model=cnn:width=8,depth=3")


@pytest.mark.slow
@pytest.mark.data
def test_resnet20_reaches_its_published_accuracy(data_folder: Path) -> None:
    weights = data_folder.parent / "models" / "resnet20-cifar10jpeg.safetensors"
    if not weights.is_file():
        pytest.skip(f"no {weights}")
    work = load(f"cifar10:{data_folder / 'cifar10-jpeg.zip'}?weights={weights}")
    check(work)
    assert (len(work.train), len(work.validation), len(work.test)) == (45_000, 5_000, 10_000)
    assert work.quality(split=work.test) == pytest.approx(88.34, abs=0.02)
    work.model.get_parameter("linear.weight").data.roll(1, 0)
    shuffled = work.quality(lambda x: work.model(x).roll(1, 1), split=work.test.take(500))  # control: classes in another order
    assert shuffled < 30


def test_another_models_weights_are_told_what_is_built(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for role in ("train", "test"):
        for kind in ("a", "b"):
            (folder / role / kind).mkdir(parents=True)
            for i in range(6):
                Image.new("RGB", (8, 8)).save(folder / role / kind / f"{i}.png")
    other = tmp_path / "other.safetensors"
    save_file({"fc.weight": torch.zeros(3, 3)}, other)
    with pytest.raises(InputError, match=r"images: builds the ResNet .*no other model.*FILE\.py:make_workload"):
        image_workload(folder, weights=other)
    with pytest.raises(InputError, match="from 8 to 1202"):
        image_workload(folder, weights=other, depth=20_000_000)


DAMAGED = {
    "text": b"hello",
    "nothing": b"",
    "a number": b"\x80\x02K\x01.",
    "cut zip": b"PK\x03\x04junk",
    "old": b"\x80\x02}q\x00(U\x01aq",
    "random": bytes(range(1, 200)),
}


@pytest.mark.parametrize("case", DAMAGED)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".bin"])
def test_files_of_other_bytes_are_no_weights(tmp_path: Path, case: str, suffix: str) -> None:
    file = tmp_path / f"w{suffix}"
    file.write_bytes(DAMAGED[case])
    with pytest.raises(InputError, match="weights must be"):
        read_weights(file)
    with pytest.raises(InputError, match="images must be a folder or a readable zip"):
        read_images(file)
