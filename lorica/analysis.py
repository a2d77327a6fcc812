"""The evidence of the SD-LoRA paper (Wu et al., ICLR 2025), measured on any run: `lorica analyze`.

    Figs. 2a, 7   how far weights W_i, fine-tuned on one task each from the same W0, are from each other and from W0
    Fig. 3a       || X_t - sum_{k<t} a_k X_k || / || X_t ||, least squares: what is new in a direction
    Fig. 4        accuracy on old and new tasks with the weights W(s) = (1-s) W_before + s W_after of one task
    Figs. 2b, 2c, 3b, 3c, 5, 6   accuracies and magnitudes, which every run has recorded

X_k stacks the unit directions U_k D_k / ||U_k D_k||_F of all projections, since they share one magnitude. W_before and
W_after are the encoder's effective weights, updates merged, after task t-1 and after task t; the head is the one after
task t throughout, and so are prompts and whatever else is not a weight of the encoder.

The paper does not give the normaliser of its relative distances. Here || W_i - W_j || and || W_i - W0 || are over the
adapted projections of all blocks together and are divided by || W0 ||. Its claim, that fine-tuned weights are closer to
each other than to W0, is read off

    rho_ij = || W_i - W_j || / mean(|| W_i - W0 ||, || W_j - W0 ||):    below 1 if it holds,

while independent moves of one length, being nearly orthogonal, would give sqrt(2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, TypeVar, cast

import torch
from jaxtyping import Float
from pydantic import BaseModel, Field, ValidationError, model_validator
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from lorica.adapters.attach import merged
from lorica.adapters.lowrank import LowRankUpdates, project_last
from lorica.assembly import assemble, saved_recipe
from lorica.backbones.encoder import Encoder
from lorica.checkpoint import Checkpoints
from lorica.config import Recipe, read_recipe
from lorica.data.sources import Source
from lorica.errors import CheckpointError, LoricaError
from lorica.evaluation import accuracy_row
from lorica.files import RunFolder, taken, write_json
from lorica.isolation import isolated
from lorica.learner import load
from lorica.methods import LowRankConfig, Method, Readout, find_method
from lorica.nested import flatten
from lorica.ownership import require_ours
from lorica.progress import Reporter, Silent
from lorica.reading import WIDER, WRITTEN, Plain, misfits, parsed
from lorica.report import figures, tables
from lorica.report.figures import Distances, Residuals, StraightLine
from lorica.results import Result
from lorica.run import require_same_samples
from lorica.terminal import visible
from lorica.training import Fit, learn_task

FILE = "analysis.json"
_Length = Annotated[float, Field(ge=0)]
_T = TypeVar("_T")


class NotApplicable(LoricaError):
    """A run in which there is nothing of the kind to measure; says why. No mistake of anybody's."""


@dataclass
class Analysis:
    """What `analyze` did: figures written, what was left out and why, and what went wrong, a line each."""

    figures: list[Path] = field(default_factory=list)
    distances: list[Distances] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@isolated()
