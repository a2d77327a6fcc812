"""Only what lorica wrote is ever replaced or removed, and a finished run only once another one has taken its place."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lorica import Learner, files, ownership
from lorica.errors import LoricaError
from lorica.files import RunFolder
from lorica.report import figures
from lorica.results import read_result
from lorica.run import evaluate, run

USERS_OWN = {
    "checkpoints/resnet.pth": b"weights",
    "checkpoints/task_0000.safetensors": b"\x02\x00\x00\x00\x00\x00\x00\x00{}",
    "checkpoints/journal.jsonl": b'{"day": 1}\n',
    "figures/fig1.tex": b"\\begin{figure}",
    "figures/accuracy_curves.png": b"\x89PNG of their own",
    "metrics.json": b'{"loss": 0.1}',
    "cost.json": b"[1, 2]",
    "recipe.yaml": b"eggs: 3\n",
    "environment.json": b'{"PATH": "x"}',
    "history.jsonl": b'{"git": "log"}\n',
    "confusion.json": b'{"why": "so"}',
    "stream.jsonl": b'{"stream": "of consciousness"}\n',
    "tracking.json": b'{"parcel": 7}',
    "snapshot.safetensors": b"",
}


@pytest.fixture
def prototypes(small_recipe: dict[str, Any]) -> dict[str, Any]:
    return {**small_recipe, "method": "prototypes"}


def everything_in(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("flags", [{}, {"overwrite": True}, {"resume": True}], ids=["plain", "overwrite", "resume"])
def test_a_users_own_files_are_refused_by_name_whatever_the_flag(
    flags: dict[str, bool], prototypes: dict[str, Any], tmp_path: Path
) -> None:
    paper = tmp_path / "paper"
    for name, content in USERS_OWN.items():
        (paper / name).parent.mkdir(parents=True, exist_ok=True)
        (paper / name).write_bytes(content)
    before = everything_in(paper)
    with pytest.raises(LoricaError) as caught:
        run(prototypes, out=paper, progress=False, **flags)
    # to go on replaces fewer files than to begin
    for name in (
        USERS_OWN if "resume" not in flags else ["recipe.yaml", "metrics.json", "checkpoints/task_0000.safetensors"]
    ):
        assert any(problem.startswith(f"{paper / name}: ") for problem in caught.value.problems), name
    assert everything_in(paper) == before


def test_files_beside_a_run_stay(prototypes: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    run(prototypes, out=out, progress=False)
    run(prototypes, out=out, progress=False, overwrite=True)
    assert (out / "notes.txt").read_text() == "mine"


def test_a_file_of_the_users_in_a_runs_folder_stops_an_overwrite(prototypes: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(prototypes, out=out, progress=False)
    (out / "figures").mkdir(exist_ok=True)
    (out / "figures" / "fig1.tex").write_text("mine")
    before = everything_in(out)
    with pytest.raises(LoricaError, match=r"fig1\.tex: is in the way and not lorica's"):
        run(prototypes, out=out, progress=False, overwrite=True)
    assert everything_in(out) == before


def test_all_that_a_run_writes_is_known_again(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = run(small_recipe, out=out, progress=False)
    figures.draw_all([result], out / "figures")
    written = [path for path in out.rglob("*") if path.is_file()]
    assert {"recipe.yaml", "metrics.json", "journal.jsonl", "accuracy_curves.png"} <= {path.name for path in written}
    assert [path for path in written if not ownership.wrote(path)] == []
    copy = out / "figures" / "mine.png"
    shutil.copy(out / "figures" / "accuracy_curves.png", copy)
    assert not ownership.wrote(copy)  # under a name of the user's


class Stopped(Exception):
    """Stands for the end of a process."""


def test_a_finished_run_stays_until_the_new_one_has_learned_a_task(
    prototypes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    old = run(prototypes, out=out, progress=False)
    before = everything_in(out)
    with monkeypatch.context() as patch:
        patch.setattr("lorica.session.learn_task", lambda *_, **__: (_ for _ in ()).throw(Stopped))
        with pytest.raises(Stopped):
            run(prototypes, out=out, progress=False, overwrite=True, seed=1)
    assert everything_in(out) == before
    assert evaluate(out).accuracy == pytest.approx(old.accuracy[-1])
    new = run(prototypes, out=out, progress=False, overwrite=True, seed=1)
    assert (new.seed, read_result(out).seed) == (1, 1)
    assert sorted(path.name for path in out.iterdir()) == sorted({path.parts[len(out.parts)] for path in before})


@pytest.mark.parametrize("step", ["arriving", "arrived"])
def test_a_run_that_was_being_handed_over_arrives(step: str, prototypes: dict[str, Any], tmp_path: Path) -> None:
    """Killed between the two steps of a hand-over: the next call ends it."""
    old, new, out = tmp_path / "old", tmp_path / "new", tmp_path / "run"
    run(prototypes, out=old, progress=False)
    run(prototypes, out=new, progress=False, seed=1)
    if step == "arriving":
        shutil.copytree(old, out)
    shutil.copytree(new, out / f".lorica.{step}")
    RunFolder(out).require()
    assert read_result(out).seed == 1
    assert json.loads((out / "metrics.json").read_text()) == json.loads((new / "metrics.json").read_text())
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in new.iterdir())


class Killed(BaseException):
    """Stands for a kill; nothing catches it."""


@pytest.fixture
def old_and_new(prototypes: dict[str, Any], tmp_path: Path) -> tuple[Path, Path]:
    old, new = tmp_path / "old", tmp_path / "new"
    run(prototypes, out=old, progress=False)
    run(prototypes, out=new, progress=False, seed=1)
    return old, new


@pytest.mark.parametrize("name", [".lorica.arriving", ".lorica.arrived", ".lorica.anew"])
def test_a_link_where_a_run_arrives_moves_and_removes_nothing(
    name: str, prototypes: dict[str, Any], old_and_new: tuple[Path, Path], tmp_path: Path
) -> None:
    out, _ = old_and_new
    letters = tmp_path / "letters" / "to"
    letters.mkdir(parents=True)
    (letters / "her.txt").write_text("dear")
    (out / name).symlink_to(tmp_path / "letters")
    before = everything_in(out)
    commands: list[Callable[[], object]] = [
        lambda: run(prototypes, out=out, progress=False, overwrite=True),
        lambda: run(prototypes, out=out, progress=False, resume=True),
        lambda: evaluate(out),  # these two need nothing of a run that begins anew, and look at none
    ]
    for command in commands[: 1 if name == ".lorica.anew" else 3]:
        with pytest.raises(LoricaError, match=f"{name}: is a link, and lorica makes none"):
            command()
    assert (letters / "her.txt").read_text() == "dear"
    assert everything_in(out) == before


def test_a_hand_over_that_is_killed_at_any_step_leaves_one_run_or_the_other(
    old_and_new: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = old_and_new
    steps, seen = 0, set()
    while True:
        out = tmp_path / f"run{steps}"
        shutil.copytree(old, out)
        shutil.copytree(new, out / ".lorica.anew")
        left = steps

        def counted(step: Any) -> Any:
            def call(*arguments: Any, **options: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    raise Killed
                return step(*arguments, **options)

            return call

        finished = True
        with monkeypatch.context() as patch:
            for place, name in [
                (os, "replace"),
                (shutil, "move"),
                (shutil, "rmtree"),
                (Path, "unlink"),
                (Path, "rmdir"),
            ]:
                patch.setattr(place, name, counted(getattr(place, name)))
            try:
                RunFolder(out).hand_over()
            except Killed:
                finished = False
        RunFolder(out).require()  # as every command that reads a run does
        seed = read_result(out).seed
        there = {path.relative_to(out): data for path, data in everything_in(out).items()}
        origin = new if seed else old
        assert {path: data for path, data in there.items() if ".lorica.anew" not in path.parts} == {
            path.relative_to(origin): data for path, data in everything_in(origin).items()
        }
        seen.add(seed)
        if finished:
            break
        steps += 1
    assert steps > 10
    assert seen == {0, 1}


def test_a_process_that_is_killed_while_it_overwrites_leaves_the_old_run(
    small_recipe: dict[str, Any], prototypes: dict[str, Any], tmp_path: Path
) -> None:
    out, recipe = tmp_path / "run", tmp_path / "recipe.yaml"
    run(prototypes, out=out, progress=False)
    before = everything_in(out)
    recipe.write_text(yaml.safe_dump({**small_recipe, "fit": {**small_recipe["fit"], "epochs": 100_000}}))
    command = [sys.executable, "-m", "lorica", "run", str(recipe), "--out", str(out), "--overwrite"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not (out / ".lorica.anew" / "history.jsonl").exists() and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.05)
        with pytest.raises(LoricaError, match=rf"run: process {process.pid} on .* is at work in it"):
            run(small_recipe, out=out, progress=False, overwrite=True)
        process.send_signal(signal.SIGKILL)
    RunFolder(out).require()
    left = everything_in(out)
    assert {path: left[path] for path in before} == before
    assert evaluate(out).accuracy == read_result(out).accuracy[-1]
    assert run(prototypes, out=out, progress=False, overwrite=True, seed=1).complete
    assert {path.name for path in out.iterdir()} == {path.relative_to(out).parts[0] for path in before}


# ---- what the system refuses


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
def test_a_disk_that_no_longer_takes_anything_keeps_what_was_saved(
    call: str, number: int, prototypes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    whole = run(prototypes, out=tmp_path / "whole", progress=False)
    run(prototypes, out=out, progress=False, stop_after=1)
    before = everything_in(out)

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        if call == "open":
            opened = Path.open
            patch.setattr(
                Path, "open", lambda self, mode="r", *a, **k: opened(self, mode, *a, **k) if "r" in mode else refuse()
            )
        else:
            patch.setattr(files.os, call, refuse)
        with pytest.raises(LoricaError, match=os.strerror(number)):
            run(prototypes, out=out, progress=False, resume=True)
    left = everything_in(out)
    kept = {path for path in before if path.suffix == ".safetensors" or path.name in ("recipe.yaml", "metrics.json")}
    assert kept
    assert all(left[path] == before[path] for path in kept)
    assert run(prototypes, out=out, progress=False, resume=True).accuracy == whole.accuracy


@pytest.mark.parametrize("name", ["n" * 256, "a" * 200 + "/" + "b" * 300])
def test_a_name_that_is_too_long_for_the_system(name: str, prototypes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(LoricaError, match="File name too long") as caught:
        run(prototypes, out=tmp_path / name, progress=False)
    assert all(len(problem) < 400 for problem in caught.value.problems)


@pytest.mark.parametrize("name", ["checkpoints", "figures"])
def test_a_file_where_a_folder_belongs_is_named_and_stays(
    name: str, prototypes: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / name).write_text("mine")
    with pytest.raises(LoricaError, match=f"{name}: is in the way and not lorica's"):
        run(prototypes, out=out, progress=False)
    assert (out / name).read_text() == "mine"


@pytest.mark.parametrize("name", ["recipe.yaml", "checkpoints/journal.jsonl"])
def test_a_folder_where_a_file_belongs_is_named_and_stays(
    name: str, prototypes: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    (out / name).mkdir(parents=True)
    with pytest.raises(LoricaError):
        run(prototypes, out=out, progress=False)
    assert (out / name).is_dir()


@pytest.mark.parametrize("name", ["", "checkpoints", "recipe.yaml", "checkpoints/journal.jsonl"])
@pytest.mark.parametrize("how", ["run", "evaluate"])
def test_what_cannot_be_read_is_named(
    how: str, name: str, prototypes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root reads everything, so that the system's refusal is played."""
    out = tmp_path / "run"
    run(prototypes, out=out, progress=False, stop_after=1)

    def locked(call: Any) -> Any:
        def refuse(path: Any, *arguments: Any, **options: Any) -> Any:
            if isinstance(path, str | Path) and Path(path).is_relative_to(out / name):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return call(path, *arguments, **options)

        return refuse

    for place, call in [(io, "open"), (os, "open"), (os, "scandir"), (os, "listdir")]:
        monkeypatch.setattr(place, call, locked(getattr(place, call)))
    with pytest.raises(LoricaError, match=r"Permission denied|not lorica's, or damaged") as caught:
        run(prototypes, out=out, progress=False, resume=True) if how == "run" else evaluate(out)
    assert str(out / name) in str(caught.value)


def test_resume_and_overwrite_contradict_each_other(prototypes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(
        LoricaError, match="--resume continues the run in the folder, --overwrite starts it anew; give one"
    ):
        run(prototypes, out=tmp_path / "run", progress=False, resume=True, overwrite=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"])
def test_one_of_several_processes_is_refused_where_it_cannot_share(
    name: str, prototypes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "2")
    with pytest.raises(LoricaError, match=f"one of several processes \\({name} is '2'\\) that cannot find each other"):
        run(prototypes, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    with pytest.raises(LoricaError, match="a model is changed by one; `lorica run` alone shares its work"):
        Learner(tmp_path / "model", recipe=prototypes).learn(tmp_path)
    assert not (tmp_path / "model").exists()


def test_a_lone_process_with_a_rank_is_an_ordinary_one(
    prototypes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert run(prototypes, out=tmp_path / "run", progress=False).complete
