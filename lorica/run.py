"""The composition root: turns a recipe into a run. The one file that knows every layer."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from lorica import cost
from lorica.assembly import Assembly, arrivals, assemble, build_source, build_stream, require_device
from lorica.backbones import load_backbone
from lorica.checkpoint import latest_checkpoint, load_learned, read_record, save_checkpoint
from lorica.config import IN_MEMORY, Recipe, read_recipe
from lorica.data.sources import Source
from lorica.data.stream import Stream
from lorica.environment import environment
from lorica.errors import CheckpointError, LoricaError
from lorica.evaluation import accuracy_row
from lorica.files import RunFolder, write_json, write_text
from lorica.methods import ClassMeanReadout, build_method
from lorica.nested import flatten
from lorica.progress import Reporter, Silent, progress_bar
from lorica.results import DEFAULT_VARIANTS, Metrics, Result, read_result
from lorica.training import Fit, learn_task
from lorica.types import Task


def run(
    recipe: Recipe | str | Path | Mapping[str, Any],
    *,
    out: str | Path | None = None,
    source: Source | None = None,
    resume: bool = False,
    overwrite: bool = False,
    stop_after: int | None = None,
    progress: bool | Reporter = True,
    **overrides: Any,
) -> Result:
    """Learns a stream of tasks with one method and leaves the results in a folder.

    Args:
        recipe: a packaged recipe's name, a YAML file, a mapping with the same keys, or a `Recipe` read already.
        out: the run's folder; absent = runs/<recipe>/<method>, with variant and seed where they are not the default.
        source: data as an object (`lorica.arrays`), in place of what the recipe's data section names. It is not saved: the
            recipe says `data.source: in_memory`, and to resume or to evaluate, it must be given again.
        resume: continue after the last finished task of the run in that folder.
        overwrite: start anew in a folder that holds a run.
        stop_after: leave the run after that many tasks, to be resumed or not; absent = learn them all.
        progress: True for a bar on standard error, False for none, or an object to report to.
        overrides: sections or keys that replace the recipe's: `seed=1, method={"rank": 4}, **{"fit.epochs": 3}`.

    Returns:
        The contents of metrics.json, with the folder it is in.

    Raises:
        LoricaError: a mistake in the recipe, the data or the folder, or training that cannot go on.
    """
    resolved = read_recipe(recipe, overrides)
    if source is not None:
        resolved = read_recipe(resolved, {"data.source": IN_MEMORY, "data.root": None})
    folder = RunFolder(out or default_folder(recipe, resolved))
    if not resume and not overwrite and latest_checkpoint(folder.path) is not None:
        raise LoricaError(
            f"{folder.path}: holds a run already; --resume continues it, --overwrite starts it anew, "
            "or choose another folder with --out"
        )
    record = _resumable(folder, resolved) if resume else None
    if record and record["complete"]:
        return read_result(folder.path)
    parts = assemble(resolved, source)
    shown = progress_bar() if progress is True else nullcontext(progress or Silent())
    with shown as reporter:
        return _learn_stream(parts, folder, record is not None, stop_after, reporter)


def default_folder(recipe: Recipe | str | Path | Mapping[str, Any], resolved: Recipe) -> Path:
    """runs/<recipe>/<method>, with variant, read-out and seed where they are not the default."""
    name = Path(recipe).stem if isinstance(recipe, str | Path) else "run"
    variant = getattr(resolved.method, "variant", None)
    parts = [Path(resolved.method.name).stem]
    if variant not in DEFAULT_VARIANTS:
        parts.append(variant)
    if resolved.evaluate.readout == "prototypes":
        parts.append("class_means")
    if resolved.seed:
        parts.append(f"seed{resolved.seed}")
    return Path("runs") / name / "-".join(parts)


def check(
    recipe: Recipe | str | Path | Mapping[str, Any], *, source: Source | None = None, **overrides: Any
) -> tuple[Recipe, Stream]:
    """Validates a recipe, its data and what its method asks of the backbone; loads no weights and trains nothing.

    Raises:
        LoricaError: everything wrong with the recipe, or with the data.
    """
    resolved = read_recipe(recipe, overrides)
    require_device(resolved)
    with torch.device("meta"):  # shapes without weights
        encoder = load_backbone(**resolved.backbone.model_dump(), pretrained=False)
    # a method of the user's own may look at weights, which are not there
    with torch.random.fork_rng([]), suppress(RuntimeError):
        build_method(resolved.method, encoder, readout=resolved.evaluate.readout)
    return resolved, build_stream(resolved, source or build_source(resolved), encoder.reading()["image_size"])


class Evaluation(NamedTuple):
    """A checkpoint tested again.

    Attributes:
        accuracy: on each task learned by then, fractions.
        classes: the names of each task's classes.
        head_accuracy: the same by the method's own predictions, where `accuracy` is by class means; else None.
    """

    accuracy: list[float]
    classes: list[tuple[str, ...]]
    head_accuracy: list[float] | None


def evaluate(folder: str | Path, *, tasks: int | None = None, source: Source | None = None) -> Evaluation:
    """Tests a run's checkpoint again.

    Args:
        tasks: the checkpoint after that many tasks; absent = the last one.
        source: the data again, for a run that was given it as an object.

    Raises:
        LoricaError: not a run's folder, no such checkpoint, or one that does not fit the backbone or the data.
    """
    path = RunFolder(folder).path
    file = path / "recipe.yaml"
    if not file.is_file():
        raise LoricaError(f"{path}: not the folder of a run (recipe.yaml is missing)")
    parts = assemble(read_recipe(file), source)
    load_learned(path, parts.method, tasks)
    _require_same_classes(path, parts)
    learned = parts.stream.tasks if parts.method.learns_all_at_once else parts.stream.tasks[: len(parts.method.tasks)]
    with progress_bar() as reporter:
        row, head_row = _tested(parts, learned, reporter)
    return Evaluation(row, [each.class_names for each in learned], head_row)


def _learn_stream(
    parts: Assembly, folder: RunFolder, resumed: bool, stop_after: int | None, reporter: Reporter
) -> Result:
    recipe, stream, method, accelerator = parts.recipe, parts.stream, parts.method, parts.accelerator
    folder.path.mkdir(parents=True, exist_ok=True)
    rows: list[list[float]] = []
    head_rows: list[list[float]] = []
    diagnostics: dict[str, list[Any]] = {}
    seconds: list[float] = []
    costs: list[dict[str, Any]] = []
    if resumed:
        record = load_learned(folder.path, method)
        _require_same_classes(folder.path, parts)
        rows, head_rows, diagnostics = record["accuracy"], record.get("head_accuracy") or [], record["diagnostics"]
        seconds, costs = record["train_seconds"], record["cost"]
    else:
        for old in (folder.metrics, folder.cost):
            old.unlink(missing_ok=True)
        for old in (folder.checkpoints, folder.figures):
            shutil.rmtree(old, ignore_errors=True)
        write_text(folder.recipe, yaml.safe_dump(recipe.resolved(), sort_keys=False, allow_unicode=True, width=120))
        encoder = method.encoder
        write_json(
            folder.environment,
            environment()
            | {
                "device": str(accelerator.device),
                "threads": torch.get_num_threads(),
                "backbone": {"name": encoder.name, "tag": encoder.tag, "fingerprint": encoder.fingerprint},
                "data": stream.source.facts,
            },
        )
    fit = Fit(**recipe.fit.model_dump())
    for task, data in arrivals(stream, method)[len(method.tasks) : stop_after]:
        start = time.perf_counter()
        trained = learn_task(method, task, data, fit, seed=recipe.seed, accelerator=accelerator, reporter=reporter)
        seconds.append(time.perf_counter() - start)
        for stage in range(len(stream.tasks)) if method.learns_all_at_once else [task.index]:
            seen = stream.tasks[: stage + 1]
            row, head_row = _tested(parts, seen, reporter)
            rows.append(row)
            head_rows += [head_row] if head_row else []
        for key, value in method.diagnostics().items():
            diagnostics.setdefault(key, []).append(value)
        costs.append(cost.measure(method, trained))
        complete = len(rows) == len(stream.tasks)
        record = {
            "accuracy": rows,
            "head_accuracy": head_rows or None,
            "diagnostics": diagnostics,
            "train_seconds": seconds,
            "cost": costs,
            "complete": complete,
        }
        metrics = Metrics(
            method=method.name,
            variant=getattr(recipe.method, "variant", None),
            seed=recipe.seed,
            tasks=[
                {
                    "classes": list(each.class_names),
                    "train": len(stream.train(each)),
                    "test": len(parts.test_data(each.index)),
                }
                for each in stream.tasks
            ],
            accuracy=rows,
            head_accuracy=head_rows or None,
            cross_entropy=recipe.method.cross_entropy if any(each["trainable"] for each in costs) else None,
            diagnostics=diagnostics,
            train_seconds=seconds,
            complete=complete,
            recipe=recipe.resolved(),
        )
        write_json(folder.metrics, metrics.model_dump())
        write_json(folder.cost, {"tasks": costs, "train_seconds": seconds})
        # last: a run that was stopped before this line learns the task again, and writes the files above again
        (folder.checkpoints / f"task_{task.index:02d}").parent.mkdir(exist_ok=True)
        save_checkpoint((folder.checkpoints / f"task_{task.index:02d}"), method, record)
        if recipe.checkpoints == "newest":
            for older in (folder.checkpoints / f"task_{task.index:02d}").parent.glob("task_*"):
                if older != (folder.checkpoints / f"task_{task.index:02d}"):
                    shutil.rmtree(older)
    return read_result(folder.path)


def _tested(parts: Assembly, tasks: Sequence[Task], reporter: Reporter) -> tuple[list[float], list[float] | None]:
    """The accuracy on each of the tasks; and by the method's own predictions, where it is read by class means."""
    test = partial(accuracy_row, accelerator=parts.accelerator, reporter=reporter)
    own = parts.method.learner if isinstance(parts.method, ClassMeanReadout) else None
    return test(parts.method, tasks, parts.test_data), own and test(own, tasks, parts.test_data)


