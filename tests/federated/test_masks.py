"""Secure aggregation: the sum is exact, a single change looks like noise, who is lost on the way is survived."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest  # type: ignore[import-untyped,unused-ignore]

from equipoise.errors import EquipoiseError, InputError
from equipoise.federated import masks
from equipoise.federated.masker import Masker
from equipoise.federated.messages import Message
from equipoise.federated.secure import masked_sum
from equipoise.federated.transport import InProcess

LENGTH = 5000


def test_the_group_is_that_of_rfc_3526() -> None:
    """p = 2^2048 - 2^1984 - 1 + 2^64 (floor(2^1918 pi) + 124476), and a safe prime as far as Fermat tells."""
    bits = 1918 + 64

    def arctan(inverse: int) -> int:
        power, total, n = (1 << bits) // inverse, 0, 0
        while power:
            total += (-power if n % 2 else power) // (2 * n + 1)
            power, n = power // inverse**2, n + 1
        return total

    pi = (16 * arctan(5) - 4 * arctan(239)) >> 64
    assert 2**2048 - 2**1984 - 1 + 2**64 * (pi + 124476) == masks.MODP_2048
    for prime in (masks.MODP_2048, (masks.MODP_2048 - 1) // 2, masks.FIELD):
        assert pow(3, prime - 1, prime) == 1
    assert pow(3, masks.MODP_2048 + 1, masks.MODP_2048 + 2) != 1


@given(st.integers(0, 2**256 - 1), st.integers(2, 7))
def test_as_many_shares_as_the_threshold_give_a_secret_back_and_one_less_does_not(secret: int, threshold: int) -> None:
    shares = masks.shares_of(secret, range(7), threshold)
    few = dict(list(shares.items())[-threshold:])
    assert masks.secret_of(few) == masks.secret_of(shares) == secret
    few.popitem()
    assert not few or masks.secret_of(few) != secret


def test_both_ends_agree_and_a_key_outside_of_the_group_is_refused() -> None:
    one, other, third = (masks.pair() for _ in range(3))
    assert masks.agreed(one[0], other[1]) == masks.agreed(other[0], one[1]) != masks.agreed(one[0], third[1])
    for public in (0, 1, masks.MODP_2048 - 1, masks.MODP_2048):
        with pytest.raises(EquipoiseError, match="inside of the group"):
            masks.agreed(one[0], public)


def test_a_sealed_share_is_read_by_its_holder_alone() -> None:
    box = masks.sealed(b"k" * 32, b"a share")
    assert masks.opened(b"k" * 32, box) == b"a share"
    assert b"share" not in box
    for key, tried in ((b"l" * 32, box), (b"k" * 32, box[:-1] + bytes([box[-1] ^ 1])), (b"k" * 32, b"")):
        with pytest.raises(EquipoiseError, match="sealed share"):
            masks.opened(key, tried)


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=20), st.integers(1, 20))
def test_numbers_are_kept_to_half_a_step(values: list[float], clients: int) -> None:
    given_ = torch.tensor(values, dtype=torch.float64)
    found = masks.floating(masks.fixed(given_, clients=clients))
    assert float((found - given_).abs().max()) <= 0.5 / 2**masks.FRACTION_BITS + 1e-12


class Silent(Exception):
    """It is gone."""


def course(values: Sequence[torch.Tensor], *, gone: dict[int, str] | None = None, needed: int = 3, even: bool = True):  # type: ignore[no-untyped-def]
    """(what came of it, what the server saw of each client)."""
    seen: dict[int, np.ndarray] = {}
    maskers: dict[int, Masker] = {}

    def handler(client: int):  # type: ignore[no-untyped-def]
        def handle(asked: Message) -> Message:
            if (gone or {}).get(client) == asked.kind:
                raise EquipoiseError("gone")
            facts = asked.facts
            told: dict[str, object] = {"samples": client + 1}
            tensors = {}
            if asked.kind == "keys":
                maskers[client] = Masker(client, facts["nonce"])
                told |= maskers[client].keys()
            elif asked.kind == "shares":
                told["sealed"] = maskers[client].shares(facts["keys"], facts["threshold"])
            elif asked.kind == "train":
                tensors["masked"] = maskers[client].masked(values[client] * facts["weight"], facts["sealed"])
                seen[client] = tensors["masked"].numpy().view(np.uint32)
            else:
                told |= maskers[client].reveal(facts["alive"], facts["gone"])
            kind = "masked" if asked.kind == "train" else asked.kind
            return Message(kind, {**{n: facts[n] for n in ("round", "nonce", "client")}, **told}, tensors)

        return handle

    questions = {c: Message("train", {"round": 0, "nonce": f"n{c}", "client": c}) for c in range(len(values))}
    transport = InProcess({client: handler(client) for client in questions})
    found = masked_sum(questions, transport, {"w": (len(values[0]),)}, even=even, needed=needed, limit_s=60)
    return found, seen


def changes(clients: int = 5) -> list[torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    return [0.01 * torch.randn(LENGTH, generator=draws) for _ in range(clients)]


def exact(values: Sequence[torch.Tensor], clients: int) -> torch.Tensor:
    return sum(
        (masks.floating(masks.fixed(value, clients=clients)) for value in values), torch.zeros(LENGTH, dtype=torch.float64)
    )


def test_the_sum_is_exact_and_the_server_sees_nothing_else() -> None:
    values = changes()
    found, seen = course(values)
    assert torch.equal(found.total["w"], exact(values, 5))
    assert found.counted == (0, 1, 2, 3, 4)
    for client, value in enumerate(values):
        share = seen[client] / 2**32
        assert kstest(share, "uniform").pvalue > 1e-4  # a true null at five clients: one false alarm in 2,000 runs
        assert abs(np.corrcoef(share, value.numpy())[0, 1]) < 5 / math.sqrt(LENGTH)
        bare = masks.fixed(value, clients=5)
        assert kstest(bare / 2**32, "uniform").pvalue < 1e-12  # what the test would say of a change without masks
    pairwise = sum(seen.values()).astype(np.uint32)  # masks of pairs vanish here, the own ones do not
    assert not torch.equal(masks.floating(pairwise), found.total["w"])


@pytest.mark.parametrize("stage", ["keys", "shares", "train", "reveal"])
def test_who_is_lost_at_any_stage_is_survived(stage: str) -> None:
    values = changes()
    found, _ = course(values, gone={1: stage, 4: stage})
    counted = (0, 1, 2, 3, 4) if stage == "reveal" else (0, 2, 3)
    assert found.counted == counted
    peers = 3 if stage in ("keys", "shares") else 5
    assert torch.equal(found.total["w"], exact([values[client] for client in counted], peers))
    assert set(found.lost) == ({1, 4} - set(counted))


@pytest.mark.parametrize("stage", ["keys", "shares", "train", "reveal"])
def test_too_few_end_the_round_without_a_sum(stage: str) -> None:
    found, _ = course(changes(), gone={0: stage, 1: stage, 2: stage})
    assert found.total is None
    assert {0, 1, 2} <= set(found.lost)


def test_changes_are_weighted_by_samples() -> None:
    values = changes(3)
    found, _ = course(values, even=False, needed=2)
    shares = [1 / 6, 2 / 6, 3 / 6]
    assert torch.allclose(found.total["w"], sum(s * v.double() for s, v in zip(shares, values, strict=True)), atol=3e-6)
    assert found.weights == pytest.approx(dict(enumerate(shares)))


def ready() -> Masker:
    maskers = {client: Masker(client, "n") for client in range(3)}
    keys = {str(client): one.keys() for client, one in maskers.items()}
    boxes = {client: one.shares(keys, 2) for client, one in maskers.items()}
    maskers[0].masked(torch.zeros(4), {str(other): boxes[other]["0"] for other in (1, 2)})
    return maskers[0]


def test_a_client_tells_each_secret_for_one_purpose_and_once() -> None:
    for alive, gone in (([0, 1, 2], [2]), ([0], [1, 2]), ([0, 1], [2, 3]), ([0, 1], [])):
        with pytest.raises(EquipoiseError, match="shares must be asked for once"):
            ready().reveal(alive, gone)
    one = ready()
    assert set(one.reveal([0, 1], [2])["own"]) == {"0", "1"}
    with pytest.raises(EquipoiseError, match="once"):
        one.reveal([0, 1, 2], [])


def test_a_threshold_that_half_could_meet_is_refused() -> None:
    one, other = Masker(0, "n"), Masker(1, "n")
    with pytest.raises(InputError, match="more than half"):
        one.shares({"0": one.keys(), "1": other.keys()}, 1)
