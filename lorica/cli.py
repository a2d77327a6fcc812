"""The command line: `lorica demo | run | check | list | table | evaluate | analyze | theorem`."""

from __future__ import annotations

import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.console import Console
from rich.table import Table

from lorica import analysis
from lorica import demo as demonstration
from lorica.backbones import backbone_names
from lorica.config import packaged_recipes, read_recipe
from lorica.data.sources import remarks, source_names
from lorica.errors import LoricaError
from lorica.files import write_json
from lorica.interruption import Terminated
from lorica.methods import find_method, method_names
from lorica.ownership import require_ours
from lorica.progress import progress_bar
from lorica.report import figures, tables, theorem_figure
from lorica.results import find_runs
from lorica.run import check as check_recipe
from lorica.run import default_folder
from lorica.run import evaluate as evaluate_run
from lorica.run import run as run_recipe
from lorica.theorem import Setting, experiment

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Class-incremental learning with pre-trained transformers by low-rank adaptation, without keeping old samples.",
    epilog="Any command takes --debug, which shows where in the program an error arose.",
)
console = Console()

_INTERRUPTED = 130  # the exit code that typer makes of Ctrl-C

Overrides = Annotated[list[str] | None, typer.Argument(metavar="[key.sub=value]…", help="replace keys of the recipe")]
RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="a packaged recipe (`lorica list recipes`) or a YAML file")
]


class Listing(StrEnum):
    """What `lorica list` can list."""

    methods = "methods"
    backbones = "backbones"
    sources = "sources"
    recipes = "recipes"


class Format(StrEnum):
    """What `lorica table` can write."""

    text = "text"
    markdown = "markdown"
    latex = "latex"
    csv = "csv"


@app.command()
def demo(out: Annotated[Path, typer.Option(help="folder for the results")] = Path("runs/demo")) -> None:
    """Digits in 5 tasks: forgetting, and its cure, in two minutes and without a download."""
    demonstration.show(out, console)


@app.command()
def run(
    recipe: RecipeName,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="folder of the run; default runs/RECIPE/METHOD")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue where the run was stopped")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="start anew in a folder that holds a run")] = False,
    stop_after: Annotated[int | None, typer.Option(min=1, help="leave the run after that many tasks")] = None,
) -> None:
    """Learn a stream of tasks with one method."""
    resolved = read_recipe(recipe, overrides or [])
    folder = out or default_folder(recipe, resolved)
    result = run_recipe(resolved, out=folder, resume=resume, overwrite=overwrite, stop_after=stop_after)
    figures.draw_all([result], folder / "figures")
    if result.complete:
        console.print(tables.to_rich(tables.summarise([result]), width=console.width))
        if own := result.head:
            console.print(f"By its own head: Acc {100 * own.acc:.1f}, AAA {100 * own.aaa:.1f}")
    else:
        console.print(
            f"{len(result.accuracy)} of {len(result.tasks)} tasks learned, average accuracy {100 * result.acc:.1f} %; "
            "--resume goes on"
        )
    console.print(f"Everything about this run is in [bold]{folder}[/]")


@app.command()
def check(
    recipe: RecipeName,
    overrides: Overrides = None,
    fast: Annotated[bool, typer.Option("--fast", help="read the headers of images only, do not decode them")] = False,
) -> None:
    """Validate a recipe and its data; nothing is trained."""
    resolved, stream = check_recipe(read_recipe(recipe, overrides or []), decode_all=not fast)
    for remark in remarks(stream.source.facts):
        console.print(remark, markup=False, highlight=False, soft_wrap=True)
    sizes = sorted({len(task.class_names) for task in stream.tasks})
    console.print(
        f"[green]valid[/]: {resolved.method.name} on {resolved.backbone.name}, {stream.source.name}: "
        f"{len(stream.class_names)} classes in {len(stream.tasks)} tasks of {' to '.join(map(str, sizes[:1] + sizes[1:][-1:]))}, "
        f"{len(stream.source.train)} training and {len(stream.source.test)} test images"
    )


@app.command("list")
def list_names(
    what: Listing, plain: Annotated[bool, typer.Option("--plain", help="one name per line, nothing else")] = False
) -> None:
    """List methods, backbones, sources or recipes."""
    match what:
        case Listing.methods:
            entries = {name: _first_line(find_method(name)) for name in method_names()}
        case Listing.backbones:
            entries = backbone_names()
        case Listing.sources:
            entries = source_names()
        case Listing.recipes:
            entries = packaged_recipes()
    if plain:
        typer.echo("\n".join(entries))
        return
    table = Table("name", "", box=None, title=what.value, title_justify="left")
    for name, description in entries.items():
        table.add_row(f"[bold]{name}[/]", description)
    console.print(table)


