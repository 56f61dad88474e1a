"""Which image of a folder or zip belongs to which split and class, by names and lists alone; nothing is decoded.

Two layouts: ``train/<class>/*``, ``test/<class>/*`` and perhaps ``val/<class>/*``; and ImageNet's own, in which the images of
``val`` lie flat beside a list of their classes and serve for the test, as those of ``test`` have no published labels.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from equipoise.errors import InputError, must_be

Member = tuple[str, str, str]
"""(role, class, name inside the folder or zip)."""

ROLES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif")
SHAPE = "Put the images under train/<class>/ and test/<class>/."

ANNOTATIONS, SOLUTION, TRUTH, SYNSETS = (
    "val_annotations.txt",
    "LOC_val_solution.csv",
    "ILSVRC2012_validation_ground_truth.txt",
    "map_clsloc.txt",
)
"""Lists of the classes of flat ``val`` images: file and class (Tiny ImageNet), image and class (ImageNet as a competition gives
it), and a number for each image in the order of their names (ImageNet's development kit), with what each number stands for."""
LISTS = f"Put {ANNOTATIONS}, {SOLUTION}, or both {TRUTH} and {SYNSETS} there."


def members(names: Sequence[str], read: Callable[[str], bytes], path: Path) -> list[Member]:
    """Return the images that lie under a role and a class; what is hidden is left out.

    Args:
        names: Of all files, with slashes, sorted.
        read: Returns the bytes of one.
        path: Of the folder or zip, for messages.
    Raises:
        InputError: Images of ``val`` lie flat, and no list says of which class they are, or one is not to be used.
    """
    found = members_of(names)
    pictures = [name for name in _seen(names) if name.lower().endswith(SUFFIXES)]
    flat = [name for name in pictures if (place := _place(name.split("/")))[0] and not place[1] and ROLES[place[0]] == "val"]
    if not flat or any(role == "val" for role, _, _ in found):
        return found
    told = _told(flat, _seen(names), read, path)
    role = "val" if any(role == "test" for role, _, _ in found) else "test"
    return sorted([*found, *((role, told[name], name) for name in flat)], key=lambda member: member[2])


def _place(parts: Sequence[str]) -> tuple[str, str]:
    """Return the folder of the role and the class that an image lies under; a class's own ``images`` folder is passed over."""
    folders = [part for part in parts[:-1] if part != "images"]
    if len(folders) >= 2 and folders[-2] in ROLES:
        return folders[-2], folders[-1]
    return (folders[-1], "") if folders and folders[-1] in ROLES else ("", "")


def _told(flat: list[str], names: Sequence[str], read: Callable[[str], bytes], path: Path) -> dict[str, str]:
    """Return the class of each flat image, by the list that is there."""
    lists = {name.rpartition("/")[2]: name for name in names}

    def lines(of: str) -> list[str]:
        return read(lists[of]).decode("utf-8", "replace").split("\n")

    if ANNOTATIONS in lists:
        pairs: Iterable[Sequence[str]] = (line.split("\t")[:2] for line in lines(ANNOTATIONS) if "\t" in line)
    elif SOLUTION in lists:
        pairs = ((row[0], row[1].split()[0]) for row in csv.reader(lines(SOLUTION)) if len(row) == 2 and row[1].split())
    elif TRUTH in lists and SYNSETS in lists:
        pairs = _numbered(flat, lines(TRUTH), lines(SYNSETS), path)
    else:
        raise must_be(
            f"images in {path}", "under val/<class>/, or with a list of their classes", f"{len(flat)} flat ones", LISTS
        )
    known = {_stem(file): kind for file, kind in pairs}
    lost = [name for name in flat if _stem(name) not in known]
    if lost:
        raise must_be(f"classes of val images in {path}", "listed", f"{len(lost)} that are not, {lost[0]} first", LISTS)
    return {name: known[_stem(name)] for name in flat}


def _numbered(flat: list[str], truth: list[str], synsets: list[str], path: Path) -> Iterator[tuple[str, str]]:
    """Yield image and class where a list has a number for each image, in the order of their names."""
    words = [line.split() for line in synsets if line.strip()]
    kinds = {number: kind for kind, number, *_ in (row for row in words if len(row) >= 2)}
    numbers = [line.strip() for line in truth if line.strip()]
    if len(numbers) != len(flat):
        raise must_be(f"{TRUTH} in {path}", f"of {len(flat)} lines, one for each image", len(numbers), "Fetch both again.")
    strange = next((number for number in numbers if number not in kinds), None)
    if strange is not None:
        raise must_be(f"numbers in {TRUTH}", f"some of {SYNSETS}", strange, "Take both from the same kit.")
    yield from ((name, kinds[number]) for name, number in zip(sorted(flat, key=_order), numbers, strict=True))


def _stem(name: str) -> str:
    return re.sub(r"\.[A-Za-z]+$", "", name.rpartition("/")[2])


def _order(name: str) -> str:
    return name.rpartition("/")[2]


def members_of(names: Sequence[str], suffixes: tuple[str, ...] = SUFFIXES) -> list[Member]:
    """Return the files with such an ending that lie under a role and a class; what is hidden is left out."""
    places = [(name, _place(name.split("/"))) for name in _seen(names) if name.lower().endswith(suffixes)]
    return [(ROLES[place], kind, name) for name, (place, kind) in places if place and kind]


def _seen(names: Sequence[str]) -> list[str]:
    return [name for name in names if not any(part.startswith((".", "__MACOSX")) for part in name.split("/"))]


def classes(found: list[Member], path: Path, *, what: str = "images", remedy: str = SHAPE) -> tuple[str, ...]:
    """Return the classes in the order of their labels.

    Args:
        found, path: The data, and where they lie.
        what: They are called in a message.
        remedy: What is said where they are not laid out so.
    Raises:
        InputError: No training or test data, one class only, or classes that differ between splits.
    """
    by_role: dict[str, set[str]] = defaultdict(set)
    for role, kind, _ in found:
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
