"""The server's side of secure aggregation: it learns the sum of what the clients send, and of no single client more.

Limits: the server and the clients follow the protocol and are curious; against a server that lies about who is there, or that
runs clients of its own, nothing is claimed. What the sum itself tells is not hidden: that is what noise is for. The number of
samples of each client, and its mean loss, are told in the open.

References:
    Bonawitz et al. 2017, "Practical secure aggregation for privacy-preserving machine learning", figure 4 without the
    signatures and the consistency check that guard against an active server.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from equipoise.errors import EquipoiseError, InputError, must_be
from equipoise.federated import masks
from equipoise.federated.messages import Message
from equipoise.federated.state import Tensors
from equipoise.federated.transport import Reply, Transport

SMALL = 1 << 20
"""Bytes of an answer without tensors."""
LONGEST_KEY = 600
"""Characters of a public key."""


@dataclass(frozen=True)
class Masked:
    """What came of a masked round.

    Attributes:
        total: The sum (float64) of weight times change over those counted; None where too few answered.
        counted: The clients in it.
        weights: Client -> the weight of its change.
        replies: Client -> its last reply, with the bytes and the seconds of all.
        lost: Client -> why it is not in the sum.
    """

    total: Tensors | None
    counted: tuple[int, ...] = ()
    weights: Mapping[int, float] = field(default_factory=dict)
    replies: Mapping[int, Reply] = field(default_factory=dict)
    lost: Mapping[int, str] = field(default_factory=dict)


@dataclass
class _Course:
    """A masked round under way: who is still there, what each has cost."""

    questions: Mapping[int, Message]
    transport: Transport
    limit_s: float
    replies: dict[int, Reply] = field(default_factory=dict)
    lost: dict[int, str] = field(default_factory=dict)

    def ask(self, asked: Mapping[int, Message], kind: str, *, most: int = SMALL) -> dict[int, Message]:
        """Ask one stage; return the answers to this very question."""
        found = {}
        for client, reply in self.transport.ask(asked, most=most, limit_s=self.limit_s).items():
            before = self.replies.get(client, Reply(None))
            self.replies[client] = replace(
                reply if reply.message is None or kind == "masked" else replace(reply, message=before.message),
                down_bytes=before.down_bytes + reply.down_bytes,
                up_bytes=before.up_bytes + reply.up_bytes,
                seconds=before.seconds + reply.seconds,
            )
            answer = reply.message
            if answer is None:
                self.lost[client] = reply.lost
                continue
            same = all(answer.facts.get(name) == asked[client].facts[name] for name in ("round", "nonce", "client"))
            if answer.kind != kind or not same:
                why = str(answer.facts.get("why"))[:500]
                self.lost[client] = (
                    f"it failed: {why}" if answer.kind == "failed" else f"it answered another question than {kind}"
                )
                continue
            found[client] = answer
        return found

    def whole(
        self, answers: Mapping[int, Message], wanted: Mapping[str, type], of: Callable[[int], Collection[int]]
    ) -> dict[int, Message]:
        """Leave out who did not answer for each client of `of`."""
        found = {}
        for client, answer in answers.items():
            for name, kind in wanted.items():
                told = answer.facts.get(name)
                if isinstance(told, dict) and all(type(told.get(str(other))) is kind for other in of(client)):
                    found[client] = answer
                else:
                    self.lost[client] = f"it told no {name} of some of the others"
        return found

    def to(self, client: int, kind: str, **facts: object) -> Message:
        """Return a question of another kind in the same round, without tensors."""
        return Message(kind, {**self.questions[client].facts, **facts})


def masked_sum(
    questions: Mapping[int, Message],
    transport: Transport,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    even: bool,
    needed: int,
    limit_s: float,
) -> Masked:
    """Ask clients to train, and return the sum of what they learned.

    Args:
        questions: Client -> what it would be asked in a plain round.
        transport: Carries the four stages.
        shapes: Tensor -> shape, of what is summed.
        even: Whether every client has the weight 1, else its share of the samples.
        needed: Answers that are needed at every stage, more than half.
        limit_s: Seconds for each stage.
    """
    course = _Course(questions, transport, limit_s)
    keyed = _usable(course, course.ask({client: course.to(client, "keys") for client in questions}, "keys"))
    if len(keyed) < needed:
        return _ended(course)
    public = {str(client): {name: answer.facts[name] for name in ("seal", "mask")} for client, answer in keyed.items()}
    asked = {client: course.to(client, "shares", keys=public, threshold=needed) for client in keyed}
    shared = course.whole(course.ask(asked, "shares"), {"sealed": str}, lambda one: [other for other in keyed if other != one])
    if len(shared) < needed:
        return _ended(course)
    samples = {client: int(keyed[client].facts["samples"]) for client in shared}
    weights = {client: 1.0 if even else count / sum(samples.values()) for client, count in samples.items()}
    asked = {}
    for client in shared:
        boxes = {str(other): answer.facts["sealed"][str(client)] for other, answer in shared.items() if other != client}
        question = questions[client]
        asked[client] = replace(question, facts={**question.facts, "sealed": boxes, "weight": weights[client]})
    length = sum(int(np.prod(shape)) for shape in shapes.values())
    found = course.ask(asked, "masked", most=4 * length + SMALL)
    hidden = {
        client: answer.tensors["masked"].numpy().view(np.uint32) for client, answer in found.items() if _is(answer, length)
    }
    course.lost.update(dict.fromkeys(found.keys() - hidden.keys(), "its masked change is of another form"))
    if len(hidden) < needed:
        return _ended(course)
    alive, gone = sorted(hidden), sorted(shared.keys() - hidden.keys())
    told = course.ask({client: course.to(client, "reveal", alive=alive, gone=gone) for client in alive}, "reveal")
    told = course.whole(course.whole(told, {"own": int}, lambda _: alive), {"private": int}, lambda _: gone)
    if len(told) < needed:
        return _ended(course)
    total = _unmasked(hidden, told, gone, {int(c): int(keys["mask"], 16) for c, keys in public.items()})
    lost = {client: why for client, why in course.lost.items() if client not in hidden}
    return Masked(masks.shaped(masks.floating(total), shapes), tuple(alive), weights, course.replies, lost)


def _ended(course: _Course) -> Masked:
    """The round has too few answers; whoever answered to the end is not counted either."""
    return Masked(None, replies=course.replies, lost=course.lost)


def _usable(course: _Course, answers: Mapping[int, Message]) -> dict[int, Message]:
    """Leave out whose keys or number of samples cannot be used."""
    found = {}
    for client, answer in answers.items():
        try:
            for name in ("seal", "mask"):
                text = answer.facts.get(name)
                if not isinstance(text, str) or len(text) > LONGEST_KEY or not 2 <= int(text, 16) <= masks.MODP_2048 - 2:
                    raise must_be(f"key {name}", "a public key of the group", text, "The client is left out.")
            samples = answer.facts.get("samples")
            if type(samples) is not int or not 1 <= samples <= 2**40:
                raise must_be("samples", "a whole number of at least 1", samples, "The client is left out.")
            found[client] = answer
        except (InputError, ValueError) as error:
            course.lost[client] = str(error)
    return found


def _is(answer: Message, length: int) -> bool:
    """Whether an answer holds one vector of the right length."""
    value = answer.tensors.get("masked")
    return len(answer.tensors) == 1 and value is not None and str(value.dtype) == "torch.int32" and value.shape == (length,)


def _unmasked(
    hidden: Mapping[int, np.ndarray], told: Mapping[int, Message], gone: list[int], public: Mapping[int, int]
) -> np.ndarray:
    """Take the masks off the sum: the own ones of those in it, and those that they share with whoever is gone."""
    length = len(next(iter(hidden.values())))
    total = np.zeros(length, dtype=np.uint32)
    for value in hidden.values():
        total = total + value
    for client in hidden:
        seed = masks.secret_of({holder: int(answer.facts["own"][str(client)]) for holder, answer in told.items()})
        if seed >= 2**masks.SECRET_BITS:
            raise EquipoiseError(
                f"shares of client {client} must give its seed; got something else. Somebody told a wrong share."
            )
        total = total - masks.mask(seed.to_bytes(32, "big"), length)
    for client in gone:
        private = masks.secret_of({holder: int(answer.facts["private"][str(client)]) for holder, answer in told.items()})
        for other in hidden:
            between = masks.mask(masks.agreed(private, public[other]), length)  # as `other` added it
            total = total - between if client > other else total + between
    return total
