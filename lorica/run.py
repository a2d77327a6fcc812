"""The composition root: turns a recipe into a run. The one file that knows every layer."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from lorica import cost
from lorica.backbones import load_backbone
from lorica.checkpoint import latest_checkpoint, load_learned, read_record, save_checkpoint
from lorica.config import IN_MEMORY, Recipe, read_recipe
from lorica.data.sources import Source, load_source
from lorica.data.stream import Stream
from lorica.errors import CheckpointError, LoricaError, RecipeError
from lorica.evaluation import accuracy_row
from lorica.methods import ClassMeanReadout, LinearHeadMethod, Method, build_method, find_method
from lorica.methods.base import SINGLE_FIRST, FirstTaskMethod
from lorica.progress import Reporter, Silent, progress_bar
from lorica.results import DEFAULT_VARIANTS, Result, RunFolder, environment, metrics_of
from lorica.training import Fit, learn_task
from lorica.types import Task


@dataclass
class Assembly:
    """The parts of a run, built from its recipe."""

    recipe: Recipe
    stream: Stream
    method: Method
    accelerator: Accelerator

    def test_data(self, index: int):
        """What a task's accuracy is measured on: its test data, or its validation data when the recipe says so."""
        task = self.stream.tasks[index]
        return self.stream.test(task) if self.recipe.data.evaluate_on == "test" else self.stream.validation(task)


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
        return folder.read()
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
    _require_device(resolved)
    with torch.device("meta"):  # shapes without weights
        encoder = load_backbone(**resolved.backbone.model_dump(), pretrained=False)
    # a method of the user's own may look at weights, which are not there
    with torch.random.fork_rng([]), suppress(RuntimeError):
        build_method(resolved.method, encoder, readout=resolved.evaluate.readout)
    return resolved, _stream(resolved, source or _source(resolved), encoder.reading()["image_size"])


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


def assemble(recipe: Recipe, source: Source | None = None) -> Assembly:
    """Builds data, backbone and a method that has learned nothing yet. The caller's random state is left as it was."""
    accelerator = _accelerator(recipe)
    source = source or _source(recipe)
    with torch.random.fork_rng([]):
        torch.manual_seed(recipe.seed)
        encoder = load_backbone(**recipe.backbone.model_dump()).to(accelerator.device)
        encoder.requires_grad_(False)
        method = build_method(recipe.method, encoder, readout=recipe.evaluate.readout)
    return Assembly(recipe, _stream(recipe, source, encoder.reading()["image_size"]), method, accelerator)


def _source(recipe: Recipe) -> Source:
    data = recipe.data
    if data.source == IN_MEMORY:
        raise RecipeError(
            "data.source: the data of this run was given as an object and is not on disk; give it again in Python: "
            "lorica.run(…, source=…, resume=True), or evaluate(…, source=…) from lorica.run"
        )
    return load_source(data.source, root=data.root, test_fraction=data.test_fraction, split_seed=data.split_seed)


def _stream(recipe: Recipe, source: Source, image_size: int) -> Stream:
    data = recipe.data
    stream = Stream(
        source,
        tasks=recipe.stream.tasks,
        classes_per_task=recipe.stream.classes_per_task,
        seed=recipe.stream.seed,
        image_size=image_size,
        crop_pct=data.crop_pct,
        validation_fraction=data.validation_fraction,
        validation_seed=data.split_seed,
        cache_bytes=int(data.cache_gib * 2**30),
    )
    problems = list(_misfits(recipe, stream))
    if problems:
        raise RecipeError(problems)
    return stream


