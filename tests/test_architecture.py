"""The house keeps its shape: imports point one way, rooms stay small, names say what is inside.

Every rule is a function from sources to complaints, so that each is also held to a planted violation.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from equipoise.cli import VERBS
from equipoise.public import PUBLIC

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "equipoise"

L0 = {
    "errors",
    "batch",
    "events",
    "markup",
    "meters",
    "schemes",
    "public",
    "units",
    "records",
    "axes",
    "built_in",
    "fields",
    "budget",
    "ops",
    "techniques",
    "stats",
    "pareto",
}
L1 = {"generated", "workloads", "runtimes", "measure", "compress", "training", "search", "scaling", "study"}
L3 = {"ship", "pages", "serve"}
L4 = {"cli", "__init__", "__main__"}
"""What is in none of these is L2, where the rooms meet: the roads, the verbs without a study."""

ONLY_L0 = L1 | {"pages"}
FOUNDATION_FREE_OF = {"torch", "numpy"}
LATE = {"openvino", "nncf", "sklearn", "PIL", "optuna", "executorch", "torchao", "pandas", "matplotlib", "flwr"}
LATE |= {"gymnasium", "highway_env", "stable_baselines3"}
"""Imported only inside the function that needs them."""
WHOLE = {"generated/two_lanes.py"}
"""An environment of gymnasium's own form, which nothing but gymnasium imports."""

BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}
MAX_LINES = 500
MACHINE_PATHS = tuple(f"/{name}/" for name in ("work", "root"))

Sources = dict[str, str]
"""Path below the package, with slashes -> text."""


parsed = cache(ast.parse)
"""The tree of a source, which many rules read."""


def layer(room: str) -> int:
    """The layer of a top-level module or package."""
    return 0 if room in L0 else 1 if room in L1 else 3 if room in L3 else 4 if room in L4 else 2


def room_of(path: str) -> str:
    """The top-level module or package that a file belongs to."""
    return path.split("/")[0].removesuffix(".py")


def imports(text: str, path: str, *, top_level: bool = False) -> Iterator[str]:
    """Every module that a file imports, absolute, names included (``equipoise.search`` and ``equipoise.search.Space``)."""
    tree = parsed(text)
    package = ["equipoise", *path.split("/")[:-1]]
    nodes = _at_import(tree.body) if top_level else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _at_import(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """The nodes that run when the module is imported (``if TYPE_CHECKING`` does not)."""
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, (ast.If, ast.Try, ast.With)):
            yield from _at_import([child for child in ast.walk(node) if isinstance(child, (ast.Import, ast.ImportFrom))])
        yield node


def own_rooms(text: str, path: str) -> set[str]:
    """The rooms of Equipoise that a file imports, its own left out."""
    found = {name.split(".")[1] for name in imports(text, path) if name.startswith("equipoise.")}
    rooms = {p.split("/")[0].removesuffix(".py") for p in sources()} | L1 | L3 | L4 | {"testing"}
    return (found & rooms) - {room_of(path)}


def broken_layers(files: Sources) -> list[str]:
    """Imports that point up or sideways."""
    out = []
    for path, text in files.items():
        here = room_of(path)
        for there in sorted(own_rooms(text, path)):
            if there == "cli" and here not in ("__main__",):
                out.append(f"{path} imports {there}: nobody imports the command line")
            elif there == "testing":
                out.append(f"{path} imports {there}: it is for tests")
            elif here == "testing":
                continue
            elif here in ONLY_L0 and there not in L0:
                out.append(f"{path} imports {there}: {here} imports only {', '.join(sorted(L0))}")
            elif layer(there) > layer(here):
                out.append(f"{path} (L{layer(here)}) imports {there} (L{layer(there)})")
    return out


def circles(files: Sources) -> list[str]:
    """Circles of files that import one another when they are imported: none of them can be read, or moved, alone."""
    modules = {("equipoise." + path.removesuffix(".py").replace("/", ".")).removesuffix(".__init__"): path for path in files}
    arrows = {}
    for path, text in files.items():
        named = [name for name in imports(text, path, top_level=True) if name in modules]
        rooms = {name.rpartition(".")[0] for name in named}  # ``from room import file`` reads the file, whatever its room holds
        arrows[path] = {modules[name] for name in named if name not in rooms} - {path}
    left = dict(arrows)
    while free := [path for path, there in left.items() if not there & left.keys()]:
        for path in free:
            del left[path]
    while caught := [path for path in left if not any(path in there for there in left.values())]:
        for path in caught:  # it imports a circle, and is in none
            del left[path]
    return [f"{' and '.join(sorted(left))} import one another"] if left else []


