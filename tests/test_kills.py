"""Runs whose process is killed at random moments, in an epoch, between stages, while a file is written, while testing:
they end with the same bits as an uninterrupted one. Models that are learning then: they are the old one or the new one.
And what SIGTERM, SIGHUP and Ctrl-C leave."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from lorica.data.images import ImageArrays
from lorica.data.sources import Source
from lorica.learner import Learner

METHODS: dict[str, dict[str, Any]] = {
    "sd_lora": {},
    "gumbel_cl_lora": {},
    "hide_prompt": {"alignment_epochs": 3},  # two stages, and two more at the end of a task
    "cl_lora": {"variant": "released_code"},  # two steps a batch
    "ran_pac": {"width": 64},
    "joint": {},
}
DRIVER = Path(__file__).with_name("kill_driver.py")
MODEL_DRIVER = Path(__file__).with_name("model_kill_driver.py")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture
def recipe(request: pytest.FixtureRequest, small_recipe: dict[str, Any], tmp_path: Path) -> Path:
    """One with more steps, and snapshots so often that most kills find one."""
    method = request.param
    values = small_recipe | {
        "method": {"name": method, **METHODS[method]},
        "fit": {"epochs": 8, "batch_size": 6, "augment": "shift", "learning_rate": 0.01},
        "snapshot_seconds": 0.05,
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def lorica(*arguments: str, **more: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lorica", *arguments]
    return subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **more)


def uninterrupted(recipe: Path, out: Path) -> tuple[dict[str, Any], float]:
    """What a run leaves that nobody stops, and how long its process takes without its start."""
    program = (
        "import sys, time, torch; from lorica.run import run; torch.set_num_threads(1); start = time.perf_counter()\n"
        "run(sys.argv[1], out=sys.argv[2], progress=False); print(time.perf_counter() - start)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(recipe), str(out)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    return bits(out), float(done.stdout)


def bits(folder: Path) -> dict[str, Any]:
    """All that a run leaves, without the times it took."""
    left: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name == "checkpoints/journal.jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            for line in lines[1:]:
                del line["entry"]["train_seconds"], line["entry"]["data_seconds"], line["seal"]
                line.get("change", {}).pop("date", None)
            left[name] = lines
        elif name in ("metrics.json", "cost.json"):
            content = json.loads(path.read_text()).items()
            left[name] = {key: value for key, value in content if key not in ("train_seconds", "data_seconds")}
        elif name != "environment.json":
            left[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return left


def killed(recipe: Path, out: Path, span: float, seed: int) -> int:
    """Runs the recipe to its end through as many kills as it takes; returns how many."""
    command = [sys.executable, str(DRIVER), str(recipe), str(out), str(span), str(seed)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["code"] == 0, done.stderr
    return said["kills"]


@pytest.mark.parametrize("recipe", ["sd_lora", "hide_prompt"], indirect=True)
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(recipe: Path, tmp_path: Path) -> None:
    expected, seconds = uninterrupted(recipe, tmp_path / "whole")
    for share in (0.7, 0.35, 0.15):  # a machine may be busier the first time than the next
        out = tmp_path / f"killed-{share}"
        if kills := killed(recipe, out, share * seconds, seed=0):
            break
    assert kills
    assert bits(out) == expected


@pytest.mark.slow
@pytest.mark.parametrize("recipe", METHODS, indirect=True)
def test_forty_kills_of_each_method(recipe: Path, tmp_path: Path) -> None:
    expected, seconds = uninterrupted(recipe, tmp_path / "whole")
    kills, rounds = 0, 0
    while kills < 40:
        kills += killed(recipe, tmp_path / f"killed-{rounds}", 0.6 * seconds, seed=rounds)
        assert bits(tmp_path / f"killed-{rounds}") == expected
        shutil.rmtree(tmp_path / f"killed-{rounds}")
        rounds += 1
    print(f"{recipe.parent.name}: {kills} kills in {rounds} runs")  # noqa: T201


@pytest.fixture
def model(small_recipe: dict[str, Any], six_classes: Source, tmp_path: Path) -> tuple[Path, Path]:
    """One of two classes, whose changes are trained in many steps with snapshots; and what it is to learn."""
    train = six_classes.train
    assert isinstance(train, ImageArrays)
    fit = {"epochs": 12, "batch_size": 6, "augment": "shift", "learning_rate": 0.01}
    learner = Learner(tmp_path / "model", recipe=small_recipe, fit=fit, snapshot_seconds=0.05, keep=1)
    first = train.labels < 2
    learner.learn((train.images[first], train.labels[first]))
    data = tmp_path / "data.npz"
    np.savez(data, images=train.images[~first], labels=train.labels[~first])
    return tmp_path / "model", data


def killed_rounds(what: str, model: Path, data: Path, out: Path, kills: int) -> list[dict[str, Any]]:
    """What was found in each round; after each, the same work came to its end."""
    command = [sys.executable, str(MODEL_DRIVER), what, str(model), str(data), str(out), str(kills), "0"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {each["again"] for each in found} == {1}
    return found


def killed_while_learning(model: Path, data: Path, out: Path, kills: int) -> list[dict[str, Any]]:
    """What was found in each round, all of which then ended with the bits of a learning that nobody disturbed."""
    out.mkdir()
    found = killed_rounds("learn", model, data, out, kills)
    expected = bits(out / "whole")
    assert len(expected["checkpoints/journal.jsonl"]) == 3
    for number in range(len(found)):
        assert bits(out / f"{number}") == expected
    return found


def test_a_model_that_is_killed_while_it_learns(model: tuple[Path, Path], tmp_path: Path) -> None:
    found = killed_while_learning(*model, tmp_path / "out", 3)
    assert sum(each["killed"] for each in found) == 3


@pytest.mark.slow
def test_fifty_kills_of_a_model_that_learns(model: tuple[Path, Path], tmp_path: Path) -> None:
    found = killed_while_learning(*model, tmp_path / "out", 50)
    kills = [each for each in found if each["killed"]]
    assert len(kills) == 50
    assert any(each["snapshot"] for each in kills)
    new, within = sum(each["there"] for each in kills), sum(each["snapshot"] for each in kills)
    print(f"{len(kills)} kills: {new} left the new model; {within} found a snapshot")  # noqa: T201


def killed_while_exporting(model: Path, data: Path, out: Path, kills: int) -> list[dict[str, Any]]:
    """What was found in each round. The model keeps its bits, and nothing is left beside the exports."""
    stored = np.load(data)
    Learner(model, keep=1).learn((stored["images"], stored["labels"]))
    before = bits(model)
    out.mkdir()
    found = killed_rounds("export", model, data, out, kills)
    assert bits(model) == before
    assert not list(out.glob(".*"))
    return found


def test_an_export_that_is_killed(model: tuple[Path, Path], tmp_path: Path) -> None:
    found = killed_while_exporting(*model, tmp_path / "out", 3)
    assert sum(each["killed"] for each in found) == 3


@pytest.mark.slow
def test_fifty_kills_of_an_export(model: tuple[Path, Path], tmp_path: Path) -> None:
    found = killed_while_exporting(*model, tmp_path / "out", 50)
    kills = [each for each in found if each["killed"]]
    assert len(kills) == 50
    print(f"{len(kills)} kills: {sum(each['there'] for each in kills)} left the new export")  # noqa: T201


@pytest.mark.parametrize("recipe", ["sd_lora"], indirect=True)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_a_snapshot_and_says_so(number: signal.Signals, recipe: Path, tmp_path: Path) -> None:
    values = yaml.safe_load(recipe.read_text())
    values["fit"]["epochs"], values["snapshot_seconds"] = 400, 600
    recipe.write_text(yaml.safe_dump(values))
    out = tmp_path / "run"
    process = lorica("run", str(recipe), "--out", str(out))
    try:
        deadline = time.monotonic() + 120
        while not (out / "history.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not (out / "snapshot.safetensors").exists()
        process.send_signal(number)
        if number == signal.SIGINT:
            process.send_signal(number)  # as quiet as the first
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert "Traceback" not in said
    said = re.sub(r"\s+", " ", said)
    assert "what was finished is kept, and of a task under way its last snapshot; the same command continues" in said
    if number != signal.SIGINT:
        assert number.name in said
        assert (out / "snapshot.safetensors").exists()
    assert not (out / ".lorica.lock").exists()