def _require_same_classes(folder: Path, parts: Assembly) -> None:
    """The classes that a checkpoint knows must be the first of the stream, in its order."""
    learned = [name for task in parts.method.tasks for name in task.class_names]
    now = list(parts.stream.class_names[: len(learned)])
    if learned != now:
        raise CheckpointError(
            f"{folder}: learned the classes {', '.join(learned)}; the data now gives {', '.join(now)}; "
            "restore the data as it was, or start a new run"
        )


def _resumable(folder: RunFolder, recipe: Recipe) -> dict[str, Any] | None:
    """The record of the folder's latest checkpoint, or None where nothing has been started or finished yet.

    Raises:
        LoricaError: the folder's run had another recipe; every key that differs.
    """
    newest = latest_checkpoint(folder.path)
    if newest is None:
        return None
    file = folder.recipe
    old, new = (
        dict(flatten(read_recipe(file).resolved())),
        dict(flatten(recipe.resolved())),
    )  # with the defaults of newer keys
    differing = sorted(
        key for key in old.keys() | new.keys() if old.get(key) != new.get(key) and key not in ("device", "checkpoints")
    )
    if differing:
        raise LoricaError(
            [
                f"{file}: {key} was {old.get(key)!r}, now {new.get(key)!r}; give the same value to resume"
                for key in differing
            ]
        )
    return read_record(newest)["record"]