BY_NAME = {"study/record.py": {"ask", "export", "tell"}}
"""Files below the verbs that call one by its public name -> the names: ``study.export`` is what a user writes."""
BY_PATH = {
    "built_in",
    "fields",
    "public",
    "cli/__init__",
    "runtimes/base",
    "measure/race",
    "measure/child",
    "measure/memory",
    "meters",
    "compress/technique",
    "road/appetite",
    "testing/__init__",
}
"""Files that import a module by a path that they read from a table, or that a parent process sent."""


def hidden_arrows(files: Sources) -> list[str]:
    """Ways up that no import shows: the package's own public names, and modules imported by a text."""
    out = []
    for path, text in files.items():
        if room_of(path) in L4:
            continue
        found = set(imports(text, path))
        bare = any(isinstance(n, ast.Import) and "equipoise" in {a.name for a in n.names} for n in ast.walk(parsed(text)))
        if bare or found & {f"equipoise.{name}" for name in PUBLIC}:
            out.append(f"{path} imports a public name from the package: that is above it")
        calls = [n for n in ast.walk(parsed(text)) if isinstance(n, ast.Call)]
        names = {ast.unparse(n.args[0]).strip("'") for n in calls if ast.unparse(n.func) == "public" and n.args}
        if names - BY_NAME.get(path, set()):
            out.append(f"{path} calls {sorted(names)} by name: only {BY_NAME} may")
        by_path = any(ast.unparse(n.func).endswith("import_module") for n in calls)
        if by_path and path.removesuffix(".py") not in BY_PATH:
            out.append(f"{path} imports a module by a text: only {sorted(BY_PATH)} may")
    return out


def broken_weights(files: Sources) -> list[str]:
    """Third parties where they may not be."""
    out = []
    for path, text in files.items():
        room = room_of(path)
        every = {name.split(".")[0] for name in imports(text, path)}
        early = {name.split(".")[0] for name in imports(text, path, top_level=True)}
        foreign = every - set(sys.stdlib_module_names) - {"equipoise"}
        if room in L0 and foreign:
            out.append(f"{path} imports {sorted(foreign)}: L0 is pure Python")
        if room in ("search", "scaling", "study", "pages") and "torch" in every:
            out.append(f"{path} imports torch: numbers only")
        if room == "pages" and foreign - {"jinja2", "markupsafe"}:
            out.append(f"{path} imports {sorted(foreign)}: a page needs jinja2 alone")
        if early & LATE and path not in WHOLE:
            out.append(f"{path} imports {sorted(early & LATE)} at the top: import it in the function that needs it")
        instant = room == "__init__" or path == "cli/__init__.py" or (room == "cli" and "def add_parser" in text)
        if instant and (early - set(sys.stdlib_module_names) - {"equipoise"}):
            out.append(f"{path} imports a third party at the top: --help must stay instant")
        rooms_early = {n.split(".")[1] for n in imports(text, path, top_level=True) if n.startswith("equipoise.")}
        if instant and (rooms_early & {room_of(p) for p in sources()}) - L0 - {"cli"}:
            out.append(f"{path} imports {sorted(rooms_early - L0)} at the top: --help must stay instant")
    return out


def bad_rooms(files: Sources) -> list[str]:
    """Files that grew too long or whose name says nothing."""
    long = [f"{path} has {n} lines; {MAX_LINES} at most" for path, text in files.items() if (n := text.count("\n")) > MAX_LINES]
    stems = {path: {Path(part).stem for part in path.split("/")} for path in files}
    return long + [f"{path}: a name that says nothing" for path, names in stems.items() if names & BANNED_NAMES]


def undocumented(files: Sources) -> list[str]:
    """Public modules, classes and functions without a docstring."""
    out = []
    for path, text in files.items():
        if not text.strip():
            continue
        tree = parsed(text)
        nodes: list[tuple[str, ast.AST]] = [(path, tree), *_public(tree.body, path)]
        out += [f"{name} has no docstring" for name, node in nodes if not ast.get_docstring(node)]  # type: ignore[arg-type]
    return out


def _public(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, ast.AST]]:
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            overload = any("overload" in ast.dump(d) for d in node.decorator_list)
            if not overload:
                yield f"{prefix}:{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from _public(node.body, f"{prefix}:{node.name}")


