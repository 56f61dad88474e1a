"""A client: it answers messages with what it learned on its own samples, which go into no message."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.batch import Inputs, call
from equipoise.errors import must_be
from equipoise.federated import int8
from equipoise.federated.draws import chance, generator
from equipoise.federated.masker import Masker
from equipoise.federated.masks import flat
from equipoise.federated.memory import Memory
from equipoise.federated.messages import Message
from equipoise.federated.state import Tensors, change, clipped, loaded, norm, travelling
from equipoise.federated.strategies import Strategy, strategy_of
from equipoise.federated.terms import Terms
from equipoise.training import Batches, Recipe, fit
from equipoise.training.losses import Loss, smoothed
from equipoise.workloads.augment import Augment

FLIPPED, GIANT = 4.0, 1e6
"""How many times its true size a liar's change has."""


class DiedError(Exception):
    """The client died on the way, as it was asked to."""


@dataclass
class Client:
    """One holder of data.

    Attributes:
        number: From 0.
        terms: What was agreed on.
        data: Its own samples.
        model: A model of its scale, whose weights do not matter.
        loss, augment: Of the task.
        recipe: Of the whole run; each round has its part of the schedule.
        memory: What it keeps between rounds.
    """

    number: int
    terms: Terms
    data: Batches
    model: nn.Module
    loss: Loss
    recipe: Recipe
    augment: Augment | None = None
    memory: Memory = field(default_factory=Memory)
    earlier: Message | None = None
    masker: Masker | None = None

    def handle(self, asked: Message) -> Message:
        """Answer a message.

        Raises:
            DiedError: It was to die in this round.
            EquipoiseError: A message that no client answers, or a training that failed.
        """
        made, attempt = int(asked.facts["round"]), int(asked.facts["attempt"])
        if asked.kind in ("keys", "shares", "reveal"):
            return self._hidden(asked)
        if asked.kind != "train":
            raise must_be("message kind", "keys, shares, train or reveal", asked.kind, "Server and client differ in version.")
        if chance(self.terms.seed, "die", made, attempt, self.number) < self.terms.faults.die:
            raise DiedError("it died in the round")
        answer = self._learned(asked, made)
        if self.terms.secure:
            answer = self._masked(asked, answer)
        if self._fault == "late":
            time.sleep(2 * self.terms.limit_s)
        if self._fault == "replay":
            answer = self.earlier = self.earlier or answer
        return answer

    def _hidden(self, asked: Message) -> Message:
        """Answer the stages of a masked round before and after training."""
        facts = asked.facts
        if asked.kind == "keys":
            self.masker = Masker(self.number, facts["nonce"])
            told: dict[str, Any] = {**self.masker.keys(), "samples": len(self.data)}
        elif asked.kind == "shares":
            told = {"sealed": self._round(facts).shares(facts["keys"], int(facts["threshold"]))}
        else:
            told = self._round(facts).reveal(facts["alive"], facts["gone"])
        return Message(asked.kind, {**echoed(asked), **told})

    def _masked(self, asked: Message, learned: Message) -> Message:
        """Return what was learned, weighted, under masks."""
        vector = flat(learned.tensors, sorted(asked.tensors)) * float(asked.facts["weight"])
        hidden = self._round(asked.facts).masked(vector, asked.facts["sealed"])
        return Message("masked", learned.facts, {"masked": hidden})

    def _round(self, facts: Mapping[str, Any]) -> Masker:
        """The masks of the round that a question is of."""
        if self.masker is None or self.masker.nonce != facts["nonce"]:
            raise must_be("nonce", "that of a round whose keys were told", facts["nonce"], "The round begins with keys.")
        return self.masker

    def _learned(self, asked: Message, made: int) -> Message:
        """Train from the server's weights, and return the change as it travels."""
        began = time.monotonic()
        weights = {name: value for name, value in asked.tensors.items() if not name.startswith("control.")}
        server = {name.removeprefix("control."): v for name, v in asked.tensors.items() if name.startswith("control.")}
        strategy, since = strategy_of(self.terms.strategy), int(asked.facts["since"])
        kept = self.memory.read(since)
        own = {name: kept.get(f"control.{name}", torch.zeros_like(value)) for name, value in server.items()}
        correction = {name: value - own[name] for name, value in server.items()}
        recipe = round_recipe(self.recipe, made, self.terms.rounds)
        trained = fit(
            loaded(copy.deepcopy(self.model), weights),
            self.data,
            loss=self._flipped(self.loss),
            epochs=self.terms.epochs,
            recipe=recipe,
            augment=self.augment,
            objective=objective(self._flipped(self.loss), recipe, strategy, weights, correction),
            generator=generator(self.terms.seed, "client", made, self.number),
        )
        moved = change(travelling(trained.model), weights)
        tensors, facts, left = clipped(moved, self.terms.clip), {}, {}
        if strategy.control:
            rate = recipe.lr * trained.steps
            after = {name: -correction[name] - moved[name] / rate for name in server}  # c_i - c + (x - y) / (K lr)
            left = {f"control.{name}": value for name, value in after.items()}
            tensors |= {f"control.{name}": value - own[name] for name, value in after.items()}
        tensors = self._lied(tensors, made)
        if self.terms.bits == 8:
            wanted = {name: value + kept.get(f"left.{name}", torch.zeros_like(value)) for name, value in tensors.items()}
            tensors, steps = int8.rounded(wanted, generator(self.terms.seed, "rounding", made, self.number))
            sent = int8.restored(tensors, steps)
            left |= {f"left.{name}": value - sent[name] for name, value in wanted.items()}
            facts["steps"] = steps
        self.memory.keep(made, left, since=since)
        told = {"loss": sum(trained.log) / len(trained.log), "seconds": time.monotonic() - began}
        return Message("update", {**echoed(asked), "samples": len(self.data), **told, **facts}, tensors)

    def _flipped(self, loss: Loss) -> Loss:
        """The loss on reversed labels, for a client that is to lie so."""
        if self._fault != "labels":
            return loss
        return lambda outputs, targets: loss(outputs, outputs.shape[1] - 1 - targets)

    @property
    def _fault(self) -> str:
        return self.terms.faults.of(self.number, self.terms.clients)

    def _lied(self, tensors: Tensors, made: int) -> Tensors:
        """Return what a client with a fault sends in place of what it learned."""
        draws = generator(self.terms.seed, "lie", made, self.number)
        lies: Mapping[str, Callable[[Tensor], Tensor]] = {
            "sign": lambda value: -FLIPPED * value,
            "noise": lambda value: torch.randn(value.shape, generator=draws) * (FLIPPED * norm(tensors) / size(tensors) ** 0.5),
            "nan": lambda value: torch.full_like(value, float("nan")),
            "giant": lambda value: GIANT * value,
            "shape": lambda value: value[None],
        }
        lie = lies.get(self._fault)
        return tensors if lie is None else {name: lie(value) for name, value in tensors.items()}


