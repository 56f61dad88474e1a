"""How good translations are: what a model writes, word by word, beside what a person wrote, by sacreBLEU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from equipoise.batch import SOURCE
from equipoise.errors import missing_extra
from equipoise.workloads.data import Asked, Split
from equipoise.workloads.metrics import Scores
from equipoise.workloads.subwords import BEGIN, END, PADDING, Subwords, written
from equipoise.workloads.writing import beam_search, writer_of

QUALITIES = ("bleu", "chrf")
SHOWN = 3
"""Sentences on the page of a run."""
AT_ONCE = 32
"""Sentences that are written together, those of like lengths."""

Counts = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Written:
    """BLEU or chrF2 of a corpus, cased, in points of 100, of what a model writes.

    Attributes:
        known: Turns rows of tokens into sentences.
        quality: One of `QUALITIES`.
        beams: As of `beam_search`.

    References:
        Post 2018, "A call for clarity in reporting BLEU scores". Popović 2015, "chrF: character n-gram F-score".
    """

    known: Subwords
    quality: str = "bleu"
    beams: int = 4
    maximize: bool = True
    unit: str = "points"
    _seen: dict[tuple[str, str], Counts] = field(default_factory=dict, repr=False, compare=False)

    @property
    def name(self) -> str:
        """How the metric is called."""
        return self.quality

    @property
    def signature(self) -> str:
        """How the score is read, in sacreBLEU's words."""
        scorer = self._scorer()
        scorer.corpus_score(["a"], [["a"]])
        return str(scorer.get_signature())

    def ask(self, run: Asked, split: Split) -> tuple[Tensor, Tensor]:
        """Return what is written for each source of a split, and what a person wrote: tokens (N, T) of both."""
        inputs, targets = split.tensors()
        found = beam_search(writer_of(run), inputs, beams=self.beams, begin=BEGIN, end=END, at_once=AT_ONCE)
        return found, targets

    def examples(self, model: Any, split: Split) -> list[dict[str, Any]]:
        """Return what a model writes for a few sentences, and where it looks meanwhile, if it can say so."""
        few = split.take(SHOWN)
        found, targets = self.ask(Asked(model), few)
        inputs = few.tensors()[0]
        shares = None
        if hasattr(model, "looks"):
            with torch.inference_mode():
                shares = model.looks(inputs[SOURCE], written(found))
        shown = []
        for row in range(len(found)):
            pieces = {
                "source": self.known.pieces(inputs[SOURCE][row]),
                "written": self.known.pieces(found[row]),
                "wanted": self.known.pieces(targets[row].clamp(min=PADDING)),
            }
            across, down = len(pieces["source"]), len(pieces["written"])
            shown.append({**pieces, "shares": None if shares is None else shares[row, :down, :across].tolist()})
        return shown

    def read(self, outputs: Tensor, targets: Tensor) -> Scores:
        """Return the score of tokens (N, T) beside tokens (N, T); no sentence has one of its own."""
        return Scores(self.score(self.known.decode(outputs), self.known.decode(targets.clamp(min=PADDING))))

    def score(self, found: Sequence[str], wanted: Sequence[str]) -> float:
        """Return the score of sentences beside what a person wrote."""
        total = np.sum([self._counts(*pair) for pair in zip(found, wanted, strict=True)], 0)
        return float(self._of_counts(total))

    def _counts(self, found: str, wanted: str) -> Counts:
        """What a sentence adds to a corpus: resamples of a split then cost nothing but sums."""
        if (found, wanted) not in self._seen:
            scorer = self._scorer()
            self._seen[found, wanted] = np.array(scorer._extract_corpus_statistics([found], [[wanted]])[0], dtype=np.float64)
        return self._seen[found, wanted]

    def _of_counts(self, total: Counts) -> float:
        return float(self._scorer()._compute_score_from_stats([float(n) for n in total]).score)

    def _scorer(self) -> Any:
        try:
            from sacrebleu.metrics.bleu import BLEU
            from sacrebleu.metrics.chrf import CHRF
        except ImportError as error:
            raise missing_extra("sacrebleu", "translation") from error
        return BLEU() if self.quality == "bleu" else CHRF()
