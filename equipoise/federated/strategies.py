"""Strategies: how a client trains and how the server moves by what the clients learned. A strategy is a value of four parts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from equipoise.errors import must_be, unknown
from equipoise.federated.combine import Rule, combined, drawn_in, mean, median, of_liars, trimming
from equipoise.federated.state import Server, Tensors, Update, moved
from equipoise.units import is_real

Step = Callable[[Tensors, Mapping[str, Tensor], int], tuple[Tensors, Tensors]]
"""(combined change, memory, rounds made) -> (step of the weights, memory)."""


@dataclass(frozen=True)
class Strategy:
    """How one round turns what clients learned into a step of the server.

    Attributes:
        name: As on the command line.
        rule: How the clients' changes become one.
        step: How the server moves by it.
        even: Whether all clients count alike, else by their samples.
        proximal: Weight of half the squared distance to the server's weights in the clients' loss (FedProx).
        control: Whether clients correct their gradients by control variates (SCAFFOLD).
        liars: Share of clients that may lie, for which changes are drawn in first (`combine.drawn_in`); 0: as they are.
    """

    name: str
    rule: Rule = mean
    step: Step = lambda change, memory, made: (change, {})
    even: bool = False
    proximal: float = 0.0
    control: bool = False
    liars: float = 0.0

    @property
    def linear(self) -> bool:
        """Whether the server needs no more than the sum of the clients' changes."""
        return self.rule is mean and not self.control and not self.liars

    def begin(self, weights: Mapping[str, Tensor], parameters: Sequence[str]) -> Server:
        """Return the server before the first round."""
        control = {f"control.{name}": torch.zeros_like(weights[name]) for name in parameters} if self.control else {}
        return Server(0, dict(weights), control)

    def after(self, server: Server, updates: Sequence[Update], *, clients: int) -> Server:
        """Return the server after one more round.

        Args:
            server: Before it.
            updates: Of those whose answer counts, at least one, in any order.
            clients: How many there are in all.
        """
        shapes = {name: value.shape for name, value in server.weights.items()}
        memory = dict(server.memory)
        if self.control:
            names = {name.removeprefix("control."): value for name, value in memory.items() if name.startswith("control.")}
            delta = combined(updates, {n: v.shape for n, v in names.items()}, self.rule, even=True, control=True)
            took = len(updates) / clients
            memory |= {f"control.{n}": (v.double() + took * delta[n]).float() for n, v in names.items()}
        known = replace(server, memory=memory, accepted={**server.accepted, **{u.client: server.round + 1 for u in updates}})
        counted = drawn_in(updates, shapes, self.liars) if self.liars else updates
        return self.by(known, combined(counted, shapes, self.rule, even=self.even))

    def by(self, server: Server, change: Tensors) -> Server:
        """Return the server one round on, moved by a change that is combined already (of which the sum alone was seen)."""
        step, memory = self.step(change, server.memory, server.round)
        return replace(server, round=server.round + 1, weights=moved(server.weights, step), memory={**server.memory, **memory})


def _scaled(change: Tensors, memory: Mapping[str, Tensor], made: int, *, rate: float) -> tuple[Tensors, Tensors]:
    return {name: rate * value for name, value in change.items()}, {}


def _adam(
    change: Tensors, memory: Mapping[str, Tensor], made: int, *, rate: float, first: float, second: float, floor: float
) -> tuple[Tensors, Tensors]:
    """Adam on the server, the change in place of a gradient; BatchNorm's statistics take the mean itself."""
    step, kept = {}, {}
    for name, value in change.items():
        if "running_" in name:
            step[name] = value
            continue
        m = first * memory.get(f"first.{name}", torch.zeros_like(value)) + (1 - first) * value
        v = second * memory.get(f"second.{name}", torch.full_like(value, floor**2)) + (1 - second) * value.square()
        step[name], kept[f"first.{name}"], kept[f"second.{name}"] = rate * m / (v.sqrt() + floor), m, v
    return step, kept


def _fedavg(*, lr: float = 1.0) -> Strategy:
    """Mean of the clients' weights by their samples (McMahan et al. 2017); `lr` scales the server's step."""
    return Strategy("fedavg", step=partial(_scaled, rate=_above("lr", lr)))


def _fedprox(*, mu: float = 0.01) -> Strategy:
    """FedAvg whose clients are drawn to the server's weights (Li et al. 2020, "Federated optimization in heterogeneous
    networks", equation 2).
    """
    return Strategy("fedprox", proximal=_above("mu", mu))


def _fedadam(*, lr: float = 0.01, first: float = 0.9, second: float = 0.99, floor: float = 1e-3) -> Strategy:
    """Adam at the server (Reddi et al. 2021, "Adaptive federated optimization", algorithm 2; no bias correction, as there)."""
    step = partial(_adam, rate=_above("lr", lr), first=first, second=second, floor=_above("floor", floor))
    return Strategy("fedadam", step=step)


def _scaffold(*, lr: float = 1.0) -> Strategy:
    """Control variates (Karimireddy et al. 2020, "SCAFFOLD", algorithm 1, option II); all clients count alike."""
    return Strategy("scaffold", step=partial(_scaled, rate=_above("lr", lr)), even=True, control=True)


def _median() -> Strategy:
    """The middle value of each coordinate (Yin et al. 2018)."""
    return Strategy("median", rule=median, even=True)


def _trimmed(*, share: float = 0.2) -> Strategy:
    """The mean of each coordinate without the `share` of values at each end (Yin et al. 2018)."""
    return Strategy("trimmed", rule=trimming(share), even=True)


def _centered(*, share: float = 0.2) -> Strategy:
    """The mean of changes, those drawn towards their median that are far from it (after Karimireddy et al. 2021)."""
    return Strategy("centered", even=True, liars=of_liars(share))


STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "fedavg": _fedavg,
    "fedprox": _fedprox,
    "fedadam": _fedadam,
    "scaffold": _scaffold,
    "median": _median,
    "trimmed": _trimmed,
    "centered": _centered,
}
"""Strategies by name; what a function takes may follow the name: ``fedprox:mu=0.1``."""


def strategy_of(text: str) -> Strategy:
    """Return the strategy of ``NAME`` or ``NAME:number=value,...``.

    Raises:
        InputError: An unknown name or number, or a value out of range.

    Example:
        >>> strategy_of("fedprox:mu=0.1").proximal
        0.1
    """
    name, _, rest = text.partition(":")
    if name not in STRATEGIES:
        raise unknown("strategy", name, STRATEGIES)
    takes = inspect.signature(STRATEGIES[name]).parameters
    given: dict[str, Any] = {}
    for part in filter(None, (word.strip() for word in rest.split(","))):
        key, _, value = (word.strip() for word in part.partition("="))
        if key not in takes:
            raise unknown(f"number of {name}", key, takes)
        try:
            given[key] = float(value)
        except ValueError as error:
            raise must_be(f"strategy {name} {key}", "a number", value, f"Write for example {name}:{key}=0.1.") from error
    return STRATEGIES[name](**given)


def _above(name: str, value: float) -> float:
    if not is_real(value) or not 0 < value < float("inf"):
        raise must_be(f"strategy {name}", "a finite number above 0", value, "Leave it out for the usual.")
    return float(value)
