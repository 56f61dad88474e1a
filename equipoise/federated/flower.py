"""The same strategies and clients in a Flower deployment: its servers and clients carry them, what they compute is ours.

Flower (``flwr``) is imported when one of these functions is called. It pins many packages, so it lives in an environment of its
own, and it reports its use unless ``FLWR_TELEMETRY_ENABLED=0`` is set before it is imported: here it is set.
"""

from __future__ import annotations

import os
import pkgutil
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from equipoise.errors import missing_extra, must_be
from equipoise.federated.client import Client
from equipoise.federated.messages import Message, check_tensors
from equipoise.federated.state import Tensors, Update, expected_of, loaded, moved, travelling
from equipoise.federated.strategies import Strategy

Look = Callable[[nn.Module], tuple[float, float]]
"""Model -> (loss, quality) on data of the server's own."""


def flower_strategy(strategy: Strategy, model: nn.Module, *, clients: int, look: Look | None = None) -> Any:
    """Return a ``flwr.server.strategy.Strategy`` that asks every client each round and moves by `strategy`.

    Args:
        strategy: Any but SCAFFOLD, whose control variates have no place in Flower's messages.
        model: Its weights are where the rounds begin.
        clients: How many to wait for.
        look: Called with the model after each round, or None.
    Raises:
        InputError: SCAFFOLD.
        MissingExtraError: Flower is not installed.
    """
    if strategy.control:
        raise must_be("strategy", "one without control variates in Flower", strategy.name, "Use equipoise federate.")
    base, common = _flwr("flwr.server.strategy"), _flwr("flwr.common")
    weights = travelling(model)
    names = sorted(weights)

    def arrays(tensors: Tensors) -> Any:
        return common.ndarrays_to_parameters([tensors[name].numpy() for name in names])

    class Equipoise(base.Strategy):  # type: ignore[misc,name-defined]
        """Our strategy behind Flower's interface."""

        def __init__(self) -> None:
            self.server = strategy.begin(weights, [])

        def initialize_parameters(self, client_manager: Any) -> Any:
            return arrays(dict(self.server.weights))

        def configure_fit(self, server_round: int, parameters: Any, client_manager: Any) -> list[tuple[Any, Any]]:
            chosen = client_manager.sample(num_clients=clients, min_num_clients=clients)
            return [(one, common.FitIns(parameters, {"round": server_round - 1})) for one in chosen]

        def aggregate_fit(self, server_round: int, results: list[tuple[Any, Any]], failures: Any) -> tuple[Any, dict[str, Any]]:
            updates = []
            for number, (_, found) in enumerate(sorted(results, key=lambda result: str(result[0].cid))):
                after = _named(names, common.parameters_to_ndarrays(found.parameters))
                check_tensors(after, expected_of(self.server.weights))
                change = {name: after[name] - self.server.weights[name] for name in names}
                updates.append(Update(number, int(found.num_examples), change))
            if not updates:
                return None, {}
            self.server = strategy.after(self.server, updates, clients=clients)
            return arrays(dict(self.server.weights)), {}

        def configure_evaluate(self, server_round: int, parameters: Any, client_manager: Any) -> list[tuple[Any, Any]]:
            return []

        def aggregate_evaluate(self, server_round: int, results: Any, failures: Any) -> tuple[None, dict[str, Any]]:
            return None, {}

        def evaluate(self, server_round: int, parameters: Any) -> tuple[float, dict[str, Any]] | None:
            if look is None:
                return None
            given = _named(names, common.parameters_to_ndarrays(parameters))
            loss, quality = look(loaded(model, given).eval())
            return loss, {"quality": quality}

    return Equipoise()


def flower_client(client: Client) -> Any:
    """Return a ``flwr.client.NumPyClient`` that trains as `client` does.

    Raises:
        MissingExtraError: Flower is not installed.
    """
    base = _flwr("flwr.client")
    names = sorted(travelling(client.model))

    class Trains(base.NumPyClient):  # type: ignore[misc,name-defined]
        """Our client behind Flower's interface."""

        def get_parameters(self, config: dict[str, Any]) -> list[Any]:
            held = travelling(client.model)
            return [held[name].numpy() for name in names]

        def fit(self, parameters: Sequence[Any], config: dict[str, Any]) -> tuple[list[Any], int, dict[str, Any]]:
            weights = _named(names, parameters)
            facts = {"round": int(config["round"]), "attempt": 0, "nonce": "", "client": client.number, "since": -1}
            answer = client.handle(Message("train", facts, weights))
            after = moved(weights, {name: value.double() for name, value in answer.tensors.items()})
            return [after[name].numpy() for name in names], int(answer.facts["samples"]), {"loss": float(answer.facts["loss"])}

    return Trains()


def _named(names: Sequence[str], arrays: Sequence[Any]) -> Tensors:
    """Return tensors by name of arrays in the order of `names`."""
    if len(arrays) != len(names):
        raise must_be("parameters", f"the {len(names)} tensors of the model", len(arrays), "Build the same model everywhere.")
    return {name: torch.tensor(value, dtype=torch.float32) for name, value in zip(names, arrays, strict=True)}


def _flwr(module: str) -> Any:
    """Return a module of Flower, which is not to report its use."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    try:
        return pkgutil.resolve_name(module)
    except ImportError as error:
        raise missing_extra("flwr", "flower") from error
