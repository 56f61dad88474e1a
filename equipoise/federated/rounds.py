"""One round: who is asked, whose answer counts, and the server after it."""

from __future__ import annotations

import math
import secrets
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from equipoise.errors import EquipoiseError, InputError, must_be
from equipoise.federated import int8
from equipoise.federated.cuts import Cut, averaged_by
from equipoise.federated.draws import chance, generator
from equipoise.federated.messages import Expected, Message, check_tensors
from equipoise.federated.secure import masked_sum
from equipoise.federated.state import Server, Tensors, Update, clipped, expected_of, norm
from equipoise.federated.strategies import Strategy
from equipoise.federated.terms import Terms
from equipoise.federated.transport import Reply, Transport

ATTEMPTS = 3
"""How often a round is asked anew before the run ends for want of a quorum."""
OUTLIER = 10.0
"""Times the median norm of a round's changes beyond which one is left out: honest ones differ by less than a tenth of that."""
ROOM = 1 << 20
"""Bytes of an answer beside its tensors."""


@dataclass(frozen=True)
class Share:
    """What one client had of a round.

    Attributes:
        client, scale, samples: Who it is, the ratio of the channels that it holds, on how many samples it trained.
        loss: Mean loss over its steps; None where it is not known.
        lost: Why its answer does not count; empty where it does.
        down_bytes, up_bytes, seconds: What went to it and came back, and how long that took.
    """

    client: int
    scale: float
    samples: int | None
    loss: float | None
    lost: str
    down_bytes: int
    up_bytes: int
    seconds: float


@dataclass(frozen=True)
class Hall:
    """All that a round needs and no round changes.

    Attributes:
        terms, strategy: What was agreed on.
        cuts: Ratio -> what a client of that scale holds.
        noise_seed: Of the Gaussian noise, which nobody but the server may know.
    """

    terms: Terms
    strategy: Strategy
    cuts: Mapping[float, Cut]
    noise_seed: int = 0

    def cut(self, client: int) -> Cut:
        """Return what a client holds."""
        return self.cuts[self.terms.scale(client)]


def asked_in(terms: Terms, made: int, attempt: int) -> tuple[int, ...]:
    """Return the clients that a round asks: each with the probability `share` where there is noise, else a fixed number."""
    able = terms.able
    if terms.share == 1:
        return able
    if terms.noise:  # what the accountant assumes; the draw must not depend on who answered
        return tuple(client for client in able if chance(terms.seed, "asked", made, client) < terms.share)
    count = max(1, round(terms.share * len(able)))
    order = torch.randperm(len(able), generator=generator(terms.seed, "asked", made, attempt)).tolist()
    return tuple(sorted(able[place] for place in order[:count]))


def one_round(hall: Hall, server: Server, transport: Transport) -> tuple[Server, tuple[Share, ...]]:
    """Return the server after one more round, and what each client had of it.

    Raises:
        EquipoiseError: Too few answers that count, `ATTEMPTS` times; the server is as it was.
    """
    told = ""
    for attempt in range(ATTEMPTS):
        asked = asked_in(hall.terms, server.round, attempt)
        needed = hall.terms.needed(len(asked)) if asked else 0
        ask = _masked if hall.terms.secure else _plain
        found, shares = ask(hall, server, transport, asked, attempt)
        if found is not None:
            return found, shares
        lost = [f"client {share.client}: {share.lost}".splitlines()[0] for share in shares if share.lost]
        came = len(asked) - len(lost)
        told = (
            f"round {server.round + 1} must have answers of {needed} of {len(asked)} clients; got {came} ({'; '.join(lost)})."
        )
    raise EquipoiseError(
        f"{told} Lower the quorum, have more clients, or rehearse fewer faults. The rounds before are kept, and gone on from."
    )


Outcome = tuple[Server | None, tuple[Share, ...]]


def _plain(hall: Hall, server: Server, transport: Transport, asked: tuple[int, ...], attempt: int) -> Outcome:
    """Make a round in which the server sees each client's change."""
    terms = hall.terms
    questions = {client: _question(hall, server, client, attempt) for client in asked}
    most = max((sum(v.nbytes for v in q.tensors.values()) for q in questions.values()), default=0) + ROOM
    replies = transport.ask(questions, most=most, limit_s=terms.limit_s)
    updates, lost = {}, {}
    for client, reply in replies.items():
        try:
            updates[client] = _update(hall, questions[client], reply, client)
        except InputError as error:
            lost[client] = str(error)
    lost |= dict.fromkeys(outliers(updates), "its change is of another order than those of the others")
    good = [update for client, update in updates.items() if client not in lost]
    shares = tuple(_share(terms, client, replies[client], lost.get(client, "")) for client in asked)
    if asked and len(good) < terms.needed(len(asked)):
        return None, shares
    if terms.noise:
        return noised(hall, server, summed(good, server, terms.clip)), shares
    if terms.clip is not None:  # a liar does not clip by itself
        good = [replace(update, change=clipped(update.change, terms.clip)) for update in good]
    return hall.strategy.after(server, [*map(_heard, good)], clients=terms.clients), shares


def _masked(hall: Hall, server: Server, transport: Transport, asked: tuple[int, ...], attempt: int) -> Outcome:
    """Make a round in which the server sees the sum of the changes alone."""
    terms = hall.terms
    questions = {client: _question(hall, server, client, attempt) for client in asked}
    shapes = {name: tuple(value.shape) for name, value in sorted(server.weights.items())}
    needed, even = terms.needed(len(asked)), terms.noise > 0
    found = masked_sum(questions, transport, shapes, even=even, needed=needed, limit_s=terms.limit_s)
    shares = tuple(_share(terms, client, found.replies[client], found.lost.get(client, "")) for client in asked)
    if found.total is None:
        return None, shares
    if terms.noise:
        return noised(hall, server, found.total), shares
    weight = sum(found.weights[client] for client in found.counted)
    accepted = {**server.accepted, **dict.fromkeys(found.counted, server.round + 1)}
    change = {name: value / weight for name, value in found.total.items()}
    return replace(hall.strategy.by(server, change), accepted=accepted), shares


