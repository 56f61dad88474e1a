"""The docs as a site: built without a warning, every link and anchor leads somewhere, and nothing is fetched from elsewhere."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pytest

from equipoise.cli import VERBS
from equipoise.public import PUBLIC

for _needed in ("mkdocs", "material", "mkdocstrings", "griffe"):
    pytest.importorskip(_needed, reason='the site is built by the docs extra: pip install "equipoise[docs]"')

ROOT = Path(__file__).resolve().parent.parent


class Page(HTMLParser):
    """What a page names: its anchors, its links, what a browser loads with it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = {"", "top"}
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        loaded = given.get("src") or (given.get("href") if tag == "link" and given.get("rel") != "canonical" else None)
        if loaded and not loaded.startswith("data:"):
            self.loads.append(loaded)


def dead(site: Path) -> list[str]:
    """Every link inside a site that leads nowhere; 404.html is shown at any address, and links from the root."""
    files = (file for file in site.rglob("*.html") if file.name != "404.html")
    pages = {file.resolve(): Page(file.read_text(encoding="utf-8")) for file in files}
    out = []
    for file, page in pages.items():
        for link in (*page.links, *page.loads):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            target = target / "index.html" if target.is_dir() else target
            anchor = unquote(parts.fragment)
            if not target.is_file() or (target in pages and anchor not in pages[target].anchors):
                out.append(f"{file.relative_to(site.resolve())}: {link}")
    return out


def fetched(site: Path) -> list[str]:
    """What a browser would load from elsewhere to show a site."""
    pages = {file: Page(file.read_text(encoding="utf-8")) for file in site.rglob("*.html")}
    out = [f"{file.name}: {link}" for file, page in pages.items() for link in page.loads if urlsplit(link).netloc]
    styles = (file for file in site.rglob("*.css"))
    return out + [file.name for file in styles if "url(http" in file.read_text(encoding="utf-8")]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def made() -> ModuleType:
    spec = importlib.util.spec_from_file_location("_site", ROOT / "docs" / "_site.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_every_link_leads_somewhere(site):
    assert dead(site) == []
    assert len(list(site.rglob("*.html"))) > 40


@pytest.mark.slow
def test_nothing_is_fetched_from_elsewhere(site):
    assert fetched(site) == []


@pytest.mark.slow
def test_the_reference_has_every_public_name_and_verb(site):
    python = Page((site / "reference" / "python.html").read_text(encoding="utf-8"))
    assert {f"equipoise.{name}" for name in PUBLIC} <= python.anchors
    assert set(VERBS) <= Page((site / "reference" / "command-line.html").read_text(encoding="utf-8")).anchors


@pytest.mark.slow
def test_no_page_is_left_out_of_the_navigation(site):
    home = {link.partition("#")[0] for link in Page((site / "index.html").read_text(encoding="utf-8")).links}
    pages = {file.relative_to(site).as_posix() for file in site.rglob("*.html")} - {"404.html", "search.html"}
    assert pages - home == set()


def test_planted_faults_are_seen(tmp_path):
    (tmp_path / "a.html").write_text('<a href="b.html#here"> <a href="b.html#not"> <a href="c.html"> <a href="#no">')
    (tmp_path / "b.html").write_text('<h1 id="here"> <script src="https://elsewhere.example/x.js"></script> <img src="no.png">')
    assert sorted(dead(tmp_path)) == ["a.html: #no", "a.html: b.html#not", "a.html: c.html", "b.html: no.png"]
    assert fetched(tmp_path) == ["b.html: https://elsewhere.example/x.js"]


def test_links_of_the_repository_are_turned(made):
    there = {
        "docs/a.md": "a.md",
        "benchmarks/README.md": "project/benchmarks.md",
        "docs/zh/b.md": "zh/b.md",
        "docs/p.png": "p.png",
    }

    def turned(text: str, source: str, page: str) -> str:
        return str(made.relinked(text, source, page, there))

    assert turned("[x](docs/a.md#y)", "README.md", "index.md") == "[x](a.md#y)"
    assert turned("[x](../benchmarks/) [y](https://a.b)", "docs/a.md", "a.md") == "[x](project/benchmarks.md) [y](https://a.b)"
    assert turned("[x](../a.md)", "docs/zh/b.md", "zh/b.md") == "[x](../a.md)"
    assert turned("[the source](../equipoise/stats.py)", "docs/a.md", "a.md") == "the source"
    assert turned("[![p](docs/p.png)](docs/a.md)", "README.md", "index.md") == "[![p](p.png)](a.md)"
    assert turned("[x](missing.md)", "docs/a.md", "a.md") == "[x](missing.md)"


def test_a_docstring_is_read_as_googles(made):
    text = "Do.\n\nArgs:\n    a, b: Two of them,\n        told once.\n    c: One.\nExample:\n    >>> 1\n    1\n"
    told = "    a: Two of them,\n        told once.\n    b: Two of them,\n        told once.\n    c: One.\n"
    assert made.as_google(text) == f"Do.\n\nArgs:\n{told}Examples:\n    >>> 1\n    1\n"
