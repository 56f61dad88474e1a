"""Squares of three colors on noise, in pictures of many sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from equipoise.errors import missing_extra

COLORS = {"blue": (40, 40, 220), "green": (40, 220, 40), "red": (220, 40, 40)}
SIZES = {"train": 60, "val": 20, "test": 20}
"""Role -> pictures of each color."""


def write(folder: Path) -> Path:
    """Write ``ROLE/COLOR/N.png`` and return the folder.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise missing_extra("pillow", "images") from error
    draw = np.random.default_rng(0)
    for role, count in SIZES.items():
        for name, color in COLORS.items():
            place = folder / role / name
            place.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                height, width = draw.integers(60, 90, 2)
                pixels = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
                left, top = draw.integers(0, 40, 2)
                pixels[top : top + 20, left : left + 20] = color
                Image.fromarray(pixels).save(place / f"{number}.png")
    return folder