@app.command()
def table(
    runs: Annotated[list[Path], typer.Argument(help="folders of runs, or folders that hold such folders")],
    form: Annotated[Format, typer.Option("--format", help="how to write it")] = Format.text,
    figures_in: Annotated[
        Path | None, typer.Option("--figures", help="also draw the comparison into this folder")
    ] = None,
) -> None:
    """Compare finished runs: mean and standard deviation over seeds for each method."""
    results = find_runs(runs, left_out=_left_out)
    rows, remarks = tables.summarise(results), tables.notes(results)
    match form:
        case Format.text:
            console.print(tables.to_rich(rows, remarks, width=console.width))
        case Format.markdown:
            typer.echo(tables.to_markdown(rows, remarks))
        case Format.latex:
            typer.echo(tables.to_latex(rows, remarks))
        case Format.csv:
            typer.echo(tables.to_csv(rows))
    if figures_in:
        figures.draw_all(results, figures_in)


@app.command()
def evaluate(
    folder: Annotated[Path, typer.Argument(help="folder of a run")],
    tasks: Annotated[int | None, typer.Option(min=1, help="go back to the checkpoint after this many tasks")] = None,
) -> None:
    """Test a run's checkpoint again, task by task."""
    tested = evaluate_run(folder, tasks=tasks)
    columns = {"accuracy %": tested.accuracy}
    if tested.head_accuracy:
        columns = {"by class means %": tested.accuracy, "by its head %": tested.head_accuracy}
    shown = Table("task", "classes", *columns, title=str(folder), title_justify="left")
    for number, (classes, *accuracies) in enumerate(zip(tested.classes, *columns.values(), strict=True), start=1):
        names = ", ".join(classes[:6]) + (" …" if len(classes) > 6 else "")
        shown.add_row(str(number), names, *(f"{100 * accuracy:.1f}" for accuracy in accuracies))
    console.print(shown)


@app.command()
def analyze(
    runs: Annotated[list[Path], typer.Argument(help="folders of runs, or folders that hold such folders")],
    out: Annotated[
        Path | None, typer.Option(help="folder for figures and analysis.json; default RUN/analysis, or runs/analysis")
    ] = None,
    task: Annotated[int, typer.Option(min=0, help="draw the straight line across this task; 0 = none")] = 2,
    points: Annotated[int, typer.Option(min=2, help="points on the straight line")] = 11,
    fine_tune: Annotated[
        int, typer.Option(min=0, help="fine-tune on each of the first tasks, that many, and compare; 0 = train nothing")
    ] = 0,
) -> None:
    """Draw the paper's evidence for runs: residuals, magnitudes, straight lines, distances, accuracies."""
    results = find_runs(runs, left_out=_left_out)
    folder = out or (cast(Path, results[0].path) / "analysis" if len(results) == 1 else Path("runs/analysis"))
    with progress_bar() as reporter:
        done = analysis.analyse(results, folder, task=task, points=points, fine_tune=fine_tune, reporter=reporter)
    console.print(analysis.summary(done))
    console.print(f"Figures, and the numbers in them ({analysis.FILE}), are in [bold]{folder}[/]")
    if done.problems:
        raise LoricaError(done.problems)


@app.command()
def theorem(
    out: Annotated[Path, typer.Option(help="folder for the figure and theorem.json")] = Path("runs/theorem"),
    seed: Annotated[int, typer.Option(min=0, help="of the target and of the factors' start")] = 0,
) -> None:
    """Watch gradient descent from small factors find principal components one by one (SD-LoRA's Theorem 1)."""
    require_ours([out / "theorem.json"])
    result = experiment(Setting(seed=seed))
    figures.save(theorem_figure.draw(result), out / "theorem")
    write_json(out / "theorem.json", result.summary())
    console.print(theorem_figure.to_rich(result))
    console.print(f"theorem.pdf, theorem.png and theorem.json are in [bold]{out}[/]")


def main() -> None:
    """Entry point: user errors become lines and exit code 2; `--debug` shows the traceback instead."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    errors = Console(stderr=True)
    try:
        app(args=arguments)
    except LoricaError as error:
        if "--debug" in sys.argv:
            raise
        for problem in error.problems:
            errors.print(problem, style="red", markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(2) from None
    except (SystemExit, KeyboardInterrupt) as leaving:
        code = leaving.code if isinstance(leaving, SystemExit) else _INTERRUPTED
        if code == _INTERRUPTED or isinstance(leaving, Terminated):
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C has nothing left to stop
            why = leaving.signal.name if isinstance(leaving, Terminated) else "interrupted"
            errors.print(
                f"\n{why}: finished tasks are kept, and of the one under way its last snapshot; --resume continues"
            )
        raise SystemExit(code) from None


def _left_out(line: str) -> None:
    """On standard error, beside the table of the other runs."""
    Console(stderr=True).print(f"left out: {line}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def _first_line(item: object) -> str:
    return (item.__doc__ or "").strip().splitlines()[0]