def size(tensors: Mapping[str, Tensor]) -> int:
    """Return how many numbers tensors hold together."""
    return sum(value.numel() for value in tensors.values())


def echoed(asked: Message) -> dict[str, Any]:
    """Return what an answer repeats of the question, by which it is told from an answer to another."""
    return {name: asked.facts[name] for name in ("round", "nonce", "client")}


def round_recipe(recipe: Recipe, made: int, rounds: int) -> Recipe:
    """Return the recipe of round `made` (from 0): at the constant rate that the schedule of the whole run has in its middle."""
    rate = recipe.lr_at(recipe.warmup, (made + 0.5) / rounds)
    return replace(recipe, lr=rate, schedule="constant", warmup=0)


def objective(
    loss: Loss, recipe: Recipe, strategy: Strategy, weights: Tensors, correction: Mapping[str, Tensor]
) -> Callable[[nn.Module, Inputs, Tensor], Tensor] | None:
    """Return the loss with what the strategy adds to it; None where it adds nothing.

    FedProx adds ``mu / 2 |w - server's|^2``, SCAFFOLD ``<c - c_i, w>``, whose gradient is the correction of its equation 3.
    """
    if not strategy.proximal and not strategy.control:
        return None
    criterion = smoothed(loss, recipe.label_smoothing) if recipe.label_smoothing else loss

    def added(student: nn.Module, inputs: Inputs, targets: Tensor) -> Tensor:
        total = criterion(call(student, inputs), targets)
        for name, parameter in student.named_parameters():
            if strategy.proximal:
                total = total + strategy.proximal / 2 * (parameter - weights[name]).square().sum()
            if strategy.control:
                total = total + (correction[name] * parameter).sum()
        return total

    return added
