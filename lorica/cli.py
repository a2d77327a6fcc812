"""The command line: `lorica demo | run | check | list | recipe | import | table | evaluate | export | analyze | merge |
theorem | serve`, and `lorica.commands`.

What computes is imported within the commands that compute, once what they are given is read: torch takes seconds, and
help, lists, tables and errors in recipes do without.
"""

from __future__ import annotations

import difflib
import logging
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.table import Table
from rich.text import Text

from lorica import launch
from lorica.commands import MethodFile, data, drawing, left_out, models, naming, report, sweep
from lorica.config import DataConfig, packaged_recipes, packaged_text, read_overrides, read_recipe
from lorica.data.sources import KEYS, require_keys, source_names
from lorica.environment import versions
from lorica.errors import LoricaError
from lorica.interruption import Followed, Terminated
from lorica.methods import method_descriptions
from lorica.methods.config import Drift, Kind
from lorica.progress import progress_bar
from lorica.terminal import Screen, open_streams, screenful

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help=(
        "Class-incremental learning with pre-trained transformers by low-rank adaptation, without keeping old samples."
    ),
    epilog="Any command takes --debug, which shows where in the program an error arose.",
)
app.add_typer(models.models)
app.add_typer(data.data, name="data")
app.add_typer(sweep.sweeps)
app.add_typer(report.reports)
console = Screen()

_INTERRUPTED = 130  # the exit code that typer makes of Ctrl-C

Moved = Annotated[
    list[str] | None,
    typer.Argument(metavar="[key.sub=value]…", help="data.root and backbone.weights, where they have moved; device"),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="data.root and backbone.weights, where they have moved; device"),
]
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


class Spread(StrEnum):
    """What `lorica table` can write behind ±."""

    deviation = "deviation"
    error = "error"


class ReadBy(StrEnum):
    """What `lorica merge` can read merged weights by; see `lorica.methods.readout`."""

    prototypes = "prototypes"
    discriminant = "discriminant"
    ridge = "ridge"
    aligned = "aligned"


class To(StrEnum):
    """What `lorica export` can write; see `lorica.export`."""

    timm = "timm"
    hf = "hf"
    peft = "peft"
    onnx = "onnx"


class Follow(StrEnum):
    """What becomes of earlier classes' statistics in `lorica merge`."""

    none = "none"
    affine = "affine"


class Format(StrEnum):
    """What `lorica table` can write."""

    text = "text"
    markdown = "markdown"
    latex = "latex"
    csv = "csv"


def _print_version(asked: bool | None) -> bool:
    if asked:
        console.out("\n".join(f"{name} {version}" for name, version in versions().items()))
        raise typer.Exit
    return False


@app.callback()
def _all_commands(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_version, help="versions that a report should name"),
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[key.sub=value]…", help="with --images or --text: keys of the recipe, such as backbone.name"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder for the results; default runs/demo, or runs/demo-text")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="your own images in place of digits, a folder for each class")
    ] = None,
    text: Annotated[bool, typer.Option("--text", help="everyday requests in place of digits")] = False,
) -> None:
    """Digits in 5 tasks: forgetting, and its cure, in two minutes and without a download."""
    launch.require_alone("a demonstration is made by one")
    if images and text:
        raise LoricaError("--images and --text: a demonstration is made on one of them; leave out the other")
    if overrides and not (images or text):
        raise LoricaError(f"{overrides[0]}: the demonstration on digits takes no keys; they go with --images or --text")
    drawing()
    from lorica import demo as demonstration

    folder = out or Path("runs/demo-text" if text else "runs/demo")
    demonstration.show(folder, console, images, overrides or [], text=text)


def _require_data(data: DataConfig) -> None:
    require_keys(data.source, data.chosen(KEYS))


