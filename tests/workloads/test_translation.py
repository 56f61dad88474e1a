"""Translation from files to a trained model, a shrunk one, and the file that ships: read by BLEU of what each writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

import equipoise as eq
from equipoise.batch import SOURCE, WRITTEN, mapped
from equipoise.compress.blocks import drop, droppable
from equipoise.compress.builder import Builder
from equipoise.compress.subject import Subject
from equipoise.errors import InputError
from equipoise.generated.languages import SIZES, sentences, write
from equipoise.pages import render_train
from equipoise.records import as_data
from equipoise.road.bench import Answering
from equipoise.road.facts import facts_from
from equipoise.road.racing import Contender
from equipoise.road.survey import survey
from equipoise.runtimes import Target, get
from equipoise.runtimes.decoding import Reader
from equipoise.runtimes.export import Exporter
from equipoise.runtimes.openvino import OpenVino
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


@pytest.fixture(scope="module")
def writer(task: Task) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    return (
        eq.workloads.load_family("transformer").model({"width": 32, "depth": 2, "heads": 2}, task, generator=generator).eval()
    )


def test_a_request_writes_a_sentence_word_by_word(writer: torch.nn.Module, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Exporter().source(writer, task.example, topology="writer")
    pair = mapped(task.validation.take(1).tensors()[0], torch.Tensor.numpy)
    words = int((pair[WRITTEN] != PADDING).sum())
    assert 1 < words < pair[WRITTEN].shape[1]
    read: list[tuple[int, ...]] = []

    class Counting:
        def __init__(self, session: Any) -> None:
            self._session = session

        def run(self, inputs: Any) -> Any:
            read.append(inputs[WRITTEN].shape)
            return self._session.run(inputs)

    on, loaded = Reader.on, OpenVino.load
    monkeypatch.setattr(Reader, "on", lambda reader, tokens: (read.append(tokens.shape), on(reader, tokens))[1])
    monkeypatch.setattr(OpenVino, "load", lambda runtime, *given, **named: Counting(loaded(runtime, *given, **named)))
    for name, wanted in (
        ("onnxruntime", [(1, 1)] * words),  # each word alone, the past at hand
        ("openvino", [(1, place + 1) for place in range(words)]),  # all anew for each
    ):
        request = Contender(get(name).compile(source), Target(name)).load(pair)()
        read.clear()
        request()
        assert read == wanted


class Whole(torch.nn.Module):
    """Answers pairs of one length alone, and does not read on."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.table, self.head = torch.nn.Embedding(300, 8), torch.nn.Linear(8 * length, 300 * length)

    def forward(self, source: torch.Tensor, written: torch.Tensor) -> torch.Tensor:
        mixed = self.table(source).mean(1, keepdim=True) + self.table(written)
        return self.head(mixed.flatten(1)).unflatten(1, (300, -1))


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "torch"])
def test_what_takes_one_length_alone_reads_a_pair_once(name: str, task: Task) -> None:
    net = Whole(task.example[WRITTEN].shape[1]).eval()
    program = get(name).compile(Exporter().source(net, task.example, topology="whole"))
    pair = mapped(task.validation.take(1).tensors()[0], torch.Tensor.numpy)
    Contender(program, Target(name)).load(pair)()()
    facts = survey(Builder(Subject.of_shapes(net, task.example, task.example)), {name: (32, 8)})
    assert {layer.calls for layer in facts.layers} == {1}


def test_the_layers_of_a_writer_count_for_each_word_and_those_of_a_reader_once(writer: torch.nn.Module, task: Task) -> None:
    subject = Subject.of_shapes(writer, task.example, task.example)
    facts = survey(Builder(subject), {"ort": (32, 8)})
    layers = {layer.name: layer for layer in facts.layers}
    words = int((task.example[WRITTEN] != PADDING).any(0).sum())
    read = int((task.example[SOURCE] != PADDING).any(0).sum())
    assert words > 1
    for name, calls, height in (
        ("reads.0.attend", 1, read),
        ("writes.1.tell", 1, read),
        ("writes.0.attend", words, 1),
        ("logits", words, 1),
    ):
        assert (layers[name].calls, layers[name].op.height) == (calls, height), name
    assert all(op.height == 1 for act in layers["writes.2.widen"].acts for under in act.ops for op in under)
    assert facts_from(as_data(facts)).layers == facts.layers


def test_a_part_of_the_decoder_goes_with_what_was_kept_for_it(writer: torch.nn.Module, task: Task) -> None:
    able = droppable(writer, task.example)
    assert {f"writes.{part}" for part in range(6)} <= able.keys()
    assert "writes.1.tell" in able["writes.1"].gone
    shorter = drop(writer, [able["writes.0"], able["writes.4"]]).eval()
    with torch.inference_mode():
        memory = shorter.encode(task.example[SOURCE])  # type: ignore[operator]
        _, past = shorter.read_on(task.example[WRITTEN], (), memory)  # type: ignore[operator]
    assert (len(memory), len(past)) == (3, 2)
    assert_writes_alike(shorter, task)


def test_a_decoder_that_sees_nothing_of_what_it_wrote_still_counts_its_places(writer: torch.nn.Module, task: Task) -> None:
    able = droppable(writer, task.example)
    blind = drop(writer, [able["writes.0"], able["writes.3"]]).eval()
    with torch.inference_mode():
        blind.table.written.normal_(0, 0.5, generator=torch.Generator().manual_seed(0))  # type: ignore[union-attr, operator]
    assert_writes_alike(blind, task)


def assert_writes_alike(net: torch.nn.Module, task: Task) -> None:
    program = get("onnxruntime").compile(Exporter().source(net, task.example, topology=str(len(net.state_dict()))))
    answering, few = Answering(program), task.validation.take(4)
    assert answering.writer() is not None
    assert torch.equal(asked(task.metric, answering, few)[0], asked(task.metric, net, few)[0])


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
