"""A newer front in the place of the one that serves: read, checked and timed beside it, and taken over between two runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from equipoise.errors import EquipoiseError, InputError
from equipoise.serve.engine import Ended, Engine
from equipoise.serve.ladder import Alone, Ladder

GENTLE = 4.0
"""Times as long as a run of the new front took, the old one has the machine for itself."""


@dataclass
class Reload:
    """Takes over what is newer, one at a time.

    Attributes:
        read: Returns the newer ladder, timing each run as it is told to; the engine's own where the source is as it was.
        told: Told what came of it, a line each.
    """

    engine: Engine
    read: Callable[[Alone], Ladder]
    told: Callable[[str], None]
    _busy: threading.Lock = field(default_factory=threading.Lock)

    def begin(self) -> None:
        """Take over the newer front, in a thread of its own; not where that is being done already, nor at the end.

        The process waits for the thread: to end amid a run of a model would be a crash. It stops at the next rung.
        """
        if not self.engine.draining:
            threading.Thread(target=self.do, name="equipoise-reload", daemon=False).start()

    def do(self) -> None:
        """Take over the newer front; where it is no good, say why and go on with the old one."""
        if not self._busy.acquire(blocking=False):
            return
        try:
            old, newer = self.engine.latest, self.read(self._gently)
            if newer is not old:
                same(old, newer)
                self.engine.swap(newer)
        except Ended:
            self.told("the newer front is given up: the server is about to stop")
        except EquipoiseError as error:
            self.told(f"WARNING: the newer front is refused, the old one goes on: {error}")
        except Exception as error:  # noqa: BLE001 - of a file that is being written anything may be raised
            self.told(f"WARNING: the newer front is refused, the old one goes on: {type(error).__name__}: {str(error)[:200]}")
        else:
            for line in _told(old, newer):
                self.told(line)
        finally:
            self._busy.release()

    def _gently(self, run: Callable[[], float]) -> float:
        """Do a run between two that answer requests, and leave the machine to those for a while."""
        took = self.engine.between(run)
        time.sleep(GENTLE * took)
        return took


def _told(old: Ladder, new: Ladder) -> list[str]:
    """Return what is said of a front that takes over; why a rung is left out of it was said when it was made."""
    if new is old:
        return ["nothing newer: the source holds what it held"]
    gone = [name for name in old.places if name not in new.places and name not in new.left]
    left = [f"{name} leaves: the newer front does not hold it" for name in gone]
    return [*left, *new.lines, f"a newer front takes over: {', '.join(new.places)}"]


def same(old: Ladder, new: Ladder) -> None:
    """Raise `InputError` unless clients of the old ladder can stay with the new one."""
    for what, was, is_now in (
        ("what it takes", old.takes, new.takes),
        ("what it answers", old.gives, new.gives),
        ("its metric", old.metric, new.metric),
    ):
        if was != is_now:
            raise InputError(f"{what} was {was} and would be {is_now}. Serve it under another port.")