@app.command()
def run(
    recipe: RecipeName,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="folder of the run; default runs/RECIPE/METHOD")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue where the run was stopped")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="start anew in a folder that holds a run")] = False,
    stop_after: Annotated[int | None, typer.Option(min=1, help="leave the run after that many tasks")] = None,
    method_file: MethodFile = None,
) -> None:
    """Learn a stream of tasks with one method."""
    # a run that is resumed and complete already needs no data
    resolved = read_recipe(
        recipe, [*(overrides or []), *naming(method_file)], require_data=None if resume else _require_data
    )
    figures = drawing()
    from lorica import run as run_recipe
    from lorica.report import tables
    from lorica.run import default_folder

    folder = out or default_folder(recipe, resolved)
    if not launch.is_main():
        logging.getLogger("lorica").setLevel(logging.CRITICAL)
    result = run_recipe(resolved, out=folder, resume=resume, overwrite=overwrite, stop_after=stop_after)
    if not launch.is_main():
        return
    figures.draw_all([result], folder / "figures")
    if result.complete:
        console.print(tables.to_rich(tables.summarise([result]), width=console.width, encoding=console.encoding))
        if own := result.head:
            console.print(f"By its own head: Acc {100 * own.acc:.1f}, AAA {100 * own.aaa:.1f}")
    else:
        console.print(
            f"{len(result.accuracy)} of {len(result.tasks)} tasks learned, average accuracy {100 * result.acc:.1f} %; "
            "--resume goes on"
        )
    console.print("Everything about this run is in", console.strong(folder))


@app.command()
def check(
    recipe: RecipeName,
    overrides: Overrides = None,
    fast: Annotated[bool, typer.Option("--fast", help="read the headers of images only, do not decode them")] = False,
    method_file: MethodFile = None,
) -> None:
    """Validate a recipe and its data; nothing is trained."""
    given = read_recipe(recipe, [*(overrides or []), *naming(method_file)], require_data=_require_data)
    from lorica import check as check_recipe
    from lorica.backbones import modality_of
    from lorica.data.sources import remarks

    resolved, stream = check_recipe(given, decode_all=not fast)
    for remark in remarks(stream.source.facts):
        console.print(remark, soft_wrap=True)
    sizes = sorted({len(task.class_names) for task in stream.tasks})
    console.print(
        Text("valid", "green"),
        f": {resolved.method.name} on {resolved.backbone.name}, {stream.source.name}: "
        f"{len(stream.class_names)} classes in {len(stream.tasks)} tasks of "
        f"{' to '.join(map(str, sizes[:1] + sizes[1:][-1:]))}, {len(stream.source.train)} training and "
        f"{len(stream.source.test)} test {modality_of(resolved.backbone.name)}",
        sep="",
    )


@app.command("list")
def list_names(
    what: Listing, plain: Annotated[bool, typer.Option("--plain", help="one name per line, nothing else")] = False
) -> None:
    """List methods, backbones, sources or recipes."""
    match what:
        case Listing.methods:
            entries = method_descriptions()
        case Listing.backbones:
            from lorica.backbones import backbone_names  # timm's, which only timm knows

            entries = backbone_names()
        case Listing.sources:
            entries = source_names()
        case Listing.recipes:
            entries = packaged_recipes()
    if plain:
        console.out("\n".join(entries))
        return
    table = Table("name", "", box=None, title=what.value, title_justify="left")
    for name, description in entries.items():
        table.add_row(console.strong(name), description)
    console.print(table)


@app.command()
def recipe(
    name: Annotated[str, typer.Argument(metavar="RECIPE", help="a packaged recipe (`lorica list recipes`)")],
) -> None:
    """Print a packaged recipe, to read or to change: `lorica recipe omniglot > mine.yaml`."""
    text = packaged_text(name)
    if text is None:
        near = difflib.get_close_matches(name, packaged_recipes(), n=1)
        raise LoricaError(
            f"{name}: no packaged recipe; {f'did you mean {near[0]}?' if near else '`lorica list recipes` has them'}"
        )
    console.out(text.rstrip())


@app.command("import")
def import_configuration(
    file: Annotated[Path, typer.Argument(help="of LAMDA-PILOT or SD-LoRA (JSON), or of LibContinual (YAML)")],
) -> None:
    """Print the recipe that another code's configuration stands for, and which of its keys that code never used."""
    from lorica.importing import import_recipe

    console.out(import_recipe(file).text(file.name).rstrip())