def analyze(
    results: Sequence[Result],
    out: Path,
    *,
    task: int = 2,
    points: int = 11,
    fine_tune: int = 0,
    given: Mapping[str, Any] | None = None,
    reporter: Reporter | None = None,
) -> Analysis:
    """Draws all that there is to draw of some runs, and writes the numbers behind it to `out`/analysis.json.

    What fails for one run does not keep the rest from being drawn; the caller should raise `problems` at the end.

    Args:
        results: runs with their folders, as from `find_runs`.
        task: the straight line is that of this task, counted from 1; 0 = none.
        points: on the straight line, its ends included.
        fine_tune: measure distances of weights after fine-tuning on each of that many first tasks; 0 trains nothing.
            What `out`/analysis.json holds for the same recipe is drawn in any case, and not measured again.
        given: where data and weights are now, a device, the method's file, as `lorica.config.read_saved` takes them.

    Raises:
        LoricaError: an analysis.json that cannot be read, or `out` cannot be written.
    """
    names, done, known = labels(results), Analysis(), _known_distances(out / FILE)
    require_ours([out / FILE])
    lines: list[StraightLine] = []
    left: list[Residuals] = []

    def attempt(what: str, label: str, measure: Callable[[], _T]) -> list[_T]:
        try:
            return [measure()]
        except NotApplicable as reason:
            done.skipped.append(f"{what}, {label}: {reason}")
        except LoricaError as error:
            done.problems.extend(f"{what}, {label}: {problem}" for problem in error.problems)
        return []

    for run, label in zip(results, names, strict=True):
        left += attempt("residuals", label, lambda run=run, label=label: residuals(run, label, given))
        if task:
            lines += attempt(
                "straight line",
                label,
                lambda run=run, label=label: straight_line(
                    run, label, task=task, points=points, given=given, reporter=reporter
                ),
            )
        for found in attempt(
            "distances",
            label,
            lambda run=run: _distances_of(run, fine_tune, [*done.distances, *known], given, reporter),
        ):
            if found and found not in done.distances:
                done.distances.append(found)
    if plain := [label for run, label in zip(results, names, strict=True) if not run.magnitudes]:
        done.skipped.append(f"magnitudes: none in {', '.join(plain)}")
    if not (fine_tune or done.distances):
        done.skipped.append("distances: they need training; ask for it with --fine-tune 5")
    if not any(run.kept and run.complete for run in results):
        done.skipped.append("growth: no complete run says which adapters it keeps")
    if not task:
        done.skipped.append("straight line: none asked for (--task 0)")
    left_out = tables.LEFT_OUT
    done.skipped += [line.removeprefix(left_out) for line in tables.notes(results) if line.startswith(left_out)]

    with taken(out):
        write_json(
            out / FILE,
            {
                "runs": [_recorded(run, label) for run, label in zip(results, names, strict=True)],
                "residuals": [asdict(item) for item in left],
                "straight_lines": [asdict(item) for item in lines],
                "distances": [asdict(item) for item in done.distances],
                "skipped": [*done.skipped, *done.problems],
            },
        )
    drawn = figures.all_figures(results)
    if left:
        drawn["residuals"] = figures.residuals(left)
    if lines:
        drawn["straight_line"] = figures.straight_lines(lines)
    for number, distances in enumerate(done.distances, start=1):
        drawn["distances" if len(done.distances) == 1 else f"distances_{number}"] = figures.relative_distances(
            distances
        )
    done.figures += figures.save_all(drawn, out)
    return done


def summary(done: Analysis) -> Table:
    """What was drawn, what distances say, and what was left out and why, for the terminal."""
    table = Table(box=None, show_header=False)
    rows = [("drawn", ", ".join(path.stem for path in done.figures if path.suffix == ".pdf"))]
    for distances in done.distances:
        pairs = [ratio for i, row in enumerate(distances.ratios) for ratio in row[:i]]
        closer = "all" if max(pairs) < 1 else "none" if min(pairs) >= 1 else "some"
        rows.append(
            (
                "distances",
                f"{closer} of the pairs are closer to each other than to W0: rho {min(pairs):.2f} to {max(pairs):.2f} "
                f"({distances.label})",
            )
        )
    rows += [("left out", line) for line in done.skipped]
    for what, line in rows:
        table.add_row(what, Text(visible(line)))
    return table


def labels(results: Sequence[Result]) -> list[str]:
    """A name for each run: that of its row in a table, with its seed and its folder where several share it."""
    rows = {id(run): row.label for row in tables.summarise(results) for run in row.runs}
    names = [rows.get(id(run)) or run.label for run in results]
    for more in (
        lambda run: f", seed {run.seed}",
        lambda run: f" ({run.path.name if run.path else ''})",
        lambda run: f" ({run.path})",
    ):
        names = [name + more(run) if names.count(name) > 1 else name for name, run in zip(names, results, strict=True)]
    return names


