"""Terms that cannot be together are told before anything is begun."""

from __future__ import annotations

from typing import Any

import pytest

from equipoise.errors import InputError
from equipoise.federated.rounds import asked_in
from equipoise.federated.terms import Faults, Terms


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"clients": 0}, "clients must be a whole number"),
        ({"rounds": 1.5}, "rounds must be a whole number"),
        ({"seed": -1}, "seed must be"),
        ({"epochs": 0}, "epochs must be a number above 0"),
        ({"epochs": float("inf")}, "epochs must be a number above 0"),
        ({"alpha": "uneven"}, "alpha must be a number above 0"),
        ({"share": 0}, "share must be above 0"),
        ({"quorum": 1.1}, "quorum must be above 0"),
        ({"scales": ()}, "scales must be ratios"),
        ({"scales": (0.0,)}, "scales must be ratios"),
        ({"scales": (2.0,)}, "scales must be ratios"),
        ({"clip": -1.0}, "clip must be a finite number"),
        ({"noise": -1.0}, "noise must be a finite number"),
        ({"noise": 1.0}, "clip must be given where there is noise"),
        ({"delta": 1.0}, "delta must be between 0 and 1"),
        ({"bits": 4}, "bits must be 8 or 32"),
        ({"strategy": "best"}, "strategy must be one of"),
        ({"secure": True, "strategy": "median"}, "strategy must be fedavg, fedprox or fedadam where the sum alone"),
        (
            {"noise": 1.0, "clip": 1.0, "strategy": "scaffold"},
            "strategy must be fedavg, fedprox or fedadam where there is noise",
        ),
        ({"secure": True, "bits": 8}, "bits must be 32"),
        ({"secure": True, "scales": (1.0, 0.5)}, "scales must be one"),
        ({"secure": True, "noise": 1.0, "clip": 1.0, "share": 0.5}, "share must be 1"),
        ({"secure": True, "clients": 2}, "clients must be at least 3"),
        ({"faults": Faults(sign=11)}, "faults must be for at most 10 clients"),
    ],
)
def test_terms_out_of_range_are_told(given: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Terms(**given)


def test_all_mistakes_are_told_together() -> None:
    with pytest.raises(InputError) as caught:
        Terms(clients=0, share=2, bits=3)
    assert len(str(caught.value).splitlines()) == 3


def test_a_quorum_is_a_share_of_those_asked_and_more_than_half_of_masked_ones() -> None:
    assert [Terms(quorum=0.3).needed(asked) for asked in (1, 3, 4, 10)] == [1, 1, 2, 3]
    assert Terms(secure=True, quorum=0.3).needed(10) == 6
    assert Terms(secure=True, quorum=0.9).needed(10) == 9


def test_scales_are_given_in_turn_and_zero_leaves_out() -> None:
    terms = Terms(clients=5, scales=(1.0, 0.5, 0.0))
    assert [terms.scale(client) for client in range(5)] == [1.0, 0.5, 0.0, 1.0, 0.5]
    assert terms.able == (0, 1, 3, 4)


def test_a_share_of_the_clients_is_asked_a_fixed_number_or_each_by_chance() -> None:
    fixed, drawn = Terms(clients=20, share=0.3), Terms(clients=20, share=0.3, noise=1.0, clip=1.0)
    assert {len(asked_in(fixed, made, 0)) for made in range(30)} == {6}
    assert asked_in(fixed, 3, 0) == asked_in(fixed, 3, 0) != asked_in(fixed, 4, 0)
    counts = [len(asked_in(drawn, made, 0)) for made in range(300)]
    assert len(set(counts)) > 4
    assert sum(counts) / 300 == pytest.approx(6, abs=5 * (20 * 0.3 * 0.7 / 300) ** 0.5)
    assert asked_in(drawn, 3, 0) == asked_in(drawn, 3, 1)  # who is asked must not depend on who answered


def test_faults_are_read_and_given_to_the_last_clients() -> None:
    faults = Faults.read("die=0.3, sign=2,nan=1")
    assert faults == Faults(die=0.3, sign=2, nan=1)
    assert [faults.of(client, 5) for client in range(5)] == ["", "", "nan", "sign", "sign"]
    for text, words in (("dye=1", "Did you mean 'die'"), ("die=2", "a probability"), ("sign=0.5", "a whole number of clients")):
        with pytest.raises(InputError, match=words):
            Faults.read(text)
