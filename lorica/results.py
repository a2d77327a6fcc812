"""What came out of a run, as its folder has it. Accuracies are fractions, never percent, and times are seconds.

Nothing here, or in `lorica.report`, imports torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lorica import metrics
from lorica.environment import package_version
from lorica.errors import LoricaError
from lorica.files import RunFolder

DEFAULT_VARIANTS = (None, "paper", "default")
"""What `method.variant` is called where it is the usual one and goes without saying."""

_SCHEMA: dict[str, type | tuple[type, ...]] = {
    "method": str,
    "variant": (str, type(None)),
    "seed": int,
    "tasks": list,
    "accuracy": list,
    "acc": (int, float),
    "aaa": (int, float),
    "acc_samples": (int, float),
    "aaa_samples": (int, float),
    "forgetting": (int, float),
    "forgetting_first_last": (int, float),
    "bwt": (int, float),
    "new_task": (int, float),
    "diagnostics": dict,
    "complete": bool,
}
_TASK: dict[str, type] = {"classes": list, "train": int, "test": int}


def metrics_of(
    *,
    method: str,
    variant: str | None,
    seed: int,
    tasks: Sequence[Mapping[str, Any]],
    accuracy: Sequence[Sequence[float]],
    head_accuracy: Sequence[Sequence[float]] | None = None,
    cross_entropy: Literal["current_task", "all_seen"] | None = None,
    diagnostics: Mapping[str, Any] | None = None,
    train_seconds: Sequence[float] = (),
    complete: bool = True,
    recipe: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The contents of metrics.json.

        {"lorica": "0.1.0", "method": "sd_lora", "variant": "paper", "seed": 0,
         "tasks": [{"classes": ["wren", …], "train": 330, "test": 110}, …],
         "accuracy": [[0.97], [0.91, 0.95], …],      a[t][i], see lorica.metrics
         "acc": …, "aaa": …, "acc_samples": …, "aaa_samples": …,
         "forgetting": …, "forgetting_first_last": …, "bwt": …, "new_task": …,
         "head": {"accuracy": …, "acc": …, …},       the same by the method's own predictions, where `accuracy` is by class means
         "cross_entropy": "current_task",            or "all_seen"; null where the method has none
         "diagnostics": {"magnitudes": [[1.0], [1.1, 0.8], …]},   what the method reports, plain values
         "train_seconds": [61.2, …],                 one for each task
         "complete": true,
         "recipe": {"method": {…}, "fit": {…}, …}}  every setting, as in recipe.yaml

    Args:
        tasks: of the whole stream, in order; the ones beyond the rows of `accuracy` have not been learned yet.
        accuracy: a row for each task learned.
        head_accuracy: the same by the method's own predictions, where `accuracy` is by class means.
        complete: whether every task has been learned; false for a run that is under way or was interrupted.

    Raises:
        ValueError: a malformed matrix, a task without test samples, or `complete` and the matrix disagree.
    """
    if complete and len(accuracy) != len(tasks):
        raise ValueError(f"a complete run of {len(tasks)} tasks whose accuracy matrix has {len(accuracy)} rows")
    return {
        "lorica": package_version("lorica"),
        "method": method,
        "variant": variant,
        "seed": seed,
        "tasks": [dict(task) for task in tasks],
        **_measures(accuracy, tasks),
        **({} if head_accuracy is None else {"head": _measures(head_accuracy, tasks)}),
        "cross_entropy": cross_entropy,
        "diagnostics": dict(diagnostics or {}),
        "train_seconds": list(train_seconds),
        "complete": complete,
        "recipe": dict(recipe or {}),
    }


