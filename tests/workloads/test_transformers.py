"""Models of Hugging Face's library, where it is installed: as they are, with random weights; nothing is downloaded."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch
from many_inputs import sentences

from equipoise import runtimes
from equipoise.batch import call, mapped, take
from equipoise.compress.builder import Builder
from equipoise.compress.subject import Subject
from equipoise.records import Plan
from equipoise.runtimes.export import Exporter
from equipoise.workloads import Workload
from equipoise.workloads.check import check

pytestmark = pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Without its use of torchvision, which need not fit the torch that is installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if "torchvision" in name else find(name, *more))
    import transformers

    return transformers


@pytest.mark.parametrize("name", ["Bert", "DistilBert"])
def test_a_classifier_of_sentences(library: Any, name: str) -> None:
    sizes = {
        "Bert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
        "DistilBert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
    }[name]
    config = getattr(library, f"{name}Config")(vocab_size=40, max_position_embeddings=16, **sizes)
    net = getattr(library, f"{name}ForSequenceClassification")(config).eval()
    work = Workload(model=net, train=sentences(100, seed=1), validation=sentences(60, seed=2), test=sentences(60, seed=3))
    check(work)
    inputs, _ = work.calibration.take(64).tensors()
    subject = Subject.prepare(work.model, work.example, inputs)
    inner = [group for group in subject.groups if group.prunable and group.size == 64]
    assert len(inner) == 2  # the wide layer of each block
    small = Builder(subject).build(Plan({f"width.{group.name}": 32 for group in inner})).model
    exporter = Exporter()
    program = runtimes.get("onnxruntime").compile(exporter.source(small, work.example, topology="small"))
    few = mapped(take(inputs, slice(5)), lambda value: value[:, :7])
    with torch.inference_mode():
        wanted = call(small, few).numpy()
    assert np.allclose(runtimes.get("onnxruntime").load(program).run(mapped(few, torch.Tensor.numpy)), wanted, atol=1e-5)
