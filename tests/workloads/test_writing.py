"""Beam search against all sentences that there are, whatever computes the next word."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from equipoise.batch import SOURCE, WRITTEN, call
from equipoise.testing.families import samples
from equipoise.workloads.data import Asked
from equipoise.workloads.families import family
from equipoise.workloads.task import Shape
from equipoise.workloads.writing import ModelWriter, Rewriter, beam_search, writer_of

BEGIN, END, MOST, TOKENS = 1, 2, 4, 6
SHAPE = Shape((5,), TOKENS, TOKENS, dense=True, written=MOST)


def model(name: str, seed: int = 0) -> nn.Module:
    made = family(name)
    scale = {dimension.name: dimension.menu[0] for dimension in made.dimensions}
    net = made.model(scale, SHAPE, generator=torch.Generator().manual_seed(seed)).eval()
    generator = torch.Generator().manual_seed(seed + 9)
    with torch.no_grad():
        for weight in net.parameters():  # as drawn, all words are next to alike
            weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
    return net


def pairs(count: int) -> dict[str, Tensor]:
    found = samples(SHAPE, count)
    found[SOURCE][0, 3:] = 0
    return dict(found)


def log_share(net: nn.Module, source: Tensor, sentence: tuple[int, ...]) -> float:
    """Mean log probability of a token of `sentence`, its end among them."""
    tokens = torch.tensor([[BEGIN, *sentence[:-1]]])
    logits = call(net, {SOURCE: source[None], WRITTEN: tokens})[0]
    shares = logits.log_softmax(0)
    return float(sum(shares[token, place] for place, token in enumerate(sentence)) / len(sentence))


def every_sentence() -> list[tuple[int, ...]]:
    words = [token for token in range(TOKENS) if token != END]
    return [(*some, END) for length in range(MOST) for some in itertools.product(words, repeat=length)]


@pytest.mark.parametrize("name", ["transformer", "seq2seq"])
def test_a_search_that_is_wide_enough_finds_the_best_of_all(name: str) -> None:
    net, given = model(name), pairs(3)
    with torch.inference_mode():
        found = beam_search(ModelWriter(net), given, beams=5**3, begin=BEGIN, end=END)
        for row, source in zip(found, given[SOURCE], strict=True):
            best = max(every_sentence(), key=lambda sentence: log_share(net, source, sentence))
            assert tuple(row[: len(best)].tolist()) == best
            assert not row[len(best) :].any()


def test_a_narrow_search_is_not_better_and_one_beam_takes_the_likeliest_each_time() -> None:
    net, given = model("transformer", seed=3), pairs(4)

    def value(found: Tensor) -> float:
        ended = [tuple(row[: row.tolist().index(END) + 1].tolist()) for row in found]
        return sum(log_share(net, source, row) for source, row in zip(given[SOURCE], ended, strict=True))

    with torch.inference_mode():
        widths = [value(beam_search(ModelWriter(net), given, beams=n, begin=BEGIN, end=END)) for n in (1, 125)]
        assert widths[0] <= widths[1] + 1e-5
        greedy = beam_search(ModelWriter(net), given, beams=1, begin=BEGIN, end=END)
        written = [BEGIN]
        while len(written) < MOST and written[-1] != END:
            logits = call(net, {SOURCE: given[SOURCE][:1], WRITTEN: torch.tensor([written])})
            written.append(int(logits[0, :, -1].argmax()))
        sentence = [*written[1:], END] if written[-1] != END else written[1:]
        assert greedy[0, : len(sentence)].tolist() == sentence


@pytest.mark.parametrize("name", ["transformer", "seq2seq"])
def test_reading_anew_and_reading_on_write_the_same(name: str) -> None:
    net, given = model(name, seed=1), pairs(7)
    with torch.inference_mode():
        on = beam_search(writer_of(Asked(net)), given, beams=3, begin=BEGIN, end=END)
        anew = beam_search(Rewriter(Asked(net)), given, beams=3, begin=BEGIN, end=END, at_once=2)
    assert isinstance(writer_of(Asked(net)), ModelWriter)
    assert torch.equal(on, anew)


def test_rows_that_are_mixed_up_are_seen() -> None:
    class Careless(ModelWriter):
        def keep(self, rows: Tensor) -> None:
            """Forget that translations change places."""

    net, given = model("transformer", seed=2), pairs(12)
    with torch.inference_mode():
        right = beam_search(ModelWriter(net), given, beams=4, begin=BEGIN, end=END)
        wrong = beam_search(Careless(net), given, beams=4, begin=BEGIN, end=END)
    assert not torch.equal(right, wrong)


def test_whoever_answers_without_a_past_writes_too() -> None:
    class Plain:
        def __call__(self, inputs: Any) -> Tensor:
            logits = torch.zeros(len(inputs[WRITTEN]), TOKENS, inputs[WRITTEN].shape[1])
            logits[:, 3 if inputs[WRITTEN].shape[1] < 3 else END, -1] = 9.0
            return logits

        def writer(self) -> None:
            return None

    found = beam_search(writer_of(Asked(Plain())), pairs(2), beams=2, begin=BEGIN, end=END)
    assert found.tolist() == [[3, 3, END, 0]] * 2
