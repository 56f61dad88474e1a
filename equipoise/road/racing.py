"""Programs raced as their users will load them: in fresh processes that hold nothing but the runtime.

What `optimize` reports at its end, what `export` promises and what `verify` finds all come from here, so they can be compared.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equipoise.batch import Inputs, is_pair, mapped, named, restored, size, take
from equipoise.measure.loads import Load
from equipoise.measure.race import Race, race
from equipoise.records import Evaluation, as_data, program_ref
from equipoise.runtimes.base import Program, Target, get
from equipoise.study.store import Store

INPUTS = "equipoise-inputs.npy"


@dataclass(frozen=True, slots=True)
class Contender:
    """A program and where it runs."""

    program: Program
    target: Target

    def load(self, inputs: Inputs) -> Load:
        """Return what loads the program anew, with one request of its own made of `inputs` (N, ...), repeated as needed.

        A request of what writes is a whole text, word by word: `runtimes.decoding.sentences`.
        """
        import numpy as np

        runtime, rows = get(self.program.runtime), np.arange(self.target.batch) % size(inputs)

        def load() -> Any:
            if is_pair(inputs):
                from equipoise.runtimes.decoding import sentences

                return sentences(self.program, take(inputs, rows), threads=self.target.threads)
            session = runtime.load(self.program, threads=self.target.threads, batch=self.target.batch)
            request = mapped(take(inputs, rows), np.ascontiguousarray)
            return lambda: session.run(request)

        return load


def race_programs(
    contenders: Mapping[str, Contender],
    inputs: Inputs,
    *,
    baseline: str,
    seconds: float,
    patience: float = 1.0,
    seed: int = 0,
) -> Race:
    """Race programs in fresh processes on a request made of `inputs` (N, ...); see `measure.race.race`.

    Raises:
        EquipoiseError: A program cannot be loaded or run there.
    """
    import numpy as np

    few = take(inputs, slice(max(c.target.batch for c in contenders.values())))
    payload = {INPUTS: written(mapped(few, np.ascontiguousarray))}
    options = []
    for number, (name, contender) in enumerate(contenders.items()):
        program = contender.program
        payload |= {f"{number}.{file}": content for file, content in program.files.items()}
        options.append(
            {
                "name": name,
                "runtime": program.runtime,
                "precision": program.precision,
                "files": list(program.files),
                "target": str(contender.target),
            }
        )
    does, asked = "equipoise.road.racing:loads", {"contenders": options}
    return race(does, payload, asked, baseline=baseline, seconds=seconds, patience=patience, seed=seed)


def written(inputs: Inputs) -> bytes:
    """Return inputs as the content of a file of numpy's own form, for `read`."""
    import numpy as np

    held = io.BytesIO()
    if isinstance(inputs, Mapping):
        np.savez(held, **named(inputs))
    else:
        np.save(held, inputs, allow_pickle=False)
    return held.getvalue()


def read(file: Path) -> Inputs:
    """Return the inputs of a file."""
    import numpy as np

    found = np.load(file, allow_pickle=False)
    return dict(found) if isinstance(found, Mapping) else found


def race_stored(
    store: Store, baseline: Evaluation, rivals: Sequence[Evaluation], *, seconds: float, seed: int, patience: float = 1.0
) -> dict[str, Any]:
    """Race evaluations of a study beside its untouched model, from the files and the inputs that it keeps.

    Returns:
        The record of a final race: ``ratios`` by evaluation key, the ``reference``'s own latency, and how it ended.
    Raises:
        StoreError: A file is missing.
    """
    from safetensors.numpy import load

    probe = store.all("study")[-1]["header"]["probe"]
    contenders = {
        name: Contender(Program.stored(ref := program_ref(e), store.read_blob), Target.parse(ref.target))
        for name, e in [("reference", baseline), *((e.key, e) for e in rivals)]
    }
    found = race_programs(
        contenders, restored(load(store.read_blob(probe))), baseline="reference", seconds=seconds, patience=patience, seed=seed
    )
    return {
        "ratios": {e.key: as_data(found.speedup("reference", e.key)) for e in rivals},
        "reference": as_data(found.latency("reference")),
        "stopped": found.stopped,
        "processes": found.processes,
        "times": {name: as_data(found.times(name)) for name in contenders},
        "elasticity": {e.key: found.elasticity("reference", e.key) for e in rivals},
    }


def loads(folder: Path, options: Mapping[str, Any]) -> dict[str, Load]:
    """Return the loads of the contenders in `folder`: what a fresh process calls."""
    inputs = read(folder / INPUTS)
    found = {}
    for number, entry in enumerate(options["contenders"]):
        files = {name: (folder / f"{number}.{name}").read_bytes() for name in entry["files"]}
        program = Program(entry["runtime"], entry["precision"], files)
        found[entry["name"]] = Contender(program, Target.parse(entry["target"])).load(inputs)
    return found
