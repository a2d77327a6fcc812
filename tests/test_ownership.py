"""Only what lorica wrote is ever replaced or removed, and a finished run only once another one has taken its place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lorica import ownership
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


def test_resume_and_overwrite_contradict_each_other(prototypes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(
        LoricaError, match="--resume continues the run in the folder, --overwrite starts it anew; give one"
    ):
        run(prototypes, out=tmp_path / "run", progress=False, resume=True, overwrite=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"])
def test_one_of_several_processes_is_refused_whatever_the_launcher(
    name: str, prototypes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "2")
    with pytest.raises(LoricaError, match=f"one of several processes \\({name} is '2'\\), and a run uses one"):
        run(prototypes, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_lone_process_with_a_rank_is_an_ordinary_one(
    prototypes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert run(prototypes, out=tmp_path / "run", progress=False).complete
