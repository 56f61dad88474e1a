"""What the README promises is what happens: its ``console`` blocks are run.

Convention: in a block fenced as ``console``, each line that starts with ``$ `` is a command (a trailing backslash goes on);
other lines show what it prints and are for the reader. A comment on the line above a block steers it:

    <!-- test: slow -->          run with the slow tests
    <!-- test: exit 1 -->        the last command ends so
    <!-- test: skip installs --> not run, and why

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
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"(?:^<!-- test: (?P<how>[^\n]*?) -->\n+)?^```(?P<kind>console|python)\n(?P<body>.*?)^```", re.M | re.S)
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


def blocks(text: str, page: str) -> list[Block]:
    """Read the blocks of a page, in order."""
    out = []
    for match in _BLOCK.finditer(text):
        how, body, kind = match["how"] or "", match["body"], match["kind"]
        word, _, rest = how.partition(" ")
        if word not in ("", "slow", "skip", "exit") or (word == "skip" and not rest):
            raise ValueError(f"{page}: `<!-- test: {how} -->` must be slow, skip with a reason, or exit with a number")
        commands = (body,) if kind == "python" else tuple(_commands(body))
        line = text.count("\n", 0, match.start("body")) + 1
        out.append(
            Block(
                page, line, kind, commands, word == "slow", rest if word == "skip" else "", int(rest) if word == "exit" else 0
            )
        )
    return out


def _commands(body: str) -> list[str]:
    joined = re.sub(r"\\\n(?:> ?)?\s*", "", body)
    return [line[2:].strip() for line in joined.splitlines() if line.startswith("$ ")]


def _cases() -> list[object]:
    found = [b for page in PAGES for b in blocks(page.read_text(encoding="utf-8"), page.name)]
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
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for number, command in enumerate(block.commands, 1):
        words = [sys.executable, "-c", command] if block.kind == "python" else ["bash", "-c", command]
        done = subprocess.run(words, cwd=here, env=environment, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
        expected = block.exit if number == len(block.commands) else 0
        assert done.returncode == expected, (
            f"{block.page}:{block.line}: {command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        )
        assert "Traceback" not in done.stderr or expected, done.stderr[-4000:]


@pytest.mark.parametrize("block", _cases())
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

```toml
$ not a command
```
"""


def test_blocks_are_read_as_the_convention_says(tmp_path):
    first, second, third = blocks(PAGE, "page.md")
    assert first.commands == ("echo one two > made", 'test "$(cat made)" = "one two" && exit 2')
    assert (first.exit, first.line) == (2, 6)
    assert second.skip == "needs a GPU"
    assert third.slow
    run(first, tmp_path)
    run(third, tmp_path)


@pytest.mark.parametrize("body", ["console\n$ false\n", "python\n1 / 0\n", "console\n$ no-such-command-here\n$ true\n"])
def test_a_block_that_lies_fails(tmp_path, body):
    (block,) = blocks(f"```{body}```", "page.md")
    with pytest.raises(AssertionError):
        run(block, tmp_path)


def test_an_unknown_direction_is_refused():
    with pytest.raises(ValueError, match="must be slow"):
        blocks("<!-- test: maybe -->\n```console\n$ true\n```", "page.md")


def test_a_comment_steers_only_the_block_right_below():
    (block,) = blocks("<!-- test: skip x -->\n\nwords\n\n```console\n$ true\n```", "page.md")
    assert block.skip == ""
