"""The durable record of evaluations and the answers read off it; no torch, so that a study opens where only its folder is."""

from equipoise.study.record import Study as Study

__all__ = ["Study"]
