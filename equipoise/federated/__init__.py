"""Federated learning: clients train on data that never leave them, a server makes one model of what they learned."""

from equipoise.federated.strategies import STRATEGIES, Strategy, strategy_of
from equipoise.federated.terms import Terms

__all__ = ["STRATEGIES", "Strategy", "Terms", "strategy_of"]
