"""Labelled texts from TSV and CSV files: which column is which is seen, or told."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from equipoise.errors import InputError, must_be

ROLES = {"train": "train", "dev": "validation", "val": "validation", "valid": "validation", "validation": "validation"}
ROLES |= {"test": "test"}
SUFFIXES = {".tsv": "\t", ".csv": ","}
TEXTS = ("text", "sentence", "review", "content", "comment", "message", "body")
LABELS = ("label", "labels", "sentiment", "class", "category", "target", "polarity", "rating")
LAYOUT = "Give a .tsv or .csv file, or a folder with train, dev (or validation) and test of them."
MOST_CLASSES = 1000

Row = list[str]


@dataclass(frozen=True)
class Texts:
    """Labelled texts of one split, in the order of the file; `notes` say what was left out and what is odd.

    Attributes:
        texts, labels: As they are written, blanks around them aside.
    """

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    notes: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.texts)


def read_texts(path: Path, *, text: str = "", label: str = "") -> dict[str, Texts]:
    """Return the texts of a file (``all``) or of a folder (``train``, ``test`` and perhaps ``validation``).

    Args:
        path: A file, UTF-8, or a folder with a file for each split.
        text, label: Names of columns in a header line, or their numbers from 1. Empty: seen from the names in the header or,
            where there is none, from the values: few different ones are labels, the longest are texts.
    Raises:
        InputError: No such files, or columns that cannot be told apart or are not there.
    """
    found = {"all": path} if path.is_file() else _parts(path)
    tables = {role: _rows(file) for role, file in found.items()}
    first = next(iter(tables))
    header, columns = _columns(found[first], tables[first], text, label)
    return {role: _texts(found[role], rows, header, columns) for role, rows in tables.items()}


def _parts(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise must_be("texts", "an existing file or folder", str(folder), LAYOUT)
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        role = ROLES.get(file.stem.lower())
        if role and file.suffix.lower() in SUFFIXES and file.is_file():
            if role in found:
                raise must_be(f"{role} file", "one", [found[role].name, file.name], "Move the other one away.")
            found[role] = file
    if missing := [role for role in ("train", "test") if role not in found]:
        raise must_be(f"texts in {folder}", f"with a {missing[0]} file", sorted(f.name for f in found.values()), LAYOUT)
    return {role: found[role] for role in ("train", "validation", "test") if role in found}


def _rows(file: Path) -> list[tuple[int, Row]]:
    """Read the lines that hold anything, with their numbers from 1; in a TSV file a quotation mark is a character."""
    mark = SUFFIXES.get(file.suffix.lower())
    if mark is None:
        raise must_be("texts", "a .tsv or .csv file", str(file), LAYOUT)
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            table = {"quoting": csv.QUOTE_NONE} if mark == "\t" else {"strict": True}
            reader = csv.reader(opened, delimiter=mark, **table)
            found = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except UnicodeDecodeError as error:
        raise must_be(f"texts {file}", "UTF-8", f"byte {error.start} that is not", "Convert it by iconv.") from error
    except csv.Error as error:
        raise must_be(f"texts {file}", "a readable table", str(error), "Save it anew, or as TSV.") from error
    if not found:
        raise must_be(f"texts {file}", "made of lines with a text and a label", "nothing", LAYOUT)
    return found


def _columns(file: Path, rows: Sequence[tuple[int, Row]], text: str, label: str) -> tuple[Row | None, tuple[int, int]]:
    """Return the header line, if there is one, and the places of text and label."""
    head = [cell.strip() for cell in rows[0][1]]
    lower = [cell.lower() for cell in head]
    if len(head) < 2:
        raise must_be(
            f"texts {file}", "of two columns or more", head, "Separate text and label by a tab (.tsv) or comma (.csv)."
        )
    named = any(name and not name.isdigit() for name in (text, label))
    header = named or (any(name in lower for name in TEXTS) and any(name in lower for name in LABELS))
    body = [row for _, row in rows[header:]]
    if not body:
        raise must_be(f"texts {file}", "made of lines below its header", head, LAYOUT)
    guessed = _by_header(lower) if header else _by_values(file, body, len(head))
    places = [_place(file, what, name, head, header) for what, name in (("text", text), ("label", label))]
    found = tuple(guess if place is None else place for place, guess in zip(places, guessed, strict=True))
    if None in found or found[0] == found[1]:
        remedy = "Say which by ?text=NAME&label=NAME, or by their numbers from 1."
        raise must_be(f"columns of {file}", "a text and a label that can be told apart", head, remedy)
    return head if header else None, (int(found[0] or 0), int(found[1] or 0))


def _place(file: Path, what: str, name: str, head: Row, header: bool) -> int | None:
    """Return the place that the user gave, by name or number."""
    if not name:
        return None
    if name.isdigit() and 1 <= int(name) <= len(head):
        return int(name) - 1
    if header and name in head:
        return head.index(name)
    raise must_be(f"{what} column of {file}", f"one of {', '.join(head)}, or 1 to {len(head)}", name, "Look at its first line.")


def _by_header(lower: Sequence[str]) -> tuple[int | None, int | None]:
    def first(names: Sequence[str]) -> int | None:
        return next((lower.index(name) for name in names if name in lower), None)

    return first(TEXTS), first(LABELS)


def _by_values(file: Path, body: Sequence[Row], width: int) -> tuple[int | None, int | None]:
    """The column of the fewest different values has the labels, that of the longest has the texts."""
    columns = [[row[place].strip() for row in body if len(row) == width] for place in range(width)]
    if not columns[0]:
        return None, None
    length = [sum(map(len, column)) for column in columns]
    text = length.index(max(length))
    rest = [place for place in range(width) if place != text]
    kinds = {place: len({cell for cell in columns[place] if cell}) for place in rest}
    label = min(rest, key=lambda place: (kinds[place], place))
    if not 2 <= kinds[label] <= min(MOST_CLASSES, max(2, len(columns[0]) // 2)):
        return text, None
    return text, label


def _texts(file: Path, rows: Sequence[tuple[int, Row]], header: Row | None, columns: tuple[int, int]) -> Texts:
    """Take the two columns; empty texts are left out, and told as duplicates are."""
    body = rows[1:] if header is not None and [c.strip() for c in rows[0][1]] == header else rows
    short = [number for number, row in body if len(row) <= max(columns)]
    if short:
        more = f" and {len(short) - 1} more" if len(short) > 1 else ""
        raise must_be(f"line {short[0]}{more} of {file}", f"of {max(columns) + 1} columns or more", "fewer", "Mend it there.")
    pairs = [(row[columns[0]].strip(), row[columns[1]].strip()) for _, row in body]
    unlabelled = [number for (number, _), (_, label) in zip(body, pairs, strict=True) if not label]
    if unlabelled:
        raise must_be(f"label in line {unlabelled[0]} of {file}", "given", "nothing", "Label it, or take the line out.")
    kept = [(text, label) for text, label in pairs if text]
    notes = tuple(_oddities(file.stem, kept, len(pairs) - len(kept)))
    return Texts(tuple(text for text, _ in kept), tuple(label for _, label in kept), notes)


def _oddities(name: str, pairs: Sequence[tuple[str, str]], empty: int) -> Iterator[str]:
    if empty:
        yield f"{name}: {empty} {'text is' if empty == 1 else 'texts are'} empty and left out"
    repeated = len(pairs) - len({text for text, _ in pairs})
    if repeated:
        ways = Counter(text for text, _ in set(pairs))
        torn = sum(n > 1 for n in ways.values())
        more = f", and {torn} of them under different labels" if torn else ""
        yield f"{name}: {repeated} {'line repeats' if repeated == 1 else 'lines repeat'} an earlier text{more}; kept as given"


def numbered(splits: dict[str, Texts]) -> tuple[tuple[str, ...], dict[str, list[int]]]:
    """Return the names of the classes, and each split's labels as numbers.

    Whole numbers are put in the order of numbers, names in that of the alphabet.

    Raises:
        InputError: One class alone, too many, or a label that the training texts do not have.
    """
    first = next(iter(splits.values()))
    names = set(first.labels)
    if not 2 <= len(names) <= MOST_CLASSES:
        found = sorted(names)
        raise must_be(
            "labels", f"of 2 to {MOST_CLASSES} classes", found, "Say which column has them: ?label=NAME or its number."
        )
    whole = all(name.lstrip("-").isdigit() for name in names)
    order = tuple(sorted(names, key=int) if whole else sorted(names))
    number = {name: place for place, name in enumerate(order)}
    mistakes: list[InputError] = []
    for role, part in splits.items():
        strange = sorted(set(part.labels) - names)
        if strange:
            mistakes.append(must_be(f"labels of the {role} texts", f"among {', '.join(order[:20])}", strange, "As in train."))
    if mistakes:
        raise InputError("\n".join(map(str, mistakes)))
    return order, {role: [number[label] for label in part.labels] for role, part in splits.items()}