def _measures(accuracy: Sequence[Sequence[float]], tasks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """An accuracy matrix and its summary."""
    return {
        "accuracy": [list(row) for row in accuracy],
        **metrics.summary(accuracy, [task["test"] for task in tasks[: len(accuracy)]]),
    }


@dataclass(frozen=True)
class Result:
    """A run's outcome.

    Attributes:
        path: the folder it came from, if any.
        metrics: the contents of its metrics.json.
        cost: the last task's entry in its cost.json, see `lorica.cost.measure`, with what trained on the task that trained
            most; None where there is none, and older runs lack some keys.
    """

    path: Path | None
    metrics: dict[str, Any] = field(repr=False)
    cost: dict[str, Any] | None = field(default=None, repr=False)

    @property
    def method(self) -> str:
        """The method's name, as in a recipe."""
        return self.metrics["method"]

    @property
    def variant(self) -> str | None:
        """Which reading of the method: "paper", "released_code", …; None for a method that has only one."""
        return self.metrics["variant"]

    @property
    def label(self) -> str:
        """The method for people: "sd_lora", or "sd_lora (released_code)" where the variant is not the default one, or
        "sd_lora (class means)" where these are read in place of its head."""
        means = "class means" if "head" in self.metrics else None
        extra = [self.variant if self.variant not in DEFAULT_VARIANTS else None, means]
        return f"{self.method} ({', '.join(filter(None, extra))})" if any(extra) else self.method

    @property
    def seed(self) -> int:
        """The seed of the training."""
        return self.metrics["seed"]

    @property
    def complete(self) -> bool:
        """Whether every task has been learned."""
        return self.metrics["complete"]

    @property
    def tasks(self) -> list[dict[str, Any]]:
        """The tasks in order: "classes" (names), "train" and "test" (numbers of samples)."""
        return self.metrics["tasks"]

    @property
    def accuracy(self) -> list[list[float]]:
        """The accuracy matrix a[t][i], fractions; row t has t+1 entries."""
        return self.metrics["accuracy"]

    @property
    def acc(self) -> float:
        """`lorica.metrics.acc`."""
        return self.metrics["acc"]

    @property
    def aaa(self) -> float:
        """`lorica.metrics.aaa`."""
        return self.metrics["aaa"]

    @property
    def acc_samples(self) -> float:
        """`lorica.metrics.acc_samples`."""
        return self.metrics["acc_samples"]

    @property
    def aaa_samples(self) -> float:
        """`lorica.metrics.aaa_samples`."""
        return self.metrics["aaa_samples"]

    @property
    def forgetting(self) -> float:
        """`lorica.metrics.forgetting` (max-last)."""
        return self.metrics["forgetting"]

    @property
    def bwt(self) -> float:
        """`lorica.metrics.bwt`."""
        return self.metrics["bwt"]

    @property
    def new_task(self) -> float:
        """`lorica.metrics.new_task`."""
        return self.metrics["new_task"]

    @property
    def magnitudes(self) -> list[list[float]] | None:
        """The magnitudes alpha_0 … alpha_t after each task t, row t with t+1 entries; None if the method has none."""
        return self.metrics["diagnostics"].get("magnitudes")


def read_result(path: Path | str) -> Result:
    """The result of a run's folder: its metrics.json, and cost.json where there is one.

    Raises:
        LoricaError: metrics.json is missing, or one of them truncated or not one of lorica's; all that is wrong with
            it at once.
    """
    folder = RunFolder(path)
    values = _read_json(folder.metrics)
    if problems := _problems(values):
        raise LoricaError([f"{folder.metrics}: {problem}" for problem in problems])
    cost = _last_cost(folder.cost, _read_json(folder.cost)) if folder.cost.exists() else None
    return Result(folder.path, values, cost)


def find_runs(paths: Iterable[Path | str]) -> list[Result]:
    """Every run at or below the given folders, each once, sorted by path with numbers as numbers (run-2 before run-10).

    Raises:
        LoricaError: a path is not a folder, holds no run, or a metrics.json is bad; all of them at once.
    """
    folders: dict[Path, Path] = {}  # resolved, so that a run reached twice is read once -> as given
    results: list[Result] = []
    problems: list[str] = []
    for path in map(Path, paths):
        found = {file.parent.resolve(): file.parent for file in path.rglob("metrics.json")}
        if not found:
            what = "no metrics.json in it or below" if path.is_dir() else "not a folder"
            problems.append(f"{path}: {what}; expected the folder of a run, or one that holds such folders")
        folders = found | folders
    for folder in sorted(folders.values(), key=_natural):
        try:
            results.append(read_result(folder))
        except LoricaError as error:
            problems.extend(error.problems)
    if problems:
        raise LoricaError(problems)
    return results


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except OSError as error:
        raise LoricaError(
            f"{file}: cannot be read: {error.strerror or error}; expected the folder of a run with a task learned"
        ) from error
    except ValueError as error:  # not JSON, or not UTF-8
        raise LoricaError(
            f"{file}: truncated or altered: {error}; restore the file, or resume the run to write it again"
        ) from error


def _last_cost(file: Path, values: Any) -> dict[str, Any] | None:
    tasks = values.get("tasks") if isinstance(values, dict) else None
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise LoricaError(f"{file}: expected tasks, an object for each; not a cost.json of this version of lorica")
    if not tasks:
        return None
    most = max((task["trainable"] for task in tasks if "trainable" in task), default=None)
    return tasks[-1] | ({} if most is None else {"trainable": most})  # some methods train on their first task alone


def _natural(path: Path) -> list[str | int]:
    """A sort key under which runs of digits compare as numbers."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", str(path)))]


def _problems(values: Any) -> list[str]:
    """What keeps `values` from being the contents of a metrics.json."""
    foreign = "not a metrics.json of this version of lorica"
    if not isinstance(values, dict):
        return [f"a {type(values).__name__}, expected an object with method, accuracy, …; {foreign}"]
    if missing := [key for key in _SCHEMA if key not in values]:
        return [f"lacks {', '.join(missing)}; {foreign}"]
    if wrong := [key for key, kind in _SCHEMA.items() if not isinstance(values[key], kind)]:
        return [f"{key} is {values[key]!r:.60}; {foreign}" for key in wrong]
    tasks, accuracy = values["tasks"], values["accuracy"]
    if not all(isinstance(task, dict) and all(type(task.get(k)) is t for k, t in _TASK.items()) for task in tasks):
        return [f"tasks: expected classes, train and test of each; {foreign}"]
    if not all(isinstance(row, list) and all(isinstance(value, int | float) for value in row) for row in accuracy):
        return [f"accuracy: expected lists of numbers; {foreign}"]
    counts = [task["test"] for task in tasks[: len(accuracy)]]
    try:
        metrics.summary([[float(value) for value in row] for row in accuracy], counts)
    except ValueError as error:
        return [f"{error}; {foreign}"]
    return []
