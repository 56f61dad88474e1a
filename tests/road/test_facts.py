"""What a road knows of a model, through its record and back."""

from __future__ import annotations

import json

from planted_road import ONE, TWO, facts

from equipoise.records import as_data
from equipoise.road.facts import facts_from


def test_facts_survive_their_record() -> None:
    given = facts(ONE, TWO)
    assert facts_from(json.loads(json.dumps(as_data(given)))) == given
    assert given.acted_on("depth.b") == ("b.one", "b.two")
    assert given.acted_on("nothing") == ()
    plan = given.space.decode(given.space.encode(given.space.untouched.but({"depth.b": "drop", "bits.b.one": 8})))
    assert plan["bits.b.one"] == 32
