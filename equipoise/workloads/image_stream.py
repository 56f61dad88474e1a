"""Images that are read and decoded as they are needed, by processes beside training: for sets that memory does not hold."""

from __future__ import annotations

import io
import math
import random
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from equipoise.errors import must_be
from equipoise.workloads.image_files import (
    Bad,
    Pixels,
    check_side,
    checked,
    image_size,
    names_in,
    opened,
    pillow,
    reading,
    side_of,
    sizes_told,
    square,
)
from equipoise.workloads.image_layout import classes, members

LOOKED_AT = 1000
"""Images whose sizes are read to choose a common one: enough to know the short side of most."""
RATIOS = 3 / 4, 4 / 3
"""Least and most width over height of a random crop."""
TRIES = 10


@dataclass(frozen=True, eq=False)
class Streamed:
    """Images in files, a source of samples: uint8 squares (N, 3, side, side) and labels (N,).

    Attributes:
        path: Folder, or zip of one.
        names: Of the images in it.
        labels: Of each, (N,) int64.
        side: Rows and columns to which each is brought.
        crop: Least share of a training image that a random crop takes, which is mirrored half of the time; None takes the
            square in its middle, as is done wherever nothing is drawn.
        workers: Processes that read and decode ahead of training.
    """

    path: Path
    names: tuple[str, ...]
    labels: Tensor
    side: int
    crop: float | None = None
    workers: int = 2

    def __len__(self) -> int:
        return len(self.names)

    @property
    def about(self) -> tuple[Any, ...]:
        """What tells it from other images."""
        return self.names, self.labels.tolist(), self.side, self.crop

    def fetch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images at `indices`, as they are."""
        return _read(_Decoder(self), indices, None)

    def stream(self, batches: Sequence[Tensor], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the images of each batch of indices in turn, cropped and mirrored as `seed` draws.

        Raises:
            InputError: An image cannot be decoded.
        """
        data = _Batches(self, tuple(batches), seed)
        for found in DataLoader(data, batch_size=None, num_workers=self.workers, collate_fn=_as_it_is):
            yield _whole(found, self.path)


@dataclass(frozen=True, eq=False)
class _Decoder:
    """Reads single images; each process has its own, with the zip that it opened itself."""

    source: Streamed

    @cached_property
    def _read(self) -> Callable[[str], bytes]:
        path = self.source.path
        return zipfile.ZipFile(path).read if path.is_file() else lambda name: (path / name).read_bytes()

    def image(self, index: int, seed: int | None) -> Pixels | Bad:
        """Return the pixels (side, side, 3) of an image; cropped at random where there is a seed and the source says so."""
        made = self.source
        if seed is None or made.crop is None:
            return opened(partial(square, self._read, made.side), made.names[index])
        drawn = random.Random(f"{seed} {index}")
        return opened(partial(cropped, self._read, made.side, made.crop, drawn), made.names[index])


class _Batches(Dataset[Any]):
    """Whole batches by number, for the processes that decode them."""

    def __init__(self, source: Streamed, batches: tuple[Tensor, ...], seed: int) -> None:
        self._decoder, self._batches, self._seed = _Decoder(source), batches, seed

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> Any:
        rows = self._batches[number].tolist()
        return [self._decoder.image(row, self._seed) for row in rows], self._decoder.source.labels[rows]


def _as_it_is(found: Any) -> Any:
    return found


def _read(decoder: _Decoder, indices: Tensor, seed: int | None) -> tuple[Tensor, Tensor]:
    found = [decoder.image(row, seed) for row in indices.tolist()]
    return _whole((found, decoder.source.labels[indices]), decoder.source.path)


def _whole(found: tuple[list[Pixels | Bad], Tensor], path: Path) -> tuple[Tensor, Tensor]:
    """Return images of one size as a batch (N, 3, H, W); what cannot be decoded is told."""
    images = checked(found[0], path)
    return torch.from_numpy(np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))), found[1]


def cropped(read: Callable[[str], bytes], side: int, least: float, drawn: random.Random, name: str) -> Pixels:
    """Return a random part of an image, resized to (side, side, 3) and mirrored half of the time.

    The part has between `least` and all of the area and a width of `RATIOS` times its height; where ten draws do not fit, it is
    the square in the middle.

    References:
        Szegedy et al. 2015, "Going deeper with convolutions", section 6.
    """
    library = pillow()
    from PIL import ImageOps

    with library.open(io.BytesIO(read(name))) as image:
        image.draft("RGB", (math.ceil(side / math.sqrt(least)),) * 2)  # JPEG can be read at a half, a quarter or an eighth
        upright = ImageOps.exif_transpose(image).convert("RGB")
    box = _box(upright.width, upright.height, least, drawn)
    part = upright.resize((side, side), library.Resampling.BICUBIC, box=box)
    return np.asarray(ImageOps.mirror(part) if drawn.random() < 0.5 else part)


def _box(width: int, height: int, least: float, drawn: random.Random) -> tuple[int, int, int, int]:
    low, high = map(math.log, RATIOS)
    for _ in range(TRIES):
        area, ratio = drawn.uniform(least, 1.0) * width * height, math.exp(drawn.uniform(low, high))
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            left, top = drawn.randint(0, width - across), drawn.randint(0, height - down)
            return left, top, left + across, top + down
    short = min(width, height)
    left, top = (width - short) // 2, (height - short) // 2
    return left, top, left + short, top + short


@dataclass(frozen=True)
class Streams:
    """What a folder of images holds: a source for each role, the classes in the order of their labels, and notes."""

    parts: dict[str, Streamed]
    classes: tuple[str, ...]
    notes: tuple[str, ...]


def stream_images(
    path: Path, *, size: int | None = None, most: int | None = None, crop: float | None = None, workers: int = 2
) -> Streams:
    """Return the images of a folder or zip as sources that read them when they are needed.

    Args:
        path, size, most: As of `read_images`; where no size is given, that of the first thousand images decides.
        crop, workers: As of `Streamed`, the first for the training images alone.
    Raises:
        InputError: As of `read_images`; an image that cannot be decoded is told when it is read.
    """
    check_side(size)
    if crop is not None and not 0 < crop <= 1:
        raise must_be("images crop", "a share of the image, above 0 and at most 1", crop, "Write crop=0.35.")
    if workers < 1:
        raise must_be("images stream", "at least 1 process", workers, "Write stream=2.")
    names = names_in(path)
    with reading(path) as read:
        found = members(names, read, path)
        kinds = classes(found, path)
        few = random.Random(0).sample(found, min(LOOKED_AT, len(found)))
        sizes = [one for _, _, name in few if not isinstance(one := opened(partial(image_size, read), name), Bad)]
    if not sizes:
        raise must_be(f"images in {path}", "readable", f"{len(few)} broken", "Replace or delete them.")
    side = side_of(sizes, size=size, most=most) or min(sizes[0])
    label = {name: number for number, name in enumerate(kinds)}
    parts = {}
    for role in dict.fromkeys(role for role, _, _ in found):
        mine = [(kind, name) for its, kind, name in found if its == role]
        labels = torch.tensor([label[kind] for kind, _ in mine])
        parts[role] = Streamed(path, tuple(name for _, name in mine), labels, side, crop if role == "train" else None, workers)
    return Streams(parts, kinds, (*sizes_told(sizes, side), f"images: read as they are needed, by {workers} processes"))
