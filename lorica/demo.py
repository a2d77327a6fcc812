"""`lorica demo`: forgetting and its cure on handwritten digits, in two minutes; on everyday requests; or on a visitor's
own images."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from lorica.backbones import TINY, TINY_TEXT
from lorica.config import Recipe, read_recipe
from lorica.errors import LoricaError
from lorica.files import RunFolder
from lorica.ownership import require_ours
from lorica.progress import progress_bar
from lorica.report import figures
from lorica.results import Result
from lorica.run import check, run
from lorica.terminal import Screen

METHODS = {
    "rolda": "adapts to the first group, then only keeps statistics of features",
    "sd_lora": "new low-rank direction per task, old directions fixed, all magnitudes keep learning",
    "lora": "one low-rank update, trained on and on",
    "full_finetune": "every weight trained on and on",
    "prototypes": "nothing trained: nearest class mean of frozen features",
}

INTRODUCTION = (
    "[bold]{what} arrive in {groups} groups.[/] {encoder} learns each group from its own {samples} only: those of "
    "earlier groups are gone. After each group it is tested on all classes seen so far, without being told which group "
    "{sample} comes from. A network that trains on new classes alone bends to them and [bold]forgets[/] the old ones; "
    "what prevents it is to leave alone what earlier classes rest on. Five methods in turn:\n"
)

ENCODERS = {
    TINY: "A small vision transformer, pre-trained on generated images and shipped with lorica,",
    TINY_TEXT: "A small text encoder, pre-trained on docstrings and generated sentences and shipped with lorica,",
}

READING = (
    "[bold]How to read it.[/] [italic]New group[/]: accuracy on a group just after learning it. [italic]After the "
    "last[/] (Acc): accuracy on all groups at the end. [italic]Average on the way[/] (AAA): the same after each group, "
    "averaged. [italic]Lost[/]: how far the accuracy on a group has fallen at the end from its best. LoRA and full "
    "fine-tuning train on and on, and lose much of what they had learned. SD-LoRA keeps earlier directions and lets "
    "their magnitudes learn, and loses less. RoLDA adapts to the first group and never again: what it learns later are "
    "statistics of features, which add up, so that old groups lose only images that new classes are mistaken for. "
    "Prototypes do not even adapt.{more}\n"
)

NEXT_STEPS = """\
[bold]What you have[/] in {out}: metrics.json of each method (the whole accuracy matrix), checkpoints after every group,
and figures:
{figures}
[bold]What next[/]
  {lorica} run {recipe} method.name=lora_frozen
      another method on the same {samples}; `{lorica} list methods` names them
  {lorica} {own}
  {lorica} table {out} --format latex
      the table for a paper
