"""Models that hear go through the search, and the files that it scores hear as they do; what listens on does so there too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from patience import searched

from equipoise.generated.sounds import write_takes
from equipoise.records import program_ref
from equipoise.study.store import Store
from equipoise.training import fit
from equipoise.verbs.train import usual_recipe
from equipoise.workloads import Workload, family, load_task

pytestmark = pytest.mark.slow


def trained(name: str, spec: str, **scale: float) -> Workload:
    task = load_task(spec)
    model = family(name).model({"width": 32, "depth": 1, **scale}, task, generator=torch.Generator().manual_seed(0))
    done = fit(model, task.train, loss=task.loss, epochs=12, recipe=usual_recipe(task), augment=task.augment)
    return task.workload(done.model)


def least_lossy(work: Workload, folder: Path) -> onnxruntime.InferenceSession:
    """Search for a while, and load the program that is not the untouched model's and loses least."""
    _, changed = searched(work, folder / "study", seconds=25, recovery=False)
    best = min(changed, key=lambda e: e.drop.get())
    with Store.open(folder / "study", create=False) as store:
        content = store.read_blob(program_ref(best).files["model.onnx"])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it would warn that a past has a default
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def test_words(tmp_path: Path) -> None:
    work = trained("conformer", f"speech:{write_takes(tmp_path / 'takes')}")
    assert work.quality() > 90
    inputs, targets = work.test.tensors()
    said = least_lossy(work, tmp_path).run(None, {"input": inputs.numpy()})[0].argmax(1)
    assert float((said == targets.numpy()).mean()) > 0.7


def test_rows_and_chunks_of_them(tmp_path: Path) -> None:
    work = trained("streaming", f"speech:{write_takes(tmp_path / 'takes')}?joined=2", chunk=2, memory=2)
    assert work.divergence.kind == "softmax"
    session = least_lossy(work, tmp_path)
    sound = work.test.take(1).tensors()[0].numpy()
    whole = session.run(None, {"input": sound})[0]
    past, parts = {}, []
    for chunk in np.split(sound, range(640, sound.shape[1], 640), 1):
        out, *present = session.run(None, {"input": chunk, **past})
        past = {f"past_{number}": part for number, part in enumerate(present)}
        parts.append(out)
    assert np.allclose(np.concatenate(parts, 2), whole, atol=0.05 * np.abs(whole).max())