@app.command()
def table(
    runs: Annotated[list[Path], typer.Argument(help="folders of runs, or folders that hold such folders")],
    form: Annotated[Format, typer.Option("--format", help="how to write it")] = Format.text,
    figures_in: Annotated[
        Path | None, typer.Option("--figures", help="also draw the comparison into this folder")
    ] = None,
    spread: Annotated[
        Spread, typer.Option(help="over seeds: standard deviation, or standard error of the mean")
    ] = Spread.deviation,
    properties: Annotated[
        bool, typer.Option("--properties", help="say which are rehearsal-free, take one pass, and train end to end")
    ] = False,
) -> None:
    """Compare finished runs: mean and standard deviation over seeds for each method."""
    from lorica.report import tables
    from lorica.results import find_runs

    error = spread is Spread.error
    results = find_runs(runs, left_out=left_out)
    rows, remarks = tables.summarise(results), tables.notes(results)
    match form:
        case Format.text:
            console.print(tables.to_rich(rows, remarks, width=console.width, encoding=console.encoding, error=error))
        case Format.markdown:
            console.out(tables.to_markdown(rows, remarks, error=error))
        case Format.latex:
            console.out(tables.to_latex(rows, remarks, error=error))
        case Format.csv:
            console.out(tables.to_csv(rows))
    if properties:
        console.print(tables.properties(rows))
    if figures_in:
        figures = drawing()
        figures.draw_all(results, figures_in)


@app.command()
def evaluate(
    folder: Annotated[Path, typer.Argument(help="folder of a run")],
    moved: Moved = None,
    tasks: Annotated[int | None, typer.Option(min=1, help="go back to the checkpoint after this many tasks")] = None,
    method_file: MethodFile = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER|FILE",
            help="images to test on, a folder for each class, or texts in a file of rows; a model needs them",
        ),
    ] = None,
    figures_in: Annotated[
        Path | None, typer.Option("--figures", help="with --data: draw what is mistaken for what into this folder")
    ] = None,
) -> None:
    """Test a run's checkpoint again, task by task; or a run or a model on images or texts of your own."""
    if data:
        _examine(folder, data, tasks, method_file, read_overrides(moved or []), figures_in)
        return
    if figures_in:
        raise LoricaError("--figures: goes with --data; `lorica table RUN --figures FOLDER` draws a run")
    given = read_overrides(moved or [])
    from lorica.run import evaluate as evaluate_run

    tested = evaluate_run(folder, tasks=tasks, method_file=method_file, **given)
    columns = {"accuracy %": tested.accuracy}
    if tested.head_accuracy:
        columns = {"by its read-out %": tested.accuracy, "by its head %": tested.head_accuracy}
    shown = Table("task", "classes", *columns, title=str(folder), title_justify="left")
    for number, (classes, *accuracies) in enumerate(zip(tested.classes, *columns.values(), strict=True), start=1):
        names = ", ".join(classes[:6]) + (" …" if len(classes) > 6 else "")
        shown.add_row(str(number), names, *(f"{100 * accuracy:.1f}" for accuracy in accuracies))
    console.print(shown)


