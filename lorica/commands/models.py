"""The commands for a model that goes on learning: `lorica learn | predict | history | rollback | forget | purge |
join`."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from lorica.commands import MethodFile, naming
from lorica.config import KEEP, read_overrides, read_recipe
from lorica.errors import DataError, LoricaError
from lorica.progress import progress_bar
from lorica.terminal import Screen, visible

if TYPE_CHECKING:  # torch takes seconds, and help and errors do without
    from lorica import Answer, Learner, Predictor, Version
    from lorica.examination import Examination

models = typer.Typer()
console = Screen()

_BATCH = 64
_NAMED = 6  # classes that a line spells out

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="folder of the model")]
Settings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[key.sub=value]…",
        help=(
            "of a new model, keys of its recipe; of one that is there, backbone.weights where they have moved, and "
            "device"
        ),
    ),
]
Moved = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="backbone.weights, where they have moved; device"),
]


@models.command()
def learn(
    model: Model,
    settings: Settings = None,
    data: Annotated[
        Path,
        typer.Option(metavar="FOLDER", help="a folder for each class: new ones, more images of known ones, or both"),
    ] = ...,  # type: ignore[assignment]
    recipe: Annotated[str, typer.Option(help="what a new model is made by")] = "own_images",
    keep: Annotated[
        int,
        typer.Option(
            min=0,
            help="images of each class set aside, never trained on and a fifth of them at most: to judge by when more "
            "is learned, and for probabilities; 0 keeps none, and nothing is known of either",
        ),
    ] = KEEP,
    test: Annotated[Path | None, typer.Option(metavar="FOLDER", help="images to judge the change by, too")] = None,
    frozen: Annotated[
        bool, typer.Option("--frozen", help="promise that the scores of older classes stay to the bit")
    ] = False,
    max_drop: Annotated[
        float | None, typer.Option(min=0, help="refuse the change if older classes lose more accuracy, in points")
    ] = None,
    max_flips: Annotated[
        int | None, typer.Option(min=0, help="refuse the change if more images of theirs that are right become wrong")
    ] = None,
    forgettable: Annotated[
        bool,
        typer.Option(
            "--forgettable", help="of a new model: keep what taking single classes out of it needs; see `forget`"
        ),
    ] = False,
    method_file: MethodFile = None,
) -> None:
    """Learn what a folder holds: makes the model the first time, and adds to it from then on."""
    given = read_overrides(settings or [])
    if not os.path.exists(model):  # its recipe is read before torch is
        read_recipe(recipe, [*(settings or []), *naming(method_file)])
    from lorica import Learner

    learner = Learner(
        model,
        recipe=recipe,
        keep=keep,
        forgettable=forgettable or None,
        method_file=method_file,
        **given,
    )
    version = learner.learn(data, test=test, frozen=frozen, max_drop=max_drop, max_flips=max_flips, progress=True)
    if version is None:
        console.print("Nothing new: every image there has been learned already, and the model is as it was")
        return
    console.print(_sentence(version), soft_wrap=True)
    for line in _judgement(version):
        console.print(line, soft_wrap=True)
    if not learner.predictor.calibration:
        console.print("No images are set aside: probabilities are not calibrated, and nothing is called unknown")
    console.print("The model is in", console.strong(model))


@models.command()
def predict(
    model: Model,
    images: Annotated[list[Path], typer.Argument(metavar="FILE|FOLDER…", help="images, or folders of them")],
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object a line")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="comma-separated, with a line of headings")] = False,
    version: Annotated[int | None, typer.Option(min=1, help="as the model was after that version")] = None,
    method_file: MethodFile = None,
    moved: Moved = None,
) -> None:
    """Say of which class images are, how probably, and which are of none that the model knows."""
    if as_json and as_csv:
        raise LoricaError("--json, --csv: give one of them")
    given = read_overrides(moved or [])
    from lorica import Answer, Learner, load
    from lorica.data.folders import Walk

    found = load(model, version=version, method_file=method_file, **given)
    predictor = found.predictor if isinstance(found, Learner) else found
    walk, files = Walk(), list[Path]()
    for path in images:
        files += walk.images(path) if path.is_dir() else [path]
    problems = list(walk.problems)
    if not files and not problems:
        raise DataError(f"{', '.join(map(str, images))}: no images")
    width = max(map(len, (*predictor.class_names, "unknown")))
    if as_csv:
        console.out("file,class,probability,unknown")
    elif not as_json:
        console.out(f"{'class':<{width}}  probability  file")
    with progress_bar(Screen(stderr=True, quiet=sys.stdout.isatty())) as reporter:
        reporter.stage("predicting", len(files))
        for path, answer in _answers(predictor, files):
            if isinstance(answer, Answer):
                console.out(visible(_row(path, answer, width, as_json, as_csv)), highlight=False)
            else:
                problems += answer.problems
            reporter.step()
    if problems:
        raise DataError(problems)


@models.command()
def history(model: Model, method_file: MethodFile = None, moved: Moved = None) -> None:
    """List every change of a model: when, what, and how well its classes are told apart, then and now."""
    versions = _learner(model, method_file, moved).history()
    shown = Table(
        "", "date", "change", "images", "accuracy % then", "now", "lost/won", title=str(model), title_justify="left"
    )
    for version in versions:
        shown.add_row(
            f"{version.number}{' *' if version.is_present else '' if version.is_there else ' purged'}",
            version.date[:16].replace("T", " "),
            _what(version),
            f"{version.images} + {version.set_aside}" if version.images else "",
            _percent(version.accuracy),
            _percent(version.accuracy_now),
            f"{version.lost}/{version.won}" if version.kind == "learned" and version.number > 1 else "",
        )
    console.print(shown)
    console.print(
        "* the model now; purged: it cannot be gone back to. Images: learned + set aside; accuracy is on those set "
        "aside; lost/won: of those of older classes, how many became wrong, and right."
    )


@models.command()
def rollback(
    model: Model,
    to: Annotated[int, typer.Option(min=1, help="the version to go back to, or forward")] = ...,  # type: ignore[assignment]
    method_file: MethodFile = None,
    moved: Moved = None,
) -> None:
    """Make a model what it was after a version; nothing is lost, and going forward again works."""
    learner = _learner(model, method_file, moved)
    version = learner.rollback(to)
    console.print(
        f"Version {version.number}: the model is as it was after version {to}, and knows {_names(learner.class_names)}"
    )


@models.command()
def forget(
    model: Model,
    classes: Annotated[list[str], typer.Argument(metavar="CLASS…", help="names of classes")],
    hide: Annotated[
        bool, typer.Option("--hide", help="only predict them no more; what is remembered of them stays")
    ] = False,
    method_file: MethodFile = None,
    moved: Moved = None,
) -> None:
    """Take classes out of a model, and say what stays of them; earlier versions have them until they are purged."""
    version = _learner(model, method_file, moved).forget(classes, hide=hide)
    console.print(f"Version {version.number}: forgot {_names(version.classes)}", soft_wrap=True)
    for line in version.remarks or ("it is the model that never had an image of theirs",):
        console.print(line, soft_wrap=True)
    for line in _judgement(version):
        console.print(line, soft_wrap=True)


@models.command()
def purge(model: Model, method_file: MethodFile = None, moved: Moved = None) -> None:
    """Remove all earlier versions of a model for good, and with them what only they have of classes that were
    forgotten."""
    version = _learner(model, method_file, moved).purge()
    console.print(f"Version {version.number}: the versions before it are gone", soft_wrap=True)
    for line in version.remarks:
        console.print(line, soft_wrap=True)


@models.command()
def join(
    model: Model,
    other: Annotated[Path, typer.Argument(metavar="OTHER", help="folder of another model on the same backbone")],
    method_file: MethodFile = None,
    moved: Moved = None,
) -> None:
    """Take up what another model has learned, where sums can say it: exactly, and without an image."""
    version = _learner(model, method_file, moved).join(_learner(other, method_file, moved))
    console.print(f"Version {version.number}: took up {_names(version.classes)} from {other}", soft_wrap=True)


def examined(model: Path, done: Examination) -> Table:
    """An examination as a table."""
    unsure = f", {done.unknown} called unknown" if done.unknown else ""
    title = (
        f"{model}: {100 * done.accuracy:.1f} % of {done.images.sum()} images right{unsure}; "
        f"expected calibration error {100 * done.calibration_error:.1f} %"
    )
    shown = Table("class", "images", "right %", "most often mistaken for", title=title, title_justify="left")
    for row, place in enumerate(done.rows):
        shown.add_row(
            done.class_names[place],
            str(done.images[row]),
            f"{100 * done.right[row] / done.images[row]:.1f}",
            done.mistaken_for(row) or "",
        )
    return shown


def _learner(model: Path, method_file: Path | None, moved: list[str] | None) -> Learner:
    """The model in a folder; files of its present version may be damaged, and it may still be gone back."""
    from lorica.files import RunFolder

    folder, given = RunFolder(model), read_overrides(moved or [])
    folder.require()
    from lorica import Learner
    from lorica.learner import holds_model

    if not holds_model(folder):
        raise LoricaError(f"{model}: holds a run, and no model that goes on learning; `lorica learn` makes one")
    return Learner(model, method_file=method_file, **given)


def _answers(predictor: Predictor, files: Sequence[Path]) -> Iterator[tuple[Path, Answer | DataError]]:
    """The answer for each file, or what is wrong with it."""
    remaining = iter(files)
    while batch := list(islice(remaining, _BATCH)):
        try:
            yield from zip(batch, predictor.classify(batch), strict=True)
        except DataError:  # of some of them
            for path in batch:
                try:
                    yield path, predictor.classify([path])[0]
                except DataError as error:
                    yield path, error


def _row(path: Path, answer: Answer, width: int, as_json: bool, as_csv: bool) -> str:
    if as_json:
        values = {
            "file": str(path),
            "class": answer.class_name,
            "probability": answer.probability,
            "unknown": answer.unknown,
        }
        return json.dumps(values, ensure_ascii=False)
    if as_csv:
        text = io.StringIO()
        csv.writer(text, lineterminator="").writerow(
            [path, answer.class_name, f"{answer.probability:.6f}", str(answer.unknown).lower()]
        )
        return text.getvalue()
    name = "unknown" if answer.unknown else answer.class_name
    hint = f"  (nearest: {answer.class_name})" if answer.unknown else ""
    return f"{name:<{width}}  {answer.probability:>11.1%}  {path}{hint}"


def _what(version: Version) -> str:
    if version.restores is not None:
        return f"back to version {version.restores}"
    if version.kind == "purged":
        return "purged the versions before"
    return f"{version.kind} {_names(version.classes)}"


def _sentence(version: Version) -> str:
    aside = f" and set {version.set_aside} aside" if version.set_aside else ""
    return f"Version {version.number}: learned {_names(version.classes)} from {version.images} images{aside}"


def _judgement(version: Version) -> Iterator[str]:
    if version.accuracy is not None:
        yield f"Of the images set aside of these classes {100 * version.accuracy:.0f} % are right"
    if version.lost or version.won:
        fell = f"; fewer are right of {_names(version.fell)}" if version.fell else ""
        yield f"Of older classes {version.lost} images that were right are wrong now, {version.won} the other way{fell}"


def _names(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "") if names else "nothing"


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else f"{100 * fraction:.0f}"