def bad_exports(files: Sources) -> list[str]:
    """Packages that do not say what is public, or name what is not there."""
    out = []
    for path, text in files.items():
        if not path.endswith("__init__.py") or not text.strip():
            continue
        tree = parsed(text)
        names = next((_literal(node) for node in tree.body if _assigns(node, "__all__")), None)
        bound = set(_bound(tree.body))
        if names is None and not bound - {"annotations"}:
            continue
        if names is None:
            out.append(f"{path} has no literal __all__")
        elif "__getattr__" not in bound:
            out += [f"{path} exports {name}, which is not there" for name in names if name not in bound]
    return out


def _assigns(node: ast.stmt, name: str) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return any(isinstance(t, ast.Name) and t.id == name for t in targets)


def _literal(node: ast.stmt) -> list[str] | None:
    """The strings of a literal list or tuple, starred literals tables aside."""
    value = getattr(node, "value", None)
    if isinstance(value, (ast.List, ast.Tuple)):
        return [e.value for e in value.elts if isinstance(e, ast.Constant)]
    return [] if value is not None else None


def _bound(body: list[ast.stmt]) -> Iterator[str]:
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from ((alias.asname or alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name))


def machine_paths(files: Sources) -> list[str]:
    """Paths of one machine in what everybody reads."""
    return [f"{path} names {bad}" for path, text in files.items() for bad in MACHINE_PATHS if bad in text]


@cache
def sources() -> Sources:
    """Every Python file of the package."""
    return {p.relative_to(PACKAGE).as_posix(): p.read_text(encoding="utf-8") for p in sorted(PACKAGE.rglob("*.py"))}


RULES = [broken_layers, hidden_arrows, circles, broken_weights, bad_rooms, undocumented, bad_exports]


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.__name__)
def test_house(rule):
    assert rule(sources()) == []


def test_no_machine_paths_in_tracked_files():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = {}
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.is_file() and b"\0" not in (data := path.read_bytes()):
            files[name] = data.decode("utf-8", errors="replace")
    assert machine_paths(files) == []


def test_verbs_and_files_are_the_same():
    files = {p.stem for p in (PACKAGE / "cli").glob("*.py") if not p.stem.startswith("_") and "def add_parser" in p.read_text()}
    assert {verb.replace("-", "_") for verb in VERBS} == files
    assert {module for module, _ in VERBS.values()} == {f"equipoise.cli.{name}" for name in files}


PLANTED = [
    (broken_layers, "compress/prune.py", "from equipoise.search import Space"),
    (broken_layers, "compress/prune.py", "from ..search import Space"),
    (broken_layers, "compress/prune.py", "from equipoise import search"),
    (broken_layers, "measure/latency.py", "def f():\n    import equipoise.runtimes.base"),
    (broken_layers, "records.py", "from equipoise.study.store import Store"),
    (broken_layers, "study/record.py", "from equipoise.road.bench import Workbench"),
    (broken_layers, "road/walk.py", "from equipoise.ship.artifact import Artifact"),
    (broken_layers, "road/walk.py", "from equipoise.cli import main"),
    (broken_layers, "pages/view.py", "from equipoise.study.record import Study"),
    (broken_layers, "road/walk.py", "from equipoise.testing import contract"),
    (hidden_arrows, "study/record.py", "def f():\n    import equipoise\n    equipoise.export(1)"),
    (hidden_arrows, "study/record.py", "def f():\n    from equipoise import export"),
    (hidden_arrows, "study/record.py", "from equipoise.public import public\npublic('verify')"),
    (hidden_arrows, "ship/artifact.py", "import importlib\nimportlib.import_module('equipoise.ship.verify')"),
    (broken_weights, "stats.py", "import numpy as np"),
    (broken_weights, "search/space.py", "def f():\n    import torch"),
    (broken_weights, "runtimes/ov.py", "import openvino"),
    (broken_weights, "runtimes/ov.py", "try:\n    import openvino\nexcept ImportError:\n    pass"),
    (broken_weights, "cli/demo.py", "import rich\n\n\ndef add_parser(verbs): ..."),
    (broken_weights, "cli/demo.py", "from equipoise.study.store import Store\n\n\ndef add_parser(verbs): ..."),
    (broken_weights, "pages/view.py", "def f():\n    import numpy"),
    (bad_rooms, "search/utils.py", ""),
    (bad_rooms, "road/walk.py", "x = 1\n" * (MAX_LINES + 1)),
    (undocumented, "road/walk.py", '"""M."""\n\n\ndef run():\n    pass'),
    (undocumented, "road/walk.py", '"""M."""\n\n\nclass A:\n    """A."""\n\n    def run(self):\n        pass'),
    (bad_exports, "search/__init__.py", '"""M."""\nfrom math import pi'),
    (bad_exports, "search/__init__.py", '__all__ = ["Space"]'),
    (machine_paths, "README.md", "cd " + MACHINE_PATHS[0] + "main"),
]


