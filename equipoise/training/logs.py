"""Logs of a run that survive being killed and resumed: a CSV file, TensorBoard event files."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any, Protocol

from equipoise.errors import StoreError, missing_extra, must_be
from equipoise.training.progress import Progress

COLUMNS = ("step", "epoch", "seconds", "lr", "train_loss", "validation_loss", "validation_metric")


class Log(Protocol):
    """Where the steps of a run are written down; process 0 alone calls it."""

    def begin(self, step: int) -> None:
        """Open the log and forget what it holds after `step`, from which the run goes on (0: everything)."""
        ...

    def add(self, progress: Progress) -> None:
        """Write one step down."""
        ...

    def close(self) -> None:
        """Close the log; called however the run ends."""
        ...


class CsvLog:
    """One row for each step, in a file that any spreadsheet reads; validation columns are empty but where it was looked at.

    A resumed run goes on below its last checkpoint: rows after it are dropped first, so none is doubled.

    Args:
        path: The file; its folder must exist.
        every: Steps from one row to the next; steps with a look at validation data always have one.
    """

    def __init__(self, path: str | Path, *, every: int = 1) -> None:
        if every < 1:
            raise must_be("every", "at least 1", every, "Give a number of steps.")
        self.path, self.every = Path(path), every
        self._file: Any = None

    def begin(self, step: int) -> None:
        """Open the file and keep the rows up to `step`.

        Raises:
            StoreError: It cannot be read or written, or is no log of ours.
        """
        rows = [row for row in self._rows() if int(row[0]) <= step]
        part = self.path.with_name(self.path.name + ".part")
        try:
            with part.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
            os.replace(part, self.path)
            self._file = self.path.open("a", newline="", encoding="utf-8", buffering=1)  # a row a write: whole after a kill
        except OSError as error:
            raise StoreError(f"log {self.path} must be writable; got {error}. Choose another file.") from error

    def add(self, progress: Progress) -> None:
        """Append the row of a step."""
        point = progress.point
        if point is None and progress.step % self.every:
            return
        values = [progress.step, progress.epoch, progress.seconds, progress.lr, progress.loss]
        seen = ["", ""] if point is None else [point.validation_loss, point.validation_metric]
        csv.writer(self._file, lineterminator="\n").writerow([*values, *seen])

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _rows(self) -> list[list[str]]:
        """Read the whole rows; the last one may have been cut by a kill."""
        try:
            text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        except OSError as error:
            raise StoreError(f"log {self.path} must be readable; got {error}. Choose another file.") from error
        lines = list(csv.reader(text[: text.rfind("\n") + 1].splitlines()))
        if lines and tuple(lines[0]) != COLUMNS:
            raise StoreError(f"log {self.path} must be a log of a run; its first line is {lines[0]!r}. Choose another file.")
        return [line for line in lines[1:] if len(line) == len(COLUMNS)]


class TensorBoardLog:
    """Event files for TensorBoard: ``loss/train``, ``loss/validation``, ``metric/validation`` and ``lr`` against the step.

    Args:
        folder: Where the event files go; made if need be.
        every: Steps from one value to the next.
    """

    def __init__(self, folder: str | Path, *, every: int = 1) -> None:
        if every < 1:
            raise must_be("every", "at least 1", every, "Give a number of steps.")
        self.folder, self.every = Path(folder), every
        self._writer: Any = None

    def begin(self, step: int) -> None:
        """Start an event file that overrides what earlier ones hold after `step`.

        Raises:
            MissingExtraError: TensorBoard is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise missing_extra("tensorboard", "tensorboard") from error
        self._writer = SummaryWriter(str(self.folder), purge_step=step + 1)

    def add(self, progress: Progress) -> None:
        """Write the values of a step."""
        point = progress.point
        values: dict[str, float | None] = {}
        if progress.step % self.every == 0 or point is not None:
            values |= {"loss/train": progress.loss, "lr": progress.lr}
        if point is not None:
            values |= {"loss/validation": point.validation_loss, "metric/validation": point.validation_metric}
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(name, value, progress.step)

    def close(self) -> None:
        """Write out what is left and close the files."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
