"""`lorica demo`: forgetting and its cure on handwritten digits, in two minutes; on everyday requests; or on a visitor's
own images."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from lorica.backbones import TINY, TINY_TEXT, load_backbone, modality_of
from lorica.config import Recipe, read_overrides, read_recipe
from lorica.data.sources import Source
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
    "fine-tuning train on and on{trained_on} SD-LoRA keeps earlier directions and lets their magnitudes learn{sd_lora} "
    "RoLDA {rolda} what it learns later are statistics of features, which add up, so that old groups lose only "
    "{samples} that new classes are mistaken for{mistaken}. Prototypes do not even adapt.{more}\n"
)

MUCH = 0.1
"""What a method has to have lost of an accuracy for the reading to call it much."""

NEXT_STEPS = """\
[bold]What you have[/] in {out}: metrics.json of each method (the whole accuracy matrix), {checkpoints},
and figures:
{figures}
[bold]What next[/]
  {lorica} run {same}
      another method on the same {samples}; `{lorica} list methods` names them
  {lorica} {own}
  {lorica} table {quoted} --format latex
      the table for a paper
"""

_NOT_GIVEN = {
    "method": f"compares {len(METHODS)} methods as they are by default",
    **dict.fromkeys(
        ("stream.by", "stream.recurring", "stream.recur_in", "stream.recur_share", "stream.manifest"),
        "shows groups of classes that are all new",
    ),
}
"""The keys that every demonstration decides itself, or a section of them, and what it does with them."""

_NOT_WITH_IMAGES = _NOT_GIVEN | {
    **dict.fromkeys(("data.source", "data.root"), "reads the folder of --images"),
    **dict.fromkeys(
        ("stream.tasks", "stream.classes_per_task"),
        "divides the classes of --images into up to five groups of two or more",
    ),
}


@dataclass(frozen=True)
class Subject:
    """What a demonstration is made on.

    Attributes:
        recipe: of all its runs, but for the method.
        command: what `lorica run` is given for the same recipe: a packaged one's name, and keys.
        groups: how many groups of classes arrive.
        what, samples, sample, title: in words.
        more: how what one sees depends on it, if it does.
        own: the command for data of one's own, and a line about it.
    """

    recipe: Recipe
    command: Sequence[str]
    groups: int
    what: str
    samples: str
    sample: str
    title: str
    more: str
    own: str

    def another(self, method: str, out: Path) -> str:
        """`command` with another method; beside the others in `out` where the recipe's own folder is another data
        set's."""
        name, *keys = self.command
        beside = ["--out", str(out / method)] if keys else []
        return shlex.join([name, *keys, f"method.name={method}", *beside])


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
    said = {"what": escape(subject.what), "groups": subject.groups, "samples": subject.samples}
    encoder = ENCODERS.get(recipe.backbone.name, f"The backbone {escape(recipe.backbone.name)}")
    console.print(INTRODUCTION.format(encoder=encoder, sample=subject.sample, **said), markup=True)
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
    console.print(_table(results, f"{subject.title} in {subject.groups} groups, accuracy in %"))
    console.print(_reading(results, subject), markup=True)
    said = {
        "out": str(out),
        "quoted": shlex.quote(str(out)),
        "checkpoints": "a checkpoint of the last group"
        if recipe.checkpoints == "newest"
        else "checkpoints after every group",
        "figures": "".join(f"  {path}\n" for path in drawn if path.suffix == ".png"),
        "lorica": _command(),
        "same": subject.another("lora_frozen", out),
        "samples": subject.samples,
        "own": subject.own,
    }
    steps = NEXT_STEPS.format(**{key: escape(value) for key, value in said.items()})
    console.print(steps, markup=True, soft_wrap=True)  # a command that is copied has no line breaks
    return results


def _reading(results: Sequence[Result], subject: Subject) -> str:
    """What the table says, of each method no more than its row shows."""
    found = {result.method: result for result in results}
    lost = {name: result.forgetting for name, result in found.items()}
    trained_on = [lost["lora"], lost["full_finetune"]]
    much = min(trained_on) >= MUCH
    less = much and lost["sd_lora"] < min(trained_on)
    adapted = found["rolda"].diagnostics["adapted_to_task"][-1]
    if adapted is None:
        rolda = "adapted to no group here (its warning above says why), and reads the frozen features:"
    else:
        rolda = f"adapts to {'the first group' if adapted == 1 else f'a single group, here number {adapted},'} "
        rolda += "and never again:"
    return READING.format(
        trained_on=(
            ", and lose much of what they had learned."
            if much
            else f"; here they lose {_points(trained_on[0])} and {_points(trained_on[1])} points."
        ),
        sd_lora=", and loses less." if less else f"; here it loses {_points(lost['sd_lora'])} points.",
        rolda=rolda,
        samples=subject.samples,
        mistaken=f", here {_points(lost['rolda'])} points" if lost["rolda"] >= MUCH else "",
        more=subject.more,
    )


def _points(fraction: float) -> str:
    return f"{100 * fraction:z.1f}"


