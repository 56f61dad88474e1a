"""The lines of a card beside what goes with a model: from text to label, in every runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from equipoise.runtimes import available, get
from equipoise.runtimes.export import Exporter
from equipoise.ship.card import from_text
from equipoise.workloads.beside import shipped
from equipoise.workloads.families import family as load_family
from equipoise.workloads.task import Shape
from equipoise.workloads.tokens import Words


@pytest.mark.filterwarnings("ignore:This API is experimental")  # ExecuTorch's says so on import
@pytest.mark.parametrize("runtime", available())
def test_the_cards_lines_go_from_text_to_label(runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tokenizers", reason="the extra text")
    words = Words.of(["a film to remember", "a film to forget"] * 2, length=6)
    net = load_family("bag").model({"width": 16}, Shape((6,), 2, words.size), generator=torch.Generator().manual_seed(0)).eval()
    rows = words.encode(["a film to remember", "a film to forget"])
    made = get(runtime).compile(Exporter().source(net, rows, topology=""))
    made.write(tmp_path)
    for name, content in shipped({"tokenizer.json": words.file}, ("bad", "good")).items():
        (tmp_path / name).write_bytes(content)
    deployable = {"runtime": runtime, "files": list(made.files), "target": f"{runtime}:cpu?threads=1&batch=1"}
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(from_text({"deployable": deployable, "files": {"tokenizer.json": 0, "labels.json": 0}}, ("input",)), found)
    assert np.array_equal(found["inputs"], rows[:1].numpy())
    wanted = net(rows[:1]).detach().numpy()
    np.testing.assert_allclose(torch.as_tensor(found["outputs"]).detach(), wanted, atol=1e-5)