def residuals(run: Result, label: str, given: Mapping[str, Any] | None = None) -> Residuals:
    """Fig. 3a: what is left of each new direction after least squares on the earlier ones.

    A run that recorded residuals while learning (SD-LoRA-KD, against the directions it kept) is taken at its word;
    otherwise they come from the directions in the last checkpoint. The data is not needed.

    Raises:
        NotApplicable: fewer than two low-rank directions.
        LoricaError: no checkpoint after the last task learned, or one that does not fit.
    """
    kept, logged = run.kept, run.residuals
    dropped = [t + 1 for t, tasks in enumerate(kept or []) if t not in tasks]
    if any(value is not None for value in logged):
        power = 0.5 if dict(flatten(run.recipe)).get("method.squared_residual") else 1.0
        found = {t + 1: value**power for t, value in enumerate(logged) if value is not None}
        return Residuals(label, list(found), list(found.values()), dropped)
    method = _learned(run, len(run.accuracy), given)
    updates = next((module for module in method.modules() if isinstance(module, LowRankUpdates)), None)
    gram = torch.empty(0, 0) if updates is None else updates.gram()
    tasks = kept[-1] if kept else list(range(len(gram)))
    # a method may store directions that it has pruned
    stored = method.structure().get("stored", tasks)
    places = [stored.index(index) for index in tasks]
    if len(places) < 2:
        raise NotApplicable(f"{len(places) or 'no'} low-rank direction{'' if len(places) == 1 else 's'}, needs two")
    gram, tasks = gram[places][:, places], [index + 1 for index in tasks]
    values = [project_last(gram[: t + 1, : t + 1])[1] ** 0.5 for t in range(1, len(tasks))]
    return Residuals(label, tasks[1:], values, [])


def straight_line(
    run: Result,
    label: str,
    *,
    task: int = 2,
    points: int = 11,
    source: Source | None = None,
    given: Mapping[str, Any] | None = None,
    reporter: Reporter | None = None,
) -> StraightLine:
    """Fig. 4: accuracies along the straight line between the weights before and after a task.

    Every prediction is the argmax over the classes of tasks 1 … `task`, by the method's head. At s = 1 it is the run's
    own (unless that is read otherwise).

    Args:
        task: counted from 1; from 2 on, so that there are old tasks.
        points: evenly spaced s, 0 and 1 included.
        source: the data again, for a run that was given it as an object.

    Raises:
        NotApplicable: the method leaves the encoder's weights alone, has weights of each task's own, or learns all
            tasks at once.
        LoricaError: no such task, a checkpoint or the data is missing or has changed.
    """
    if find_method(_recipe(run, given).method.name).learns_all_at_once:
        raise NotApplicable("learns all tasks at once")
    if not 2 <= task <= len(run.accuracy):
        raise LoricaError(
            f"{run.path}: no straight line at task {task}: the run has learned {len(run.accuracy)} tasks; "
            f"give --task from 2 to {len(run.accuracy)}, or 0 for none"
        )
    before, after = merged(_learned(run, task - 1, given)), merged(_learned(run, task, given))
    start = before.encoder.state_dict()
    stop = {name: tensor.clone() for name, tensor in after.encoder.state_dict().items()}
    if all(torch.equal(start[name], stop[name]) for name in stop):
        raise NotApplicable(f"task {task} does not change the encoder's weights")
    if after.classifier() is None:
        raise NotApplicable("does not predict with one set of weights and one linear head")
    parts = assemble(_recipe(run, given), source)
    tasks, known = parts.stream.tasks[:task], [each.class_names for each in after.tasks]
    if [each.class_names for each in tasks] != known:
        raise CheckpointError(f"{run.path}: the data now gives other classes than the run learned; restore it")
    require_same_samples(RunFolder(cast(Path, run.path)), parts.stream, reporter or Silent())
    after.to(parts.accelerator.device)
    positions, reporter = torch.linspace(0, 1, points).tolist(), reporter or Silent()
    reporter.stage(f"{label}: straight line", points)
    old, new = [], []
    for s in positions:
        with torch.no_grad():
            for name, tensor in after.encoder.state_dict().items():
                tensor.copy_(torch.lerp(start[name], stop[name], s))  # exact at both ends
        row = accuracy_row(after, tasks, parts.test_data, accelerator=parts.accelerator)
        old.append(fmean(row[:-1]))
        new.append(row[-1])
        reporter.step()
    return StraightLine(label, task, positions, old, new)


