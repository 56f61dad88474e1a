"""A Ray cluster of this machine makes what this process times; actors are killed, and nothing is lost."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from equipoise.errors import MissingExtraError
from equipoise.events import Event
from equipoise.road import rays
from equipoise.road.walk import optimize

pytestmark = pytest.mark.slow


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"equipoise\[ray\]"):
        optimize("digits", time=30, store=tmp_path / "study", engine="ray")


def test_actors_make_what_is_timed_here_and_one_that_is_killed_is_made_again(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    killed = threading.Event()
    scored: list[Event] = []

    def listen(event: Event) -> None:
        if event.evaluation is not None:
            scored.append(event)
            if len(scored) > 4 and not killed.is_set():
                killed.set()
                from ray.util.state import list_actors

                for actor in list_actors(filters=[("state", "=", "ALIVE")])[:1]:
                    ray.kill(ray.get_actor(actor.name) if actor.name else rays_of(actor.actor_id))

    def rays_of(actor_id: str) -> object:
        return ray._private.worker.global_worker.core_worker.get_actor_handle(ray.ActorID.from_hex(actor_id))

    study = optimize(
        "digits", budget="drop<=1", time=90, store=tmp_path / "study", only="width,bits", engine="ray", workers=2, listen=listen
    )
    assert killed.is_set()
    assert study.searched
    assert not study.failures
    assert not ray.is_initialized()
    assert rays.TRIES > 1
