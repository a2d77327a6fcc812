"""Atomic writes, the names in a run's folder, and having the folder to oneself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lorica.errors import LoricaError
from lorica.files import RunFolder, append_line, complete_lines, cut, replacing, write_json, write_text

# ---- writing


def test_text_is_written_as_utf8_and_replaces_what_was_there(tmp_path: Path) -> None:
    write_text(tmp_path / "note", "first")
    write_text(tmp_path / "note", "α ± β\n")
    assert (tmp_path / "note").read_bytes() == "α ± β\n".encode()
    assert [file.name for file in tmp_path.iterdir()] == ["note"]


def test_json_is_indented_with_a_list_of_numbers_on_one_line(tmp_path: Path) -> None:
    value = {"a": [[0.5], [1e-05, -2]], "names": ["é [\n1,\n2]", "b"], "none": [], "nothing": None}
    write_json(tmp_path / "x.json", value)
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert '  "a": [\n    [0.5],\n    [1e-05, -2]\n  ],\n  "names": [\n    "é [' in text
    assert text.endswith("}\n")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_json_with_a_number_that_json_lacks_is_refused_and_nothing_changes(tmp_path: Path, bad: float) -> None:
    file = tmp_path / "x.json"
    write_json(file, [1])
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(file, {"loss": bad})
    assert file.read_text() == "[1]\n"
    assert list(tmp_path.iterdir()) == [file]


def test_a_write_that_fails_half_way_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    file = tmp_path / "figure.pdf"
    write_text(file, "old")

    def interrupted() -> None:
        with replacing(file) as new:
            new.write(b"half of the new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("call", ["os.fsync", "os.replace"])
def test_a_full_disk_leaves_the_old_file_and_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    file = tmp_path / "metrics.json"
    write_json(file, [1])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(call, full)
    with pytest.raises(LoricaError, match=r"metrics\.json: cannot be written: No space left on device"):
        write_json(file, [2])
    assert file.read_text() == "[1]\n"
    assert list(tmp_path.iterdir()) == [file]


def test_writing_into_a_folder_that_is_missing_says_so(tmp_path: Path) -> None:
    with pytest.raises(LoricaError, match=r"gone/x\.json: cannot be written: No such file or directory"):
        write_json(tmp_path / "gone" / "x.json", 1)


# ---- lines


def test_lines_are_added_and_a_part_of_one_is_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "log"
    assert complete_lines(file) == []
    append_line(file, "one")
    append_line(file, "zwölf")
    assert complete_lines(file) == [b"one", "zwölf".encode()]
    with file.open("ab") as torn:
        torn.write(b"thr")
    assert complete_lines(file) == [b"one", "zwölf".encode()]
    cut(file, 4)
    assert file.read_bytes() == b"one\n"
    cut(file, 100)
    assert file.read_bytes() == b"one\n"
    cut(tmp_path / "none", 0)


@pytest.mark.parametrize("there", [None, b"one\n"])
def test_a_line_that_does_not_reach_the_disk_is_not_there(
    there: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "log"
    if there:
        file.write_bytes(there)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LoricaError, match="log: cannot be written: No space left on device"):
        append_line(file, "two")
    assert (file.read_bytes() if file.exists() else None) == there


# ---- the folder of a run


def test_a_folder_has_one_process_at_a_time_and_the_second_is_told_who(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "birds"
    program = (
        "import sys, time; from lorica.files import RunFolder\n"
        "with RunFolder(sys.argv[1]).taken(): print('taken', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "taken\n"
        with (
            pytest.raises(LoricaError, match=rf"birds: process {holder.pid} on .*, since 20.* is at work in it"),
            RunFolder(folder).taken(),
        ):
            pass
        holder.send_signal(signal.SIGKILL)
    (folder / f".metrics.json.{'0' * 32}.partial").write_text("half")  # and what it was writing
    (folder / ".mine.partial").write_text("a user's")
    with RunFolder(folder).taken():
        pass
    assert [file.name for file in folder.iterdir()] == [".mine.partial"]


def test_a_file_in_the_way_of_a_run_folder(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with (
        pytest.raises(LoricaError, match=r"runs/birds: cannot be made a folder: Not a directory"),
        RunFolder(tmp_path / "runs" / "birds").taken(),
    ):
        pass


def test_what_is_not_the_folder_of_a_run(tmp_path: Path) -> None:
    with pytest.raises(LoricaError, match=r"not the folder of a run \(recipe.yaml is missing\)"):
        RunFolder(tmp_path).require()