def relative_distances(
    run: Result,
    *,
    tasks: int = 5,
    source: Source | None = None,
    given: Mapping[str, Any] | None = None,
    reporter: Reporter | None = None,
) -> Distances:
    """Figs. 2a and 7: fine-tunes the run's backbone on each of its first tasks, each time from W0, and measures how far
    it goes.

    Training is `full_finetune` with that method's own learning rate, on the run's data, batches and epochs. The weights
    compared are those of the projections that the run adapts (q and v where it adapts none).

    Raises:
        LoricaError: fewer than two tasks, or more than the run has; data that cannot be read; training that cannot go
            on.
    """
    if not 2 <= tasks <= len(run.tasks):
        raise LoricaError(
            f"{run.path}: cannot fine-tune on {tasks} tasks one by one: the run has {len(run.tasks)}; "
            f"give --fine-tune from 2 to {len(run.tasks)}, or 0 for none"
        )
    recipe, kinds = _fine_tuning(run, given)
    parts = assemble(recipe, source)
    require_same_samples(RunFolder(cast(Path, run.path)), parts.stream, reporter or Silent())
    encoder, fit = parts.method.encoder, Fit(**recipe.fit.model_dump())
    start = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    weights = [_projections(encoder, kinds)]
    for task in parts.stream.tasks[:tasks]:
        encoder.load_state_dict(start)
        method = find_method(recipe.method.name)(recipe.method, encoder)
        with torch.random.fork_rng([]):  # head rows of earlier tasks: there for their place, not used
            for earlier in parts.stream.tasks[: task.index]:
                method.grow(earlier)
        data = parts.stream.train(task)
        learn_task(method, task, data, fit, seed=recipe.seed, accelerator=parts.accelerator, reporter=reporter)
        weights.append(_projections(encoder, kinds))
    return distances_between(weights, label=_name(recipe, kinds), recipe=_identity(recipe, kinds))


def distances_between(
    weights: Sequence[Float[Tensor, " weights"]], *, label: str, recipe: Mapping[str, Any]
) -> Distances:
    """Relative distances from W0, W_1, W_2, …, each flattened; see the top of this file for the normalisers."""
    base, *tuned = weights
    size = float(base.norm())
    moved = [float((w - base).norm()) for w in tuned]
    apart = [[float((w - other).norm()) for other in tuned] for w in tuned]
    return Distances(
        label=label,
        to_start=[distance / size for distance in moved],
        between=[[distance / size for distance in row] for row in apart],
        ratios=[
            [distance / ((moved[i] + moved[j]) / 2) for j, distance in enumerate(row)] for i, row in enumerate(apart)
        ],
        recipe=dict(recipe),
    )


def _distances_of(
    run: Result, number: int, known: Sequence[Distances], given: Mapping[str, Any] | None, reporter: Reporter | None
) -> Distances | None:
    """Those known for the run's recipe, or else measured on `number` tasks; None if that is 0."""
    identity = _identity(*_fine_tuning(run, given))
    for distances in known:
        if distances.recipe == identity and number in (0, len(distances.to_start)):
            return distances
    return relative_distances(run, tasks=number, given=given, reporter=reporter) if number else None


