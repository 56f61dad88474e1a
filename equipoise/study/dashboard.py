"""A study as one of Optuna's, for its dashboard and its tools."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from equipoise.errors import missing_extra
from equipoise.records import Evaluation
from equipoise.study.header import Header

VALUES = ("drop", "latency_s")


def optuna_study(header: Header, rows: Sequence[Evaluation], *, storage: Any = None, name: str) -> Any:
    """Return an `optuna.Study` with a trial for each evaluation: its plan as parameters, drop and latency (s) as values.

    What else was measured, the fidelity and a failure's reason are attributes of the trial.

    Args:
        storage: As Optuna takes it, such as ``sqlite:///trials.db``; None keeps it in memory. A study of this name in it is
            written anew.
    Raises:
        MissingExtraError: Optuna is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise missing_extra("optuna", "optuna") from error
    if storage is not None and name in optuna.get_all_study_names(storage):
        optuna.delete_study(study_name=name, storage=storage)
    made = optuna.create_study(storage=storage, study_name=name, directions=["minimize"] * len(VALUES))
    with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
        made.set_metric_names(list(VALUES))
    menus: dict[str, Any] = {row.knob.name: optuna.distributions.CategoricalDistribution(row.knob.menu) for row in header.space}
    for e in rows:
        params = {knob: choice for knob, choice in e.plan.choices.items() if knob in menus}
        told: dict[str, Any] = {"fidelity": e.fidelity, "key": e.key}
        if e.ok and e.drop.known and e.axis("latency_s").known:
            told |= {f"{axis} [{reading.unit}]": reading.get() for axis, reading in e.cost.items() if reading.known}
            values: list[float] | None = [e.drop.get(), e.axis("latency_s").get()]
            state = optuna.trial.TrialState.COMPLETE
        else:
            values, state = None, optuna.trial.TrialState.FAIL
            told["reason"] = e.reason
        used = {knob: menus[knob] for knob in params}
        trial = optuna.trial.create_trial(state=state, values=values, params=params, distributions=used, user_attrs=told)
        made.add_trial(trial)
    return made
