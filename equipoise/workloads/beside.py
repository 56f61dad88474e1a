"""What belongs to the data and goes with a model: names of its classes, and files such as a tokenizer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from equipoise.errors import must_be

NAMES = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)+")
"""File names that mean the same everywhere, with a suffix."""
LARGEST = 100_000_000
"""Bytes of one file: what goes with a model is small beside it."""
LABELS = "labels.json"
TAKEN = ("manifest.json", "README.md", "verify.json", "model.onnx", "model.safetensors", "probe.safetensors", LABELS)
"""Names that an artifact has files of its own for."""


def checked_labels(labels: Sequence[str], outputs: int | None) -> tuple[str, ...]:
    """Return the names of the classes.

    Args:
        labels: A name for each class; none of them: they have no names.
        outputs: Of the model; None where that is not known. A single output, a yes or no, has two classes.
    Raises:
        InputError: Not a name for each, one twice, or one that cannot be printed on a line.
    """
    found = tuple(str(label) for label in labels)
    remedy = "Give the names in the order of the numbers of the classes."
    if found and outputs is not None and len(found) != max(2, outputs):
        raise must_be("labels", f"names of the {max(2, outputs)} classes", found, remedy)
    if len(set(found)) < len(found) or not all(name and name.isprintable() for name in found):
        raise must_be("labels", "different printable names", found, remedy)
    return found


def checked_files(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the files by name.

    Raises:
        InputError: A name that is not a plain file name, or a content that is not bytes or too large.
    """
    for name, content in files.items():
        if not isinstance(name, str) or not NAMES.fullmatch(name) or len(name) > 100:
            raise must_be("files", "named plainly, such as tokenizer.json", name, "No folders, blanks or leading dots.")
        if name in TAKEN:
            raise must_be("files", f"named otherwise than {', '.join(TAKEN)}", name, "An artifact has its own of that name.")
        if not isinstance(content, bytes) or len(content) > LARGEST:
            found = f"{len(content)} bytes" if isinstance(content, bytes) else type(content).__name__
            raise must_be(f"files[{name!r}]", f"bytes, {LARGEST} at most", found, "Read it by Path(...).read_bytes().")
    return dict(files)


def shipped(files: Mapping[str, bytes], labels: Sequence[str]) -> dict[str, bytes]:
    """Return what goes with a model by name: the files, and the names of the classes as a JSON list."""
    return {**files, **({LABELS: (json.dumps(list(labels), ensure_ascii=False) + "\n").encode()} if labels else {})}