@pytest.mark.parametrize(("rule", "path", "text"), PLANTED, ids=lambda v: v if isinstance(v, str) and "/" in v else "")
def test_planted_violations_are_found(rule, path, text):
    assert len(rule({path: text})) == 1


def test_a_planted_circle_is_found() -> None:
    files = {"a.py": "from equipoise.b import x", "b.py": "from equipoise import c", "c.py": "import equipoise.a"}
    files |= {"d.py": "import equipoise.a"}
    assert circles(files) == ["a.py and b.py and c.py import one another"]
    late = {"a.py": "from equipoise.b import x", "b.py": "def f():\n    import equipoise.a"}
    assert circles(late) == []


ALLOWED = [
    (
        "road/walk.py",
        "from equipoise.search import Space\nfrom equipoise.compress import prune\nfrom equipoise.study.store import Store",
    ),
    (
        "compress/prune.py",
        "import torch\nfrom equipoise.records import Plan\nfrom . import fold",
    ),
    ("runtimes/ov.py", "def f():\n    import openvino"),
    ("cli/demo.py", "from equipoise.errors import must_be\n\n\ndef run():\n    from equipoise.study.store import Store"),
    (
        "ship/artifact.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from equipoise.ship.verify import Verification",
    ),
    ("study/record.py", "from equipoise.public import public\n\n\ndef f():\n    public('export')"),
]


@pytest.mark.parametrize(("path", "text"), ALLOWED)
def test_what_is_allowed_is_not_reported(path, text):
    assert broken_layers({path: text}) + hidden_arrows({path: text}) + broken_weights({path: text}) == []


def test_import_is_light_and_without_side_effects():
    code = (
        "import sys, logging, random\n"
        "state = random.getstate(); handlers = list(logging.getLogger().handlers)\n"
        "import equipoise\n"
        "assert random.getstate() == state and logging.getLogger().handlers == handlers\n"
        "print(sorted({'torch', 'numpy', 'rich', 'onnxruntime', 'jinja2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""


def shadowed(names: set[str], rooms: set[str]) -> list[str]:
    """Public names that a submodule of the same name replaces once it is imported."""
    return sorted(names & rooms)


def test_what_is_public_is_one_table() -> None:
    import equipoise

    assert set(equipoise.__all__) == {*PUBLIC, "__version__"}


def test_no_public_name_is_also_a_submodule() -> None:
    import equipoise

    rooms = {room_of(path) for path in sources()}
    assert shadowed(set(equipoise.__all__), rooms) == []
    assert shadowed({"optimize", "prune"}, rooms | {"optimize"}) == ["optimize"]


def test_every_verb_is_callable_twice_in_one_process() -> None:
    import importlib

    import equipoise

    for path in sources():
        importlib.import_module("equipoise." + path.removesuffix(".py").replace("/", ".").removesuffix(".__init__"))
    for name in set(equipoise.__all__) - {"__version__"}:
        for _ in range(2):
            assert callable(getattr(equipoise, name)), name


@pytest.mark.parametrize(
    "before", ["from equipoise.optimize import optimize", "import equipoise.optimize", "import equipoise.road.walk"]
)
def test_the_verb_keeps_its_name_whatever_was_imported_before(before: str) -> None:
    code = f"import equipoise as eq\n{before}\nfrom equipoise import optimize as verb\nassert callable(eq.optimize)"
    asks = "\nfrom equipoise.optimize import optimize as former\nassert verb is former is eq.optimize\nprint('fine')"
    done = subprocess.run([sys.executable, "-c", code + asks], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "fine", done.stderr


def test_the_contracts_are_public_and_loaded_when_used() -> None:
    code = "import sys\nimport equipoise.testing as t\nassert 'torch' not in sys.modules"
    code += "\nfor name in t.__all__: assert callable(getattr(t, name))"
    asks = "\nfrom equipoise.testing import check_family, check_runtime, check_technique\nprint(len(t.__all__))"
    done = subprocess.run([sys.executable, "-c", code + asks], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "3", done.stderr