"""


@dataclass(frozen=True)
class Subject:
    """What a demonstration is made on.

    Attributes:
        recipe: of all its runs, but for the method.
        what, samples, sample, title: in words.
        more: how what one sees depends on it.
        own: the command for data of one's own, and a line about it.
    """

    recipe: Recipe
    what: str
    samples: str
    sample: str
    title: str
    more: str
    own: str


def show(
    out: Path, console: Screen, images: Path | None = None, given: Sequence[str] = (), *, text: bool = False
) -> list[Result]:
    """Runs the methods, prints the table and what it means, draws the figures.

    Args:
        images: a folder for each class, in place of the digits.
        given: `key.sub=value`, with the images or the texts: another backbone, say.
        text: everyday requests in place of the digits.

    Returns:
        The results, in the order of `METHODS`; each is in `out`/<method>.

    Raises:
        LoricaError: images or keys that are no good, or files in `out` that lorica did not write.
    """
    subject = _of_texts(given) if text else _of_digits() if images is None else _of_images(images, given)
    recipe = subject.recipe
    held = [path for name in METHODS for path in RunFolder(out / name).held(anew=True)]
    require_ours([*held, *(out / "figures").glob("*.*")])
    said = {"what": subject.what, "groups": recipe.stream.tasks, "samples": subject.samples, "sample": subject.sample}
    encoder = ENCODERS.get(recipe.backbone.name, f"The backbone {escape(recipe.backbone.name)}")
    console.print(INTRODUCTION.format(encoder=encoder, **said), markup=True)
    for name, idea in METHODS.items():
        console.print(" ", console.strong(f"{name:<14}"), idea)
    console.print()
    results = []
    with progress_bar(console) as reporter:
        for name in METHODS:
            start = time.perf_counter()
            results.append(run(_with(recipe, name), out=out / name, overwrite=True, progress=reporter))
            console.print(" ", Text("done", "green"), f"{name:<14} {time.perf_counter() - start:4.0f} s")
    drawn = figures.draw_all(results, out / "figures")
    console.print(_table(results, f"{subject.title} in {recipe.stream.tasks} groups, accuracy in %"))
    names = "".join(f"  {path}\n" for path in drawn if path.suffix == ".png")
    console.print(READING.format(more=subject.more), markup=True)
    said = {"out": str(out), "figures": names, "lorica": _command(), "samples": subject.samples, "own": subject.own}
    said["recipe"] = "requests" if text else "digits"
    console.print(NEXT_STEPS.format(**{key: escape(value) for key, value in said.items()}), markup=True)
    return results


_OWN_IMAGES = "run own_images data.root=FOLDER\n      your own images, one folder per class"


def _of_digits() -> Subject:
    return Subject(
        recipe=read_recipe("digits"),
        what="Ten digits",
        samples="images",
        sample="an image",
        title="Digits, 10 classes",
        more=" On digits the frozen features happen to be nearly enough; where they are not (242 characters, "
        "docs/results), methods that adapt come out far ahead.",
        own=_OWN_IMAGES,
    )


def _of_texts(given: Sequence[str]) -> Subject:
    return Subject(
        recipe=read_recipe("requests", list(given)),
        what="Twenty kinds of everyday requests (“where is my parcel”, “my neighbours are too loud”)",
        samples="texts",
        sample="a text",
        title="Requests, 20 classes",
        more=" This encoder knows few words and little of the world; docs/text.md has what one that was trained on the "
        "web reaches: backbone.name=hf:NAME backbone.weights=FOLDER behind this command.",
        own="run requests data.source=table data.root=FILE\n      your own texts, rows of a text and a label",
    )


def _of_images(images: Path, given: Sequence[str]) -> Subject:
    """The images, in up to five groups of two classes or more."""
    own = {"data.source": "image_folder", "data.root": images, "fit.augment": "flip", "stream.tasks": 1}
    recipe = read_recipe(read_recipe("digits", own), list(given))
    _, stream = check(_with(recipe, "prototypes"))
    classes = len(stream.class_names)
    if classes < 4:
        raise LoricaError(
            f"{images}: too few classes, {classes}; two groups of two classes are the least that shows forgetting"
        )
    return Subject(
        recipe=read_recipe(recipe, {"stream.tasks": min(5, classes // 2)}),
        what=f"{classes} classes of your images",
        samples="images",
        sample="an image",
        title=f"{images.name}, {classes} classes",
        more=" This small backbone was made for strokes, at 32 pixels; photographs want one that was made for them, as "
        "`own_images` takes it, or backbone.name=… behind this command.",
        own=_OWN_IMAGES,
    )


def _with(recipe: Recipe, method: str) -> Recipe:
    return read_recipe(recipe, {"method.name": method})


def _command() -> str:
    """What to type for `lorica` here: its path when it is not on the shell's search path."""
    return "lorica" if shutil.which("lorica") else os.path.relpath(Path(sys.executable).with_name("lorica"))


def _table(results: Sequence[Result], title: str) -> Table:
    """The best at the end first."""
    table = Table("method", title=Text(f"\n{title}"), title_justify="left")
    for heading in ("new group", "after the last", "average on the way", "lost"):
        table.add_column(heading, justify="right")
    for result in sorted(results, key=lambda result: -result.acc):
        values = (result.new_task, result.acc, result.aaa, result.forgetting)
        table.add_row(result.label, *(f"{100 * value:.1f}" for value in values))
    return table
