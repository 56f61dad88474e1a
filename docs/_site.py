"""What the site has beside the files of docs/: the root's pages, the notebooks, the reference. MkDocs calls what is ``on_``.

Every link in the repository is written for a reader of the repository; here it is turned to where its page stands in the site.
A link to a file that the site does not have, such as a source, becomes its name.
"""

from __future__ import annotations

import json
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from griffe import Extension

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

ROOT_PAGES = {
    "README.md": "index.md",
    "README.zh.md": "zh/index.md",
    "ARCHITECTURE.md": "project/architecture.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
    "CHANGELOG.md": "project/changelog.md",
    "benchmarks/README.md": "project/benchmarks.md",
}
"""File of the repository -> page of the site."""
_LINK = re.compile(r"(?<!`)(!?)\[((?:!\[[^\]\n]*\]\([^)\s]*\)|[^\]\n])*)\]\(([^)\s#]*)(#[^)\s]*)?\)")
"""A link, or a picture; a picture may be what a link shows."""


class Docstrings(Extension):
    """Reads our docstrings as Google's: ``Example:``, and arguments that share a line."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_google(obj.docstring.value)


def as_google(text: str) -> str:
    """Return a docstring with ``Examples:`` and each argument by itself."""

    def apart(match: re.Match[str]) -> str:
        return "".join(f"{match[1]}{name}: {match[3]}" for name in match[2].split(", "))

    text = re.sub(r"^Example:$", "Examples:", text, flags=re.M)
    return re.sub(r"^( +)(\w+(?:, \w+)+): (.*(?:\n\1 +\S.*)*\n?)", apart, text, flags=re.M)


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made."""
    from mkdocs.structure.files import File

    made = {page: (ROOT / source).read_text(encoding="utf-8") for source, page in ROOT_PAGES.items()}
    made |= {f"notebooks/{file.stem}.md": notebook(file) for file in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))}
    made |= {"reference/python.md": python_reference(), "reference/command-line.md": command_line()}
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn the links of a page to where their pages stand here."""
    page_of = {f"docs/{file.src_uri}": file.src_uri for file in files} | ROOT_PAGES
    here = {there: source for source, there in page_of.items()}.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    return relinked(markdown, here, page.file.src_uri, page_of)


def relinked(text: str, source: str, page: str, page_of: dict[str, str]) -> str:
    """Return the text of `page`, made of the file `source` of the repository, with its links turned.

    Args:
        text: Markdown.
        source: Path of its file in the repository.
        page: Path of its page in the site.
        page_of: Path of a file in the repository -> path in the site.
    """

    def turned(match: re.Match[str]) -> str:
        picture, label, target, anchor = match.groups(default="")
        label = _LINK.sub(turned, label)
        if not target or "://" in target or target.startswith("mailto:"):
            return f"{picture}[{label}]({target}{anchor})"
        file = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        there = page_of.get(file) or page_of.get(f"{file}/README.md")
        if there is None and (ROOT / file).exists():
            return label
        there = there or target  # a link to nothing stays one, and the strict build tells it
        return f"{picture}[{label}]({posixpath.relpath(there, posixpath.dirname(page) or '.')}{anchor})"

    return _LINK.sub(turned, text)


def notebook(file: Path) -> str:
    """Return a notebook as Markdown: its text as it stands, its code in blocks."""
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    parts = ["".join(c["source"]) if c["cell_type"] == "markdown" else f"```python\n{''.join(c['source'])}\n```" for c in cells]
    return "\n\n".join([*parts, f"*A notebook: docs/notebooks/{file.name}; the suite runs it.*\n"])


def python_reference() -> str:
    """Return the page of the public names, in the order of the road."""
    from equipoise.public import PUBLIC

    groups = {
        "What is given": ("Workload", "Metric", "Task", "family"),
        "Roads": ("optimize", "scale", "train", "federate"),
        "What was found": ("Study", "explain", "export", "verify", "report"),
    }
    named = {name for names in groups.values() for name in names}
    groups["Without a study"] = tuple(name for name in PUBLIC if name not in named)
    lines = ["# Python", "", "`import equipoise as eq`; each name is loaded when it is first used.", ""]
    for title, names in groups.items():
        lines += [f"## {title}", ""]
        for name in names:
            lines += [f"::: equipoise.{name}", "    options:", "      heading_level: 3", ""]
    return "\n".join(lines)


def command_line() -> str:
    """Return the page of the verbs: what ``--help`` says of each."""
    from equipoise.cli import VERBS, _parser

    lines = ["# Command line", "", "```text", _parser(None)[0].format_help().rstrip(), "```", ""]
    for verb in VERBS:
        lines += [f"## {verb}", "", "```text", _parser(verb)[1].format_help().rstrip(), "```", ""]
    return "\n".join(lines)