def _of_digits() -> Subject:
    return Subject(
        recipe=read_recipe("digits"),
        command=["digits"],
        groups=5,
        what="Ten digits",
        samples="images",
        sample="an image",
        title="Digits, 10 classes",
        more=" On digits the frozen features happen to be nearly enough; where they are not (242 characters, "
        "docs/results), methods that adapt come out far ahead.",
        own="run own_images data.root=FOLDER\n      your own images, one folder per class",
    )


def _of_texts(given: Sequence[str]) -> Subject:
    """The requests that ship with lorica, or texts that the keys name, in as many groups as they say."""
    _require_free(given, _NOT_GIVEN)
    recipe = read_recipe("requests", list(given))
    if (modality := modality_of(recipe.backbone.name)) != "texts":
        raise LoricaError(
            f"backbone.name: {recipe.backbone.name} reads {modality}, and --text shows texts; give {TINY_TEXT} or "
            "hf:NAME, or --images FOLDER in place of --text"
        )
    _, stream = check(_with(recipe, "prototypes"))
    groups, classes = len(stream.tasks), len(stream.class_names)
    if groups < 2:
        raise LoricaError(f"stream.tasks: {groups} group of classes; two are the least that shows forgetting")
    _require_learnable(recipe, stream.source)
    data = recipe.data
    shipped = data.source == "requests"
    of_data = [text for text in given if text.startswith(("data.", "stream."))]
    return Subject(
        recipe=recipe,
        command=["requests", *given],
        groups=groups,
        what="Twenty kinds of everyday requests (“where is my parcel”, “my neighbours are too loud”)"
        if shipped
        else f"{classes} classes of your texts",
        samples="texts",
        sample="a text",
        title=f"{'Requests' if shipped else data.root.name if data.root else data.dataset}, {classes} classes",
        more=" This encoder knows few words and little of the world; docs/text.md has what one that was trained on the "
        "web reaches: backbone.name=hf:NAME backbone.weights=FOLDER behind this command."
        if recipe.backbone.name == TINY_TEXT
        else "",
        own="run requests data.source=table data.root=FILE\n      your own texts, rows of a text and a label"
        if shipped
        else f"run {shlex.join(['own_texts', *of_data])}\n      your texts on MiniLM, from Hugging Face's hub",
    )


def _of_images(images: Path, given: Sequence[str]) -> Subject:
    """The images, in up to five groups of two classes or more."""
    _require_free(given, _NOT_WITH_IMAGES)
    own = {"data.source": "image_folder", "data.root": images, "fit.augment": "flip", "stream.tasks": 1}
    recipe = read_recipe(read_recipe("digits", own), list(given))
    if (modality := modality_of(recipe.backbone.name)) != "images":
        raise LoricaError(
            f"backbone.name: {recipe.backbone.name} reads {modality}, and --images shows images; give {TINY} or a ViT "
            "of timm's, or --text in place of --images"
        )
    _, stream = check(_with(recipe, "prototypes"))
    classes = len(stream.class_names)
    if classes < 4:
        raise LoricaError(
            f"{images}: too few classes, {classes}; two groups of two classes are the least that shows forgetting"
        )
    groups = min(5, classes // 2)
    recipe, own = read_recipe(recipe, {"stream.tasks": groups}), own | {"stream.tasks": groups}
    _require_learnable(recipe, stream.source)
    keys = [f"{key}={value}" for key, value in own.items() if key not in read_overrides(given)]
    return Subject(
        recipe=recipe,
        command=["digits", *keys, *given],
        groups=groups,
        what=f"{classes} classes of your images",
        samples="images",
        sample="an image",
        title=f"{images.name}, {classes} classes",
        more=" This small backbone was made for strokes, at 32 pixels; photographs want one that was made for them, as "
        "`own_images` takes it, or backbone.name=… behind this command."
        if recipe.backbone.name == TINY
        else "",
        own=f"run {shlex.join(['own_images', f'data.root={images}', f'stream.tasks={groups}'])}\n"
        "      your images on an ImageNet-21k ViT-B/16, from timm's hub",
    )


def _require_free(given: Sequence[str], own: Mapping[str, str]) -> None:
    """LoricaError that names those of the keys that the demonstration decides itself."""
    problems = []
    for key in read_overrides(given):
        taken = [each for each in own if f"{key}.".startswith(f"{each}.") or each.startswith(f"{key}.")]
        problems += [
            f"{key}: the demonstration {own[each]}; leave the key out, or choose it with `lorica run`"
            for each in taken[:1]
        ]
    if problems:
        raise LoricaError(problems)


def _require_learnable(recipe: Recipe, source: Source) -> None:
    """LoricaError, before anything is printed, with all that keeps a method from learning the recipe's stream, or its
    backbone from being loaded."""
    problems: dict[str, None] = {}
    for name in METHODS:
        try:
            check(_with(recipe, name), source=source, progress=False)
        except LoricaError as error:
            problems |= dict.fromkeys(error.problems)
    if problems:
        raise LoricaError(list(problems))
    load_backbone(**recipe.backbone.model_dump())


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