def _fine_tuning(run: Result, given: Mapping[str, Any] | None) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe that fine-tunes everything on the run's stream, and the projections to compare."""
    own = _recipe(run, given)
    kinds = own.method.projections if isinstance(own.method, LowRankConfig) else ("q", "v")
    values = own.resolved() | {"method": {"name": "full_finetune"}}
    values["fit"] = {key: values["fit"][key] for key in ("epochs", "batch_size", "augment")}
    return read_recipe(values), kinds


def _identity(recipe: Recipe, kinds: Sequence[str]) -> dict[str, Any]:
    """What distances depend on, as plain values."""
    return {
        key: value for key, value in recipe.resolved().items() if key not in ("device", "snapshot_seconds", "track")
    } | {"projections": list(kinds)}


def _name(recipe: Recipe, kinds: Sequence[str]) -> str:
    return f"{recipe.backbone.name}, {' and '.join(kinds)}, seed {recipe.seed}"


class _Distances(BaseModel):
    """See `lorica.report.figures.Distances`."""

    model_config = WRITTEN

    label: str
    to_start: Annotated[list[_Length], Field(min_length=2)]
    between: list[list[_Length]]
    ratios: list[list[_Length]]
    recipe: Plain

    @model_validator(mode="after")
    def _square(self) -> _Distances:
        for key, rows in (("between", self.between), ("ratios", self.ratios)):
            if [len(row) for row in rows] != [len(self.to_start)] * len(self.to_start):
                raise ValueError(f"{key}: expected {len(self.to_start)} rows of as many distances")
        return self


class _Known(BaseModel):
    """The contents of analysis.json, as far as they are read again."""

    model_config = WIDER

    distances: list[_Distances]


def _known_distances(file: Path) -> list[Distances]:
    if not file.is_file():
        return []
    try:
        read = _Known.model_validate(parsed(file.read_bytes()))
    except (OSError, ValueError) as error:
        why = "; ".join(misfits(error)) if isinstance(error, ValidationError) else str(error)
        raise LoricaError(
            f"{file}: not an analysis of this version of lorica, or altered: {why:.300}; delete it"
        ) from error
    return [Distances(**each.model_dump()) for each in read.distances]


def _recipe(run: Result, given: Mapping[str, Any] | None) -> Recipe:
    folder = RunFolder(_folder(run))
    folder.require()
    return saved_recipe(folder, given or {})


def _folder(run: Result) -> Path:
    if run.path is None:
        raise LoricaError("this result has no folder; read the run from disk: lorica.results.find_runs")
    return run.path


def _learned(run: Result, tasks: int, given: Mapping[str, Any] | None) -> Method:
    """The run's method as it was after that many tasks."""
    at_once = find_method(_recipe(run, given).method.name).learns_all_at_once
    folder = RunFolder(_folder(run)).checkpoints
    if (1 if at_once else tasks) not in Checkpoints(folder).there():
        raise CheckpointError(
            f"{folder}: the checkpoint after task {tasks} is needed and is not there; restore it, "
            f"learn the run again, or (for the straight line) give another --task, or --task 0"
        )
    method = load(_folder(run), tasks=1 if at_once else tasks, **(given or {})).method
    return method.learner if isinstance(method, Readout) else method


def _projections(encoder: Encoder, kinds: Sequence[str]) -> Float[Tensor, " weights"]:
    """The weights of all projections of these kinds, one after another, on the CPU."""
    layers = [(cast(nn.Linear, encoder.get_submodule(site.linear)), site.rows) for site in encoder.select(kinds)]
    return torch.cat([layer.weight.detach()[slice(*rows)].flatten() for layer, rows in layers]).cpu()


def _recorded(run: Result, label: str) -> dict[str, Any]:
    return {
        "label": label,
        "path": str(run.path),
        "method": run.method,
        "variant": run.variant,
        "seed": run.seed,
        "complete": run.complete,
        "accuracy": run.accuracy,
        "magnitudes": run.magnitudes,
        "kept": run.kept,
    }
