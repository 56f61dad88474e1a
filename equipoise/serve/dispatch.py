"""Which rung answers next, of how many requests at once, and who is turned away: numbers alone, no clock and no thread.

Requests wait in order of arrival, each with a deadline. Whenever the machine is free the best rung is taken that leaves every
request its deadline, as the measured times tell; the slack of the oldest bounds the batch. Down it goes at once. Up it goes
only where the arrivals of late leave the better rung idle often enough, and not sooner than a dwell after the last switch:
else it would flap. Both are counted in the time that a request has, for that sets the pace at which a queue must be cleared.
Whoever asks for a rung by name gets it, in batches of its own, and counts among those who wait.

References:
    Khare et al. 2025, "SuperServe: fine-grained inference serving for unpredictable workloads": (model, batch) by the slack of
    the oldest request.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter

DWELL = 2
"""Times a request's time after a switch before a better rung is tried."""
LATE = 25
"""Times a request's time after which an arrival counts for a third of a new one in the rate of arrivals."""
BUSY = 0.7
"""Share of the time that a better rung may be busy with the arrivals of late."""
MEAN, SPREAD, SPREADS = 1 / 8, 1 / 4, 4.0
"""Weights of each new time in the mean and the spread of what a batch takes here and now, and how many spreads above the mean
it is expected to end: as the timer of TCP (RFC 6298)."""
MOST = 2.0
"""Times the mean that a single run counts for at most: a pause of the machine says little of the next run."""
FORGET_S = 10.0
"""Seconds after which a batch that was not run is thought to take again what it took at the start: what is thought too slow is
not run, and would never be found to be quick again."""


@dataclass
class Cost:
    """What a rung takes for a batch.

    Attributes:
        usual, most: Batch -> seconds, the median and the share that was asked for, as measured at the start.
        mean, spread: The same here and now, which each run moves: what is beside the model is in them too.
    """

    usual: Mapping[int, float]
    most: Mapping[int, float]
    mean: dict[int, float] = field(init=False)
    spread: dict[int, float] = field(init=False)
    learned: dict[int, float] = field(init=False, default_factory=dict)
    """Batch -> when it last ran."""

    def __post_init__(self) -> None:
        self.mean, self.spread = {}, {}
        for batch in self.usual:
            self._begin(batch)

    def _begin(self, batch: int) -> None:
        self.mean[batch] = self.usual[batch]
        self.spread[batch] = max(0.0, self.most[batch] - self.usual[batch]) / SPREADS

    @property
    def batches(self) -> tuple[int, ...]:
        """The batches that were measured, ascending."""
        return tuple(sorted(self.usual))

    def fit(self, count: int) -> int:
        """Return the batch measured that so many requests fill and that takes least for each, at least the smallest one."""
        return self.best([batch for batch in self.usual if batch <= count] or [self.batches[0]])

    def best(self, batches: Sequence[int]) -> int:
        """Return that of some batches which takes least for each request; of equals the largest."""
        return min(batches, key=lambda batch: (self.mean[batch] / batch, -batch))

    def seconds(self, batch: int) -> float:
        """Return what it will hardly exceed for a batch now."""
        return self.mean[batch] + SPREADS * self.spread[batch]

    def learn(self, batch: int, seconds: float, now: float) -> None:
        """Take in what a batch took."""
        off = min(seconds, MOST * self.mean[batch]) - self.mean[batch]
        self.spread[batch] += SPREAD * (abs(off) - self.spread[batch])
        self.mean[batch] += MEAN * off
        self.learned[batch] = now

    def forget(self, now: float) -> None:
        """Take no more for true what was learned long ago."""
        for batch in [batch for batch, at in self.learned.items() if now - at > FORGET_S]:
            del self.learned[batch]
            self._begin(batch)

    def cleared(self, count: int) -> float:
        """Return the seconds in which so many requests will hardly not be answered, in full batches and a rest."""
        whole, rest = divmod(count, batch := self.fit(count))
        return whole * self.seconds(batch) + (self.cleared(rest) if rest else 0.0)

    @property
    def capacity(self) -> float:
        """Requests a second at most."""
        return max(batch / seconds for batch, seconds in self.mean.items())


@dataclass
class Arrivals:
    """The rate of arrivals, of which later ones count more.

    Attributes:
        memory_s: Seconds after which an arrival counts for a third of a new one.
    """

    memory_s: float
    weight: float = 0.0
    at: float = -math.inf

    def seen(self, now: float, count: int = 1) -> None:
        """Count arrivals."""
        self.weight, self.at = self._left(now) + count, now

    def per_s(self, now: float) -> float:
        """Return the rate now, per second."""
        return self._left(now) / self.memory_s

    def _left(self, now: float) -> float:
        return self.weight * math.exp((self.at - now) / self.memory_s) if self.weight else 0.0


