"""How quickly a language model reads a prompt, and writes on after it: one text at a time, as it is used."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from equipoise.batch import SOURCE, Inputs, is_pair, leaves, take
from equipoise.measure.latency import Call
from equipoise.measure.loads import compare_loads
from equipoise.records import Reading, unavailable
from equipoise.runtimes import Program, Target
from equipoise.runtimes.decoding import Reader, reads, tokens_of

SECONDS = 2.0
"""Wall time of a reading, many loads together."""
NOT_HERE = "the program does not read on from a past: only a causal model with read_on does, in ONNX Runtime"


class Prefill:
    """Seconds from a whole window of tokens to the outputs of each and the past of what follows."""

    def missing(self) -> str:
        """Return nothing: every machine has a clock."""
        return ""

    def read(self, program: Program, target: Target, rows: Inputs) -> Reading:
        """Return the typical seconds over loads, of the first text of `rows` (N, T), or of the source of the first pair."""
        if not _of_tokens(program, rows):
            return unavailable("s", NOT_HERE)
        found, length = _timed(Prompt(program, target, take(rows, slice(1)), 0)), leaves(rows)[0].shape[1]
        return replace(found, note=f"{length} tokens of one text; {found.note}")


class Decode:
    """Tokens a second, each read alone after the others: what follows on a whole window but one."""

    def missing(self) -> str:
        """Return nothing: every machine has a clock."""
        return ""

    def read(self, program: Program, target: Target, rows: Inputs) -> Reading:
        """Return 1 / the typical seconds over loads, of the last token of the first text of `rows`, or of what is written."""
        if not _of_tokens(program, rows):
            return unavailable("1/s", NOT_HERE)
        before = tokens_of(rows).shape[1] - 1
        found = _timed(Prompt(program, target, take(rows, slice(1)), before))
        low, high = (None if end is None else 1.0 / end for end in (found.high, found.low))
        note = f"one text, {before} tokens before; {found.note}"
        return replace(found, value=1.0 / found.get(), unit="1/s", low=low, high=high, note=note)


def _of_tokens(program: Program, rows: Inputs) -> bool:
    """Whether a program reads on, one token after the other: not a sound, which is read in chunks."""
    if not reads(program) or not (isinstance(rows, np.ndarray) or is_pair(rows)):
        return False
    return bool(np.issubdtype(tokens_of(rows).dtype, np.integer))


@dataclass(frozen=True)
class Prompt:
    """A program, and tokens (1, T) or a pair of which as many as `before` were read; of none of a pair the source is timed."""

    program: Program
    target: Target
    inputs: Inputs
    before: int

    def load(self) -> Call:
        """Load the program anew, let it read what stands before, and return what reads the rest."""
        reader = Reader(self.program, threads=self.target.threads)
        if is_pair(self.inputs) and not self.before:
            return lambda: reader.read(self.inputs[SOURCE])
        tokens = reader.begin(self.inputs)
        if self.before:
            reader.on(tokens[:, : self.before])
        past, rest = reader.past, np.ascontiguousarray(tokens[:, self.before :])

        def once() -> None:
            reader.past = past
            reader.on(rest)

        return once


def _timed(prompt: Prompt) -> Reading:
    """Typical seconds of reading the rest of a prompt."""
    return compare_loads({"reading": prompt.load}, seconds=SECONDS).latency("reading")
