"""The whole road of a model of several inputs: searched, exported, verified, and run by plain ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from many_inputs import sentences, workload
from patience import searched

from equipoise.ship.artifact import pack
from equipoise.ship.verify import verify
from equipoise.study.store import Store


@pytest.mark.slow
@pytest.mark.parametrize("padded", [True, False])
def test_a_transformer_of_ids_and_mask_goes_the_whole_road(padded: bool, tmp_path: Path) -> None:
    work = workload(padded=padded)
    study, changed = searched(work, tmp_path / "study", seconds=22)
    assert not [e.reason for e in study.evaluations if not e.ok]
    pick = max(changed, key=lambda e: e.cost["size_bytes"].get())  # not the least drop: of many, chance made that one small
    with Store.open(tmp_path / "study", create=False) as store:
        artifact = pack(pick, store, tmp_path / "out")
    found = verify(artifact.path, workload=work, seconds=3)
    assert found.ok, [(check.name, check.note) for check in found.broken]
    session = onnxruntime.InferenceSession(str(artifact.path / "model.onnx"), providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["input_ids", "attention_mask"]
    card = (artifact.path / "README.md").read_text()
    assert "The file takes `input_ids` (batch, length), `attention_mask` (batch, length):" in card
    inputs, targets = sentences(200, seed=4)
    for length in (12, 7):  # padded further or less: the mask leaves it out
        scores = session.run(None, {name: value[:, :length].numpy() for name, value in inputs.items()})[0]
        assert scores.shape == (200, 2)
        if length == 12:
            assert 100 * float(np.mean(scores.argmax(1) == targets.numpy())) > 75
