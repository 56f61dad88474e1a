"""Sentences in two languages, line by line: ``train.en`` beside ``train.de``, each perhaps gzipped."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

from equipoise.errors import must_be, unknown

ROLES = {"train": ("train",), "validation": ("val", "valid", "validation", "dev"), "test": ("test",)}
"""Role of a split -> how its files may be called; what follows after ``_`` or ``.`` tells one test set of several."""


@dataclass(frozen=True)
class Parallel:
    """Pairs of sentences that mean the same.

    Attributes:
        source, target: As many of each.
        notes: What was left out.
    """

    source: tuple[str, ...]
    target: tuple[str, ...]
    notes: tuple[str, ...] = ()


def read_parallel(folder: Path, *, source: str, target: str) -> dict[str, Parallel]:
    """Return the pairs of each split: ``train`` and ``test``, and ``validation`` where there is one.

    Args:
        folder: Holds ``train.LANGUAGE``, ``test.LANGUAGE`` and perhaps ``val.LANGUAGE``, or each with ``.gz``. Of several test
            sets the first by name is taken.
        source, target: Tags of the languages, as the files end.
    Raises:
        InputError: No such folder, language or split, files of different lengths, or a file that cannot be read.
    """
    if not folder.is_dir():
        raise must_be(
            "translation", "a folder with train.en, train.de and the like", str(folder), "Name the folder of the data."
        )
    files = {path.name.removesuffix(".gz"): path for path in sorted(folder.iterdir()) if path.is_file()}
    tags = sorted({name.rpartition(".")[2] for name in files if _role(name) is not None})
    if not tags:
        found = ", ".join(sorted(files)[:5]) or "an empty folder"
        raise must_be(
            f"files in {folder}", "train.LANGUAGE, val.LANGUAGE and test.LANGUAGE", found, "Name them so, a sentence a line."
        )
    for name, tag in (("source", source), ("target", target)):
        if tag not in tags:
            raise unknown(f"{name} language", tag, tags)
    if source == target:
        raise must_be("target", f"another language than the source {source}", target, f"There are {', '.join(tags)}.")
    pairs: dict[str, Parallel] = {}
    for name in sorted(files):
        stem, _, tag = name.rpartition(".")
        role = _role(name)
        if role is None or role in pairs or tag != source:
            continue
        if f"{stem}.{target}" not in files:
            raise must_be(f"{stem}.{target}", f"beside {name}", "no such file", "Give both languages of a split.")
        pairs[role] = _paired(files[name], files[f"{stem}.{target}"], role)
    for role in ("train", "test"):
        if role not in pairs:
            raise must_be(
                f"files in {folder}",
                f"a {role} split",
                ", ".join(sorted(files)[:5]),
                f"Add {role}.{source} and {role}.{target}.",
            )
    return pairs


def _role(name: str) -> str | None:
    """Return the split that a file is of, by its name."""
    stem = name.rpartition(".")[0]
    first = stem.replace(".", "_").partition("_")[0]
    return next((role for role, names in ROLES.items() if first in names), None)


def _paired(source: Path, target: Path, role: str) -> Parallel:
    one, other = _lines(source), _lines(target)
    if len(one) != len(other):
        found = f"{len(one)} and {len(other)} lines"
        raise must_be(
            f"{source.name} and {target.name}", "as long as each other", found, "Line N of one must be line N of the other."
        )
    kept = [(a.strip(), b.strip()) for a, b in zip(one, other, strict=True)]
    whole = [(a, b) for a, b in kept if a and b]
    if not whole:
        raise must_be(
            f"{source.name} and {target.name}", "sentences", f"{len(kept)} pairs with an empty side", "Give other files."
        )
    lost = len(kept) - len(whole)
    notes = (f"{role}: {lost} of {len(kept)} pairs have an empty side and are left out",) if lost else ()
    return Parallel(tuple(a for a, _ in whole), tuple(b for _, b in whole), notes)


def _lines(path: Path) -> list[str]:
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = content.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error) as error:
        raise must_be(str(path), "a readable file", str(error), "Fetch it again; it may be cut off.") from error
    except UnicodeDecodeError as error:
        raise must_be(str(path), "UTF-8", f"byte {error.start} that is not", "Convert it by iconv.") from error
    return text.removesuffix("\n").split("\n") if text else []
