"""Decoded images of a folder or a zip of one: ``train/<class>/*``, ``test/<class>/*``, perhaps ``val/<class>/*``."""

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
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from equipoise.errors import InputError, missing_extra, must_be

Pixels = npt.NDArray[np.uint8]
Member = tuple[str, str, str]
"""(role, class, name inside the folder or zip)."""
Size = tuple[int, int]
"""Rows and columns."""
Sides = Callable[[Sequence[Size]], int | None]
T = TypeVar("T")

ROLES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif")
CACHE_FORMAT = 2
USUAL, LARGEST = 224, 4096
"""Rows and columns: those that most pretrained networks take, and the most that are kept of an image."""
ORIENTATION = 0x0112
"""Entry of a photograph's EXIF data; from 5 on it lies on its side."""
SHAPE = "Put the images under train/<class>/ and test/<class>/."


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
    """Decoded images: role -> (pixels (N, 3, H, W) uint8, labels (N,) int64), classes in the order of their labels, notes."""

    parts: dict[str, tuple[Pixels, npt.NDArray[np.int64]]]
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()


def cache_folder() -> Path:
    """Return where decoded images are kept: ``$XDG_CACHE_HOME/equipoise`` or ``~/.cache/equipoise``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "equipoise"


def read_images(path: Path, *, size: int | None = None, most: int | None = None, cache: Path | None = None) -> Images:
    """Decode a folder of images, or read what an earlier call decoded; photographs are turned upright.

    Args:
        path: Folder, or zip of one. Nothing is written there.
        size: Rows and columns to which each is brought: the square in its middle, resized. None leaves images of one size as
            they are, and brings others to the short side that all but the smallest twentieth have, `most` or `USUAL` at most.
        most: Rows or columns above which images of one size are brought to it as well; None: any size is left.
        cache: Folder for decoded images; None takes `cache_folder`. One that cannot be written is done without.
    Raises:
        InputError: Not a folder or zip of images, no training or test images, one class only, classes that differ between
            splits, images that cannot be decoded (named), or a `size` that is none.
        MissingExtraError: Pillow is not installed.
    """
    if not path.exists():
        raise must_be("images", "an existing folder or zip", str(path), SHAPE)
    if size is not None and not 1 <= size <= LARGEST:
        raise must_be("images size", f"from 1 to {LARGEST} pixels", size, "Write for example size=160.")
    names = names_in(path) if path.is_dir() else []
    kept = (cache or cache_folder()) / f"images-{_key(path, names, f'{size} {most}')}.npz"
    found = _cached(kept)
    if found is None:
        side = partial(_side, size=size, most=most)
        found = _decoded_folder(path, names, side) if path.is_dir() else _decoded_zip(path, side)
        with contextlib.suppress(OSError):  # a cache is a convenience
            _keep(kept, found)
    return found


def names_in(folder: Path) -> list[str]:
    """Return the files at any depth of a folder, sorted, with slashes."""
    found = [os.path.join(where, name) for where, _, names in os.walk(folder) for name in names]
    return sorted(os.path.relpath(name, folder).replace(os.sep, "/") for name in found)


def _decoded_folder(path: Path, names: list[str], side: Sides) -> Images:
    return _decoded(members_of(names), lambda name: (path / name).read_bytes(), path, side)


def _decoded_zip(path: Path, side: Sides) -> Images:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, LookupError, struct.error) as error:
        raise must_be("images", "a folder or a readable zip", f"{path} ({error})", SHAPE) from error
    with archive:
        return _decoded(members_of(sorted(archive.namelist())), archive.read, path, side)


def members_of(names: list[str], suffixes: tuple[str, ...] = SUFFIXES) -> list[Member]:
    """Return the files with such an ending that lie under a role and a class; what is hidden is left out."""
    found = []
    for name in names:
        parts = name.split("/")
        hidden = any(part.startswith((".", "__MACOSX")) for part in parts)
        if len(parts) >= 3 and parts[-3] in ROLES and not hidden and name.lower().endswith(suffixes):
            found.append((ROLES[parts[-3]], parts[-2], name))
    return found


def _decoded(members: list[Member], read: Callable[[str], bytes], path: Path, side: Sides) -> Images:
    """Decode every image at the size that `side` chooses; all that are wrong are told together."""
    classes = classes_of(members, path)
    sizes = [size for size in _each(members, partial(_size, read)) if not isinstance(size, _Bad)]
    whole = side(sizes) if sizes else None
    results = _each(members, partial(_pixels, read, whole))
    found = [pixels for pixels in results if not isinstance(pixels, _Bad)]
    bad = [result.says for result in results if isinstance(result, _Bad)]
    if bad:
        raise must_be(f"images in {path}", "readable", f"{len(bad)} broken: {'; '.join(bad[:5])}", "Replace or delete them.")
    parts: dict[str, tuple[list[Pixels], list[int]]] = defaultdict(lambda: ([], []))
    label = {name: number for number, name in enumerate(classes)}
    for (role, kind, _), pixels in zip(members, found, strict=True):
        parts[role][0].append(pixels)
        parts[role][1].append(label[kind])
    return Images({role: _stack(pixels, labels) for role, (pixels, labels) in parts.items()}, classes, _told(sizes, whole))


def _side(sizes: Sequence[Size], *, size: int | None, most: int | None) -> int | None:
    """Return to how many rows and columns images of these sizes are brought; None leaves them."""
    short = sorted(map(min, sizes))
    if size is None and len(set(sizes)) == 1 and (most is None or short[0] <= most):
        return None
    return size or min(most or USUAL, short[len(short) // 20])


def _told(sizes: Sequence[Size], side: int | None) -> tuple[str, ...]:
    """Say what was done with images of other sizes."""
    if side is None or set(sizes) == {(side, side)}:
        return ()
    smaller = sum(min(size) < side for size in sizes)
    few, many = (f"{min(size)}x{max(size)}" for size in (min(sizes, key=sorted), max(sizes, key=sorted)))
    enlarged = f" ({smaller} of them enlarged)" if smaller else ""
    return (f"images: sizes from {few} to {many}, each brought to {side}x{side} by its middle{enlarged}; ?size= changes that",)


def _each(members: list[Member], of: Callable[[str], T]) -> list[T | _Bad]:
    """Return what `of` says of each image, many at a time, or what is wrong with it."""
    names = [name for _, _, name in members]
    chunks = [names[start : start + 500] for start in range(0, len(names), 500)]  # a task for each image would cost more
    with ThreadPoolExecutor() as pool:
        return list(itertools.chain(*pool.map(lambda chunk: [_opened(of, name) for name in chunk], chunks)))


def _stack(pixels: list[Pixels], labels: list[int]) -> tuple[Pixels, npt.NDArray[np.int64]]:
    return np.ascontiguousarray(np.stack(pixels).transpose(0, 3, 1, 2)), np.array(labels, dtype=np.int64)


@dataclass(frozen=True)
class _Bad:
    """The name of an image and what is wrong with it."""

    says: str


def _size(read: Callable[[str], bytes], name: str) -> Size:
    """Return rows and columns of an image, upright, without decoding it."""
    with _pillow().open(io.BytesIO(read(name))) as image:
        turned = image.format == "JPEG" and image.getexif().get(ORIENTATION, 1) >= 5
        return (image.width, image.height) if turned else (image.height, image.width)


def _pixels(read: Callable[[str], bytes], side: int | None, name: str) -> Pixels:
    """Return the pixels (H, W, 3) of an image, upright; with `side` of the square in its middle."""
    library = _pillow()
    from PIL import ImageOps

    with library.open(io.BytesIO(read(name))) as image:
        if side is not None:
            image.draft("RGB", (2 * side, 2 * side))  # JPEG can be read at a half, a quarter or an eighth
        upright = ImageOps.exif_transpose(image).convert("RGB")
    if side is not None:
        short = min(upright.size)
        left, top = (upright.width - short) // 2, (upright.height - short) // 2
        middle = upright.crop((left, top, left + short, top + short))
        upright = middle.resize((side, side), library.Resampling.BICUBIC)
    return np.asarray(upright)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise missing_extra("pillow", "images") from error
    return Image


def _opened(of: Callable[[str], T], name: str) -> T | _Bad:
    """Return what `of` says of an image, or what is wrong with it."""
    try:
        return of(name)
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
        _pillow().DecompressionBombError,
    ) as error:
        lines = re.sub(r"<_io\.\S+ object at \w+>", "it", str(error)).strip().splitlines()
        return _Bad(f"{name} ({lines[0] if lines else type(error).__name__})")


def classes_of(members: list[Member], path: Path, *, what: str = "images", remedy: str = SHAPE) -> tuple[str, ...]:
    """Return the classes of the training data, sorted.

    Args:
        members, path: Of the data, and where they lie.
        what: They are called in a message.
        remedy: What is said where they are not laid out so.
    Raises:
        InputError: No training or test data, one class only, or classes that training lacks.
    """
    by_role: dict[str, set[str]] = defaultdict(set)
    for role, kind, _ in members:
        by_role[role].add(kind)
    mistakes = [
        must_be(f"{what} in {path}", f"some under {role}/<class>/", "none", remedy)
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


def _key(path: Path, names: list[str], how: str) -> str:
    """Hash what tells one version of the data from another, without reading it, and how it is decoded."""
    files = [path] if path.is_file() else [path / name for name in names]
    found = hashlib.sha256(f"{CACHE_FORMAT} {how} {path.resolve()}".encode())
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
            return Images(parts, tuple(arrays["classes"].tolist()), tuple(arrays["notes"].tolist()))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _keep(kept: Path, images: Images) -> None:
    """Write the cache file whole or not at all."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    words = {"classes": images.classes, "notes": images.notes}
    arrays: dict[str, npt.NDArray[np.generic]] = {name: np.array(value, dtype=np.str_) for name, value in words.items()}
    for role, (pixels, labels) in images.parts.items():
        arrays |= {f"pixels_{role}": pixels, f"labels_{role}": labels}
    with tempfile.NamedTemporaryFile(dir=kept.parent, suffix=".part", delete=False) as file:
        try:
            np.savez(file, allow_pickle=False, **arrays)
            os.replace(file.name, kept)
        except BaseException:
            os.unlink(file.name)
            raise
