"""Image classification from a folder or a zip of one: ``train/<class>/*``, ``test/<class>/*``, perhaps ``val/<class>/*``."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import os
import re
import struct
import tempfile
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from equipoise.errors import InputError, missing_extra, must_be
from equipoise.workloads.augment import shifted
from equipoise.workloads.base import Workload
from equipoise.workloads.data import Split
from equipoise.workloads.models import ResNet, Shortcut
from equipoise.workloads.task import Task
from equipoise.workloads.weights import load_weights, read_weights

Pixels = npt.NDArray[np.uint8]
Member = tuple[str, str, str]
"""(role, class, name inside the folder or zip)."""

ROLES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif")
CACHE_FORMAT = 1
SHAPE = "Put the images under train/<class>/ and test/<class>/."
OWN_MODEL = (
    "{name}: builds the ResNet for small images (here depth={depth}, shortcut={shortcut}), no other model: give its weights, "
    "or write a function make_workload() that builds your model, and pass FILE.py:make_workload."
)


@dataclass(frozen=True)
class Normalize:
    """uint8 images (N, 3, H, W) to floats, by the mean and standard deviation of each channel of images in 0..1."""

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __call__(self, images: Tensor) -> Tensor:
        """Return the normalised images."""
        mean, std = (torch.tensor(v).view(-1, 1, 1) * 255 for v in (self.mean, self.std))
        return (images.float() - mean) / std


@dataclass(frozen=True, eq=False)
class Images:
    """Decoded images: role -> (pixels (N, 3, H, W) uint8, labels (N,) int64), and the classes in the order of their labels."""

    parts: dict[str, tuple[Pixels, npt.NDArray[np.int64]]]
    classes: tuple[str, ...]


def image_workload(
    path: Path,
    *,
    weights: Path,
    depth: int = 20,
    shortcut: Shortcut = "A",
    shift: int = 4,
    holdout: int = 0,
    name: str = "images",
) -> Workload:
    """Return a workload of an image folder and our ResNet with the given weights; another model needs a Python file of its own.

    Without ``val`` images the validation split is carved from the training images by the fixed shuffle. That is right for a
    model that never saw them. One that was trained on all of ``train`` remembers them (ResNet-20 here: 95 % instead of 88 %),
    and its drop there is overstated by points: give `holdout` for such a model.

    Args:
        path: Folder, or zip of one.
        weights: State dict of `ResNet` with as many outputs as there are classes.
        depth, shortcut: Of the `ResNet`.
        shift: Largest random shift in training, in pixels; images are also mirrored.
        holdout: Test images that serve as the validation split instead; the test split is the others.
        name: Of the workload.
    Raises:
        InputError: The images or the weights cannot be used.
    """
    tensors = read_weights(weights)  # first: it is quick
    images = read_images(path)
    model = ResNet(depth, classes=len(images.classes), shortcut=shortcut)
    load_weights(model, tensors, name=f"weights {weights}", remedy=OWN_MODEL.format(name=name, depth=depth, shortcut=shortcut))
    splits = _splits(images, holdout)
    return Workload(
        name=name,
        model=model,
        train=splits["train"],
        validation=splits.get("val"),
        test=splits["test"],
        metric="accuracy",
        augment=shifted(shift, flip=True),
        labels=images.classes,
    )


def image_task(path: Path, *, shift: int = 4, holdout: int = 0, name: str = "images") -> Task:
    """Return the task of classifying the images of a folder or zip, without a model.

    Args:
        path, shift, name: As for `image_workload`.
        holdout: Test images that serve as the validation split; 0 takes ``val``, or carves it from the training images.
    Raises:
        InputError: The images cannot be used.
    """
    images = read_images(path)
    splits, count = _splits(images, holdout), len(images.classes)
    return Task.of(
        train=splits["train"],
        validation=splits.get("val"),
        test=splits["test"],
        augment=shifted(shift, flip=True),
        outputs=count,
        labels=images.classes,
        name=name,
    )


def cifar10_task(path: Path, *, shift: int = 4, holdout: int = 0) -> Task:
    """Return the CIFAR-10 task: as `image_task`, with ten classes of 32x32 images."""
    task = image_task(path, shift=shift, holdout=holdout, name="cifar10")
    _is_cifar10(task.outputs, task.sample)
    return task


def _splits(images: Images, holdout: int) -> dict[str, Split]:
    """The splits by role, normalised; `holdout` of the test images serve as ``val``."""
    splits = {role: Split.of(part, transform=Normalize()) for role, part in images.parts.items()}
    if holdout:
        test = splits["test"]
        if not 0 < holdout < len(test):
            raise must_be("holdout", f"between 1 and {len(test) - 1}", holdout, "Leave test images to verify on.")
        splits |= {"val": test.part(0, holdout, name="validation"), "test": test.part(holdout, name="test")}
    return splits


def _is_cifar10(classes: int, shape: tuple[int, ...]) -> None:
    if classes != 10 or shape != (3, 32, 32):
        raise must_be("cifar10", "10 classes of 32x32 images", f"{classes} of {shape}", "Use images:PATH for other sets.")


def cifar10(
    path: Path, *, weights: Path, depth: int = 20, shortcut: Shortcut = "A", shift: int = 4, holdout: int = 0
) -> Workload:
    """Return the CIFAR-10 workload: as `image_workload`, with ten classes of 32x32 images."""
    work = image_workload(path, weights=weights, depth=depth, shortcut=shortcut, shift=shift, holdout=holdout, name="cifar10")
    _is_cifar10(int(work.model.get_parameter("linear.weight").shape[0]), tuple(work.example.shape[1:]))
    return work


def cache_folder() -> Path:
    """Return where decoded images are kept: ``$XDG_CACHE_HOME/equipoise`` or ``~/.cache/equipoise``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "equipoise"


