"""Interactions from a file: which column is which, the order of time, numbers that stay, and what cannot be read."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from equipoise.errors import InputError
from equipoise.workloads.interactions import Interactions, read_interactions

ROWS = "user,item,time\nb,jam,30\na,tea,10\nb,tea,20\na,oil,40\n"


def test_rows_are_sorted_by_user_and_time(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text(ROWS)
    found = read_interactions(file)
    assert (found.users, found.items) == (("a", "b"), ("tea", "jam", "oil"))  # in the order in which they came
    names = [(found.users[u], found.items[i], t) for u, i, t in zip(found.user, found.item, found.time, strict=True)]
    assert names == [("a", "tea", 10), ("a", "oil", 40), ("b", "tea", 20), ("b", "jam", 30)]
    assert found.notes == ()


@pytest.mark.parametrize(
    "content",
    [
        ROWS,
        "\ufeffTimestamp,extra,Item_ID,USER_ID\n30,x,jam,b\n10,x,tea,a\n20,x,tea,b\n40,x,oil,a\n",
        "user,item,time\r\nb,jam,1970-01-01T00:00:30\r\na,tea,1970-01-01T00:00:10+00:00\r\n\r\n"
        "b,tea,1970-01-01T01:00:20+01:00\r\na,oil,1970-01-01 00:00:40\r\n",
    ],
)
def test_the_same_however_it_is_written(tmp_path: Path, content: str) -> None:
    plain, packed, wanted = tmp_path / "a.csv", tmp_path / "b.csv.gz", tmp_path / "w.csv"
    plain.write_text(content, encoding="utf-8", newline="")
    packed.write_bytes(gzip.compress(content.encode()))
    wanted.write_text(ROWS)
    right = read_interactions(wanted)
    for file in (plain, packed):
        found = read_interactions(file)
        assert found.items == right.items
        assert all(np.array_equal(getattr(found, name), getattr(right, name)) for name in ("user", "item", "time"))


def test_columns_are_given(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("who,item,what,when\na,0,tea,1\na,0,jam,2\n")
    assert read_interactions(file, user="who", item="what", time="when").items == ("tea", "jam")
    with pytest.raises(InputError, match=r"user column of .* must be one of user_id, user, .*\?user=NAME"):
        read_interactions(file)
    with pytest.raises(InputError, match=r"item column of .* must be one of who, item, what, when; got 'wat'"):
        read_interactions(file, user="who", item="wat", time="when")
    with pytest.raises(InputError, match="three different ones"):
        read_interactions(file, user="who", item="who", time="when")


def test_rows_that_repeat_are_left_out_and_told() -> None:
    found = Interactions.of(["a", "a", "a", "a"], ["tea", "tea", "tea", "jam"], [1.0, 1.0, 2.0, 2.0])
    assert len(found) == 3  # at another time it is no repeat
    assert found.notes == ("1 row repeats another and is left out",)


def test_newer_rows_change_no_number() -> None:
    rows = [("a", "tea", 1.0), ("b", "zinc", 2.0), ("a", "oil", 3.0), ("c", "ale", 4.0), ("b", "jam", 4.0)]
    whole, early = (Interactions.of(*(list(part) for part in zip(*given, strict=True))) for given in (rows, rows[:3]))
    assert whole.items == ("tea", "zinc", "oil", "ale", "jam")
    assert whole.items[: len(early.items)] == early.items
    assert whole.until(4.0).items == early.items
    assert len(whole.until(4.0)) == 3
    assert whole.until(0.0).items == ()


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.txt", ROWS.encode(), r"an existing \.csv or \.csv\.gz file"),
        ("a.csv", b"", "user column of"),
        ("a.csv", b"user,item\na,tea\n", r"time column of .*\?time=NAME"),
        ("a.csv", b"user,item,time\na,tea,1\na,,2\n", "item in line 3 of .* must be given"),
        ("a.csv", b"user,item,time\na,tea,1\na,jam\n", "time in line 3 of .* must be given"),
        ("a.csv", b"user,item,time\na,tea,1\na,jam,soon\n", "time in line 3 of .* an ISO date; got 'soon'"),
        ("a.csv", b"user,item,time\na,tea,1\na,jam,nan\n", "time in line 3 of .*; got 'nan'"),
        ("a.csv", b"user,item,time\na,tea,1\nb,tea,2\n", r"at least two different ones; got \['tea'\]"),
        ("a.csv", b"user,item,time\n", "must be rows below the header; got 'none'"),
        ("a.csv", b"user,item,time,User\na,tea,1,b\n", "column user of .* must be there once; got '2 of it'"),
        ("a.csv", b"user,item,time\na,tea,1600000000000\n", "before the year 5000; got '1600000000000'. Milliseconds"),
        ("a.csv", b"user,item,time\na,t\xff,1\n", "UTF-8"),
        ("a.csv", b'user,item,time\na,"tea,1\n', "a readable table"),
        ("a.csv.gz", b"no gzip", "a readable table"),
        ("a.csv.gz", gzip.compress(ROWS.encode(), mtime=0)[:-9], "a readable table"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=told):
        read_interactions(tmp_path / name)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="an existing"):
        read_interactions(tmp_path / "none.csv")
