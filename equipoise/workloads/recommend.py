"""What does a user take next? Rows of the items that a user took, the newest first, and the item that came then."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from equipoise.errors import must_be, unknown
from equipoise.workloads.base import Workload
from equipoise.workloads.data import Split
from equipoise.workloads.interactions import DAY_S, Interactions, Whole, read_interactions
from equipoise.workloads.learned import learned
from equipoise.workloads.ranking import GAINS, Ranked
from equipoise.workloads.sentiment import Trimmed
from equipoise.workloads.task import Task

Hold = Literal["last", "day", "time"]

LENGTH, LEAST = 64, 5
NOTHING = "(none)"
"""Name of token 0, which fills a row up and stands for an item that the model does not know: it is passed over."""
HELD_USERS = 10
"""Where a time is held out, one user in so many serves for validation."""


@dataclass(frozen=True, eq=False)
class Histories:
    """A sample for each interaction that has others before it; the token of an item is its number and 1.

    Attributes:
        rows: Tokens (N, length) int64 of what came before, the newest first, filled up with 0.
        targets: Token (N,) of what came then.
        user: Number of the user (N,).
        time: When it came (N,), seconds.
        after: Steps of this user that follow (N,): 0 is the last.
        count: Interactions that this user has (N,).
    """

    rows: Tensor
    targets: Tensor
    user: Whole
    time: np.ndarray
    after: Whole
    count: Whole

    def __len__(self) -> int:
        return len(self.targets)


def histories(data: Interactions, *, length: int = LENGTH, days: bool = False, unseen: bool = True) -> Histories:
    """Return a sample for each interaction, with all steps of its user before it.

    Args:
        length: Tokens in a row; what is older is left out.
        days: Whether a step is a day, on which several things are taken together and none is known from another; else each
            interaction is a step.
        unseen: Whether what was taken again is left out as an answer.
    """
    total = len(data)
    place, new = np.arange(total), np.diff(data.user, prepend=-1) != 0
    start = np.maximum.accumulate(np.where(new, place, 0))  # first row of the user
    moved = np.diff(np.floor_divide(data.time, DAY_S), prepend=-math.inf) != 0 if days else np.ones(total, bool)
    begins = new | moved
    begin = np.maximum.accumulate(np.where(begins, place, 0))  # first row of the step
    step = np.cumsum(begins)
    counts = np.bincount(data.user, minlength=len(data.users)) if total else np.zeros(0, np.int64)
    last = np.zeros(len(data.users), np.int64)
    np.maximum.at(last, data.user, step)
    kept = begin > start
    if unseen:
        kept &= _first(data.user, data.item)
    before = begin[kept, None] - 1 - np.arange(length)  # (N, length), rows of the data
    rows = np.where(before >= start[kept, None], data.item[np.maximum(before, 0)] + 1, 0)
    user = data.user[kept]
    return Histories(
        torch.from_numpy(rows),
        torch.from_numpy(data.item[kept] + 1),
        user,
        data.time[kept],
        last[user] - step[kept],
        counts[user],
    )


def _first(user: Whole, item: Whole) -> np.ndarray:
    """Return which rows name an item for the first time for their user."""
    found = np.zeros(len(user), bool)
    found[np.unique(np.stack([user, item]), axis=1, return_index=True)[1]] = True
    return found


def recommend_task(
    path: Path,
    *,
    length: int = LENGTH,
    quality: str = "hit",
    first: int = 10,
    hold: str = "last",
    repeats: int = 0,
    least: int = LEAST,
    refit: int = 0,
    since: str = "",
    until: str = "",
    days: float = math.inf,
    replay: float = 0.0,
    user: str = "",
    item: str = "",
    time: str = "",
    name: str = "recommend",
) -> Task:
    """Return the task of telling what a user takes next, among all items.

    Args:
        path: Interactions; see `interactions.read_interactions`, of which `user`, `item` and `time` are the columns.
        length: Items of a history that are read, the newest.
        quality: ``hit`` or ``ndcg`` of the `first` places; the other one is read at the end as well.
        hold: What is held out. ``last``: of each user the last interaction for the test, and the one before it for validation;
            ``day``: the same of the last days; ``time``: all from `until` on, a tenth of the users for validation.
        repeats: 1 where what a user took before may be right again; 0 recommends what is new to the user alone.
        least: Interactions of a user from which on some are held out; the others' are trained on alone.
        refit: 1 trains on the validation samples too, with what was tuned without them.
        since: Date from which on samples are trained on, for a model that has learned what came before.
        until: Date from which on what came is left aside; where a time is held out, it is held out.
        days: Length of a time that is held out.
        replay: With `since`: older samples that are trained on again, as a share of the newer ones.
        name: Of the task.
    Raises:
        InputError: The file or an option cannot be used, or nothing is left to hold out.

    References:
        Leave one out, every item ranked: Krichene & Rendle 2020, "On sampled metrics for item recommendation".
    """
    _check(length=length, quality=quality, hold=hold, least=least, replay=replay, days=days, until=until)
    _check_switches(refit=refit, repeats=repeats)
    begin, end = _moment("since", since), _moment("until", until)
    data = read_interactions(path, user=user, item=item, time=time)
    data = data.until(end + days * DAY_S if hold == "time" else end) if until else data
    made = histories(data, length=length, days=hold == "day", unseen=not repeats)
    parts = _parts(made, hold, least=least, until=end)
    if not all(part.any() for part in parts.values()):
        found = {role: int(part.sum()) for role, part in parts.items()}
        remedy = f"Users with fewer than least={least} interactions are trained on alone: lower it, or give more data."
        if hold == "time":
            remedy = f"What came before until={until} is trained on, what came then is held out: the data must have both."
        raise must_be(f"interactions {path}", "enough for train, validation and test samples", found, remedy)
    known = np.unique(np.concatenate([made.rows[parts["train"]].numpy().ravel(), made.targets[parts["train"]].numpy()]))
    if refit:
        parts["train"] = parts["train"] | parts["validation"]
    parts["train"] = _recent(made, parts["train"], begin, replay=replay)
    splits = {role: _split(made, part, role) for role, part in parts.items()}
    notes = (*data.notes, *_told(made, parts, known, refit=bool(refit), dropped=_again(data) if not repeats else 0))
    if first >= len(data.items):
        notes = (*notes, f"all {len(data.items)} items are among the first {first}: HR@{first} is 100 whatever is answered")
    qualities = {gain: Ranked(gain, first) for gain in GAINS}  # type: ignore[arg-type]
    size = len(data.items) + 1
    return Task.of(
        train=replace(splits["train"], notes=notes),
        validation=splits["validation"],
        test=splits["test"],
        metric=qualities.pop(quality),
        also=tuple(qualities.values()),
        augment=Trimmed(0),
        outputs=size,
        vocabulary=size,
        unseen=not repeats,
        labels=(NOTHING, *data.items),
        name=name,
    )


def recommend_workload(path: Path, *, model: str, weights: Path, **options: object) -> Workload:
    """Return the workload of a trained model and its data.

    Args:
        path, options: As of `recommend_task`.
        model: ``FAMILY``, or ``FAMILY:width=64``, of which `weights` are.
        weights: State dict of it.
    Raises:
        InputError: The data or the weights cannot be used.
    """
    make = partial(recommend_task, path, **options)  # type: ignore[arg-type]
    return learned(lambda _: make(), model, weights)


def _check(*, length: int, quality: str, hold: str, least: int, replay: float, days: float, until: str) -> None:
    for what, value, valid in (("quality", quality, GAINS), ("hold", hold, get_args(Hold))):
        if value not in valid:
            raise unknown(f"recommend {what}", value, valid)
    for what, number, lowest in (("length", length, 1), ("least", least, 3)):
        if number < lowest:
            raise must_be(what, f"at least {lowest}", number, f"Write for example recommend:FILE?{what}=8.")
    for what, share, allowed in (("replay", replay, replay >= 0), ("days", days, days > 0)):
        if not allowed or math.isnan(share):
            raise must_be(what, "a number above 0", share, f"Leave {what} out for the usual.")
    if hold == "time" and not until:
        raise must_be("until", "given with hold=time", None, "Write recommend:FILE?hold=time&until=2021-12-01.")


def _check_switches(**given: int) -> None:
    for what, value in given.items():
        if value not in (0, 1):
            raise must_be(what, "0 or 1", value, f"Write {what}=1, or leave it out.")


def _moment(what: str, text: str) -> float:
    """Return the seconds of a date; none lies before all and after all alike, and bounds nothing."""
    if not text:
        return -math.inf if what == "since" else math.inf
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise must_be(what, "an ISO date", text, f"Write for example {what}=2021-12-01.") from error
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def _parts(made: Histories, hold: str, *, least: int, until: float) -> dict[str, np.ndarray]:
    """Return which samples are of which split."""
    if hold == "time":
        later, chosen = made.time >= until, made.user % HELD_USERS == 0
        return {"train": ~later, "validation": later & chosen, "test": later & ~chosen}
    held = made.count >= least
    test, validation = held & (made.after == 0), held & (made.after == 1)
    return {"train": ~(test | validation), "validation": validation, "test": test}


def _recent(made: Histories, part: np.ndarray, since: float, *, replay: float) -> np.ndarray:
    """Return the samples of `part` since then, with a share of older ones, drawn by a fixed shuffle."""
    newer = part & (made.time >= since)
    if not newer.any():
        date = datetime.fromtimestamp(since, UTC).date().isoformat()
        raise must_be("since", "a date with samples to train on after it", date, "Give an earlier one.")
    older = np.flatnonzero(part & ~newer)
    few = min(len(older), round(replay * newer.sum()))
    newer[older[torch.randperm(len(older), generator=torch.Generator().manual_seed(0))[:few].numpy()]] = True
    return newer


def _split(made: Histories, part: np.ndarray, role: str) -> Split:
    rows = made.rows[part]
    return replace(Split.of((rows, made.targets[part]), name=role), alike=(rows != 0).sum(1))


def _again(data: Interactions) -> int:
    return int((~_first(data.user, data.item)).sum())


def _told(made: Histories, parts: dict[str, np.ndarray], known: np.ndarray, *, refit: bool, dropped: int) -> list[str]:
    notes = [] if not dropped else [f"{dropped} interactions are with an item that the user had before: no answers to be found"]
    for role in ("validation", "test"):
        new = int((~np.isin(made.targets[parts[role]].numpy(), known)).sum())
        if new:
            notes.append(f"{role}: {new} of {int(parts[role].sum())} answers are items that no training sample has")
    full = int((made.rows[parts["train"], -1] != 0).sum())
    if full:
        notes.append(f"train: {full} of {int(parts['train'].sum())} histories fill or exceed the length {made.rows.shape[1]}")
    return [*notes, *(["validation samples are trained on too (refit): what is read on them says nothing"] if refit else [])]