def _misfits(recipe: Recipe, stream: Stream) -> Iterator[str]:
    """Why this method cannot learn this stream, or not be read as the recipe says."""
    method = find_method(recipe.method.name)
    own_logits = method.compares_within_task and recipe.method.cross_entropy == "current_task"
    alone = [task for task in stream.tasks if len(task.class_names) == 1]
    if alone and own_logits and not method.learns_all_at_once:
        instead = "method.cross_entropy=all_seen, or " if issubclass(method, LinearHeadMethod) else ""
        yield (
            f"method.cross_entropy: task {alone[0].index + 1} has a single class, and a loss over its own logits "
            f"alone is always 0; use {instead}larger tasks"
        )
    total = getattr(recipe.method, "total_tasks", None)
    if total is not None and total < len(stream.tasks):
        yield f"method.total_tasks: the stream has {len(stream.tasks)} tasks, which is more than {total}"
    if recipe.evaluate.readout == "prototypes" and method.features is Method.features:
        yield (
            f"evaluate.readout: {method.name} predicts by class means already, or has no space that all classes share; "
            "use evaluate.readout=head"
        )
    tunes = issubclass(method, FirstTaskMethod) and getattr(recipe.method, "tuning", None) != "none"
    if tunes and len(stream.tasks[0].class_names) == 1:
        yield f"stream: {SINGLE_FIRST}"


def _require_device(recipe: Recipe) -> None:
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if recipe.device != "auto" and not available[recipe.device]:
        have = ", ".join(name for name, there in available.items() if there)
        raise RecipeError(f"device: {recipe.device} is not available on this machine; it has {have}; use device=auto")


def _accelerator(recipe: Recipe) -> Accelerator:
    _require_device(recipe)
    # Accelerate keeps its state for the whole process; runs that follow each other may differ in device and precision
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(
        cpu=recipe.device == "cpu", mixed_precision="bf16" if recipe.precision == "bf16" else "no"
    )
    if accelerator.num_processes > 1:
        raise LoricaError("a run uses one process; launch it without `accelerate launch` or `torchrun`")
    return accelerator


def _learn_stream(
    parts: Assembly, folder: RunFolder, resumed: bool, stop_after: int | None, reporter: Reporter
) -> Result:
    recipe, stream, method, accelerator = parts.recipe, parts.stream, parts.method, parts.accelerator
    folder.create()
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
        for old in (folder.path / "metrics.json", folder.path / "cost.json"):
            old.unlink(missing_ok=True)
        for old in (folder.path / "checkpoints", folder.figures):
            shutil.rmtree(old, ignore_errors=True)
        folder.write_recipe(recipe.resolved())
        encoder = method.encoder
        folder.write_environment(
            environment()
            | {
                "device": str(accelerator.device),
                "threads": torch.get_num_threads(),
                "backbone": {"name": encoder.name, "tag": encoder.tag, "fingerprint": encoder.fingerprint},
                "data": stream.source.facts,
            }
        )
    fit = Fit(**recipe.fit.model_dump())
    for task, data in _arrivals(stream, method)[len(method.tasks) : stop_after]:
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
        metrics = metrics_of(
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
        folder.write_metrics(metrics)
        folder.write_cost({"tasks": costs, "train_seconds": seconds})
        # last: a run that was stopped before this line learns the task again, and writes the files above again
        folder.checkpoint(task.index).parent.mkdir(exist_ok=True)
        save_checkpoint(folder.checkpoint(task.index), method, record)
        if recipe.checkpoints == "newest":
            for older in folder.checkpoint(task.index).parent.glob("task_*"):
                if older != folder.checkpoint(task.index):
                    shutil.rmtree(older)
    return folder.read()


def _tested(parts: Assembly, tasks: Sequence[Task], reporter: Reporter) -> tuple[list[float], list[float] | None]:
    """The accuracy on each of the tasks; and by the method's own predictions, where it is read by class means."""
    test = partial(accuracy_row, accelerator=parts.accelerator, reporter=reporter)
    own = parts.method.learner if isinstance(parts.method, ClassMeanReadout) else None
    return test(parts.method, tasks, parts.test_data), own and test(own, tasks, parts.test_data)


def _arrivals(stream: Stream, method: Method) -> list[tuple[Task, Any]]:
    """What the method is given to learn, one after another: the stream's tasks, or everything as one task."""
    if method.learns_all_at_once:
        everything = tuple(name for task in stream.tasks for name in task.class_names)
        return [(Task.of_new_classes(0, 0, everything), stream.train_all())]
    return [(task, stream.train(task)) for task in stream.tasks]


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
    file = folder.path / "recipe.yaml"
    old, new = _flat(read_recipe(file).resolved()), _flat(recipe.resolved())  # with the defaults of newer keys
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


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
