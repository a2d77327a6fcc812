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
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from lorica.commands import MethodFile, naming
from lorica.config import KEEP, read_overrides, read_recipe
from lorica.data.folders import LINES, TABLES, holds_texts
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
        typer.Option(
            metavar="FOLDER|FILE",
            help="a folder for each class, or texts in a file of rows: new classes, more of known ones, or both",
        ),
    ] = ...,  # type: ignore[assignment]
    recipe: Annotated[
        str | None, typer.Option(help="what a new model is made by; default: own_images, or own_texts")
    ] = None,
    keep: Annotated[
        int,
        typer.Option(
            min=0,
            help="images or texts of each class set aside, never trained on and a fifth of them at most: to judge by "
            "when more is learned, and for probabilities; 0 keeps none, and nothing is known of either",
        ),
    ] = KEEP,
    test: Annotated[
        Path | None, typer.Option(metavar="FOLDER|FILE", help="images or texts to judge the change by, too")
    ] = None,
    frozen: Annotated[
        bool, typer.Option("--frozen", help="promise that the scores of older classes stay to the bit")
    ] = False,
    max_drop: Annotated[
        float | None, typer.Option(min=0, help="refuse the change if older classes lose more accuracy, in points")
    ] = None,
    max_flips: Annotated[
        int | None, typer.Option(min=0, help="refuse the change if more of theirs that are right become wrong")
    ] = None,
    forgettable: Annotated[
        bool,
        typer.Option(
            "--forgettable", help="of a new model: keep what taking single classes out of it needs; see `forget`"
        ),
    ] = False,
    method_file: MethodFile = None,
) -> None:
    """Learn what a folder or a file holds: makes the model the first time, and adds to it from then on."""
    given = read_overrides(settings or [])
    recipe = recipe or ("own_texts" if holds_texts(data) else "own_images")
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
        thing = learner.things[:-1]
        console.print(f"Nothing new: every {thing} there has been learned already, and the model is as it was")
        return
    console.print(_sentence(version, learner.things), soft_wrap=True)
    for line in _judgement(version, learner.things):
        console.print(line, soft_wrap=True)
    if not learner.predictor.calibration:
        console.print(
            f"No {learner.things} are set aside: probabilities are not calibrated, and nothing is called unknown"
        )
    console.print("The model is in", console.strong(model))


@models.command()
def predict(
    model: Model,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE|FOLDER|TEXT…",
            help="images, or folders of them; of a model of texts, files of them, or texts themselves",
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object a line")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="comma-separated, with a line of headings")] = False,
    version: Annotated[int | None, typer.Option(min=1, help="as the model was after that version")] = None,
    method_file: MethodFile = None,
    moved: Moved = None,
) -> None:
    """Say of which class images or texts are, how probably, and which are of none that the model knows."""
    if as_json and as_csv:
        raise LoricaError("--json, --csv: give one of them")
    given = read_overrides(moved or [])
    from lorica import Answer, Learner, load
    from lorica.data.sources import remarks

    found = load(model, version=version, method_file=method_file, **given)
    predictor = found.predictor if isinstance(found, Learner) else found
    things, problems = predictor.method.encoder.modality, list[str]()
    asked: Sequence[Any] = given_texts(images, model, method_file) if things == "texts" else _files(images, problems)
    if not asked and not problems:
        raise DataError(f"{', '.join(images)}: no {things}")
    width, kind = max(map(len, (*predictor.class_names, "unknown"))), "text" if things == "texts" else "file"
    if as_csv:
        console.out(f"{kind},class,probability,unknown")
    elif not as_json:
        console.out(f"{'class':<{width}}  probability  {kind}")
    with progress_bar(Screen(stderr=True, quiet=sys.stdout.isatty())) as reporter:
        reporter.stage("predicting", len(asked))
        for each, answer in _answers(predictor, asked):
            if isinstance(answer, Answer):
                row = _row(kind, str(each), answer, width, as_json, as_csv)
                if as_csv and not sys.stdout.isatty():  # for a program, which is to find its texts again
                    sys.stdout.write(f"{row}\n")
                else:
                    console.out(visible(row), highlight=False)
            else:
                problems += answer.problems
            reporter.step()
    if things == "texts":
        reader: Any = predictor.reader
        for remark in remarks({"cut": reader.cut(asked)}):
            Screen(stderr=True).print(remark, soft_wrap=True)
    if problems:
        raise DataError(problems)


