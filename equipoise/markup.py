"""A few rows as HTML, for notebooks."""

from __future__ import annotations

import html


def table(rows: list[list[str]], *, caption: str) -> str:
    """Return rows of text, the first of them headings, as an HTML table."""
    head, *body = ["".join(f"<{cell}>{html.escape(text)}</{cell}>" for text in row) for cell, row in _cells(rows)]
    lines = "".join(f"<tr>{row}</tr>" for row in body)
    return f"<table><caption>{html.escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"


def _cells(rows: list[list[str]]) -> list[tuple[str, list[str]]]:
    return [("th" if number == 0 else "td", row) for number, row in enumerate(rows)]