def _question(hall: Hall, server: Server, client: int, attempt: int) -> Message:
    """What a client is asked: the part of the weights that it holds, and a word that no other question has."""
    cut, made = hall.cut(client), server.round
    control = {name.removeprefix("control."): v for name, v in server.memory.items() if name.startswith("control.")}
    held = {f"control.{name}": v for name, v in control.items()} if not cut.places else _part(cut, control)
    facts = {
        "round": made,
        "attempt": attempt,
        "client": client,
        "nonce": secrets.token_hex(16),
        "since": server.accepted.get(client, 0) - 1,
    }
    return Message("train", facts, {**cut.of(server.weights), **held})


def _part(cut: Cut, control: Mapping[str, torch.Tensor]) -> Tensors:
    return {f"control.{name}": value.flatten()[cut.places[name]] for name, value in control.items()}


def _update(hall: Hall, question: Message, reply: Reply, client: int) -> Update:
    """Read an answer; nothing in it is believed.

    Raises:
        InputError: It does not count, and why.
    """
    answer = reply.message
    if answer is None:
        raise InputError(reply.lost)
    check_echo(answer, question, "update")
    facts, bits = answer.facts, hall.terms.bits
    samples = facts.get("samples")
    if type(samples) is not int or not 1 <= samples <= 2**40:
        raise must_be("samples", "a whole number of at least 1", samples, "The update is left out.")
    expected: Expected = expected_of(question.tensors, torch.int8 if bits == 8 else None)
    check_tensors(answer.tensors, expected)
    tensors: Mapping[str, torch.Tensor] = answer.tensors
    if bits == 8:
        steps = facts.get("steps")
        real = isinstance(steps, dict) and all(
            type(steps.get(name)) is float and 0 < steps[name] < math.inf for name in answer.tensors
        )
        if not real:
            raise must_be("steps", "a finite number above 0 for each tensor", steps, "The update is left out.")
        tensors = int8.restored(answer.tensors, facts["steps"])
        check_tensors(tensors, expected_of(question.tensors))
    control = {n.removeprefix("control."): v for n, v in tensors.items() if n.startswith("control.")}
    change = {n: v for n, v in tensors.items() if not n.startswith("control.")}
    return Update(client, samples, change, control, hall.cut(client).places)


def check_echo(answer: Message, question: Message, kind: str) -> None:
    """Raise unless `answer` is of its kind, and to this very question: of this round, and never given before.

    Raises:
        InputError: It is not.
    """
    if answer.kind == "failed":
        raise InputError(f"it failed: {str(answer.facts.get('why'))[:500]}")
    if answer.kind != kind:
        raise must_be("answer", kind, answer.kind, "It is left out.")
    for name in ("round", "nonce", "client"):
        if answer.facts.get(name) != question.facts[name]:
            wanted = f"that of the question, {question.facts[name]!r}"
            raise must_be(f"answer {name}", wanted, answer.facts.get(name), "It is left out: an answer counts once.")


def outliers(updates: Mapping[int, Update]) -> tuple[int, ...]:
    """Return the clients whose change is `OUTLIER` times as large as the median; of fewer than three nobody can tell."""
    sizes = {client: norm(update.change) for client, update in updates.items()}
    if len(sizes) < 3:
        return ()
    usual = statistics.median(sizes.values())
    return tuple(client for client, size in sizes.items() if size > OUTLIER * usual > 0)


def _heard(update: Update) -> Update:
    """Leave BatchNorm's statistics to the widest clients: of a channel that fewer channels feed they are others."""
    if not update.places:
        return update
    none = {name: torch.empty(0, dtype=torch.int64) for name in update.change if not averaged_by(update.places, name)}
    change = {name: value.flatten()[:0] if name in none else value for name, value in update.change.items()}
    return replace(update, change=change, places={**update.places, **none})


def summed(updates: list[Update], server: Server, most: float | None) -> Tensors:
    """Return the sum (float64) of the changes, each clipped, all clients alike, in the order of their numbers."""
    total = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in server.weights.items()}
    for update in sorted(updates, key=lambda update: update.client):
        for name, value in clipped(update.change, most).items():
            total[name] += value.double()
    return total


def noised(hall: Hall, server: Server, total: Tensors) -> Server:
    """Return the server moved by a sum of clipped changes, with noise, over the number of clients that is asked on average."""
    terms, draws = hall.terms, generator(hall.noise_seed, "noise", server.round)
    deviation = terms.noise * (terms.clip or 0.0)
    drawn = {
        name: value + deviation * torch.randn(value.shape, generator=draws, dtype=torch.float64)
        for name, value in sorted(total.items())  # in an order that a resumed run has too
    }
    return hall.strategy.by(server, {name: value / terms.asked for name, value in drawn.items()})


def _share(terms: Terms, client: int, reply: Reply, lost: str) -> Share:
    facts = reply.message.facts if reply.message is not None else {}
    samples, loss = facts.get("samples"), facts.get("loss")
    return Share(
        client,
        terms.scale(client),
        samples if type(samples) is int else None,
        loss if isinstance(loss, float) and math.isfinite(loss) else None,
        lost,
        reply.down_bytes,
        reply.up_bytes,
        reply.seconds,
    )
