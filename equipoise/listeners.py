"""Listeners: what may be told of a search while it goes on, and how one of them ends it.

A listener is called with each `Event`. One that raises is told about once and not called again: a search is never lost for it;
`Stop` ends the search in order.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from equipoise.errors import missing_extra, words_of
from equipoise.events import Event, Listener


class Stop(Exception):
    """Raise it in a listener to end the search: what was measured is kept, and `optimize` returns the study as it is."""


class Guarded:
    """Several listeners as one that never raises.

    Attributes:
        stopped: Whether one of them asked for the end.
    """

    def __init__(self, *listeners: Listener) -> None:
        self._listeners = list(listeners)
        self.stopped = False

    def __call__(self, event: Event) -> None:
        """Tell each; leave out from now on who raised."""
        for listener in [*self._listeners]:
            try:
                listener(event)
            except Stop:
                self.stopped = True
            except Exception as error:  # noqa: BLE001 - the user's own code, beside the search
                self._listeners.remove(listener)
                name = getattr(listener, "__name__", type(listener).__name__)
                said = f"WARNING: the listener {name} raised {type(error).__name__}: {words_of(error)}; it is not called again"
                print(said, file=sys.stderr, flush=True)


def figures(event: Event) -> dict[str, float]:
    """Return the measured figures of an event's evaluation, by axis; none where it has none."""
    found = event.evaluation
    if found is None or not found.ok:
        return {}
    readings = {"drop": found.drop, "quality": found.quality, **found.cost}
    return {name: reading.get() for name, reading in readings.items() if reading.known}


class TensorBoardListener:
    """Writes each evaluation to TensorBoard, against its number; ``failed`` counts those that failed.

    Args:
        folder: Where the event files go; made if need be.
    Raises:
        MissingExtraError: TensorBoard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise missing_extra("tensorboard", "tensorboard") from error
        self._writer: Any = SummaryWriter(str(folder))
        self._count = self._failed = 0

    def __call__(self, event: Event) -> None:
        """Write an evaluation."""
        if event.evaluation is None:
            return
        self._count += 1
        self._failed += not event.evaluation.ok
        for name, value in {**figures(event), "failed": float(self._failed)}.items():
            self._writer.add_scalar(f"{event.evaluation.fidelity}/{name}", value, self._count)
        self._writer.flush()


class MlflowListener:
    """Logs each evaluation to the MLflow run that is active, or to one that it starts, against its number.

    Args:
        tags: Of a run that it starts.
    Raises:
        MissingExtraError: MLflow is not installed.
    """

    def __init__(self, tags: Mapping[str, str] | None = None) -> None:
        try:
            import mlflow
        except ImportError as error:
            raise missing_extra("mlflow", "mlflow") from error
        self._mlflow: Any = mlflow
        if mlflow.active_run() is None:
            mlflow.start_run(tags=dict(tags or {}))
        self._count = 0

    def __call__(self, event: Event) -> None:
        """Log an evaluation."""
        if event.evaluation is None:
            return
        self._count += 1
        named = {f"{event.evaluation.fidelity}.{name}": value for name, value in figures(event).items()}
        self._mlflow.log_metrics({**named, "spent_s": event.spent_s}, step=self._count)
