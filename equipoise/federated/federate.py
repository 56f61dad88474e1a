"""Train one model on data that stay where they are: clients train, the server takes the mean, and the next round begins."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from equipoise.errors import must_be
from equipoise.federated.combine import mean
from equipoise.federated.ledger import Ledger, Round
from equipoise.federated.members import cuts_for, members
from equipoise.federated.privacy import epsilon, statement
from equipoise.federated.rounds import Hall, one_round
from equipoise.federated.state import Server, loaded, travelling
from equipoise.federated.strategies import strategy_of
from equipoise.federated.terms import Terms
from equipoise.federated.transport import InProcess, Transport
from equipoise.measure import machine
from equipoise.records import SCHEMA, Reading, as_data, dumps, measured
from equipoise.study.files import write_atomic
from equipoise.training import Recipe
from equipoise.units import counted, show
from equipoise.verbs.train import built, claim, train, usual_recipe, write_files
from equipoise.workloads import Split, Task, as_family, as_task, asked, predict
from equipoise.workloads.families import Family, Scale
from equipoise.workloads.weights import packed

PLAIN_SGD = Recipe(optimizer="sgd", lr=0.1, schedule="cosine", momentum=0.0, nesterov=False, clip=None, weight_decay=1e-4)
"""For SCAFFOLD, whose control variates are mean gradients: steps that are nothing but a rate times a gradient."""


@dataclass(frozen=True)
class Federated:
    """A model that clients trained together, and how it got there.

    Attributes:
        model: Of the largest scale, in evaluation mode.
        rounds: All of them, oldest first.
        reached: Name -> reading: quality, bytes, seconds; that of central training where it was asked for.
        privacy: What is guaranteed, in a sentence.
        notes: What its user should know.
    """

    folder: Path
    model: nn.Module
    terms: Terms
    rounds: tuple[Round, ...]
    reached: Mapping[str, Reading]
    header: Mapping[str, Any]
    recipe: Recipe
    privacy: str
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Federated({self.header['model']} on {self.header['task']}: {self.sentence()}; in {self.folder})"

    def sentence(self) -> str:
        """Return what came out, in words."""
        metric, central = self.header["metric"]["name"], self.reached.get("central_quality")
        beside = "" if central is None else f" (central training {central.get():.2f})"
        up, down = (show(self.reached[name].get(), "B") for name in ("up_bytes", "down_bytes"))
        made, clients = counted(len(self.rounds), "round"), counted(self.terms.clients, "client")
        quality = self.reached["quality"].get()
        return (
            f"{metric} {quality:.2f}{beside} on validation data after {made} of {clients}; {up} up, {down} down; {self.privacy}"
        )

    def summary(self) -> dict[str, Any]:
        """Return all of it as JSON data."""
        return {
            "schema": SCHEMA,
            "header": dict(self.header),
            "terms": as_data(self.terms),
            "recipe": {name: value for name, value in as_data(self.recipe).items() if value is not None},
            "rounds": [as_data(one) for one in self.rounds],
            "reached": {name: as_data(reading) for name, reading in self.reached.items()},
            "privacy": self.privacy,
            "notes": list(self.notes),
        }


def federate(
    family: Family | str,
    task: Task | str,
    scale: Scale | None = None,
    *,
    store: str | Path,
    terms: Terms | None = None,
    recipe: Recipe | None = None,
    processes: bool = False,
    central: bool = False,
    test: bool = False,
    on_round: Callable[[Round], None] | None = None,
) -> Federated:
    """Train `family` at `scale` on `task`, its training split shared out over clients, and write all of it to `store`.

    The same call again goes on where a killed one stopped, to the same curve. The folder then holds ``model.safetensors``,
    ``rounds.csv`` and ``run.json``; what clients keep between rounds lies in ``clients``.

    Args:
        family, task: Or their names, as on the command line; with `processes` their names.
        scale: Dimension -> value of the whole model; the family's defaults stand for what is left out.
        store: Folder of the run; made if need be.
        terms: Clients, rounds, strategy and all else that is agreed on; None takes `Terms`'s.
        recipe: Of the whole run, of which each round has its part of the schedule; None takes the one of `train`
            without its slow rise, or `PLAIN_SGD` for SCAFFOLD.
        processes: Whether each client is a process of its own that talks to the server over HTTP, else all are in this one.
        central: Whether to train the same model on all of the data too, for as many passes, in ``store/central``.
        test: Whether to score the test split, once, at the end.
        on_round: Called with each round that was made.
    Raises:
        InputError: Anything that cannot be used, before any round; or a folder that holds another run.
        EquipoiseError: Too few clients answered; every round before is kept.

    Example:
        >>> from equipoise.federated import Terms
        >>> found = federate("cnn", "digits", store="runs/f", terms=Terms(rounds=20))  # doctest: +SKIP
    """
    terms, folder, names = terms or Terms(), Path(store), (family, task)
    if processes and not all(isinstance(name, str) for name in names):
        raise must_be("family and task", "names where clients are processes", names, "Write for example 'cnn', 'digits'.")
    family = as_family(family)
    task = family.prepared(as_task(task, family))
    full, chosen = family.scale(**(scale or {})), recipe or usual(task, family, terms)
    _check(chosen, terms)
    header = {
        "model": family.name,
        "task": task.name,
        "scale": {name: float(value) for name, value in full.items()},
        "seed": terms.seed,
        "metric": {"name": task.metric.name, "maximize": task.metric.maximize},
    }
    claimed = {**header, "terms": as_data(terms), "recipe": as_data(chosen), "task": task.fingerprint}
    _made(folder)
    claim(folder, claimed, first=False)
    cuts = cuts_for(terms, task, built(family, full, task, terms.seed))
    hall = Hall(terms, strategy_of(terms.strategy), cuts)
    clients = members(
        terms, task, cuts, chosen, folder=folder / "clients"
    )  # before a folder is taken: too few samples are told
    claim(folder, claimed, first=True)
    hall = replace(hall, noise_seed=_secret(folder) if terms.noise else 0)
    if processes:
        from equipoise.federated.launch import Processes

        transport: Transport = Processes.started(str(names[0]), str(names[1]), full, terms, chosen, folder=folder)
    else:
        transport = InProcess({number: client.handle for number, client in clients.items()})
    try:
        server, rounds = _walked(hall, task, transport, Ledger(folder), on_round)
    finally:
        transport.close()
    largest = max(cuts)
    model = loaded(cuts[largest].model, server.weights).eval()
    reached = _reached(model, task, rounds, test=test)
    if central:
        passes = terms.rounds * terms.epochs * terms.asked / terms.clients
        beside = train(family, task, full, store=folder / "central", epochs=passes, recipe=recipe, seed=terms.seed, test=test)
        reached |= {f"central_{name}": beside.reached[name] for name in ("quality", "test_quality") if name in beside.reached}
    privacy = statement(len(rounds), q=terms.share, noise=terms.noise, delta=terms.stated_delta)
    told = {**header, "machine": machine.describe()}
    found = Federated(folder, model, terms, rounds, reached, told, chosen, privacy, _notes(terms, cuts[largest].plan.choices))
    write_files(model, task, folder)
    write_atomic(folder / "model.safetensors", packed(model))
    write_atomic(folder / "run.json", dumps(found.summary()).encode())
    return found


def _walked(
    hall: Hall, task: Task, transport: Transport, ledger: Ledger, tell: Callable[[Round], None] | None
) -> tuple[Server, tuple[Round, ...]]:
    """Make the rounds that are not recorded yet."""
    model = hall.cuts[max(hall.cuts)].model
    weights, terms = travelling(model), hall.terms
    parameters = [name for name, value in model.named_parameters() if value.is_floating_point()]
    server, rounds = ledger.load() or (hall.strategy.begin(weights, parameters), ())
    while server.round < terms.rounds:
        began = time.monotonic()
        server, shares = one_round(hall, server, transport)
        quality, loss = _looked(loaded(model, server.weights).eval(), task, task.validation)
        made, q = server.round, terms.share
        spent = epsilon(made, q=q, noise=terms.noise, delta=terms.stated_delta) if terms.noise else None
        rounds = (*rounds, Round(made, quality, loss, time.monotonic() - began, spent, shares))
        ledger.keep(server, rounds)
        if tell is not None:
            tell(rounds[-1])
    return server, rounds


def _looked(model: nn.Module, task: Task, split: Split) -> tuple[float, float]:
    """Return (quality, loss) on a split."""
    outputs, targets = predict(model, split)
    loss = float(task.loss(outputs, targets))
    return task.metric.score(*(asked(task.metric, model, split) if task.metric.ask else (outputs, targets))), loss


def _reached(model: nn.Module, task: Task, rounds: tuple[Round, ...], *, test: bool) -> dict[str, Reading]:
    splits = {"": task.validation, **({"test_": task.test} if test else {})}
    found = {}
    for prefix, split in splits.items():
        quality, loss = _looked(model, task, split)
        note = f"{task.metric.name}, {split.name} split"
        found[f"{prefix}quality"] = measured(quality, task.metric.unit, n=len(split), note=note)
        found[f"{prefix}loss" if prefix else "validation_loss"] = measured(loss, "1", n=len(split))
    return {
        **found,
        "up_bytes": measured(sum(one.up_bytes for one in rounds), "B", note="all clients, all rounds"),
        "down_bytes": measured(sum(one.down_bytes for one in rounds), "B", note="all clients, all rounds"),
        "train_s": measured(sum(one.seconds for one in rounds), "s", note="rounds, and looks at the validation split"),
    }


def usual(task: Task, family: Family, terms: Terms) -> Recipe:
    """Return the recipe that is taken where none is given."""
    usual = usual_recipe(task, family)
    if strategy_of(terms.strategy).control:
        return replace(PLAIN_SGD, batch=usual.batch)
    return usual if family.pretrained else replace(usual, schedule="cosine")  # a slow rise would cost the first rounds


def _check(recipe: Recipe, terms: Terms) -> None:
    """Raise for steps whose mean gradient cannot be read off the way that they went."""
    plain = recipe.optimizer == "sgd" and recipe.momentum == 0 and recipe.clip is None
    if strategy_of(terms.strategy).control and not plain:
        got = f"{recipe.optimizer}, momentum {recipe.momentum}, clip {recipe.clip}"
        remedy = "Write optimizer=sgd, momentum=0, clip=none, or take another strategy."
        raise must_be("recipe", "plain SGD for scaffold", got, remedy)


def _made(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise must_be("store", "a folder that can be made", str(folder), f"{error.strerror}: name another.") from error


def _secret(folder: Path) -> int:
    """Return the seed of the noise: drawn once, kept beside the run, in no record; whoever knows it can take the noise off."""
    path = folder / "noise.key"
    if not path.is_file():
        write_atomic(path, secrets.token_bytes(32))
        path.chmod(0o600)
    return int.from_bytes(hashlib.sha256(path.read_bytes()).digest()[:7], "big")


def _notes(terms: Terms, plan: Mapping[str, Any]) -> tuple[str, ...]:
    """What is to be known of how it was done."""
    found = []
    if terms.noise:
        found.append("noise.key must stay with the server: whoever has it can take the noise off")
        found.append("run.json must stay there too: it has each client's samples and mean loss, without noise")
    if terms.secure:
        found.append("the server saw sums alone, if it and the clients kept to the protocol")
    if plan:
        found.append(f"the server's model is the largest that a client holds: {dict(plan)}")
    if strategy_of(terms.strategy).rule is mean and not terms.clip:
        found.append("one lying client can move the mean as far as its change is large; clip bounds that")
    return tuple(found)