@models.command()
def history(model: Model, method_file: MethodFile = None, moved: Moved = None) -> None:
    """List every change of a model: when, what, and how well its classes are told apart, then and now."""
    learner = _learner(model, method_file, moved)
    versions, things = learner.history(), learner.things
    shown = Table(
        "", "date", "change", things, "accuracy % then", "now", "lost/won", title=str(model), title_justify="left"
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
        f"* the model now; purged: it cannot be gone back to. {things.capitalize()}: learned + set aside; accuracy is "
        "on those set aside; lost/won: of those of older classes, how many became wrong, and right."
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
    learner = _learner(model, method_file, moved)
    version = learner.forget(classes, hide=hide)
    console.print(f"Version {version.number}: forgot {_names(version.classes)}", soft_wrap=True)
    for line in version.remarks or (f"it is the model that never had one of their {learner.things}",):
        console.print(line, soft_wrap=True)
    for line in _judgement(version, learner.things):
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
    """Take up what another model has learned, where sums can say it: exactly, and without an image or a text."""
    version = _learner(model, method_file, moved).join(_learner(other, method_file, moved))
    console.print(f"Version {version.number}: took up {_names(version.classes)} from {other}", soft_wrap=True)


def examined(model: Path, done: Examination, things: str) -> Table:
    """An examination as a table."""
    unsure = f", {done.unknown} called unknown" if done.unknown else ""
    title = (
        f"{model}: {100 * done.accuracy:.1f} % of {done.images.sum()} {things} right{unsure}; "
        f"expected calibration error {100 * done.calibration_error:.1f} %"
    )
    shown = Table("class", things, "right %", "most often mistaken for", title=title, title_justify="left")
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


def _files(given: Sequence[str], problems: list[str]) -> list[Path]:
    """Files that were named, and all images in folders that were."""
    from lorica.data.folders import Walk

    walk, found = Walk(), list[Path]()
    for path in map(Path, given):
        found += walk.images(path) if path.is_dir() else [path]
    problems += walk.problems
    return found


def given_texts(given: Sequence[str], model: Path, method_file: Path | None) -> list[Any]:
    """Those in files and folders of them that were named, and what was given itself. DataError for a file that is not
    there."""
    from lorica.assembly import saved_recipe
    from lorica.data.rows import Columns
    from lorica.data.sources import texts_alone
    from lorica.files import RunFolder

    columns, found = Columns.of(saved_recipe(RunFolder(model), method_file=method_file).data), list[Any]()
    for each in given:
        path, is_there = Path(each), os.path.exists(each)  # which a long text is not, without an error
        is_named = is_there or (each.isprintable() and " " not in each)
        if is_there and not holds_texts(path):
            raise DataError(
                f"{each}: is there, but neither a file of texts ({', '.join((*TABLES, LINES))}) nor a folder of such; "
                "to have this text itself classified, put it into one"
            )
        if not (is_named and holds_texts(path)):
            found.append(each)
            continue
        if not is_there:
            raise DataError(f"{each}: is not there; name a file of texts, or give a text of several words")
        files = [file for file in sorted(path.iterdir()) if holds_texts(file)] if path.is_dir() else [path]
        found += [text for file in files for text in texts_alone(file, columns)]
    return found


def _answers(predictor: Predictor, asked: Sequence[Any]) -> Iterator[tuple[Any, Answer | DataError]]:
    """The answer for each file or text, or what is wrong with it."""
    remaining = iter(asked)
    while batch := list(islice(remaining, _BATCH)):
        try:
            yield from zip(batch, predictor.classify(batch), strict=True)
        except DataError:  # of some of them
            for each in batch:
                try:
                    yield each, predictor.classify([each])[0]
                except DataError as error:
                    yield each, error


def _row(kind: str, given: str, answer: Answer, width: int, as_json: bool, as_csv: bool) -> str:
    if as_json:
        values = {
            kind: given,
            "class": answer.class_name,
            "probability": answer.probability,
            "unknown": answer.unknown,
        }
        return json.dumps(values, ensure_ascii=False)
    if as_csv:
        text = io.StringIO()
        csv.writer(text, lineterminator="").writerow(
            [given, answer.class_name, f"{answer.probability:.6f}", str(answer.unknown).lower()]
        )
        return text.getvalue()
    name = "unknown" if answer.unknown else answer.class_name
    hint = f"  (nearest: {answer.class_name})" if answer.unknown else ""
    return f"{name:<{width}}  {answer.probability:>11.1%}  {given}{hint}"


def _what(version: Version) -> str:
    if version.restores is not None:
        return f"back to version {version.restores}"
    if version.kind == "purged":
        return "purged the versions before"
    return f"{version.kind} {_names(version.classes)}"


def _sentence(version: Version, things: str) -> str:
    aside = f" and set {version.set_aside} aside" if version.set_aside else ""
    return f"Version {version.number}: learned {_names(version.classes)} from {version.images} {things}{aside}"


def _judgement(version: Version, things: str) -> Iterator[str]:
    if version.accuracy is not None:
        yield f"Of the {things} set aside of these classes {100 * version.accuracy:.0f} % are right"
    if version.lost or version.won:
        fell = f"; fewer are right of {_names(version.fell)}" if version.fell else ""
        lost = f"{version.lost} {things} that were right are wrong now"
        yield f"Of older classes {lost}, {version.won} the other way{fell}"


def _names(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "") if names else "nothing"


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else f"{100 * fraction:.0f}"
