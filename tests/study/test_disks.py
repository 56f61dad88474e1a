"""Where a study lies: a disk that fails or is full at any moment, and file systems that other machines share."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from test_store import child, run

from equipoise.study.place import caution, shared
from equipoise.study.store import Store

FAILING = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static int refused(const char *kind, int file, int once, int error) {
    static int calls;
    const char *wanted = getenv("FAILS"), *at = getenv("FAIL_AT");
    if (file < 3 || !wanted || strcmp(wanted, kind) || ++calls < atoi(at) || (once && calls > atoi(at))) return 0;
    if (calls == atoi(at)) ((ssize_t (*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write"))(2, "planted ", 8);
    errno = error;
    return 1;
}
#define SYNC(name) int name(int file) { \\
    return refused("sync", file, 1, EIO) ? -1 : ((int (*)(int))dlsym(RTLD_NEXT, #name))(file); }
#define PLACED(name) ssize_t name(int file, const void *from, size_t count, off_t at) { \\
    return refused("write", file, 0, ENOSPC) \\
        ? -1 : ((ssize_t (*)(int, const void *, size_t, off_t))dlsym(RTLD_NEXT, #name))(file, from, count, at); }
SYNC(fsync)
SYNC(fdatasync)
PLACED(pwrite)
PLACED(pwrite64)
ssize_t write(int file, const void *from, size_t count) {
    return refused("write", file, 0, ENOSPC)
        ? -1 : ((ssize_t (*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write"))(file, from, count);
}
"""
"""Of all syncs of a process, of files and folders, one alone fails; or from one of its writes on the disk is full."""
SYNCED = """
    import sys
    from equipoise.errors import StoreError
    from equipoise.study.store import Store
    with Store.open(sys.argv[1]) as store:
        for i in range(4):
            sha = store.blob(bytes([i]) * 20_000)
            try:
                store.put("step", str(i), {"i": i, "blob": sha}, seconds=0.0)
            except StoreError as error:
                try:
                    store.put("step", "next", {"i": i}, seconds=0.0)
                    print("went on", flush=True)
                except StoreError as again:
                    print("stopped" if str(again) == str(error) else again, flush=True)
                raise
            print(f"done {i}", flush=True)
    print("all", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fails", "tells"), [("sync", "the disk did not take what was written"), ("write", "no space left for")]
)
def test_wherever_the_disk_fails_the_walk_stops_and_the_next_one_goes_on(tmp_path: Path, fails: str, tells: str) -> None:
    """At each sync, and at each write, of a walk of four steps."""
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler, to let calls of a process fail")
    (tmp_path / "failing.c").write_text(FAILING)
    made = ["cc", "-shared", "-fPIC", "-o", str(tmp_path / "failing.so"), str(tmp_path / "failing.c"), "-ldl"]
    subprocess.run(made, check=True)
    told = set[str]()
    for number in itertools.count(1):
        path = tmp_path / str(number)
        env = {**os.environ, "LD_PRELOAD": str(tmp_path / "failing.so"), "FAILS": fails, "FAIL_AT": str(number)}
        ended = subprocess.run(child(SYNCED, path), capture_output=True, text=True, timeout=600, check=False, env=env)
        said = ended.stdout.splitlines()
        if "planted" not in ended.stderr:
            break
        if "all" not in said:  # of a folder's sync SQLite does not mind
            assert f"StoreError: {tells}" in ended.stderr
        acknowledged = {line[5:] for line in said if line.startswith("done ")}
        if (path / "study.db").is_file() and acknowledged:
            with Store.open(path, readonly=True) as store:
                assert acknowledged <= {str(row["i"]) for row in store.all("step")}
        assert run(SYNCED, path).stdout.splitlines()[-1] == "all"
        with Store.open(path, readonly=True) as store:
            assert [row["i"] for row in store.all("step")] == list(range(4))  # none lost, none twice
            assert all(store.read_blob(row["blob"]) == bytes([row["i"]]) * 20_000 for row in store.all("step"))
        assert not list((path / "blobs").glob(".torn-*"))
        told |= {*said}
    assert number > 20
    assert ended.returncode == 0
    assert "stopped" in told
    assert "went on" not in told


MOUNTS = {
    Path("/"): "ext4",
    Path("/home"): "nfs4",
    Path("/home/me/fast"): "xfs",
    Path("/net"): "cifs",
    Path("/ssh"): "fuse.sshfs",
}


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/home/me/runs", "nfs4"),
        ("/home", "nfs4"),
        ("/home/me/fast/runs", ""),
        ("/homes/a", ""),
        ("/net/a", "cifs"),
        ("/ssh/a", "fuse.sshfs"),
    ],
)
def test_a_folder_that_other_machines_may_share_is_told(
    folder: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shared(Path(folder), MOUNTS) == kind
    assert shared(Path(folder), {}) == ""
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: [SimpleNamespace(mountpoint=str(tmp_path), fstype=kind)])
    assert caution(tmp_path / "runs" / "a").startswith(f"{tmp_path}/runs/a lies on {kind}," if kind else "")
    assert bool(caution(tmp_path)) == bool(kind)
