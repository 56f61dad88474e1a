"""Translation from files to a trained model, a shrunk one, and the file that ships: read by BLEU of what each writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

import equipoise as eq
from equipoise.batch import SOURCE, WRITTEN
from equipoise.errors import InputError
from equipoise.generated.languages import SIZES, sentences, write
from equipoise.pages import render_train
from equipoise.road.bench import Answering
from equipoise.runtimes import get
from equipoise.runtimes.export import Exporter
from equipoise.workloads import Task, asked, load, load_task
from equipoise.workloads.bleu import Written
from equipoise.workloads.subwords import BEGIN, END, PADDING, Subwords, written
from equipoise.workloads.translation import trimmed

SMALL = "vocabulary=300&length=20&beams=2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("languages"))


@pytest.fixture(scope="module")
def task(folder: Path) -> Task:
    return load_task(f"translation:{folder}?{SMALL}")


@pytest.fixture(scope="module")
def trained(task: Task, tmp_path_factory: pytest.TempPathFactory) -> eq.TrainedModel:
    scale = {"width": 48, "depth": 1, "heads": 2}
    return eq.train("transformer", task, scale, store=tmp_path_factory.mktemp("run"), epochs=40, test=True)


def test_sentences_come_back_as_they_were() -> None:
    texts = [one for pair in sentences(30, 5) for one in pair]
    known = Subwords.of(texts, size=290, length=60)
    strange = ["  Zoë’s naïve 東京 — ok?", "x"]
    assert known.decode(known.encode([*texts, *strange])) == [*texts, strange[0].strip(), "x"]
    rows = known.encode(texts)
    assert known.counts(texts) == (rows != PADDING).sum(1).tolist()
    assert int(rows.max()) < known.size <= 290
    assert "".join(known.pieces(rows[0])).strip() == f"{texts[0]}⏎"
    with pytest.raises(InputError, match=r"vocabulary must be at least 259.*got 100"):
        Subwords.of(texts, size=100, length=60)
    with pytest.raises(InputError, match=r"length must be at least 2"):
        Subwords.of(texts, size=300, length=1)


def test_what_is_written_stands_one_place_behind_what_is_to_come(task: Task) -> None:
    inputs, targets = task.train.take(5).tensors()
    assert torch.equal(inputs[WRITTEN], written(targets.clamp(min=PADDING)))
    assert bool((inputs[WRITTEN][:, 0] == BEGIN).all())
    assert bool((targets == END).sum(1).eq(1).all())
    assert task.shape.kind == "pairs"
    assert task.shape.places == (20,)
    few = trimmed(inputs, torch.Generator())
    assert few[SOURCE].shape[1] == int((inputs[SOURCE] != PADDING).sum(1).max())


def test_a_cut_sentence_is_told(folder: Path) -> None:
    notes = load_task(f"translation:{folder}?vocabulary=300&length=4").train.notes
    assert any("are longer than 4 tokens and are cut there" in note for note in notes)


@pytest.mark.parametrize(("quality", "scorer"), [("bleu", BLEU()), ("chrf", CHRF())])
def test_the_score_is_that_of_the_library_on_the_whole_corpus(quality: str, scorer: BLEU | CHRF) -> None:
    known = Subwords.of(["a b c d"], size=270, length=60)
    metric = Written(known, quality=quality)
    found = ["a man sees two dogs.", "three birds", "the cat is here today"]
    wanted = ["a man sees the dogs.", "three small birds", "the cat is here now"]
    assert metric.score(found, wanted) == pytest.approx(scorer.corpus_score(found, [wanted]).score)
    assert metric.score(wanted, wanted) == pytest.approx(100)
    assert metric.score(found[::-1], wanted) < metric.score(found, wanted)
    assert metric.signature.startswith("nrefs:1|")
    read = metric.read(known.encode(found), known.encode(wanted))
    assert read.value == pytest.approx(scorer.corpus_score(found, [wanted]).score)
    assert read.each is None


@pytest.mark.slow
def test_the_small_language_is_learned(trained: eq.TrainedModel, task: Task) -> None:
    assert trained.reached["test_quality"].get() > 90
    assert trained.reached["test_quality"].n == SIZES["test"]
    assert "bleu" in trained.sentence()
    known = task.metric
    outputs, _ = asked(known, trained.model, task.test.take(3))
    assert outputs.shape == (3, 20)


@pytest.mark.parametrize("name", ["transformer", "seq2seq"])
def test_where_a_model_looks_are_shares_of_the_words_that_are_there(name: str, task: Task) -> None:
    made = eq.workloads.load_family(name)
    scale = {dimension.name: dimension.menu[0] for dimension in made.dimensions}
    net = made.model(scale, task, generator=torch.Generator().manual_seed(0)).eval()
    inputs, _ = task.validation.take(3).tensors()
    with torch.inference_mode():
        before = net(**inputs)
        shares = net.looks(inputs[SOURCE], inputs[WRITTEN])  # type: ignore[operator]
        assert torch.equal(net(**inputs), before)
    assert torch.allclose(shares.sum(2), torch.ones(3, 20))
    assert not shares[(inputs[SOURCE] == PADDING)[:, None].expand_as(shares)].any()


@pytest.mark.slow
def test_the_page_shows_what_is_written_and_where_the_model_looked(trained: eq.TrainedModel) -> None:
    shown = trained.summary()["examples"]
    assert len(shown) == 3
    for given in shown:
        assert len(given["shares"]) == len(given["written"])
        assert all(len(row) == len(given["source"]) for row in given["shares"])
    page = render_train(trained.summary())
    assert "What it writes" in page
    assert page.count('class="looks"') == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["transformer", "seq2seq"])
def test_the_file_writes_what_the_model_writes(name: str, task: Task) -> None:
    made = eq.workloads.load_family(name)
    scale = {dimension.name: dimension.menu[0] for dimension in made.dimensions}
    net = made.model(scale, task, generator=torch.Generator().manual_seed(0)).eval()
    source = Exporter().source(net, task.example, topology=name)
    few = task.validation.take(6)
    wanted, _ = asked(task.metric, net, few)
    for runtime in ("onnxruntime", "openvino"):  # the first by a past, the second by reading all anew
        answering = Answering(get(runtime).compile(source))
        assert (answering.writer() is not None) == (runtime == "onnxruntime")
        assert torch.equal(asked(task.metric, answering, few)[0], wanted)


@pytest.mark.slow
def test_the_whole_road_is_walked_and_verified(trained: eq.TrainedModel, folder: Path, tmp_path: Path) -> None:
    weights = trained.folder / "model.safetensors"
    work = f"translation:{folder}?{SMALL}&model=transformer:width=48,depth=1,heads=2&weights={weights}"
    assert load(work).quality() > 90
    study = eq.optimize(work, budget="drop<=5", time="15s", store=tmp_path / "study")
    assert study.best.quality.get() > 85
    assert study.best.quality.n == SIZES["val"]
    found = eq.verify(study.export("best", out=tmp_path / "artifact"))
    assert {check.name: check.state for check in found.checks}["quality on validation"] == "kept"
    assert found.ok


def test_options_that_cannot_be_used_are_told(folder: Path) -> None:
    for query, told in (("quality=meteor", "one of bleu, chrf"), ("beams=0", "at least 1"), ("target=fr", "one of de, en")):
        with pytest.raises(InputError, match=told):
            load_task(f"translation:{folder}?{query}")
