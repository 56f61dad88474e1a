"""Makers on a Ray cluster: actors that make, train and score plans, placed by their CPUs and cards.

The record stays with the walker: an actor has a folder of its own for the time that it lives, and blobs travel with each job.
An actor that is killed is made again, elsewhere if need be, and its job done anew.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from equipoise.errors import EquipoiseError, missing_extra
from equipoise.records import as_data
from equipoise.road.answers import Answers, Died
from equipoise.road.bench import Workbench
from equipoise.road.facts import Facts, facts_from
from equipoise.road.isolated import children, held_of, recipe_of
from equipoise.road.jobs import Job
from equipoise.road.pool import Pool
from equipoise.study.files import Files, make_rooms

TRIES = 3
"""Actors that a job may take down, or lose, before it is a failed trial."""


def _ray() -> Any:
    """Import Ray, which tells nobody that it is used."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise missing_extra("ray", "ray") from error
    return ray


class Hand:
    """An actor: one child process, and a folder of its own."""

    def __init__(self, recipe: Mapping[str, Any], held: bytes) -> None:
        self._open = ExitStack()
        self._files = Files(Path(self._open.enter_context(tempfile.TemporaryDirectory(prefix="equipoise-ray-"))))
        make_rooms(self._files.path)
        (self._child,) = self._open.enter_context(children(recipe, held, self._files.path, lambda *_: None))

    def facts(self) -> Any:
        """Return what can be changed in the model, as data."""
        return as_data(self._child.facts())

    def answer(self, job: Job, blobs: list[bytes]) -> tuple[Mapping[str, Any], list[bytes]]:
        """Return the answer to a job, and the blobs that were made for it."""
        known = {self._files.blob(data) for data in blobs}
        answer = self._child.answer(job)
        made = [path for path in (self._files.path / "blobs").iterdir() if path.name not in known]
        found = [path.read_bytes() for path in made]
        for path in made:
            path.unlink()
        return answer, found


class RayChild(Answers):
    """A child on the cluster.

    Args:
        make: Gives an actor of `Hand`, new each time.
        files: Of the study.
    """

    def __init__(self, make: Callable[[], Any], files: Files) -> None:
        self._make, self._files = make, files
        self._actor = make()

    def facts(self) -> Facts:
        """Return what can be changed in the model, as the actor found it."""
        return facts_from(self._asked(lambda: self._actor.facts.remote()))

    def answer(self, job: Job) -> Mapping[str, Any]:
        """See `Answers.answer`."""
        held = [self._files.read_blob(job.args["weights"])] if job.args.get("weights") else []
        try:
            answer, blobs = self._asked(lambda: self._actor.answer.remote(job, held))
        except Died as error:
            return {"died": str(error)}
        for data in blobs:
            self._files.blob(data)
        found: Mapping[str, Any] = answer
        return found

    def close(self) -> None:
        """Let the actor go."""
        with suppress(Exception):
            _ray().kill(self._actor)

    def _asked(self, ask: Callable[[], Any]) -> Any:
        ray = _ray()
        for _ in range(TRIES):
            try:
                return ray.get(ask())
            except ray.exceptions.RayActorError as error:
                reason = " ".join(str(error).split())[:300]
                self._actor = self._make()
            except ray.exceptions.RayTaskError as error:
                raise EquipoiseError(f"an actor of the Ray cluster failed: {error.cause}") from error
        raise Died(f"{TRIES} actors of the Ray cluster did not live to answer: {reason}")


@contextmanager
def rayed(bench: Workbench, files: Files, *, spec: str, seed: int, address: str, count: int) -> Iterator[Pool]:
    """Give a pool of children on a Ray cluster.

    Args:
        spec: How the command line names the workload, on every node; an object travels with the actors.
        address: Of the cluster; empty starts one on this machine.
        count: Actors; each takes a CPU, and a card where the target is one.
    Raises:
        EquipoiseError: The cluster cannot be reached.
        MissingExtraError: Ray is not installed.
    """
    ray = _ray()
    began = not ray.is_initialized()
    if began:
        try:
            ray.init(address=address or None, log_to_driver=False, include_dashboard=False if not address else None)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise EquipoiseError(f"cannot reach the Ray cluster {address or 'on this machine'}: {reason}") from error
    cards = 1 if any("cuda" in str(target) for target in bench.targets) else 0
    remote = ray.remote(num_cpus=1, num_gpus=cards, max_restarts=0)(Hand)
    recipe, held = recipe_of(bench, spec=spec, seed=seed), ray.put(held_of(bench, spec))
    hands = [RayChild(lambda: remote.remote(recipe, held), files) for _ in range(count)]
    try:
        with closing(Pool(hands)) as pool:
            yield pool
    finally:
        for hand in hands:
            hand.close()
        if began:
            ray.shutdown()
