"""What the README and the pages of docs/ promise is what happens: their ``console`` and ``python`` blocks are run.

Convention: in a block fenced as ``console``, each line that starts with ``$ `` is a command (a trailing backslash goes on);
other lines show what it prints and are for the reader. A comment on the line above a block steers it:

    <!-- test: slow -->          run with the slow tests
    <!-- test: exit 1 -->        the last command ends so
    <!-- test: skip installs --> not run, and why
    <!-- test: file own.py -->   a Python block that is written to this file, for later blocks to import or to name

Blocks of one file run in order in one empty folder where `examples/` is the repository's, so that a later block may use
what an earlier one wrote; a block that builds on a slow one is slow itself. Python blocks are run as scripts, likewise.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
TUTORIALS = sorted((DOCS / "tutorials").glob("*.md"))
"""Run by `test_tutorials`: a file of tests goes whole to one process."""
CHINESE = {ROOT / "README.zh.md": PAGES[0], **{file: DOCS / file.relative_to(DOCS / "zh") for file in DOCS.glob("zh/**/*.md")}}
"""Page -> what it is a translation of. Its blocks are those, word for word, so that none has to be run again."""
_BLOCK = re.compile(r"(?:^<!-- test: (?P<how>[^\n]*?) -->\n+)?^```(?P<kind>console|python)\n(?P<body>.*?)^```", re.M | re.S)
_FILE = re.compile(r"\w+\.py")
_LIMIT_S = 1800


@dataclass(frozen=True)
class Block:
    """One fenced block: the commands (or the script), and how it is to be run."""

    page: str
    line: int
    kind: str
    commands: tuple[str, ...]
    slow: bool = False
    skip: str = ""
    exit: int = 0
    file: str = ""


def blocks(text: str, page: str) -> list[Block]:
    """Read the blocks of a page, in order."""
    out = []
    for match in _BLOCK.finditer(text):
        how, body, kind = match["how"] or "", match["body"], match["kind"]
        word, _, rest = how.partition(" ")
        lost = (word == "skip" and not rest) or (word == "file" and not (kind == "python" and _FILE.fullmatch(rest)))
        if word not in ("", "slow", "skip", "exit", "file") or lost:
            known = "slow, skip with a reason, exit with a number, or file with the name of a Python file"
            raise ValueError(f"{page}: `<!-- test: {how} -->` must be {known}")
        steered = {"slow": {"slow": True}, "skip": {"skip": rest}, "file": {"file": rest}}
        given = {"exit": int(rest)} if word == "exit" else steered.get(word, {})
        commands = (body,) if kind == "python" else tuple(_commands(body))
        out.append(Block(page, text.count("\n", 0, match.start("body")) + 1, kind, commands, **given))
    return out


def _commands(body: str) -> list[str]:
    joined = re.sub(r"\\\n(?:> ?)?\s*", "", body)
    return [line[2:].strip() for line in joined.splitlines() if line.startswith("$ ")]


def unused(page: list[Block]) -> list[str]:
    """Name the files of a page that no later block imports or names: nothing in them would be run."""
    return [
        file.file
        for place, file in enumerate(page)
        if file.file and not any(re.search(rf"\b{file.file[:-3]}\b", c) for later in page[place + 1 :] for c in later.commands)
    ]


def cases(pages: list[Path]) -> list[object]:
    """Every block of some pages, for a test that takes one."""
    found = [b for page in pages for b in blocks(page.read_text(encoding="utf-8"), page.name)]
    return [pytest.param(b, id=f"{b.page}:{b.line}", marks=[pytest.mark.slow] if b.slow else []) for b in found]


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Path:
    """The folder that the blocks share."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "examples").symlink_to(ROOT / "examples")
    return folder


def run(block: Block, folder: Path) -> None:
    """Run the block's commands; each must end with 0, the last as the page says."""
    here = folder / Path(block.page).stem
    here.mkdir(exist_ok=True)
    if not (here / "examples").exists() and (folder / "examples").exists():
        (here / "examples").symlink_to(ROOT / "examples")
    if block.file:
        compile(block.commands[0], block.file, "exec")
        (here / block.file).write_text(block.commands[0], encoding="utf-8")
        return
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for number, command in enumerate(block.commands, 1):
        words = [sys.executable, "-c", command] if block.kind == "python" else ["bash", "-c", command]
        done = subprocess.run(words, cwd=here, env=environment, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
        expected = block.exit if number == len(block.commands) else 0
        assert done.returncode == expected, (
            f"{block.page}:{block.line}: {command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        )
        assert "Traceback" not in done.stderr or expected, done.stderr[-4000:]


@pytest.mark.parametrize("block", cases(PAGES))
def test_block_does_what_it_says(block, desk):
    if block.skip:
        pytest.skip(f"the page says so: {block.skip}")
    assert block.commands, f"{block.page}:{block.line} has no command"
    run(block, desk)


PAGE = """
# A page

<!-- test: exit 2 -->
```console
$ echo one \\
    two > made
$ test "$(cat made)" = "one two" && exit 2
prints nothing
```

<!-- test: skip needs a GPU -->
```console
$ never
```

<!-- test: slow -->
```python
print(open("made").read())
```

<!-- test: file own.py -->
```python
made = open("made").read()
```

```python
import own
assert own.made == "one two\\n"
```

```toml
$ not a command
```
"""


def test_blocks_are_read_as_the_convention_says(tmp_path):
    first, second, third, file, user = blocks(PAGE, "page.md")
    assert first.commands == ("echo one two > made", 'test "$(cat made)" = "one two" && exit 2')
    assert (first.exit, first.line) == (2, 6)
    assert second.skip == "needs a GPU"
    assert third.slow
    assert (file.file, user.file) == ("own.py", "")
    for block in (first, third, file, user):
        run(block, tmp_path)


@pytest.mark.parametrize("page", [*PAGES, *TUTORIALS], ids=lambda page: page.name)
def test_every_file_of_a_page_is_used(page):
    assert unused(blocks(page.read_text(encoding="utf-8"), page.name)) == []


def test_a_file_that_nothing_uses_is_told():
    assert unused(blocks(PAGE, "page.md")) == []
    assert unused(blocks(PAGE.replace("import own\nassert own.made", "made = None\nassert made"), "page.md")) == ["own.py"]


@pytest.mark.parametrize("page", CHINESE, ids=lambda page: page.name)
def test_a_translation_has_the_same_commands(page):
    def shown(file: Path) -> list[str]:
        return [match[0] for match in _BLOCK.finditer(file.read_text(encoding="utf-8"))]

    assert shown(page) == shown(CHINESE[page])


def test_every_tutorial_is_translated():
    assert {page.name for page in CHINESE.values()} == {"README.md", *(page.name for page in TUTORIALS)}


@pytest.mark.parametrize("body", ["console\n$ false\n", "python\n1 / 0\n", "console\n$ no-such-command-here\n$ true\n"])
def test_a_block_that_lies_fails(tmp_path, body):
    (block,) = blocks(f"```{body}```", "page.md")
    with pytest.raises(AssertionError):
        run(block, tmp_path)


@pytest.mark.parametrize("how", ["maybe", "skip", "file", "file own.py", "file ../own.py"])
def test_an_unknown_direction_is_refused(how):
    kind = "python" if "/" in how else "console"
    with pytest.raises(ValueError, match="must be slow"):
        blocks(f"<!-- test: {how} -->\n```{kind}\n$ true\n```", "page.md")


def test_a_comment_steers_only_the_block_right_below():
    (block,) = blocks("<!-- test: skip x -->\n\nwords\n\n```console\n$ true\n```", "page.md")
    assert block.skip == ""
