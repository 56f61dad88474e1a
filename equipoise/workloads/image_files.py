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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from equipoise.errors import missing_extra, must_be
from equipoise.workloads.image_layout import SHAPE, Member, classes, members

Pixels = npt.NDArray[np.uint8]
Size = tuple[int, int]
"""Rows and columns."""
Sides = Callable[[Sequence[Size]], int | None]
T = TypeVar("T")

CACHE_FORMAT = 2
USUAL, LARGEST = 224, 4096
"""Rows and columns: those that most pretrained networks take, and the most that are kept of an image."""
ORIENTATION = 0x0112
"""Entry of a photograph's EXIF data; from 5 on it lies on its side."""


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
    check_side(size)
    names = names_in(path)
    kept = (cache or cache_folder()) / f"images-{_key(path, names, f'{size} {most}')}.npz"
    found = _cached(kept)
    if found is None:
        side = partial(side_of, size=size, most=most)
        with reading(path) as read:
            found = _decoded(members(names, read, path), read, path, side)
        with contextlib.suppress(OSError):  # a cache is a convenience
            _keep(kept, found)
    return found


def check_side(size: int | None) -> None:
    """Raise for rows and columns that no image is brought to."""
    if size is not None and not 1 <= size <= LARGEST:
        raise must_be("images size", f"from 1 to {LARGEST} pixels", size, "Write for example size=160.")


def names_in(path: Path, *, what: str = "images", remedy: str = SHAPE) -> list[str]:
    """Return the files at any depth of a folder or a zip of one, sorted, with slashes.

    Args:
        path: Of it.
        what, remedy: For a message, as of `image_layout.classes`.
    Raises:
        InputError: There is no such folder or zip.
    """
    if not path.exists():
        raise must_be(what, "an existing folder or zip", str(path), remedy)
    if path.is_file():
        with _archive(path, what, remedy) as archive:
            return sorted(archive.namelist())
    found = [os.path.join(where, name) for where, _, names in os.walk(path) for name in names]
    return sorted(os.path.relpath(name, path).replace(os.sep, "/") for name in found)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[Callable[[str], bytes]]:
    """Open a folder or a zip of one: give what returns the bytes of a file in it."""
    if path.is_dir():
        yield lambda name: (path / name).read_bytes()
        return
    with _archive(path, "images", SHAPE) as archive:
        yield archive.read


def _archive(path: Path, what: str, remedy: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, LookupError, struct.error) as error:
        raise must_be(what, "a folder or a readable zip", f"{path} ({error})", remedy) from error


def _decoded(found: list[Member], read: Callable[[str], bytes], path: Path, side: Sides) -> Images:
    """Decode every image at the size that `side` chooses; all that are wrong are told together."""
    kinds = classes(found, path)
    sizes = [size for size in _each(found, partial(image_size, read)) if not isinstance(size, Bad)]
    whole = side(sizes) if sizes else None
    results = _each(found, partial(square, read, whole))
    decoded = checked(results, path)
    parts: dict[str, tuple[list[Pixels], list[int]]] = defaultdict(lambda: ([], []))
    label = {name: number for number, name in enumerate(kinds)}
    for (role, kind, _), pixels in zip(found, decoded, strict=True):
        parts[role][0].append(pixels)
        parts[role][1].append(label[kind])
    return Images({role: _stack(pixels, labels) for role, (pixels, labels) in parts.items()}, kinds, sizes_told(sizes, whole))


def side_of(sizes: Sequence[Size], *, size: int | None, most: int | None) -> int | None:
    """Return to how many rows and columns images of these sizes are brought; None leaves them."""
    short = sorted(map(min, sizes))
    if size is None and len(set(sizes)) == 1 and (most is None or short[0] <= most):
        return None
    return size or min(most or USUAL, short[len(short) // 20])


def sizes_told(sizes: Sequence[Size], side: int | None) -> tuple[str, ...]:
    """Say what was done with images of other sizes."""
    if side is None or set(sizes) == {(side, side)}:
        return ()
    smaller = sum(min(size) < side for size in sizes)
    few, many = (f"{min(size)}x{max(size)}" for size in (min(sizes, key=sorted), max(sizes, key=sorted)))
    enlarged = f" ({smaller} of them enlarged)" if smaller else ""
    return (f"images: sizes from {few} to {many}, each brought to {side}x{side} by its middle{enlarged}; ?size= changes that",)


def _each(found: list[Member], of: Callable[[str], T]) -> list[T | Bad]:
    """Return what `of` says of each image, many at a time, or what is wrong with it."""
    names = [name for _, _, name in found]
    chunks = [names[start : start + 500] for start in range(0, len(names), 500)]  # a task for each image would cost more
    with ThreadPoolExecutor() as pool:
        return list(itertools.chain(*pool.map(lambda chunk: [opened(of, name) for name in chunk], chunks)))


def _stack(pixels: list[Pixels], labels: list[int]) -> tuple[Pixels, npt.NDArray[np.int64]]:
    return np.ascontiguousarray(np.stack(pixels).transpose(0, 3, 1, 2)), np.array(labels, dtype=np.int64)


def checked(results: Sequence[Pixels | Bad], path: Path) -> list[Pixels]:
    """Return images that were decoded, or raise an error that names those that were not."""
    bad = [result.says for result in results if isinstance(result, Bad)]
    if bad:
        raise must_be(f"images in {path}", "readable", f"{len(bad)} broken: {'; '.join(bad[:5])}", "Replace or delete them.")
    return [pixels for pixels in results if not isinstance(pixels, Bad)]


@dataclass(frozen=True)
class Bad:
    """The name of an image and what is wrong with it."""

    says: str


def image_size(read: Callable[[str], bytes], name: str) -> Size:
    """Return rows and columns of an image, upright, without decoding it."""
    with pillow().open(io.BytesIO(read(name))) as image:
        turned = image.format == "JPEG" and image.getexif().get(ORIENTATION, 1) >= 5
        return (image.width, image.height) if turned else (image.height, image.width)


def square(read: Callable[[str], bytes], side: int | None, name: str) -> Pixels:
    """Return the pixels (H, W, 3) of an image, upright; with `side` of the square in its middle."""
    library = pillow()
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


def pillow() -> Any:
    """Return ``PIL.Image``.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise missing_extra("pillow", "images") from error
    return Image


def opened(of: Callable[[str], T], name: str) -> T | Bad:
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
        pillow().DecompressionBombError,
    ) as error:
        lines = re.sub(r"<_io\.\S+ object at \w+>", "it", str(error)).strip().splitlines()
        return Bad(f"{name} ({lines[0] if lines else type(error).__name__})")


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
