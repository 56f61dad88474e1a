from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.errors import InputError
from equipoise.runtimes.base import RUNTIMES, Program, Target, get, parse_targets, read_targets


@given(st.sampled_from(sorted(RUNTIMES)), st.integers(1, 64), st.integers(1, 1024))
def test_a_target_round_trips(row: str, threads: int, batch: int) -> None:
    runtime, _, device = row.partition(":")
    target = Target(runtime, device or "cpu", threads=threads, batch=batch)
    assert Target.parse(str(target)) == target
    assert target.row == row


def test_what_is_left_out_takes_its_default() -> None:
    assert Target.parse("onnxruntime") == Target("onnxruntime", "cpu", 1, 1)
    assert Target.parse(" torch:cpu?batch=8 ") == Target("torch", batch=8)
    assert parse_targets("onnxruntime:cpu, openvino:cpu") == (Target("onnxruntime"), Target("openvino"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("onnxruntim:cpu", "Did you mean 'onnxruntime'"),
        ("onnxruntime:gpu", "target.device must be one of cpu"),
        ("onnxruntime:cpu?thread=1", "Did you mean 'threads'"),
        ("onnxruntime:cpu?threads=0", "target.threads must be a whole number of at least 1"),
        ("onnxruntime:cpu?threads=1.5", "target.threads"),
        ("onnxruntime:cpu?threads=1&threads=2", "given once"),
        ("onnxruntime:cpu?nonsense", "target option"),
        ("", "target.runtime must be one of"),
    ],
)
def test_a_wrong_target_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Target.parse(text)


@pytest.mark.parametrize("text", ["", " , ", "torch,torch:cpu"])
def test_wrong_lists_of_targets_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="one or more different targets"):
        parse_targets(text)


def test_the_digest_of_a_program_sees_every_part() -> None:
    program = Program("torch", "fp32", {"a": b"1", "b": b"23"})
    others = [
        Program("openvino", "fp32", program.files),
        Program("torch", "int8", program.files),
        Program("torch", "fp32", {"a": b"12", "b": b"3"}),
        Program("torch", "fp32", {"a": b"1", "c": b"23"}),
    ]
    assert len({p.digest for p in [program, *others]}) == 5
    assert program.digest == Program("torch", "fp32", {"b": b"23", "a": b"1"}).digest
    assert program.size_bytes == 3


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "..", "", "a/b"])
def test_a_program_keeps_to_its_folder(name: str) -> None:
    with pytest.raises(InputError, match="plain file name"):
        Program("torch", "fp32", {name: b""})


def test_links_and_missing_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"1")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for name in ("link", "missing"):
        with pytest.raises(InputError, match="a regular file"):
            Program.read(tmp_path, runtime="torch", precision="fp32", names=(name,))


def test_every_table_entry_answers_to_its_name() -> None:
    assert {name: get(name).name for name in RUNTIMES} == {name: name for name in RUNTIMES}
    with pytest.raises(InputError, match="runtime must be one of"):
        get("tensorrt")


def test_targets_of_another_machine_are_read_and_those_of_several_batches_are_not() -> None:
    assert read_targets("onnxruntime:cpu?threads=512")[0].threads == 512
    with pytest.raises(InputError, match=r"target.threads must be at most"):
        parse_targets("onnxruntime:cpu?threads=512")
    for read in (read_targets, parse_targets):
        with pytest.raises(InputError, match="targets must be of one batch"):
            read("onnxruntime:cpu?batch=8,openvino:cpu?batch=1")