@app.command()
def export(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="folder of a run")],
    to: Annotated[To, typer.Option(help="the library that is to load it")],
    out: Annotated[Path | None, typer.Option(help="folder of the export; default MODEL/export/TO")] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option(
            help="images to compare on, or folders of them, or files of texts; default: the model's own test data, if "
            "it is there"
        ),
    ] = None,
    tasks: Annotated[int | None, typer.Option(min=1, help="go back to the checkpoint after this many tasks")] = None,
    method_file: MethodFile = None,
    moved: Set = None,
) -> None:
    """Write what was learned for timm, Hugging Face, PEFT or ONNX, loaded back and compared before it is there."""
    given = read_overrides(moved or [])
    from lorica import Learner, load
    from lorica import export as exports

    learner = load(
        model, tasks=tasks, method_file=method_file, **{key: given[key] for key in given if key == "backbone.weights"}
    )
    things = learner.method.encoder.modality
    if images:
        as_texts = things == "texts"
        compared_on = (
            models.given_texts(list(map(str, images)), model, method_file) if as_texts else _image_files(images)
        )
    elif isinstance(learner, Learner):
        compared_on = learner.set_aside()
    else:
        compared_on = exports.own_images(model, given, method_file=method_file)
    with progress_bar() as reporter:
        done = exports.export(learner, out or model / "export" / to.value, to.value, compared_on, reporter=reporter)
    if done.remark:
        console.print(f"It is {done.remark}.")
    what = (
        f"{done.images} {things}"
        if done.real
        else f"{done.images} random {things} (the model's data is not there; --images)"
    )
    console.print(
        f"Loaded back and compared on {what}: the largest difference of a logit is {done.difference:.2g}, "
        f"{done.share:.2g} of the largest logit; the same class comes first."
    )
    if done.pixels is not None:
        console.print(f"Its own preparation of images differs by {done.pixels:.2g} of 255 on average.")
    console.print("The export, and how to load it (README.md), are in", console.strong(done.folder))


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
    method_file: MethodFile = None,
    moved: Set = None,
) -> None:
    """Draw the paper's evidence for runs: residuals, magnitudes, straight lines, distances, accuracies."""
    drawing()
    from lorica import analysis
    from lorica.results import find_runs

    results = find_runs(runs, left_out=left_out)
    folder = out or (cast(Path, results[0].path) / "analysis" if len(results) == 1 else Path("runs/analysis"))
    with progress_bar() as reporter:
        done = analysis.analyze(
            results,
            folder,
            task=task,
            points=points,
            fine_tune=fine_tune,
            given=read_overrides([*(moved or []), *naming(method_file)]),
            reporter=reporter,
        )
    console.print(analysis.summary(done))
    console.print(f"Figures, and the numbers in them ({analysis.FILE}), are in", console.strong(folder))
    if done.problems:
        raise LoricaError(done.problems)


@app.command()
def merge(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="folder of a run, with the checkpoint after each task")],
    rule: Annotated[
        str, typer.Option(help="all, or some of average, sum, ties, magmax, fisher, spectral, with commas")
    ] = "all",
    readout: Annotated[ReadBy, typer.Option(help="what reads the merged weights")] = ReadBy.discriminant,
    layers: Annotated[
        int | None, typer.Option(min=1, help="last blocks that are read; default: the backbone's own features")
    ] = None,
    drift: Annotated[
        Follow, typer.Option(help="what becomes of earlier classes' statistics as the merged weights change")
    ] = Follow.none,
    scale: Annotated[float, typer.Option(min=0, help="every merged update is multiplied by it")] = 1.0,
    out: Annotated[Path | None, typer.Option(help="folder for merging.json; default RUN/analysis")] = None,
    method_file: MethodFile = None,
    moved: Set = None,
) -> None:
    """Solve the sum of a run's low-rank updates anew: merge them by other rules, read the result, and test it."""
    from lorica import merging

    with progress_bar() as reporter:
        done = merging.study(
            folder,
            out,
            rules=rule.split(","),
            readout=cast(Kind, readout.value),
            layers=layers,
            drift=cast(Drift, drift.value),
            scale=scale,
            given=read_overrides([*(moved or []), *naming(method_file)]),
            reporter=reporter,
        )
    console.print(merging.summary(done))
    console.print("Accuracy matrices and all measures are in", console.strong(done.file))


@app.command()
def theorem(
    out: Annotated[Path, typer.Option(help="folder for the figure and theorem.json")] = Path("runs/theorem"),
    seed: Annotated[int, typer.Option(min=0, help="of the target and of the factors' start")] = 0,
) -> None:
    """Watch gradient descent from small factors find principal components one by one (SD-LoRA's Theorem 1)."""
    figures = drawing()
    from lorica.files import write_json
    from lorica.ownership import require_ours
    from lorica.report import theorem_figure
    from lorica.theorem import Setting, experiment

    require_ours([out / "theorem.json"])
    result = experiment(Setting(seed=seed))
    figures.save(theorem_figure.draw(result), out / "theorem")
    write_json(out / "theorem.json", result.summary())
    console.print(theorem_figure.to_rich(result))
    console.print("theorem.pdf, theorem.png and theorem.json are in", console.strong(out))


