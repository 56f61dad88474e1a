"""The terms of a federation: all that server and clients must agree on, as plain data, checked together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields

from equipoise.errors import InputError, must_be, unknown
from equipoise.federated.strategies import Strategy, strategy_of
from equipoise.units import LARGEST, is_real, is_whole


@dataclass(frozen=True)
class Faults:
    """What goes wrong on purpose, to see what a federation bears; nobody lies unless asked to.

    Attributes:
        die: Probability that a client dies in a round.
        sign, noise, labels: Clients that send their change negated and `FLIPPED` times as large; noise in its place; that
            train on reversed labels.
        nan, giant, shape, replay, late: Clients that send NaN, a change of a million times the size, tensors of other shapes,
            an answer to an earlier question, or nothing in time.
    """

    die: float = 0.0
    sign: int = 0
    noise: int = 0
    labels: int = 0
    nan: int = 0
    giant: int = 0
    shape: int = 0
    replay: int = 0
    late: int = 0

    def of(self, client: int, clients: int) -> str:
        """Return what is wrong with a client, the last ones first; empty for an honest one."""
        wrong = [kind.name for kind in fields(self) if kind.name != "die" for _ in range(getattr(self, kind.name))]
        place = clients - 1 - client
        return wrong[place] if place < len(wrong) else ""

    @classmethod
    def read(cls, text: str) -> Faults:
        """Return the faults of ``die=0.3,sign=2``.

        Raises:
            InputError: An unknown word, or a number that it does not take.
        """
        known, given = {f.name for f in fields(cls)}, {}
        for part in filter(None, (word.strip() for word in text.split(","))):
            name, _, value = (word.strip() for word in part.partition("="))
            if name not in known:
                raise unknown("fault", name, known)
            try:
                number = float(value)
            except ValueError:
                number = math.nan
            if not (0 <= number <= 1 if name == "die" else number >= 0 and number == int(number)):
                wanted = "a probability" if name == "die" else "a whole number of clients"
                raise must_be(f"fault {name}", wanted, value, "Write for example die=0.3,sign=2.")
            given[name] = number if name == "die" else int(number)
        return cls(**given)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Terms:
    """What a federation agrees on.

    Attributes:
        clients, alpha, seed: Into how many the training split is shared out, how unevenly (`partition.shared_out`), and the
            seed of that and of everything else that is drawn.
        rounds, epochs: Rounds, and passes of a client over its own data in each.
        strategy: As `strategies.strategy_of` reads it.
        share: Fraction of the clients that a round asks. With noise each is asked by itself with this probability.
        quorum: Fraction of those asked whose answers a round needs; at least one answer.
        scales: Ratios of the channels that clients hold, in turn; 0 leaves a client out.
        clip: Largest norm of a client's change; None: any.
        noise: Standard deviation of the Gaussian noise on the sum of the changes, as a multiple of `clip`.
        delta: Of the privacy that is stated; None: 1 / clients^1.1.
        bits: 32, or 8 for changes rounded at random to 8-bit steps.
        secure: Whether the server is to see the sum of the changes alone.
        limit_s: Seconds after which an answer is late.
        faults: What goes wrong on purpose.
    """

    clients: int = 10
    alpha: float = 0.5
    rounds: int = 30
    epochs: float = 3.0
    strategy: str = "fedavg"
    share: float = 1.0
    quorum: float = 1 / 3
    scales: tuple[float, ...] = (1.0,)
    clip: float | None = None
    noise: float = 0.0
    delta: float | None = None
    bits: int = 32
    secure: bool = False
    seed: int = 0
    limit_s: float = 600.0
    faults: Faults = field(default_factory=Faults)

    def __post_init__(self) -> None:
        """Report everything that cannot be together."""
        mistakes = [*self._numbers()]
        if not mistakes:
            mistakes = [*self._together(strategy_of(self.strategy))]
        if mistakes:
            raise InputError("\n".join(map(str, mistakes)))

    @property
    def asked(self) -> float:
        """How many clients a round asks on the average."""
        return self.share * len(self.able)

    @property
    def able(self) -> tuple[int, ...]:
        """The clients that take part at all."""
        return tuple(client for client in range(self.clients) if self.scale(client) > 0)

    @property
    def stated_delta(self) -> float:
        """The delta of the privacy that is stated."""
        return self.clients**-1.1 if self.delta is None else self.delta

    def scale(self, client: int) -> float:
        """Return the ratio of the channels that a client holds."""
        return self.scales[client % len(self.scales)]

    def needed(self, asked: int) -> int:
        """Return how many answers a round needs; of masked ones more than half, without which no mask can be taken off."""
        least = max(1, math.ceil(self.quorum * asked - 1e-9))
        return max(least, asked // 2 + 1) if self.secure else least

    def _numbers(self) -> Iterator[InputError]:
        for name in ("clients", "rounds"):
            value = getattr(self, name)
            if not is_whole(value) or not 1 <= value <= 100_000:
                yield must_be(name, "a whole number from 1 to 100000", value, f"Write for example {name}=10.")
        if type(self.seed) is not int or not 0 <= self.seed <= LARGEST:
            yield must_be("seed", "a whole number of at least 0", self.seed, "Write for example 0.")
        for name in ("epochs", "alpha", "limit_s"):
            value = getattr(self, name)
            if not is_real(value) or not value > 0 or (name != "alpha" and value == math.inf):
                yield must_be(name, "a number above 0", value, f"Write for example {name}=1.")
        for name in ("share", "quorum"):
            value = getattr(self, name)
            if not is_real(value) or not 0 < value <= 1:
                yield must_be(name, "above 0 and at most 1", value, "It is a fraction of the clients.")
        scales = self.scales
        if not scales or not all(is_real(s) and 0 <= s <= 1 for s in scales) or not any(scales):
            yield must_be("scales", "ratios from 0 to 1, one of them above 0", scales, "Write for example scales=(1, 0.5).")
        if self.clip is not None and (not is_real(self.clip) or not 0 < self.clip < math.inf):
            yield must_be("clip", "a finite number above 0, or None", self.clip, "It bounds the norm of a client's change.")
        if not is_real(self.noise) or not 0 <= self.noise < math.inf:
            yield must_be("noise", "a finite number of at least 0", self.noise, "It is a multiple of clip.")
        if self.delta is not None and (not is_real(self.delta) or not 0 < self.delta < 1):
            yield must_be("delta", "between 0 and 1, or None", self.delta, "Below 1 / clients says something.")
        if self.bits not in (8, 32):
            yield must_be("bits", "8 or 32", self.bits, "32 sends changes as they are.")
        named = [kind.name for kind in fields(Faults) if kind.name != "die"]
        if is_whole(self.clients) and sum(getattr(self.faults, name) for name in named) > self.clients:
            wrong = ", ".join(f"{name}={getattr(self.faults, name)}" for name in named if getattr(self.faults, name))
            yield must_be("faults", f"for at most {self.clients} clients", wrong, "Ask for fewer.")

    def _together(self, strategy: Strategy) -> Iterator[InputError]:
        several = "Leave one of the two out."
        if self.noise and self.clip is None:
            yield must_be("clip", "given where there is noise", None, "The noise is a multiple of it.")
        if self.noise and not strategy.linear:
            yield must_be("strategy", "fedavg, fedprox or fedadam where there is noise", self.strategy, several)
        if self.secure and not strategy.linear:
            yield must_be("strategy", "fedavg, fedprox or fedadam where the sum alone is seen", self.strategy, several)
        cut = len(set(self.scales) - {0}) > 1
        for name, other, value in (
            ("bits", "32 where the sum alone is seen", self.bits if self.secure and self.bits != 32 else None),
            ("scales", "one where the sum alone is seen", self.scales if self.secure and cut else None),
            ("scales", "one where there is noise", self.scales if self.noise and cut else None),
            ("share", "1 where the sum alone is seen and has noise", self.share if self._chancy else None),
            ("clients", "at least 3 that take part where the sum alone is seen", self.clients if self._few else None),
        ):
            if value is not None:
                yield must_be(name, other, value, several)

    @property
    def _chancy(self) -> bool:
        """Whether chance could ask a single client, whose change would be the sum."""
        return self.secure and self.noise > 0 and self.share < 1

    @property
    def _few(self) -> bool:
        return self.secure and self.asked < 3