def read_images(path: Path, *, cache: Path | None = None) -> Images:
    """Decode a folder of images, or read what an earlier call decoded.

    Args:
        path: Folder, or zip of one. Nothing is written there.
        cache: Folder for decoded images; None takes `cache_folder`. One that cannot be written is done without.
    Raises:
        InputError: Not a folder or zip of images, no training or test images, one class only, classes that differ between
            splits, images that cannot be decoded (named), or images of different sizes.
        MissingExtraError: Pillow is not installed.
    """
    if not path.exists():
        raise must_be("images", "an existing folder or zip", str(path), SHAPE)
    names = _names_in(path) if path.is_dir() else []
    kept = (cache or cache_folder()) / f"images-{_key(path, names)}.npz"
    found = _cached(kept)
    if found is None:
        found = _decoded_folder(path, names) if path.is_dir() else _decoded_zip(path)
        with contextlib.suppress(OSError):  # a cache is a convenience
            _keep(kept, found)
    return found


def _names_in(folder: Path) -> list[str]:
    """Files at any depth of a folder, sorted, with slashes."""
    found = [os.path.join(where, name) for where, _, names in os.walk(folder) for name in names]
    return sorted(os.path.relpath(name, folder).replace(os.sep, "/") for name in found)


def _decoded_folder(path: Path, names: list[str]) -> Images:
    return _decoded(_members(names), lambda name: (path / name).read_bytes(), path)


def _decoded_zip(path: Path) -> Images:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, LookupError, struct.error) as error:
        raise must_be("images", "a folder or a readable zip", f"{path} ({error})", SHAPE) from error
    with archive:
        return _decoded(_members(sorted(archive.namelist())), archive.read, path)


def _members(names: list[str]) -> list[Member]:
    """Pick the images that lie under a role and a class; what is hidden is left out."""
    found = []
    for name in names:
        parts = name.split("/")
        hidden = any(part.startswith((".", "__MACOSX")) for part in parts)
        if len(parts) >= 3 and parts[-3] in ROLES and not hidden and name.lower().endswith(SUFFIXES):
            found.append((ROLES[parts[-3]], parts[-2], name))
    return found


