"""The composition root: turns a recipe into a run. The one file that knows every layer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lorica.assembly import (
    Assembly,
    arrivals,
    assemble,
    build_source,
    build_stream,
    machine_facts,
    make_accelerator,
    require_device,
    saved_recipe,
)
from lorica.backbones import TINY_TEXT, load_backbone
from lorica.checkpoint import Checkpoints
from lorica.config import FREE, IN_MEMORY, Recipe, as_saved, packaged_text, read_recipe, read_saved
from lorica.data.contents import Contents, contents_from, differences, digests_of, short_digest
from lorica.data.division import By
from lorica.data.manifest import Manifest, read_manifest
from lorica.data.sources import Source, remarks
from lorica.data.sources.base import some
from lorica.data.stream import Stream
from lorica.data.texts import Texts
from lorica.descent import Fit
from lorica.environment import environment, noted_contents
from lorica.errors import CheckpointError, DataError, LoricaError
from lorica.evaluation import accuracy_row, error_rates
from lorica.files import RunFolder, refusals, write_json, write_text
from lorica.interruption import Interruptions
from lorica.isolation import isolated
from lorica.launch import launched
from lorica.methods import Readout, build_method
from lorica.metrics import Matrix
from lorica.nested import flatten
from lorica.ownership import recipe_text, require_ours, wrote
from lorica.processes import Processes
from lorica.progress import Reporter, Silent, progress_bar
from lorica.results import DEFAULT_VARIANTS, Confusion, Rates, Result, read_result
from lorica.session import Session
from lorica.tracking import require_tracker, tracked
from lorica.types import Task


@isolated()
def run(
    recipe: Recipe | str | Path | Mapping[str, Any],
    *,
    out: str | Path | None = None,
    source: Source | None = None,
    resume: bool = False,
    overwrite: bool = False,
    stop_after: int | None = None,
    go_on: Callable[[Matrix], bool] | None = None,
    progress: bool | Reporter = True,
    **overrides: Any,
) -> Result:
    """Learns a stream of tasks with one method and leaves the results in a folder.

    Several processes (`torchrun`, `accelerate launch`) share the work of one run if each of them calls this with the
    same arguments; all of them return the result, which the main one has written.

    Args:
        recipe: a packaged recipe's name, a YAML file, a mapping with the same keys, or a `Recipe` read already.
        out: the run's folder; absent = `runs/RECIPE/METHOD`, with variant and seed where not the default.
        source: data as an object (`lorica.arrays`), in place of what the recipe's data section names. It is not saved:
            the recipe says `data.source: in_memory`, and to resume or to evaluate, it must be given again.
        resume: continue the run in that folder where it stopped: at its newest snapshot within a task, or after its
            last task.
        overwrite: start anew in a folder that holds a run.
        stop_after: leave the run after that many tasks, to be resumed or not; absent = learn them all.
        go_on: asked after each task with the accuracy matrix so far; False leaves the run as `stop_after` does.
        progress: True for a bar on standard error, False for none, or an object to report to.
        overrides: sections or keys that replace the recipe's: `seed=1, method={"rank": 4}, **{"fit.epochs": 3}`.

    Returns:
        The contents of metrics.json, with the folder it is in.

    Raises:
        LoricaError: a mistake in the recipe, the data or the folder, or training that cannot go on.
    """
    if resume and overwrite:
        raise LoricaError("--resume continues the run in the folder, --overwrite starts it anew; give one of them")
    number = launched()
    resolved = read_recipe(recipe, overrides)
    if source is not None:
        unnamed = "name" not in resolved.backbone.model_fields_set and isinstance(source.train, Texts)
        encoder = {"backbone.name": TINY_TEXT} if unnamed else {}
        resolved = read_recipe(resolved, {"data.source": IN_MEMORY, "data.root": None} | encoder)
    folder = RunFolder(out or default_folder(recipe, resolved))
    if resume and wrote(folder.recipe):
        resolved = as_saved(resolved, saved_recipe(folder, method_file=_method_file(resolved)))
    require_tracker(resolved.track)
    place = partial(_place, folder, resolved, resume=resume, overwrite=overwrite)
    accelerator = make_accelerator(resolved, of=number) if number > 1 else None
    processes = Processes.of(accelerator) if accelerator else Processes()
    progress = progress if processes.is_main else False
    with processes.ending_together(), refusals(folder.path):
        processes.by_main(folder.tidy)
        if processes.by_main(place) == (folder.path, True) and (
            result := processes.by_main(partial(_finished, folder))
        ):
            return result
        parts = assemble(resolved, source, _shown(progress), accelerator=accelerator)
        with (
            processes.entered_by_main(folder.taken()),
            Interruptions() as interruptions,
            _shown(progress) as reporter,
        ):
            for remark in _remarks(parts, processes):
                reporter.say(remark)
            # again: the folder may have been another process's in between
            where, resumed = processes.by_main(place)
            if where == folder.path and processes.is_main:
                folder.give_up_anew()
            try:
                return _learn_stream(
                    parts, folder, RunFolder(where), resumed, stop_after, go_on, reporter, interruptions
                )
            finally:
                if processes.is_main and not _has_begun(folder.anew):
                    folder.give_up_anew()


def _remarks(parts: Assembly, processes: Processes) -> Iterator[str]:
    """What there is to say of the data, and of several processes."""
    yield from remarks(parts.stream.source.facts)
    for why in () if processes.alone else parts.method.undivided(parts.method.config):
        yield f"{parts.method.name}: {why}, so that each process trains on whole batches, no sooner than one alone"


def default_folder(recipe: Recipe | str | Path | Mapping[str, Any], resolved: Recipe) -> Path:
    """runs/<recipe>/<method>, with variant, read-out and seed where they are not the default."""
    name = "run"
    if isinstance(recipe, str | Path):
        name = str(recipe) if packaged_text(str(recipe)) is not None else Path(recipe).stem
    variant = getattr(resolved.method, "variant", None)
    parts = [Path(resolved.method.name).stem]
    if variant not in DEFAULT_VARIANTS:
        parts.append(variant)
    evaluate = resolved.evaluate
    if evaluate.readout != "head":
        parts.append("class_means" if evaluate.readout == "prototypes" else evaluate.readout)
    if evaluate.layers is not None:
        parts.append(f"layers{evaluate.layers}")
    if evaluate.drift != "none":
        parts.append(f"{evaluate.drift}_drift")
    if resolved.seed:
        parts.append(f"seed{resolved.seed}")
    return Path("runs") / name / "-".join(parts)


@isolated()
def check(
    recipe: Recipe | str | Path | Mapping[str, Any],
    *,
    source: Source | None = None,
    decode_all: bool = True,
    progress: bool | Reporter = True,
    **overrides: Any,
) -> tuple[Recipe, Stream]:
    """Validates a recipe, its data and what its method asks of the backbone; loads no weights and trains nothing.

    `decode_all` decodes every image file, which alone finds a JPEG that was cut short; else headers are read.
    `progress` is as for `run`.

    Raises:
        LoricaError: everything wrong with the recipe, or with the data.
    """
    resolved = read_recipe(recipe, overrides)
    require_device(resolved)
    require_tracker(resolved.track)
    with torch.device("meta"):  # shapes without weights
        encoder = load_backbone(**resolved.backbone.model_dump(), pretrained=False)
    # a method of the user's own may look at weights, which are not there; a packaged one does not
    own = resolved.method.name.endswith(".py")
    with torch.random.fork_rng([]), suppress(RuntimeError) if own else nullcontext():
        build_method(resolved.method, encoder, **resolved.evaluate.reading)
    with _shown(progress) as reporter:
        source = source or build_source(resolved, decode_all=decode_all, reporter=reporter)
        stream = build_stream(resolved, source, encoder)
        if resolved.stream.manifest:
            stream.manifest(digests_of(stream.source, reporter))
        return resolved, stream


class Evaluation(NamedTuple):
    """A checkpoint tested again.

    Attributes:
        accuracy: on each task learned by then, fractions.
        classes: the names of each task's classes.
        head_accuracy: the same by the method's own predictions, where `accuracy` is by another read-out; else None.
    """

    accuracy: list[float]
    classes: list[tuple[str, ...]]
    head_accuracy: list[float] | None


@isolated()
def evaluate(
    folder: str | Path,
    *,
    tasks: int | None = None,
    source: Source | None = None,
    method_file: str | Path | None = None,
    **moved: Any,
) -> Evaluation:
    """Tests a run's checkpoint again.

    Args:
        tasks: the checkpoint after that many tasks; absent = the last one.
        source: the data again, for a run that was given it as an object.
        method_file: the `.py` file of the run's method, where it has one; no file is executed that is not named here.
        moved: where data and weights are now, if they were moved, and a device:
            `**{"data.root": …, "backbone.weights": …, "device": …}`. The contents decide whether they are the run's.

    Raises:
        LoricaError: not a run's folder, no such checkpoint, or one that does not fit the backbone or the data.
    """
    run_folder = RunFolder(folder)
    run_folder.require()
    parts = assemble(saved_recipe(run_folder, moved, method_file=method_file), source, progress_bar())
    Checkpoints(run_folder.checkpoints).load(parts.method, tasks)
    require_same_classes(run_folder.path, parts, parts.method.tasks)
    learned = parts.stream.tasks if parts.method.learns_all_at_once else parts.stream.tasks[: len(parts.method.tasks)]
    with progress_bar() as reporter:
        require_same_samples(run_folder, parts.stream, reporter)
        row, head_row = _tested(parts, learned, reporter)
    return Evaluation(row, [each.class_names for each in learned], head_row)


def _learn_stream(
    parts: Assembly,
    folder: RunFolder,
    where: RunFolder,
    resumed: bool,
    stop_after: int | None,
    go_on: Callable[[Matrix], bool] | None,
    reporter: Reporter,
    interruptions: Interruptions,
) -> Result:
    """What is left of the stream; the folder is this process's own. Until something is learned, the run may be
    elsewhere."""
    recipe, stream, method = parts.recipe, parts.stream, parts.method
    processes = Processes.of(parts.accelerator)
    digests = digests_of(stream.source, reporter)
    contents, manifest = contents_from(stream.source, digests), stream.manifest(digests)
    processes.require_same("the data", [short_digest(contents), manifest.sha256])
    if not resumed:
        processes.by_main(where.clear)
    session = Session(
        method,
        Fit(**recipe.fit.model_dump()),
        seed=recipe.seed,
        accelerator=parts.accelerator,
        folder=where,
        keep=recipe.checkpoints,
        snapshot_seconds=recipe.snapshot_seconds,
        reporter=reporter,
        interruptions=interruptions,
    )
    session.restore()
    require_same_classes(folder.path, parts, session.checkpoints.learned_tasks)
    _require_same_data(where, contents)
    _require_same_stream(where, manifest)
    if processes.is_main:
        _describe(parts, where, contents, manifest, restored=bool(session.learned))
    tasks = [
        {"classes": list(task.class_names), "train": len(stream.train(task)), "test": len(parts.test_data(task.index))}
        for task in stream.tasks
    ]
    identity = {"backbone": method.encoder.fingerprint, "data": short_digest(contents)}
    if split := stream.source.facts.get("split_sha256"):  # which has the classes' numbers, too, where lists give them
        identity["split"] = str(split)[:16]
    if recipe.stream.manifest:
        identity["stream"] = manifest.sha256[:16]
    results = _Results(session, recipe, tasks, stream.by, identity)
    _settle(session, folder)
    results.write()  # a process that was stopped may not have come to it
    tracking = tracked(recipe, session, folder.path)
    try:
        for task, data in arrivals(stream, method)[session.learned : stop_after]:
            session.learn(task, data)
            stages = range(len(stream.tasks)) if method.learns_all_at_once else [task.index]
            rows, head_rows, error_rows = zip(
                *(_rows(parts, stage + 1, reporter, session.folder) for stage in stages), strict=True
            )
            if tracking:
                tracking.tested(rows)
            session.close(list(rows), [row for row in head_rows if row], [row for row in error_rows if row])
            _settle(session, folder)
            if results.is_due:
                results.write()
            if go_on and not processes.by_main(partial(go_on, session.record.rows)):
                break
    finally:
        results.write()
        if tracking:
            tracking.finish()
    return processes.by_main(partial(read_result, folder.path))


def _describe(parts: Assembly, folder: RunFolder, contents: Contents, manifest: Manifest, *, restored: bool) -> None:
    """Writes what is known before anything is learned, where it is missing.

    Args:
        restored: something has been learned already, so that the environment is no longer that of all tasks.
    """
    resolved, encoder, device = parts.recipe.resolved(), parts.method.encoder, parts.accelerator.device
    folder.path.mkdir(exist_ok=True)
    if not folder.environment.exists():
        facts = machine_facts(device, encoder, parts.accelerator.num_processes) | {
            "data": parts.stream.source.facts | {"contents": contents}
        }
        again = {"written_again": True} if restored else {}
        write_json(folder.environment, environment() | facts | again)
    if not folder.stream.exists():
        write_text(folder.stream, manifest.text)
    text = recipe_text(resolved)  # another one where data or weights have moved
    if not folder.recipe.exists() or folder.recipe.read_bytes() != text.encode():
        write_text(folder.recipe, text)


def _settle(session: Session, folder: RunFolder) -> None:
    """Once a run that learns elsewhere has learned something, it takes the place of the one in the folder."""
    if session.learned and session.folder.path != folder.path:
        session.processes.by_main(folder.hand_over)
        session.move(folder)


class _Results:
    """metrics.json and cost.json, which follow from the session's record.

    A matrix grows with the square of the tasks. So once writing it takes long, it is no longer written after each task,
    but so often that it takes a twentieth of the time; and when the run ends, or an error ends it.
    """

    def __init__(
        self, session: Session, recipe: Recipe, tasks: list[dict[str, Any]], by: By, identity: Mapping[str, str]
    ) -> None:
        self._session, self._recipe, self._tasks, self._identity = session, recipe, tasks, identity
        self._by: By = by
        self._entries = 0  # of the record, written
        self._ended = self._took = 0.0

    @property
    def is_due(self) -> bool:
        return self._took < 0.1 or time.monotonic() - self._ended >= 20 * self._took

    def write(self) -> None:
        """Nothing where they are up to date, or where another process writes them."""
        session, recipe = self._session, self._recipe
        if session.learned == self._entries or not session.processes.is_main:
            return
        began = time.monotonic()
        metrics = session.record.metrics(
            method=session.method.name,
            variant=getattr(recipe.method, "variant", None),
            seed=recipe.seed,
            tasks=self._tasks,
            stream_by=self._by,
            cross_entropy=recipe.method.cross_entropy,
            recipe=recipe.resolved(),
            identity=self._identity,
        )
        write_json(session.folder.cost, session.record.cost())
        write_json(session.folder.metrics, metrics.model_dump())  # last: once it says that the run is complete, it is
        self._entries = session.learned
        self._ended = time.monotonic()
        self._took = self._ended - began


def _shown(progress: bool | Reporter) -> AbstractContextManager[Reporter]:
    return progress_bar() if progress is True else nullcontext(progress or Silent())


def _tested(
    parts: Assembly,
    tasks: Sequence[Task],
    reporter: Reporter,
    only: Sequence[Task] | None = None,
    answered: Callable[[Tensor], None] | None = None,
) -> tuple[list[float], list[float] | None]:
    """The accuracy on each of the tasks, or of `only` some; and by the method's own predictions, where it is read
    otherwise."""
    test = partial(accuracy_row, accelerator=parts.accelerator, reporter=reporter, only=only)
    own = parts.method.learner if isinstance(parts.method, Readout) else None
    return test(parts.method, tasks, parts.test_data, answered=answered), own and test(own, tasks, parts.test_data)


def _rows(
    parts: Assembly, learned: int, reporter: Reporter, folder: RunFolder
) -> tuple[list[float | None], list[float | None] | None, list[Rates | None] | None]:
    """The same as rows of the matrix, after that many tasks: whole, or of the newest task alone; and the errors of each
    class, where there are two. After the last one, the run's folder gets what was taken for what: before the task
    counts as learned, so that no complete run lacks it."""
    tasks = parts.stream.tasks
    whole = learned % parts.recipe.evaluate.every == 0 or learned == len(tasks)
    ended = learned == len(tasks) and Processes.of(parts.accelerator).is_main
    tested = tasks[:learned] if whole else tasks[learned - 1 : learned]
    answers: list[Tensor] = []
    row, head_row = _tested(parts, tasks[:learned], reporter, tested, answers.append)
    if ended:
        _write_confusion(folder.confusion, parts.stream.class_names, answers[0])
    untested = [None] * (learned - len(row))
    errors = None
    if len(parts.stream.class_names) == 2:
        errors = [*untested, *error_rates(answers[0], [len(parts.test_data(task.index)) for task in tested])]
    return [*untested, *row], [*untested, *head_row] if head_row else None, errors


def _write_confusion(file: Path, classes: Sequence[str], answers: Tensor) -> None:
    pairs, numbers = answers.unique(dim=0, return_counts=True)
    counts = [(*pair, number) for pair, number in zip(pairs.tolist(), numbers.tolist(), strict=True)]
    write_text(file, Confusion(classes=list(classes), counts=counts).model_dump_json() + "\n")


def require_same_classes(folder: Path, parts: Assembly, tasks: Sequence[Task]) -> None:
    """CheckpointError unless the classes that a checkpoint knows are the first of the stream, in its order."""
    learned = [name for task in tasks for name in task.new_names]
    now = list(parts.stream.class_names[: len(learned)])
    if learned != now:
        raise CheckpointError(
            f"{folder}: learned the classes {_some(learned)}; the data now gives {_some(now)}; "
            "restore the data as it was, or start a new run"
        )


def _some(names: list[str]) -> str:
    return some([name[:100] for name in names])


def require_same_samples(folder: RunFolder, stream: Stream, reporter: Reporter) -> None:
    """CheckpointError unless a stream has the samples with which a run began, in the same tasks."""
    digests = digests_of(stream.source, reporter)
    _require_same_data(folder, contents_from(stream.source, digests))
    _require_same_stream(folder, stream.manifest(digests))


def _require_same_data(folder: RunFolder, contents: Contents) -> None:
    """CheckpointError unless the samples of both halves are those that the run began with; of a run that did not note
    them, nothing is known."""
    noted = noted_contents(folder.environment)
    if noted is not None and (changed := differences(noted, contents)):
        remedy = "restore it as it was, or start a new run"
        raise CheckpointError([f"{folder.path}: since the run began, {line}; {remedy}" for line in changed])


def _require_same_stream(folder: RunFolder, manifest: Manifest) -> None:
    """CheckpointError unless samples are in the tasks in which they were when the run began; of a run that did not note
    them, nothing is known."""
    if not folder.stream.exists():
        return
    try:
        noted = read_manifest(folder.stream)
    except DataError as error:
        lines = [f"{each.removeprefix('stream.manifest: ')}; restore the file" for each in error.problems]
        raise CheckpointError(lines) from error
    if noted.sha256 != manifest.sha256:
        raise CheckpointError(
            f"{folder.stream}: the run began with another stream: samples are in other tasks now, or have other "
            "names; restore the data and stream.manifest as they were, or start a new run"
        )


def _has_begun(folder: RunFolder) -> bool:
    return bool(Checkpoints(folder.checkpoints).tasks) or folder.snapshot.exists()


def _place(folder: RunFolder, recipe: Recipe, *, resume: bool, overwrite: bool) -> tuple[Path, bool]:
    """Where a run is to be learned, and whether it goes on from what is there.

    Raises:
        LoricaError: files that are not lorica's; a run that is neither to be resumed nor overwritten, or of another
            recipe.
    """
    if wrote(folder.model) or Checkpoints(folder.checkpoints).of_model:
        raise LoricaError(
            f"{folder.path}: holds a model that goes on learning (`lorica learn`); choose another folder with --out"
        )
    begun = _has_begun(folder)
    require_ours(folder.held(anew=not (begun and resume)))
    if resume and _has_begun(folder.anew) and not _differences(folder.anew, recipe):
        return folder.anew.path, True
    if not begun:
        return folder.path, False
    if overwrite:
        return folder.anew.path, False
    if not resume:
        raise LoricaError(
            f"{folder.path}: holds a run already; --resume continues it, --overwrite starts it anew, "
            "or choose another folder with --out"
        )
    if differences := _differences(folder, recipe):
        raise LoricaError(differences)
    return folder.path, True


def _method_file(recipe: Recipe) -> str | None:
    return recipe.method.name if recipe.method.name.endswith(".py") else None


def _finished(folder: RunFolder) -> Result | None:
    """The result of a run that has learned everything, if all of it is in the folder and the checkpoints agree."""
    if not all(file.exists() for file in (folder.recipe, folder.environment, folder.cost, folder.metrics)):
        return None
    try:
        result = read_result(folder.path)
    except LoricaError:  # what is wrong in it follows from the checkpoints, and is written again
        return None
    return result if result.complete and len(result.train_seconds) == Checkpoints(folder.checkpoints).tasks else None


def _differences(folder: RunFolder, recipe: Recipe) -> list[str]:
    """The keys in which a recipe is not the one with which the folder's run began, a line each.

    Raises:
        LoricaError: that recipe is lost.
    """
    if not folder.recipe.exists() and folder.metrics.exists():  # which repeats it
        saved = read_saved(read_result(folder.path).recipe, method_file=_method_file(recipe))
    else:
        folder.require()
        saved = saved_recipe(folder, method_file=_method_file(recipe))
    old, new = (dict(flatten(each.resolved())) for each in (saved, recipe))  # defaults of newer keys too
    differing = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key) and key not in FREE)
    return [
        f"{folder.recipe}: {key} was {old.get(key)!r}, now {new.get(key)!r}; give the same value to resume"
        for key in differing
    ]
