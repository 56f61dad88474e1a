"""The loss table read: which entries, together or alone, on how many samples, and what is estimated for lack of time."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from equipoise.records import digest
from equipoise.road import entries
from equipoise.road.jobs import TOGETHER, Job, Steps, Walk
from equipoise.stats import median

Losses = dict[entries.Key, entries.Loss]
GUESS_SHARE = 0.2
"""Share of the loss table's time that is kept for estimating what there is no time to read."""
GUESS_COST = 0.5
"""An estimate's share of the time of a reading."""
CALIBRATING = 4
"""Readings of each kind that estimates are put on scale by."""


@dataclass
class TableReading:
    """Has the entries of one loss table read.

    Attributes:
        walk: The road that has its jobs done.
        kinds: Entries, in the order in which to read them -> kind of their knob.
        samples: Validation samples there are.
        trial_s: Seconds that an entry is thought to take before one of its kind was read.
        read, failed: What was read by now, and what failed and why.
    """

    walk: Walk
    kinds: Mapping[entries.Key, str]
    samples: int
    trial_s: float
    read: Losses = field(default_factory=dict)
    failed: dict[entries.Key, str] = field(default_factory=dict)
    _took: dict[str, list[float]] = field(default_factory=dict)

    def steps(self, until: float) -> Steps[Losses]:
        """Read entries in order while they fit; return the losses.

        Where all fit, roundings are scored and what cannot be told apart is read on more samples; else the rest is estimated.
        """
        kept_s = GUESS_SHARE * (until - self.walk.spent_s)
        yield from self._first(until - kept_s)
        each_s = GUESS_COST * (median([s for rows in self._took.values() for s in rows]) if self._took else 0.0)
        left = [key for key in self.kinds if key not in self.read and key not in self.failed]
        guessed: Losses = {}
        scores: Losses = {}
        if left:
            guessed = yield from self._estimated(left, kept_s, each_s)
        else:
            scores = yield from self._scored(entries.roundings(self.read, self.kinds), until, each_s)
            yield from self._grown(until)
        known = entries.leant(self.read, scores) | guessed
        return {key: loss for key, loss in known.items() if key not in self.failed}

    def _first(self, until: float) -> Steps[None]:
        """Have each entry read once; one that does not fit is passed over: another kind may be quicker."""
        left = list(self.kinds)
        while left:
            part: list[Steps[bool]] = []
            ahead_s = 0.0
            while left and len(part) < TOGETHER:
                key = left[0]
                new = self.kinds[key] not in self._took  # how long one of its kind takes is told by the first, alone
                if new and part:
                    break
                left.pop(0)
                if self.walk.spent_s + ahead_s + self._expected(key) <= until:
                    if not part:
                        number = len(self.kinds) - len(left)
                        self.walk.tell("tables", f"loss of {key[0]}={key[1]} ({number}/{len(self.kinds)})")
                    part.append(self._entry(key, entries.FIRST_SAMPLES))
                    ahead_s += self._expected(key)
                if new and part:
                    break
            yield from self.walk.together(part)

    def _grown(self, until: float) -> Steps[None]:
        """Have what cannot be told apart read on more samples, until all can, one fails, or the time is over."""
        while keys := entries.unsure(self.read, most=min(entries.MOST_SAMPLES, self.samples)):
            while keys:
                part, keys = keys[:TOGETHER], keys[TOGETHER:]
                fits = [k for i, k in enumerate(part, 1) if self.walk.spent_s + i * self._expected(k) <= until]
                read = yield from self.walk.together([self._entry(key, 2 * self.read[key].samples) for key in fits])
                if len(fits) < len(part) or not all(read):
                    return

    def _expected(self, key: entries.Key) -> float:
        took = self._took.get(self.kinds[key])
        return median(took) if took else self.trial_s

    def _entry(self, key: entries.Key, samples: int) -> Steps[bool]:
        """Have one entry read, or read on more samples; return whether it could be."""
        more = f"@{samples}" if key in self.read else ""
        args = {"knob": key[0], "choice": key[1], "samples": samples}
        row = yield from self.walk.step(Job("table", f"{key[0]}={key[1]}{more}", args, expected_s=self._expected(key)))
        if not more:
            self._took.setdefault(self.kinds[key], []).append(row["seconds"])
        if row.get("error"):
            self.failed[key] = row["error"]
            return False
        self.read[key] = entries.loss_from(row)
        return True

    def _estimated(self, left: Sequence[entries.Key], seconds: float, each_s: float) -> Steps[Losses]:
        """Have what was not read estimated, as far as there is time, on the scale of some of what was read."""
        most = int(seconds / max(each_s, 1e-9))
        each = [[k for k in self.read if self.kinds[k] == kind][:CALIBRATING] for kind in dict.fromkeys(self.kinds.values())]
        known = [key for turn in itertools.zip_longest(*each) for key in turn if key is not None][: most // 2]
        if not known:
            return {}
        self.walk.tell("tables", "estimate of losses that there was no time to read")
        named = [list(key) for key in [*known, *left][:most]]
        found = yield from self.walk.step(Job("guess", digest(named), {"entries": named}, expected_s=seconds))
        return entries.calibrated(entries.guessed(found), self.read, self.kinds)

    def _scored(self, keys: Sequence[entries.Key], until: float, each_s: float) -> Steps[Losses]:
        """Have scores taken of these roundings, if there is time for all."""
        args, expected_s = {"entries": [list(key) for key in keys], "apart": True}, len(keys) * each_s
        if not keys or self.walk.spent_s + expected_s > until:
            return {}
        self.walk.tell("tables", "scores of the roundings")
        return entries.guessed((yield from self.walk.step(Job("guess", digest(args), args, expected_s=expected_s))))
