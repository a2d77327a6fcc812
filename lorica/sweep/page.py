"""What a sweep has chosen, and its table: Markdown, JSON and figures, which follow from the runs and the file alone.

<out>-search.json   what was tried, on what budget, how it scored, and what was chosen
<out>.md, .json     the table with the command that made it; label, seed, accuracy matrix, measures and costs of each
                    run
<out>-accuracy_….png, .pdf
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.trial import TrialState
from rich.table import Column, Table
from rich.text import Text

from lorica.errors import LoricaError
from lorica.files import write_json, write_text
from lorica.metrics import MEASURES
from lorica.ownership import marked, wrote
from lorica.report import tables
from lorica.results import DEFAULT_VARIANTS, Result, read_result
from lorica.sweep.plan import Method, Plan, said

if TYPE_CHECKING:
    from lorica.sweep.board import Board, Stage

_MADE = "Made by the following command; do not edit."
_SEARCH = ("budget", "scores", "chosen")
_KEPT = ("label", "seed", "accuracy", *MEASURES, "magnitudes", "cost")


def require_place(plan: Plan) -> None:
    """LoricaError where a file is in the way that no sweep wrote, or where the file of times is of another recipe."""
    page, beside, search = _files(plan)
    known = {page: _is_page, beside: _is_table, search: _is_search}
    taken = [file for file, is_ours in known.items() if file.exists() and not is_ours(file)]
    problems = [f"{file}: is in the way and not of a sweep; move it away, or give another out" for file in taken]
    if plan.sweep.times:
        _times(plan)
    if problems:
        raise LoricaError(problems)


def write_search(board: Board) -> None:
    """Writes what has been tried so far, and chosen."""
    searched = [each for each in board.plan.methods if each.search]
    if not searched:
        return
    with board.alone:
        content: dict[str, dict[str, Any]] = {
            key: {} for key in ("budget", "scores", "final_scores", "chosen", "not_finished")
        }
        for method in searched:
            assert method.search is not None
            budget = method.search.model_dump(mode="json", exclude_none=True, exclude={"measure"})
            score = {"score": f"{method.search.measure} on held-out data", "sampler": method.search.by}
            content["budget"][method.name] = score | budget
            stages: tuple[tuple[str, Stage], ...] = (("scores", "search"), ("final_scores", "final"))
            for key, stage in stages:
                if scores := board.scores(method, stage):
                    content[key][method.name] = {said(settings): value for settings, value in scores}
                for trial in board.trials(method, stage):
                    if why := trial.user_attrs.get("why"):
                        content["not_finished"].setdefault(method.name, {})[said(trial.params)] = why
            if (chosen := board.settings_of(method)) is not None:
                content["chosen"][method.name] = chosen
        file = _files(board.plan)[2]
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, content)


def write(board: Board) -> tuple[list[tables.Row], list[str]]:
    """Writes what was chosen, and the table; returns its rows and the remarks below it.

    Raises:
        LoricaError: a run whose folder is gone or damaged.
    """
    plan = board.plan
    write_search(board)
    results, remarks = _results(board)
    runs = [result for _, result in results]
    if not runs:
        return [], remarks
    with board.alone:
        pictures = _draw(plan, results)
        rows, remarks = tables.summarise(runs, sort="acc"), [*tables.notes(runs), *remarks]
        columns = {}
        if plan.sweep.times:
            timed = _times(plan)
            columns["Time"] = lambda row: _time(row, timed["totals"])
            tasks = "all tasks" if timed["tasks"] == rows[0].tasks else f"the first {timed['tasks']} tasks"
            remarks.append(
                f"Time: of learning {tasks}, relative to sd_lora, one process taking turns (training_time.py)."
            )
        page, beside, _ = _files(plan)
        write_text(page, marked(page, _page(plan, rows, tables.to_markdown(rows, remarks, columns), pictures)))
        write_json(beside, [{name: getattr(run, name) for name in _KEPT} for run in runs])
    return rows, remarks


def search_table(board: Board) -> Table | None:
    """What was tried and chosen, for a terminal; None where nothing was searched."""
    searched = [each for each in board.plan.methods if each.search]
    table = Table(*(Column(name, overflow="fold") for name in ("method", "tried, score %", "on more tasks", "chosen")))
    for method in searched:
        tried, finals = (
            "\n".join(f"{said(settings, short=True)}: {100 * value:.1f}" for settings, value in scores)
            for scores in (board.scores(method, "search"), board.scores(method, "final"))
        )
        chosen = said(board.settings_of(method) or {}, short=True)
        table.add_row(*(Text(each) for each in (method.name, tried, finals, chosen)))
    return table if searched else None


def _results(board: Board) -> tuple[list[tuple[Method, Result]], list[str]]:
    """The runs of the table, seed by seed, each with its method; and a line for each that failed."""
    found, remarks = [], []
    plan = board.plan
    ended = {
        (method.name, trial.params["seed"]): trial
        for method in plan.methods
        for trial in board.trials(method, "rows")
        if trial.state.is_finished()
    }
    for seed in plan.sweep.seeds:
        for method in plan.methods:
            trial = ended.get((method.name, seed))
            if trial is not None and trial.state is TrialState.COMPLETE:
                found.append((method, read_result(plan.row_folder(method, seed))))
            elif trial is not None:
                remarks.append(f"Left out, failed: {method.name}, seed {seed} ({trial.user_attrs['why']}).")
    return found, remarks


def _draw(plan: Plan, results: Sequence[tuple[Method, Result]]) -> dict[str, str]:
    """Draws the figures; returns their names by title."""
    from lorica.report import figures

    drawn = plan.sweep.drawn
    shown = [result for method, result in results if drawn is None or method.name in drawn]
    name = plan.out.name
    made = {
        "Average accuracy after each task": (f"{name}-accuracy_curves", figures.accuracy_curves(shown)),
        "Accuracy on each task, new and at the end": (f"{name}-accuracy_per_task", figures.accuracy_per_task(shown)),
    }
    for figure in (
        figures.magnitudes(result) for _, result in results if result.label == "sd_lora" and result.seed == 0
    ):
        if figure is not None:
            made["Learned magnitudes"] = (f"{name}-magnitudes", figure)
    figures.save_all(dict(made.values()), plan.out.parent)
    return {title: stem for title, (stem, _) in made.items()}


def _page(plan: Plan, rows: Sequence[tables.Row], table: str, pictures: Mapping[str, str]) -> str:
    environments = [_environment(run) for row in rows for run in row.runs]
    machines = dict.fromkeys(
        f"{each['cpu_count']} CPU cores ({each['machine']}), {each.get('gpu') or 'no GPU'}, torch {each['torch']}, "
        f"timm {each['timm']}"
        for each in environments
    )
    commits = ", ".join(dict.fromkeys(map(_commit, environments)))
    trained = [row for row in rows if row.cost("trainable")]
    epochs, sizes, kinds = (
        _said(trained or rows, lambda run, key=key: str(run.recipe["fit"][key]))
        for key in ("epochs", "batch_size", "augment")
    )
    rates = _said(trained, lambda run: "{optimizer} {learning_rate:g}".format(**run.recipe["fit"]), "; ")
    searched = [each.name for each in plan.methods if each.search]
    chosen = (
        f"Settings of {', '.join(searched)} were chosen on held-out training data: "
        f"[{plan.out.name}-search.json]({plan.out.name}-search.json).\n\n"
        if searched
        else ""
    )
    lines = [
        f"# {plan.sweep.title or plan.out.name}",
        "",
        _MADE,
        "",
        f"    {plan.command}",
        "",
        f"{_said(rows, _stream)}, class order {_said(rows, _order)}, backbone {_said(rows, _backbone)}, "
        f"{epochs} epochs a task, batches of {sizes}, augmentation: {kinds}. "
        f"Optimiser and learning rate: {rates or 'nothing is trained'}. "
        f"Machine: {'; '.join(machines)}; lorica at {commits}.",
        "",
        chosen + table,
        *(f"![{title}]({stem}.png)" for title, stem in pictures.items()),
        "",
    ]
    return "\n".join(lines)


def _environment(run: Result) -> dict[str, Any]:
    assert run.path is not None
    return json.loads((run.path / "environment.json").read_text())


def _said(rows: Sequence[tables.Row], of: Callable[[Result], str], between: str = ", ") -> str:
    """What is so of the rows' runs, and where rows differ whose is which."""
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(of(row.runs[0]), []).append(row.label)
    if len(found) == 1:
        return next(iter(found))
    return between.join(f"{value} ({', '.join(labels)})" for value, labels in found.items())


