"""A model writes a sentence word by word: beam search, and what stands between it and whatever computes the next word."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from equipoise.batch import SOURCE, WRITTEN, Inputs
from equipoise.workloads.data import Asked

PENALTY = 1.0
"""Power of its length that a translation's log probability is divided by: 1 compares the mean of a word."""


class Writer(Protocol):
    """Reads sources once, then writes on, several translations side by side."""

    def begin(self, source: Tensor, beams: int) -> None:
        """Read sources (N, S); rows from now on are `beams` translations of the first, then of the second, and so on."""
        ...

    def on(self, written: Tensor) -> Tensor:
        """Return the logits (N * beams, V) of what follows on one more token of each row, (N * beams, 1)."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Go on from these rows (N * beams,) of those before, in this order."""
        ...


class ModelWriter:
    """A model of torch that has ``encode`` and ``read_on``."""

    def __init__(self, model: Any) -> None:
        self._model, self._memory, self._past = model, tuple[Tensor, ...](), tuple[Tensor, ...]()

    def begin(self, source: Tensor, beams: int) -> None:
        """Read sources."""
        self._memory = tuple(part.repeat_interleave(beams, 0) for part in self._model.encode(source))
        self._past = ()

    def on(self, written: Tensor) -> Tensor:
        """Return what follows."""
        logits, self._past = self._model.read_on(written, self._past, self._memory)
        last: Tensor = logits[:, :, -1]
        return last

    def keep(self, rows: Tensor) -> None:
        """Go on from these rows."""
        self._past = tuple(part[rows] for part in self._past)


class Rewriter:
    """Whatever answers whole pairs, which reads all that is written anew for each word: for runtimes that keep no past."""

    def __init__(self, run: Callable[[Inputs], Tensor]) -> None:
        self._run = run
        self._source = self._written = torch.empty(0, 0, dtype=torch.int64)

    def begin(self, source: Tensor, beams: int) -> None:
        """Read sources."""
        self._source = source.repeat_interleave(beams, 0)
        self._written = self._source[:, :0]

    def on(self, written: Tensor) -> Tensor:
        """Return what follows."""
        self._written = torch.cat((self._written, written), 1)
        logits: Tensor = self._run({SOURCE: self._source, WRITTEN: self._written})[:, :, -1]
        return logits

    def keep(self, rows: Tensor) -> None:
        """Go on from these rows."""
        self._written = self._written[rows]


def writer_of(asked: Asked) -> Writer:
    """Return what writes for a metric: a model or a program by the past that it keeps, anything else anew for each token."""
    run: Any = asked.run
    if isinstance(run, nn.Module):
        return ModelWriter(run) if hasattr(run, "encode") and hasattr(run, "read_on") else Rewriter(asked)
    made: Writer | None = run.writer() if hasattr(run, "writer") else None
    return Rewriter(asked) if made is None else made


def beam_search(
    writer: Writer, inputs: Inputs, *, beams: int, begin: int, end: int, at_once: int = 32, penalty: float = PENALTY
) -> Tensor:
    """Return the best translation found of each source, as tokens (N, T) with their end, then zeros.

    A sentence is over where nothing that goes on can become better than what has ended.

    Args:
        writer: Computes what follows.
        inputs: ``source`` (N, S) and ``written`` (N, T), of which the lengths alone are used: T is the most that is written.
        beams: Translations of a sentence that are followed side by side; 1 takes the likeliest token each time.
        begin, end: Tokens before the first word and after the last.
        at_once: Sentences written together; those of like lengths are.
        penalty: See `PENALTY`.

    References:
        Wu et al. 2016, "Google's neural machine translation system", section 7, with the plain length for a penalty.
    """
    source, most = inputs[SOURCE], inputs[WRITTEN].shape[1]
    found = torch.zeros((len(source), most), dtype=torch.int64)
    order = (source != 0).sum(1).argsort(stable=True)
    for start in range(0, len(order), at_once):
        rows = order[start : start + at_once]
        few = source[rows]
        longest = max(1, int((few != 0).sum(1).max()))
        found[rows] = _written(writer, few[:, :longest], beams, begin, end, most, penalty)
    return found


def _written(writer: Writer, source: Tensor, beams: int, begin: int, end: int, most: int, penalty: float) -> Tensor:
    """The search over a few sources at once, (n, most)."""
    n = len(source)
    writer.begin(source, beams)
    last = torch.full((n * beams, 1), begin, dtype=torch.int64)
    kept = torch.zeros((n, beams, most), dtype=torch.int64)
    total = torch.full((n, beams), float("-inf"))
    total[:, 0] = 0.0  # all rows of a source are alike at first: one of them counts
    best, best_at = torch.zeros((n, most), dtype=torch.int64), torch.full((n,), float("-inf"))
    first = torch.arange(n)[:, None] * beams
    for place in range(most):
        shares = torch.as_tensor(writer.on(last)).float().log_softmax(1).view(n, beams, -1)
        if place == most - 1:  # no room for more than the end
            shares = torch.full_like(shares, float("-inf")).index_copy(2, torch.tensor([end]), shares[:, :, end : end + 1])
        scores = (total[:, :, None] + shares).flatten(1)
        top, flat = scores.topk(min(2 * beams, scores.shape[1]), 1)
        beam, token = flat // shares.shape[2], flat % shares.shape[2]
        ended = (token == end) & top.isfinite()
        worth = torch.where(ended, top / (place + 1) ** penalty, float("-inf"))
        worth[:, beams:] = float("-inf")  # only an end among the best as many is one
        value, at = worth.max(1)
        better = value > best_at
        chosen = kept[torch.arange(n), beam[torch.arange(n), at]].clone()
        chosen[:, place] = end
        best[better], best_at = chosen[better], torch.where(better, value, best_at)
        alive = torch.where(ended, float("-inf"), top)
        total, picked = alive.topk(beams, 1)
        beam, token = beam.gather(1, picked), token.gather(1, picked)
        kept = kept.gather(1, beam[:, :, None].expand(-1, -1, most)).clone()
        kept[:, :, place] = token
        if bool((total[:, 0] / most**penalty <= best_at).all()):  # even if it went on to the end at no further loss
            break
        writer.keep((first + beam).flatten())
        last = token.reshape(-1, 1)
    return best