@app.command()
def serve(
    folder: Annotated[Path, typer.Argument(metavar="MODEL", help="folder of a model")],
    host: Annotated[
        str,
        typer.Option(help="address to listen at; any but this machine's own lets others in, unasked for a password"),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 = one that is free")] = 8000,
    max_megabytes: Annotated[
        float, typer.Option(min=0.1, max=10_000, help="of one request, all its images or texts together")
    ] = 64.0,
    max_images: Annotated[int, typer.Option(min=1, help="in one request")] = 32,
    device: Annotated[
        str | None, typer.Option(help="where it computes: cpu, cuda, …; default: as its recipe says")
    ] = None,
    method_file: MethodFile = None,
) -> None:
    """Answer images or texts over HTTP, and show a page for them."""
    from lorica.serving import server as serving
    from lorica.serving.model import Model

    serving.require_extra()
    from lorica import load

    model: Any = load(folder, device=device, method_file=method_file)
    if not isinstance(model, Model):
        raise LoricaError(
            f"{folder}: not a model that can be served; expected the folder of one that `lorica learn` made"
        )
    things = getattr(model, "things", "images")
    with serving.opened(host, port) as door:
        server = serving.make_server(
            model,
            door,
            title=folder.resolve().name,
            max_bytes=round(max_megabytes * 1e6),
            max_images=max_images,
            reads=things,
        )
        if door.is_public:
            Screen(stderr=True).print(
                f"warning: other machines reach {host}, and nobody is asked for a password: whoever finds this port "
                f"can have {things} classified, and read the names of the classes and the history",
                style="yellow",
                soft_wrap=True,
            )
        console.print("Open", console.strong(door.url), f"in a browser, or POST {things} to /predict; Ctrl-C stops it.")
        serving.run(server, door)


def main() -> None:
    """Entry point: user errors become lines and exit code 2; `--debug` shows the traceback instead."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    open_streams()
    errors = Screen(stderr=True)
    try:
        app(args=arguments)
    except LoricaError as error:
        if "--debug" in sys.argv:
            raise
        if not launch.is_heard():
            raise SystemExit(2) from None
        for line in screenful(error.problems):
            errors.print(line, style="red", soft_wrap=True)
        raise SystemExit(2) from None
    except (SystemExit, KeyboardInterrupt) as leaving:
        code = leaving.code if isinstance(leaving, SystemExit) else _INTERRUPTED
        if (code == _INTERRUPTED or isinstance(leaving, Terminated)) and not isinstance(leaving, Followed):
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C has nothing left to stop
            why = leaving.signal.name if isinstance(leaving, Terminated) else "interrupted"
            errors.print(
                f"\n{why}: what was finished is kept, and of a task under way its last snapshot; the same command "
                "continues, a run's with --resume"
            )
        raise SystemExit(code) from None


def _examine(
    folder: Path,
    data: Path,
    tasks: int | None,
    method_file: Path | None,
    given: dict[str, Any],
    figures_in: Path | None,
) -> None:
    from lorica import Learner, load
    from lorica.assembly import saved_recipe
    from lorica.data.rows import Columns
    from lorica.examination import examine, names_of
    from lorica.files import RunFolder

    found = load(folder, tasks=tasks, method_file=method_file, **given)
    predictor = found.predictor if isinstance(found, Learner) else found
    columns = Columns.of(saved_recipe(RunFolder(folder), given, method_file=method_file).data)
    with progress_bar() as reporter:
        done = examine(predictor, data, columns=columns, reporter=reporter)
    console.print(models.examined(folder, done, predictor.method.encoder.modality))
    if figures_in:
        figures = drawing()
        drawn = figures.confusion(done.shares(), names_of(done), done.class_names)
        figures.save_all({"confusion": drawn}, figures_in)
        console.print("confusion.pdf and confusion.png are in", console.strong(figures_in))


def _image_files(given: list[Path]) -> list[Path]:
    """Files that were named, and all images in folders that were.

    Raises:
        LoricaError: what is not there, or a folder without images.
    """
    from lorica.data.folders import Walk

    found, problems = [], []
    for path in given:
        inside = Walk().images(path) if path.is_dir() else [path]
        if not inside or not path.exists():
            problems.append(f"--images: {path} {'has no images' if path.is_dir() else 'is not there'}")
        found += inside
    if problems:
        raise LoricaError(problems)
    return found