@dataclass(frozen=True)
class Turn:
    """What is done next.

    Attributes:
        rung: Place in the ladder.
        batch: Requests that it answers at once, the oldest first.
        why: What made it another rung than the last; empty where it is the same.
    """

    rung: int
    batch: int
    why: str = ""


@dataclass
class Dispatcher:
    """Chooses rungs; every method is told what time it is.

    Attributes:
        costs: Of the rungs, the best first.
        slo_s: The time that a request has, unless it says otherwise.
        broken: Rungs that are set aside.
    """

    costs: Sequence[Cost]
    slo_s: float
    rung: int = 0
    switched: float = -math.inf
    broken: set[int] = field(default_factory=set)
    arrivals: Arrivals = field(init=False)

    def __post_init__(self) -> None:
        self.arrivals = Arrivals(LATE * self.slo_s)

    @property
    def able(self) -> list[int]:
        """The rungs that may answer, the best first."""
        return [rung for rung in range(len(self.costs)) if rung not in self.broken]

    def turn(self, now: float, deadlines: Sequence[float], pins: Sequence[int | None] = ()) -> Turn:
        """Return what to run now.

        A request that no rung can answer in time any more counts as if it had come now: where the machine stood still for a
        moment, a lesser rung is no remedy, but whoever comes next must not wait for long either.

        Args:
            deadlines: Of the waiting requests, the oldest first; at least one.
            pins: The rung that each of them asks for, None where any may answer; empty where none asks.
        """
        for cost in self.costs:
            cost.forget(now)
        able, pins = self.able, pins or [None] * len(deadlines)
        soonest: dict[int | None, float] = {}
        for rung in able:
            soonest[rung] = now + self.costs[rung].seconds(self.costs[rung].batches[0])
        soonest[None] = min(soonest.values())
        runs = [
            (pin, [due if due >= soonest[pin] else now + self.slo_s for _, due in alike])
            for pin, alike in groupby(zip(pins, deadlines, strict=True), key=itemgetter(0))
        ]
        pin, oldest = runs[0]
        if pin is not None:
            return Turn(pin, self._batch(pin, now, oldest))
        fits = [rung for rung in able if self._in_time(rung, now, runs)]
        last = self.rung if self.rung in able else able[0]
        rung, why = (fits[0], "") if fits else (self._quickest(pins.count(None)), "none is in time")
        if rung < last and fits:
            rung = self._climbed(last, fits, now)
        if rung == self.rung:
            why = ""
        else:
            why = why or ("the oldest request has no more slack" if rung > self.rung else "there is room for it")
            self.rung, self.switched = rung, now
        return Turn(rung, self._batch(rung, now, oldest), why)

    def unlearn(self) -> None:
        """Think of every rung as it was timed at the start: who takes nobody any more, as all are slow, learns nothing."""
        for cost in self.costs:
            cost.forget(math.inf)

    def wait(self, counts: Mapping[int | None, int]) -> float:
        """Return the seconds in which so many requests are answered: those of a rung by it, those of None by the quickest."""
        return sum(self.costs[self._quickest(n) if pin is None else pin].cleared(n) for pin, n in counts.items())

    def _quickest(self, count: int) -> int:
        return min(self.able, key=lambda rung: self.costs[rung].cleared(count))

    def _in_time(self, rung: int, now: float, runs: Sequence[tuple[int | None, Sequence[float]]]) -> bool:
        """Whether all are answered before their deadlines if no more come, those that ask for no other rung by this one."""
        done = now
        for pin, left in runs:
            cost, place = self.costs[rung if pin is None else pin], 0
            while place < len(left):
                batch = cost.fit(len(left) - place)
                done += cost.seconds(batch)
                if done > min(left[place : place + batch]):
                    return False
                place += batch
        return True

    def _climbed(self, last: int, fits: Sequence[int], now: float) -> int:
        """Return the rung to climb to from `last`: one step, where the time and the arrivals of late allow it."""
        above = [rung for rung in fits if rung < last]
        rate = self.arrivals.per_s(now)
        if above and now - self.switched >= DWELL * self.slo_s and rate <= BUSY * self.costs[above[-1]].capacity:
            return above[-1]
        return last if last in fits else fits[-1]

    def _batch(self, rung: int, now: float, deadlines: Sequence[float]) -> int:
        """Return how many to answer at once: what takes least for each, unless the oldest would be late for it."""
        cost = self.costs[rung]
        able = [b for b in cost.batches if b <= len(deadlines)] or [cost.batches[0]]
        timely = [b for b in able if now + cost.seconds(b) <= min(deadlines[:b])]
        return min(len(deadlines), cost.best(timely or able))