def _stream(run: Result) -> str:
    told = {"domain": "domains", "class_and_domain": "tasks of new classes and domains"}
    kind = told.get(run.stream_by, "tasks") + (" of a manifest" if run.recipe["stream"].get("manifest") else "")
    return f"{len({name for task in run.tasks for name in task['classes']})} classes in {len(run.tasks)} {kind}"


def _order(run: Result) -> str:
    seed = run.recipe["stream"]["seed"]
    return "of the source" if seed is None else f"RandomState({seed})"


def _backbone(run: Result) -> str:
    """Its tag, and the size of the images that it reads, if it reads images."""
    from lorica.backbones import modality_of  # with it comes torch

    backbone, tag = run.recipe["backbone"], _environment(run)["backbone"]["tag"]
    if modality_of(backbone["name"]) != "images":
        return tag
    return f"{tag} at {backbone['image_size'] or 'its own number of'} pixels"


def _commit(environment: Mapping[str, Any]) -> str:
    """Of lorica; runs of earlier versions know that of their working directory."""
    revision = environment.get("lorica_revision", environment["git_revision"])
    return revision[:7] if revision else str(environment["lorica"])


def _time(row: tables.Row, times: Mapping[str, float]) -> str:
    """The row's time as training_time.py knows it, by method[:variant]."""
    name = row.method if row.variant in DEFAULT_VARIANTS else f"{row.method}:{row.variant}"
    known = name in times and "=" not in row.label  # an ablation has no time of its own
    return f"{times[name]:.2f}" if known else "–"