def _decoded(members: list[Member], read: Callable[[str], bytes], path: Path) -> Images:
    """Decode every image; all that are wrong are told together."""
    classes = _classes(members, path)
    chunks = [members[start : start + 500] for start in range(0, len(members), 500)]  # a task for each image would cost more
    with ThreadPoolExecutor() as pool:
        results = list(itertools.chain(*pool.map(lambda chunk: [_decode(read, name) for _, _, name in chunk], chunks)))
    bad = [result for result in results if isinstance(result, str)]
    if bad:
        raise must_be(f"images in {path}", "readable", f"{len(bad)} broken: {'; '.join(bad[:5])}", "Replace or delete them.")
    parts: dict[str, tuple[list[Pixels], list[int]]] = defaultdict(lambda: ([], []))
    label = {name: number for number, name in enumerate(classes)}
    size = next(r.shape for r in results if not isinstance(r, str))
    for (role, kind, name), pixels in zip(members, results, strict=True):
        assert not isinstance(pixels, str)
        if pixels.shape != size:
            (height, width), (h, w) = size[:2], pixels.shape[:2]
            raise must_be(f"images in {path}", f"all {width}x{height}", f"{w}x{h} in {name}", "Resize them to one size first.")
        parts[role][0].append(pixels)
        parts[role][1].append(label[kind])
    return Images({role: _stack(pixels, labels) for role, (pixels, labels) in parts.items()}, classes)


def _stack(pixels: list[Pixels], labels: list[int]) -> tuple[Pixels, npt.NDArray[np.int64]]:
    return np.ascontiguousarray(np.stack(pixels).transpose(0, 3, 1, 2)), np.array(labels, dtype=np.int64)


def _decode(read: Callable[[str], bytes], name: str) -> Pixels | str:
    """Return the pixels (H, W, 3), or the name and what is wrong with it."""
    try:
        from PIL import Image
    except ImportError as error:
        raise missing_extra("pillow", "images") from error
    try:
        with Image.open(io.BytesIO(read(name))) as image:
            return np.asarray(image.convert("RGB"))
    except (
        OSError,
        SyntaxError,
        ValueError,
        RuntimeError,
        LookupError,
        TypeError,
        MemoryError,
        struct.error,
        zlib.error,
        zipfile.BadZipFile,
        Image.DecompressionBombError,
    ) as error:
        lines = re.sub(r"<_io\.\S+ object at \w+>", "it", str(error)).strip().splitlines()
        return f"{name} ({lines[0] if lines else type(error).__name__})"


def _classes(members: list[Member], path: Path) -> tuple[str, ...]:
    by_role: dict[str, set[str]] = defaultdict(set)
    for role, kind, _ in members:
        by_role[role].add(kind)
    mistakes = [
        must_be(f"images in {path}", f"some under {role}/<class>/", "none", SHAPE)
        for role in ("train", "test")
        if role not in by_role
    ]
    if not mistakes and len(by_role["train"]) < 2:
        mistakes.append(
            must_be(f"classes in {path}", "at least two", sorted(by_role["train"]), "One class cannot be told apart.")
        )
    for role, kinds in by_role.items():
        if not mistakes and kinds - by_role["train"]:
            strange = sorted(kinds - by_role["train"])
            mistakes.append(must_be(f"classes under {role}/", "classes of train/", strange, "Give both the same folders."))
    if mistakes:
        raise InputError("\n".join(map(str, mistakes)))
    return tuple(sorted(by_role["train"]))


def _key(path: Path, names: list[str]) -> str:
    """Hash what tells one version of the data from another, without reading it."""
    files = [path] if path.is_file() else [path / name for name in names]
    found = hashlib.sha256(f"{CACHE_FORMAT} {path.resolve()}".encode())
    for file in files:
        facts = file.stat()
        found.update(f"{file} {facts.st_size} {facts.st_mtime_ns}".encode())
    return found.hexdigest()[:24]


def _cached(kept: Path) -> Images | None:
    """Return the images of a cache file, or None when there is no usable one."""
    try:
        with np.load(kept, allow_pickle=False) as arrays:
            roles = [name[7:] for name in arrays.files if name.startswith("pixels_")]
            parts = {role: (arrays[f"pixels_{role}"], arrays[f"labels_{role}"]) for role in roles}
            return Images(parts, tuple(arrays["classes"].tolist()))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _keep(kept: Path, images: Images) -> None:
    """Write the cache file whole or not at all."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, npt.NDArray[np.generic]] = {"classes": np.array(images.classes)}
    for role, (pixels, labels) in images.parts.items():
        arrays |= {f"pixels_{role}": pixels, f"labels_{role}": labels}
    with tempfile.NamedTemporaryFile(dir=kept.parent, suffix=".part", delete=False) as file:
        try:
            np.savez(file, allow_pickle=False, **arrays)
            os.replace(file.name, kept)
        except BaseException:
            os.unlink(file.name)
            raise
