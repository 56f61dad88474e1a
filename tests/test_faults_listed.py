"""The page that says what is tested to fail names tests that there are."""

from __future__ import annotations

import re
from pathlib import Path


def missing(page: str, tests: str) -> list[str]:
    """The tests that a page names and that are not defined."""
    return [name for name in re.findall(r"`(test_\w+)`", page) if not re.search(rf"^def {name}\(", tests, re.M)]


def test_every_fault_that_is_listed_has_its_test(checkout: Path) -> None:
    page = (checkout / "docs" / "studies.md").read_text(encoding="utf-8").partition("## What is tested to fail")[2]
    tests = "\n".join(file.read_text(encoding="utf-8") for file in (checkout / "tests").rglob("test_*.py"))
    rows = [line for line in page.splitlines() if line.startswith("| ") and "`test_" in line]
    assert len(rows) >= 19
    assert missing(page, tests) == []
    assert missing("`test_of_nothing`", tests) == ["test_of_nothing"]
