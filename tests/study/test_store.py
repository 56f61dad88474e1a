"""The store: what was acknowledged is there, once, whatever happens to the process or the disk."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from equipoise.errors import InputError, StoreError
from equipoise.study.files import write_atomic
from equipoise.study.store import SCHEMA, Store

WALK = """
    import sys
    from equipoise.study.store import Store
    with Store.open(sys.argv[1]) as store:
        print("open", flush=True)
        for i in range(int(sys.argv[2])):
            def step():
                print(f"compute {i}", flush=True)
                return {"i": i, "blob": store.blob(bytes([i % 256]) * 20_000)}
            store.once("step", str(i), step)
            print(f"done {i}", flush=True)
"""


def child(code: str, *args: object) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(code), *map(str, args)]


def run(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(child(code, *args), capture_output=True, text=True, timeout=600, check=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "a"


def test_a_step_is_computed_once_and_comes_back_the_same(path: Path) -> None:
    calls: list[int] = []

    def compute() -> dict[str, object]:
        calls.append(1)
        return {"pair": (1, 2), "x": 0.1}

    with Store.open(path) as store:
        first = store.once("eval", "a", compute)
    with Store.open(path) as store:
        assert store.once("eval", "a", compute) == first == {"pair": [1, 2], "x": 0.1}
    assert calls == [1]


def test_a_failed_step_writes_nothing(path: Path) -> None:
    with Store.open(path) as store:
        with pytest.raises(ZeroDivisionError):
            store.once("eval", "a", lambda: {"x": 1 / 0})
        assert store.get("eval", "a") is None
        assert store.once("eval", "a", lambda: {"x": 1}) == {"x": 1}


def test_order_and_time_are_kept_over_resumes(path: Path) -> None:
    for start in (0, 3):
        with Store.open(path) as store:
            for i in range(start, start + 3):
                store.put("eval", str(9 - i), {"i": i}, seconds=0.5)
                store.put("other", str(i), {}, seconds=0.0)
            assert [row["i"] for row in store.all("eval")] == list(range(start + 3))
            assert store.spent() == pytest.approx(0.5 * (start + 3))


def test_nested_steps_count_their_own_time_only(path: Path) -> None:
    def inner() -> dict[str, int]:
        time.sleep(0.05)
        return {}

    with Store.open(path) as store:
        begun = time.perf_counter()
        store.once("outer", "a", lambda: store.once("inner", "a", inner))
        assert 0.05 <= store.spent() <= time.perf_counter() - begun


def test_a_second_result_under_one_name_is_refused(path: Path) -> None:
    with Store.open(path) as store:
        store.put("eval", "a", {"x": 1}, seconds=1.0)
        store.put("eval", "a", {"x": 1}, seconds=1.0)
        assert store.spent() == 1.0
        with pytest.raises(StoreError, match="already recorded"):
            store.put("eval", "a", {"x": 2}, seconds=1.0)
        assert store.all("eval") == [{"x": 1}]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1, 2}])
def test_what_is_not_finite_json_is_refused(path: Path, value: object) -> None:
    with Store.open(path) as store:
        with pytest.raises(StoreError, match="'a' must be finite JSON"):
            store.put("eval", "a", {"x": value}, seconds=0.0)
        assert store.all("eval") == []


def test_identity_names_every_difference(path: Path) -> None:
    with Store.open(path) as store:
        store.identity({"workload": "digits", "seed": 0, "target": "x"})
    with Store.open(path) as store:
        store.identity({"seed": 0, "target": "x", "workload": "digits"})
        with pytest.raises(InputError, match=r"seed: recorded 0, now 1; target: recorded \"x\", now null.*another --store"):
            store.identity({"workload": "digits", "seed": 1})


# ---- crash ----------------------------------------------------------------------------------------------------------------


def sweep(code: str, path: Path, *, kills: int, steps: int, ends: str = "") -> tuple[int, int]:
    """Kill a walk at random moments, then let it end; return (acknowledged but lost, acknowledged but computed again).

    A moment is a number of steps said to be done (whose line ends with `ends`) and a few milliseconds more: walks are as slow
    as the machine is busy.
    """
    rng, done, lost, again = random.Random(0), set[str](), 0, 0
    for kill in [*[True] * kills, False]:
        process = subprocess.Popen(child(code, path, steps), stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        lines = []
        if kill:
            wanted = rng.randrange(4)
            for line in process.stdout:
                lines.append(line.strip())
                wanted -= line.startswith("done ")
                if wanted < 0 and lines[-1].endswith(ends):
                    break
            time.sleep(rng.uniform(0.0, 0.01))
            process.send_signal(signal.SIGKILL)
        lines += process.stdout.read().splitlines()
        process.stdout.close()
        process.wait()
        again += sum(line.startswith("compute ") and line[8:] in done for line in lines)
        done |= {line[5:] for line in lines if line.startswith("done ")}
        with Store.open(path, create=False, readonly=True) as store:
            rows = store.all("step")
            assert [row["i"] for row in rows] == list(range(len(rows)))  # gap-free, in order, none twice
            assert all(store.read_blob(row["blob"]) == bytes([row["i"] % 256]) * 20_000 for row in rows)
            lost += len(done - {str(row["i"]) for row in rows})
    assert len(rows) == steps
    return lost, again


@pytest.mark.slow
def test_kill_9_sweep(path: Path) -> None:
    """Every step said to be done before a kill is there after it and is never computed again."""
    assert sweep(WALK, path, kills=8, steps=200) == (0, 0)
    assert not list((path / "blobs").glob(".torn-*"))


@pytest.mark.slow
def test_the_sweep_sees_a_walk_that_speaks_too_early(path: Path) -> None:
    early = WALK.replace('return {"i"', 'print(f"done {i}", flush=True); time.sleep(0.5 * (i % 10 == 5)); return {"i"')
    early = early.replace("import sys", "import sys, time")
    assert early.count("time") == 2
    lost, again = sweep(early, path, kills=4, steps=50, ends="5")
    assert lost > 0
    assert again > 0


def test_a_killed_owner_does_not_block_even_when_its_fork_lives_on(path: Path) -> None:
    code = """
        import os, signal, sys, time
        from equipoise.study.store import Store
        store = Store.open(sys.argv[1])
        if os.fork() == 0:
            print(os.getpid(), flush=True)
            time.sleep(3600)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    process = subprocess.Popen(child(code, path), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    orphan = int(process.stdout.readline())
    process.wait()
    try:
        Store.open(path).close()
    finally:
        os.kill(orphan, signal.SIGKILL)
        process.stdout.close()


def hot_journal(path: Path) -> tuple[bytes, bytes]:
    """Return the database and the journal as a kill inside a large transaction leaves them."""
    code = """
        import os, shutil, signal, sys
        from equipoise.study.store import Store
        store = Store.open(sys.argv[1])
        store.put("eval", "acknowledged", {"x": "y" * 50_000}, seconds=1.0)
        db = store._db
        shutil.copy(store.path / "study.db", store.path / "before")
        db.execute("PRAGMA cache_size=1")
        db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE records SET data = replace(data, 'y', 'z')")
        for i in range(2, 40):
            db.execute("INSERT INTO records VALUES (?, 'eval', ?, ?, '', 0, 0)", (i, str(i), "z" * 20_000))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    assert run(code, path).returncode == -signal.SIGKILL
    return (path / "study.db").read_bytes(), (path / "study.db-journal").read_bytes()


def test_torn_journals_are_rolled_back(path: Path) -> None:
    database, journal = hot_journal(path)
    assert len(journal) > 5000
    assert b"zzzz" in database  # the transaction had begun to overwrite the file: the journal is needed
    garbage = [journal + b"\xff" * 4096, journal + b"\x00" * 4096, journal + journal[:700]]
    for torn in [journal, *garbage]:
        (path / "study.db").write_bytes(database)
        (path / "study.db-journal").write_bytes(torn)
        with Store.open(path, readonly=True) as store:  # a reader too must be able to recover
            assert [row["x"][0] for row in store.all("eval")] == ["y"]


def test_journals_cut_before_the_database_was_touched(path: Path) -> None:
    """A journal is synced before the database changes, so a torn one goes with an untouched database."""
    _, journal = hot_journal(path)
    before = (path / "before").read_bytes()
    for keep in [*range(64), *range(500, 530), *range(4600, 4640), len(journal) // 2, len(journal) - 1]:
        (path / "study.db").write_bytes(before)
        (path / "study.db-journal").write_bytes(journal[:keep])
        with Store.open(path) as store:
            assert [row["x"][0] for row in store.all("eval")] == ["y"]
            store.put("next", str(keep), {}, seconds=0.0)


def test_a_study_cut_short_is_told_not_read(path: Path) -> None:
    """Losing the journal after the database was half overwritten cannot be mended; it must be seen."""
    database, _ = hot_journal(path)
    (path / "study.db-journal").unlink()
    (path / "study.db").write_bytes(database[: len(database) // 2])
    with pytest.raises(StoreError, match="damaged"), Store.open(path) as store:
        store.all("eval")


@pytest.mark.parametrize("keep", [0, 50, 4096])
def test_a_truncated_database_is_told(path: Path, keep: int) -> None:
    with Store.open(path) as store:
        store.put("eval", "a", {"x": "y" * 9000}, seconds=1.0)
    with (path / "study.db").open("r+b") as file:
        file.truncate(keep)
    with pytest.raises(StoreError, match="damaged"):
        Store.open(path)


def test_a_flipped_byte_in_a_record_is_told(path: Path) -> None:
    with Store.open(path) as store:
        store.put("eval", "a", {"latency": 123456}, seconds=1.0)
    raw = (path / "study.db").read_bytes()
    (path / "study.db").write_bytes(raw.replace(b"123456", b"023456"))
    with Store.open(path) as store, pytest.raises(StoreError, match=r"'a' .* damaged"):
        store.get("eval", "a")


def test_leftovers_of_a_kill_are_swept(path: Path) -> None:
    Store.open(path).close()
    (path / "blobs" / ".torn-1-abc").write_bytes(b"half")
    Store.open(path).close()
    assert list((path / "blobs").iterdir()) == []


# ---- disk -----------------------------------------------------------------------------------------------------------------


def test_a_full_database_loses_nothing_recorded(path: Path) -> None:
    with Store.open(path) as store:
        store.put("eval", "a", {"x": 1}, seconds=1.0)
        pages = store._db.execute("PRAGMA page_count").fetchone()[0]
        store._db.execute(f"PRAGMA max_page_count={pages}")
        with pytest.raises(StoreError, match=r"no space left.*nothing recorded is lost"):
            store.put("eval", "b", {"x": "y" * 100_000}, seconds=1.0)
        store._db.execute(f"PRAGMA max_page_count={pages + 1000}")
        store.put("eval", "b", {"x": "y" * 100_000}, seconds=1.0)
        assert len(store.all("eval")) == 2


def test_a_file_that_cannot_grow_leaves_no_half(path: Path) -> None:
    code = """
        import resource, sys
        from equipoise.errors import StoreError
        from equipoise.study.store import Store
        store = Store.open(sys.argv[1])
        store.put("eval", "a", {}, seconds=1.0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        for write in (lambda: store.blob(b"x" * 200_000), lambda: store.put("eval", "b", {"x": "y" * 200_000}, seconds=1.0)):
            try:
                write()
            except StoreError as error:
                print(error)
    """
    lines = run(code, path).stdout.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("no space left")
    assert "it is full, a quota is used up, or it fails" in lines[1]  # SQLite does not say which
    with Store.open(path) as store:
        assert store.all("eval") == [{}]
        assert list((path / "blobs").iterdir()) == []


def test_no_step_begins_without_room(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(path.anchor)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with Store.open(path) as store, pytest.raises(StoreError, match="no space left"):
        store.once("eval", "a", lambda: pytest.fail("the step was begun"))


def test_write_atomic_replaces_whole(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", b"one")
    write_atomic(tmp_path / "a", b"two")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a", b"two")]
    with pytest.raises(StoreError, match="cannot write"):
        write_atomic(tmp_path / "absent" / "a", b"")


# ---- blobs ----------------------------------------------------------------------------------------------------------------


def test_blobs_are_hashed_again_on_reading(path: Path) -> None:
    with Store.open(path) as store:
        sha = store.blob(b"weights")
        assert store.blob(b"weights") == sha
        assert store.read_blob(sha) == b"weights"
        (path / "blobs" / sha).write_bytes(b"Weights")
        with pytest.raises(StoreError, match="changed on the disk"):
            store.read_blob(sha)
        assert store.blob(b"weights") == sha  # storing again mends it
        assert store.read_blob(sha) == b"weights"
        with pytest.raises(StoreError, match="is damaged: its file"):
            store.read_blob("0" * 64)
        with pytest.raises(StoreError, match="64 hex digits"):
            store.read_blob("../../etc/passwd")


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "a" * 129])
def test_scratch_names_stay_inside(path: Path, name: str) -> None:
    with Store.open(path) as store, pytest.raises(InputError, match="scratch name"):
        store.scratch(name)


# ---- opening --------------------------------------------------------------------------------------------------------------


def test_two_walkers_are_refused_and_a_reader_is_not(path: Path) -> None:
    with Store.open(path) as store:
        store.put("eval", "a", {"x": 1}, seconds=1.0)
        refused = run(WALK, path, 1)
        assert "StoreError" in refused.stderr
        assert f"in use by process {os.getpid()}" in refused.stderr
        with Store.open(path, readonly=True) as reader:
            assert reader.all("eval") == [{"x": 1}]
            store.put("eval", "b", {"x": 2}, seconds=1.0)
            assert len(reader.all("eval")) == 2
            with pytest.raises(StoreError, match="read-only"):
                reader.put("eval", "c", {}, seconds=0.0)
    assert run(WALK, path, 1).returncode == 0


@pytest.mark.parametrize("readonly", [False, True])
def test_a_study_that_is_not_there(path: Path, readonly: bool) -> None:
    with pytest.raises(InputError, match="store must be a study folder"):
        Store.open(path, create=False, readonly=readonly)
    assert not path.exists()


def test_another_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="store must be a study folder or an empty one"):
        Store.open(tmp_path)
    with pytest.raises(InputError, match="store must be a folder"):
        Store.open(tmp_path / "thesis.tex")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_another_programs_database_is_refused(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "study.db")
    db.execute("CREATE TABLE mine (x)")
    db.commit()
    db.close()
    with pytest.raises(InputError, match="another program"):
        Store.open(tmp_path)


def test_a_newer_schema_is_refused(path: Path) -> None:
    with Store.open(path) as store:
        store._db.execute("PRAGMA user_version=99")
    with pytest.raises(StoreError, match=r"newer Equipoise.*Upgrade"):
        Store.open(path)


def test_an_older_schema_is_refused_in_a_sentence_that_says_how_to_go_on_and_left_as_it_is(path: Path) -> None:
    with Store.open(path) as store:
        store.put("eval", "a", {"x": 1}, seconds=1.0)
        store._db.execute("PRAGMA user_version=1")
    before = (path / "study.db").read_bytes()
    for readonly in (False, True):
        with pytest.raises(StoreError) as refused:
            Store.open(path, readonly=readonly)
        assert f"written by an earlier Equipoise (schema 1, here {SCHEMA})" in str(refused.value)
        assert "Run it anew with another --store; this one stays as it is." in str(refused.value)
    assert (path / "study.db").read_bytes() == before


def test_a_lost_database_is_not_taken_for_a_new_study(path: Path) -> None:
    Store.open(path).close()
    (path / "study.db").unlink()
    with pytest.raises(StoreError, match=r"study\.db is missing"):
        Store.open(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_an_unwritable_place_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="permissions"):
        Store.open(tmp_path / "a")
