"""What a process of its own answers to a job, near or far, and what that means."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from equipoise.errors import EquipoiseError, StoreError
from equipoise.records import Evaluation, evaluation_from
from equipoise.road.facts import Facts
from equipoise.road.jobs import Job

KINDS = frozenset({"evaluation", "new", "table", "guess"})
"""Kinds of jobs that may be done anywhere."""


class Died(EquipoiseError):
    """A process that a candidate took down, and how."""


class Answers(ABC):
    """A maker whose jobs are done by processes of their own, which answer as JSON data."""

    @abstractmethod
    def facts(self) -> Facts:
        """Return what can be changed in the model."""

    @abstractmethod
    def answer(self, job: Job) -> Mapping[str, Any]:
        """Return ``evaluation``, ``entry`` or ``estimates`` of a job; else ``failed``, ``died`` or ``store``, and why."""

    def scored(self, job: Job) -> Evaluation:
        """Return a plan made, trained and scored.

        Raises:
            Died: No process lived to answer.
            EquipoiseError: What the trial raised, with its traceback.
            StoreError: The disk refused what it made.
        """
        answer = self.answer(job)
        for word, kind in (("died", Died), ("store", StoreError), ("failed", EquipoiseError)):
            if word in answer:
                raise kind(answer[word])
        return evaluation_from(answer["evaluation"])

    def entry(self, job: Job) -> Mapping[str, Any]:
        """Return an entry of the loss table, or how its process ended."""
        answer = self.answer(job)
        if "died" in answer:
            return {**{k: job.args[k] for k in ("knob", "choice", "samples")}, "loss": None, "error": answer["died"]}
        found: Mapping[str, Any] = answer["entry"]
        return found

    def estimates(self, job: Job) -> Mapping[str, Any]:
        """Return estimates of entries of the loss table; none where their process did not live to make them."""
        answer = self.answer(job)
        found: Mapping[str, Any] = {"estimated": [], "error": answer["died"]} if "died" in answer else answer["estimates"]
        return found
