"""The tutorials are run as the other pages are (`test_readme`); a file of their own, so that two processes share the work."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_readme import ROOT, TUTORIALS, Block, cases, run


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tutorials")
    (folder / "examples").symlink_to(ROOT / "examples")
    return folder


@pytest.mark.parametrize("block", cases(TUTORIALS))
def test_block_of_a_tutorial_does_what_it_says(block: Block, desk: Path) -> None:
    assert block.commands, f"{block.page}:{block.line} has no command"
    assert not block.skip, "a tutorial is run whole"
    run(block, desk)
