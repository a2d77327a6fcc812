"""What `lorica analyze` measures, against dense tensors, hand-made weights and the exported plain model."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lorica import analysis
from lorica.analysis import (
    NotApplicable,
    analyze,
    distances_between,
    labels,
    relative_distances,
    residuals,
    straight_line,
    summary,
)
from lorica.assembly import assemble
from lorica.backbones import load_backbone
from lorica.config import read_recipe
from lorica.errors import LoricaError
from lorica.learner import load
from lorica.results import Result, read_result
from lorica.run import run

Learn = Callable[..., Result]


@pytest.fixture(scope="module")
def learn(small_recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Learn:
    """`learn(method, **overrides)`: a run of the small recipe, each learned once."""
    known: dict[str, Result] = {}

    def make(method: str, **overrides: Any) -> Result:
        key = f"{method}{overrides}"
        if key not in known:
            folder = tmp_path_factory.mktemp("runs") / method
            recipe = small_recipe | {"method": {"name": method, **overrides}}
            known[key] = run(recipe, out=folder, progress=False)
        return known[key]

    return make


@pytest.fixture
def copied(finished_run: Result, tmp_path: Path) -> Result:
    """The finished run in a folder that a test may change."""
    folder = tmp_path / "copy"
    shutil.copytree(finished_run.path or "", folder)
    return read_result(folder)


def with_diagnostics(result: Result, **diagnostics: Any) -> Result:
    return Result(result.path, result.metrics.model_copy(update={"diagnostics": diagnostics}))


# ---- residuals (Fig. 3a)


def test_residuals_are_those_of_dense_least_squares(finished_run: Result) -> None:
    assert finished_run.path is not None
    method = load(finished_run.path).method
    directions: list[list[np.ndarray]] = [[], [], []]
    for update in method.get_submodule("directions"):  # type: ignore[attr-defined]
        factors = [update.frozen(0), update.frozen(1), (update.up.detach(), update.down.detach())]
        for k, (up, down) in enumerate(factors):
            dense = (up.double() @ down.double()).flatten().numpy()
            directions[k].append(dense / np.linalg.norm(dense))
    stacked = [np.concatenate(parts) for parts in directions]
    expected = []
    for t in (1, 2):
        earlier = np.stack(stacked[:t], axis=1)
        coefficients = np.linalg.lstsq(earlier, stacked[t], rcond=None)[0]
        expected.append(np.linalg.norm(stacked[t] - earlier @ coefficients) / np.linalg.norm(stacked[t]))
    found = residuals(finished_run, "name")
    assert (found.label, found.tasks, found.dropped) == ("name", [2, 3], [])
    np.testing.assert_allclose(found.residuals, expected, rtol=1e-6)


def test_residuals_that_a_run_recorded_are_taken_from_it(finished_run: Result) -> None:
    logged = with_diagnostics(finished_run, residual=[None, 0.9, 0.25], kept=[[0], [0, 1], [0, 1]])
    found = residuals(logged, "kd")
    assert (found.tasks, found.residuals, found.dropped) == ([2, 3], [0.9, 0.25], [3])
    recipe = {"method": {"name": "sd_lora_kd", "squared_residual": True}}
    squared = residuals(Result(logged.path, logged.metrics.model_copy(update={"recipe": recipe})), "kd")
    assert squared.residuals == pytest.approx([0.9**0.5, 0.5])


@pytest.mark.parametrize(
    ("method", "why"), [("lora", "1 low-rank direction, needs two"), ("prototypes", "no low-rank directions")]
)
def test_a_residual_needs_two_directions(method: str, why: str, learn: Learn) -> None:
    with pytest.raises(NotApplicable, match=why):
        residuals(learn(method), method)


# ---- distances (Figs. 2a, 7)


def test_distances_of_hand_made_weights() -> None:
    weights = [torch.tensor(w, dtype=torch.double) for w in ([3, 4], [4, 4], [3, 5], [5, 4])]
    found = distances_between(weights, label="hand", recipe={})
    root = math.sqrt(2)
    assert found.to_start == pytest.approx([0.2, 0.2, 0.4])  # |W0| = 5
    np.testing.assert_allclose(found.between, np.array([[0, root, 1], [root, 0, 5**0.5], [1, 5**0.5, 0]]) / 5)
    # at a right angle; and twice as far the same way: 1 / mean(1, 2)
    assert found.ratios[0][1:] == pytest.approx([root, 2 / 3])


def test_distances_are_of_weights_tuned_from_w0_each_time(learn: Learn, finished_run: Result) -> None:
    """The first task's weights are those of a full fine-tuning run, by then; each later one forgets the earlier
    ones."""
    found = relative_distances(finished_run, tasks=2)
    learning_rate = {"fit.learning_rate": found.recipe["fit"]["learning_rate"]}
    assert learning_rate == {"fit.learning_rate": 1e-4}  # full fine-tuning's own, not the run's 0.01
    tuned = learn("full_finetune")
    recipe = read_recipe(tuned.recipe, learning_rate)
    assert tuned.path is not None
    again = run(recipe, out=tuned.path.parent / "own_rate", progress=False)
    assert again.path is not None
    before = load_backbone(**recipe.backbone.model_dump()).state_dict()
    after = load(again.path, tasks=1).method.encoder.state_dict()
    moved = size = 0.0
    for name, weight in before.items():
        if name.endswith("qkv.weight"):
            q_and_v = [weight.chunk(3)[0], weight.chunk(3)[2]]
            size += sum(float((part**2).sum()) for part in q_and_v)
            moved += sum(
                float(((new - old) ** 2).sum())
                for new, old in zip(after[name].chunk(3)[::2], weight.chunk(3)[::2], strict=True)
            )
    assert moved > 0
    assert found.to_start[0] == pytest.approx(math.sqrt(moved / size), rel=1e-4)

    other_order = relative_distances(finished_run, tasks=3)
    assert other_order.to_start[:2] == found.to_start
    assert other_order.between[0][1] == other_order.between[1][0] == found.between[0][1] > 0


@pytest.mark.parametrize("tasks", [1, 4])
def test_distances_need_two_tasks_that_exist(tasks: int, finished_run: Result) -> None:
    with pytest.raises(LoricaError, match="the run has 3; give --fine-tune from 2 to 3, or 0 for none"):
        relative_distances(finished_run, tasks=tasks)


# ---- straight line (Fig. 4)


@pytest.mark.parametrize("method", ["sd_lora", "lora", "full_finetune", "sd_lora_kd"])
@pytest.mark.parametrize("task", [2, 3])
def test_the_straight_line_is_that_of_the_exported_models(method: str, task: int, learn: Learn) -> None:
    done = learn(method)
    assert done.path is not None
    found = straight_line(done, "name", task=task, points=3)
    assert found.positions == [0, 0.5, 1]
    assert (found.old[-1], found.new[-1]) == (
        pytest.approx(np.mean(done.accuracy[task - 1][:-1])),
        done.accuracy[task - 1][-1],
    )

    before, after = (load(done.path, tasks=n).merged_model() for n in (task - 1, task))
    model, encoder = load(done.path, tasks=task), load(done.path, tasks=task).method.encoder
    mean, std = (torch.as_tensor(each).reshape(3, 1, 1) for each in (encoder.mean, encoder.std))  # type: ignore[arg-type]
    test_data = assemble(read_recipe(done.recipe)).test_data
    mixed = model.merged_model()
    for position, s in enumerate(found.positions):
        mixed.load_state_dict(
            {
                name: last if name.startswith("head.") else (1 - s) * before.state_dict()[name] + s * last
                for name, last in after.state_dict().items()
            }
        )
        row = []
        for index in range(task):
            (batch,) = test_data(index).batches(256, device=torch.device("cpu"))
            with torch.no_grad():
                predicted = mixed((batch.inputs - mean) / std).argmax(dim=1)
            row.append(float((predicted == batch.labels).double().mean()))
        assert found.old[position] == pytest.approx(np.mean(row[:-1]))
        assert found.new[position] == pytest.approx(row[-1])


@pytest.mark.parametrize(
    ("method", "why"),
    [
        ("prototypes", "task 2 does not change the encoder's weights"),
        ("linear_probe", "task 2 does not change the encoder's weights"),
        ("joint", "learns all tasks at once"),
    ],
)
def test_no_straight_line_where_no_weight_moves(method: str, why: str, learn: Learn) -> None:
    with pytest.raises(NotApplicable, match=why):
        straight_line(learn(method), method)


@pytest.mark.parametrize("task", [1, 4])
def test_the_straight_line_needs_a_task_with_old_ones(task: int, finished_run: Result) -> None:
    with pytest.raises(LoricaError, match="the run has learned 3 tasks; give --task from 2 to 3, or 0 for none"):
        straight_line(finished_run, "name", task=task)


def test_a_deleted_checkpoint_is_named(copied: Result) -> None:
    assert copied.path is not None
    (copied.path / "checkpoints/task_0002.safetensors").unlink()
    assert straight_line(copied, "name", task=2, points=2).task == 2
    with pytest.raises(LoricaError, match="checkpoints: the checkpoint after task 3 is needed and is not there"):
        straight_line(copied, "name", task=3)
    with pytest.raises(LoricaError, match="checkpoints: the checkpoint after task 3 is needed"):
        residuals(copied, "name")


def test_data_that_has_changed_is_refused(copied: Result, six_classes_file: Path, tmp_path: Path) -> None:
    data = dict(np.load(six_classes_file))
    names = [f"other {name}" for name in data["class_names"]]
    np.savez(tmp_path / "other.npz", **(data | {"class_names": np.array(names)}))  # type: ignore[arg-type]
    assert copied.path is not None
    file = copied.path / "recipe.yaml"
    file.write_text(file.read_text().replace(str(six_classes_file), str(tmp_path / "other.npz")))
    with pytest.raises(LoricaError, match="the data now gives other classes than the run learned; restore it"):
        straight_line(copied, "name")


# ---- everything


def test_everything_in_the_figures_is_in_the_json(learn: Learn, finished_run: Result, tmp_path: Path) -> None:
    runs = [finished_run, learn("lora"), learn("sd_lora_kd", tolerance=2.0), learn("prototypes")]
    files = {path: path.read_bytes() for each in runs for path in (each.path or Path()).rglob("*") if path.is_file()}
    done = analyze(runs, tmp_path, points=2, fine_tune=2)
    assert done.problems == []
    drawn = {path.name for path in done.figures}
    assert {
        f"{stem}.{kind}"
        for stem in ("accuracy_curves", "accuracy_per_task", "growth", "residuals", "straight_line", "distances")
        for kind in ("pdf", "png")
    } < drawn
    assert sorted(done.figures) == sorted(path for path in tmp_path.iterdir() if path.suffix != ".json")
    written = json.loads((tmp_path / analysis.FILE).read_text())
    assert [each["label"] for each in written["runs"]] == ["sd_lora", "lora", "sd_lora_kd", "prototypes"]
    assert written["runs"][0]["accuracy"] == finished_run.accuracy
    assert written["runs"][0]["magnitudes"] == finished_run.magnitudes
    assert written["runs"][2]["kept"] == [[0], [0], [0]]
    assert [each["label"] for each in written["residuals"]] == ["sd_lora", "sd_lora_kd"]
    assert [each["label"] for each in written["straight_lines"]] == ["sd_lora", "lora", "sd_lora_kd"]
    assert len(written["distances"]) == 1  # one recipe for all of the runs
    assert written["skipped"] == done.skipped
    assert "straight line, prototypes: task 2 does not change the encoder's weights" in done.skipped
    assert "magnitudes: none in lora, prototypes" in done.skipped
    assert files == {path: path.read_bytes() for path in files}
    assert all(not (each.path / "analysis").exists() for each in runs if each.path)
    text = "".join(str(cell) for column in summary(done).columns for cell in column.cells)
    assert "straight_line" in text
    assert "closer to each other than to W0" in text


def test_distances_are_not_measured_twice(
    finished_run: Result, learn: Learn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def measured(run: Result, *, tasks: int, given: object, reporter: object) -> analysis.Distances:
        calls.append(tasks)
        recipe, kinds = analysis._fine_tuning(run, None)
        square = [[float(i != j) for i in range(tasks)] for j in range(tasks)]
        return analysis.Distances("", [1.0] * tasks, square, square, analysis._identity(recipe, kinds))

    monkeypatch.setattr(analysis, "relative_distances", measured)
    monkeypatch.setattr(analysis.figures, "save_all", lambda *_: [])
    runs = [finished_run, learn("lora")]
    first = analyze(runs, tmp_path, task=0)
    assert (calls, first.distances) == ([], [])
    assert "distances: they need training; ask for it with --fine-tune 5" in first.skipped
    assert "straight line: none asked for (--task 0)" in first.skipped
    found = analyze(runs, tmp_path, task=0, fine_tune=2).distances
    assert calls == [2]
    assert analyze(runs, tmp_path, task=0, fine_tune=2).distances == found
    assert analyze(runs, tmp_path, task=0).distances == found
    assert calls == [2]
    analyze(runs, tmp_path, task=0, fine_tune=3)
    assert calls == [2, 3]
    analyze([learn("lora", projections=["k"])], tmp_path, task=0, fine_tune=3)  # other weights
    assert calls == [2, 3, 3]


def test_what_fails_for_one_run_is_said_and_the_rest_is_drawn(
    copied: Result, finished_run: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(analysis.figures, "all_figures", lambda *_: {})
    assert copied.path is not None
    shutil.rmtree(copied.path / "checkpoints")
    done = analyze([finished_run, copied], tmp_path / "out", points=2)
    assert len(done.problems) == 2
    assert all(str(copied.path) in problem for problem in done.problems)
    assert [path.name for path in done.figures if path.suffix == ".pdf"] == ["residuals.pdf", "straight_line.pdf"]
    written = json.loads((tmp_path / "out" / analysis.FILE).read_text())
    assert set(done.problems) < set(written["skipped"])


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        '{"distances": [{"label": 1}]}',
        '{"distances": [{"label": "W", "to_start": [1, 2], "between": [[0, 1]], "ratios": [[0, 1], '
        '[1, 0]], "recipe": {}}]}',
        '{"distances": [{"label": "W", "to_start": ["1", NaN], "between": [], "ratios": [], "recipe": {}}]}',
    ],
)
def test_a_damaged_analysis_is_not_overwritten(content: str, finished_run: Result, tmp_path: Path) -> None:
    (tmp_path / analysis.FILE).write_text(content)
    with pytest.raises(LoricaError, match=r"analysis.json: not an analysis of this version of lorica, or altered"):
        analyze([finished_run], tmp_path)
    assert (tmp_path / analysis.FILE).read_text() == content


def test_labels_tell_runs_apart(finished_run: Result) -> None:
    seed_1 = Result(Path("b"), finished_run.metrics.model_copy(update={"seed": 1}))
    again = Result(Path("c"), finished_run.metrics.model_copy(update={"seed": 1}))
    assert labels([finished_run]) == ["sd_lora"]
    assert labels([finished_run, seed_1]) == ["sd_lora, seed 0", "sd_lora, seed 1"]
    assert labels([finished_run, seed_1, again])[1:] == ["sd_lora, seed 1 (b)", "sd_lora, seed 1 (c)"]


def test_a_result_without_a_folder_is_refused(finished_run: Result) -> None:
    nowhere = Result(None, finished_run.metrics)
    with pytest.raises(LoricaError, match="this result has no folder"):
        residuals(nowhere, "name")