def _times(plan: Plan) -> Mapping[str, Any]:
    file, recipe = plan.sweep.times, Path(plan.sweep.recipe).stem
    assert file is not None
    try:
        timed = json.loads(file.read_text(encoding="utf-8"))
        if timed["recipe"] == recipe and timed["totals"] and timed["tasks"]:
            return timed
        found = timed["recipe"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoricaError(f"times: {file}: not what training_time.py writes ({error})") from error
    raise LoricaError(f"times: {file}: has the times of {found}, not of {recipe}")


def _files(plan: Plan) -> tuple[Path, Path, Path]:
    """The table, its numbers, and what was searched."""
    page, beside, search = (plan.out.with_name(f"{plan.out.name}{end}") for end in (".md", ".json", "-search.json"))
    return page, beside, search


def _is_page(file: Path) -> bool:
    """Whether a sweep made it, and nobody has altered it since; pages of before say the first alone."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return wrote(file) or (_MADE in text and "<!-- lorica report" not in text)


def _is_table(file: Path) -> bool:
    try:
        runs = json.loads(file.read_text(encoding="utf-8"))
        return all({"label", "seed", "accuracy"} <= run.keys() <= set(_KEPT) for run in runs)
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def _is_search(file: Path) -> bool:
    try:
        return set(_SEARCH) <= json.loads(file.read_text(encoding="utf-8")).keys()
    except (OSError, ValueError, AttributeError):
        return False
