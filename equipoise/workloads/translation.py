"""Translation: from sentences in two languages to a task, read by BLEU of what a model writes word by word."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from equipoise.batch import SOURCE, WRITTEN, Inputs, unpadded
from equipoise.errors import must_be
from equipoise.workloads.base import Workload
from equipoise.workloads.bleu import QUALITIES, Written
from equipoise.workloads.data import Split
from equipoise.workloads.learned import learned
from equipoise.workloads.parallel import Parallel, read_parallel
from equipoise.workloads.subwords import PADDING, Subwords, written
from equipoise.workloads.task import Task
from equipoise.workloads.tokens import FILE

LENGTH, VOCABULARY, BEAMS = 48, 5000, 4
UNJUDGED = -100
"""Stands for padding in the targets."""


def translation_task(
    folder: Path,
    *,
    source: str = "en",
    target: str = "de",
    vocabulary: int = VOCABULARY,
    length: int = LENGTH,
    quality: str = "bleu",
    beams: int = BEAMS,
    name: str = "translation",
) -> Task:
    """Return the task of translating sentences; both languages share one vocabulary.

    Args:
        folder: As of `read_parallel`.
        source, target: Tags of the languages.
        vocabulary: Most pieces of words, learned from the training sentences (`Subwords`).
        length: Most tokens of a sentence; longer ones are cut in training and left out of nothing, which is told.
        quality: ``bleu`` or ``chrf``, of whole corpora and cased.
        beams: Translations of a sentence that are followed side by side; 1 takes the likeliest word each time.
        name: Of the task.
    Raises:
        InputError: The files or an option cannot be used.
    """
    if quality not in QUALITIES:
        raise must_be("quality", f"one of {', '.join(QUALITIES)}", quality, "Write quality=bleu.")
    if beams < 1:
        raise must_be("beams", "at least 1", beams, "Write beams=4.")
    pairs = read_parallel(folder, source=source, target=target)
    sentences = [*pairs["train"].source, *pairs["train"].target]
    known = Subwords.of(sentences, size=vocabulary, length=length)
    splits = {role: _split(role, part, known) for role, part in pairs.items()}
    return Task.of(
        train=splits["train"],
        validation=splits.get("validation"),
        test=splits["test"],
        metric=Written(known, quality=quality, beams=beams),
        augment=trimmed,
        ignore_label=UNJUDGED,
        outputs=known.size,
        vocabulary=known.size,
        padding=PADDING,
        files={FILE: known.content},
        name=name,
    )


def trimmed(inputs: Inputs, generator: torch.Generator) -> Inputs:
    """Return the pairs of a training batch without the columns in which a whole side is padding."""
    return {side: unpadded(tokens) for side, tokens in inputs.items()}


def translation_workload(folder: Path, *, model: str, weights: Path, **options: object) -> Workload:
    """Return the task with a trained model, as ``train`` leaves it; options as of `translation_task`."""
    return learned(lambda family: translation_task(folder, **options), model, weights)  # type: ignore[arg-type]


def _split(role: str, part: Parallel, known: Subwords) -> Split:
    source, targets = known.encode(part.source), known.encode(part.target)
    inputs = {SOURCE: source, WRITTEN: written(targets)}
    targets = torch.where(targets == PADDING, UNJUDGED, targets)
    counts = [known.counts(side) for side in (part.source, part.target)]
    long = sum(max(pair) > known.length for pair in zip(*counts, strict=True))
    cut = (f"{role}: {long} of {len(source)} pairs are longer than {known.length} tokens and are cut there",) if long else ()
    alike = torch.tensor(counts[1]).clamp(max=known.length)
    return replace(Split.of((inputs, targets), name=role), notes=(*part.notes, *cut), alike=alike)
