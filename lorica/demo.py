"""`lorica demo`: forgetting and its cure on handwritten digits, in two minutes."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from lorica.config import read_recipe
from lorica.files import RunFolder
from lorica.ownership import require_ours
from lorica.progress import progress_bar
from lorica.report import figures
from lorica.results import Result
from lorica.run import run
from lorica.terminal import Screen

METHODS = {
    "rolda": "adapts to the first pair, then only keeps feature statistics",
    "sd_lora": "new low-rank direction per task, old directions fixed, all magnitudes keep learning",
    "lora": "one low-rank update, trained on and on",
    "full_finetune": "every weight trained on and on",
    "prototypes": "nothing trained: nearest class mean of frozen features",
}

INTRODUCTION = (
    "[bold]Ten digits arrive two at a time.[/] A small vision transformer, pre-trained on generated images and shipped with "
    "lorica, learns each pair from its own images only: images of earlier pairs are gone. After each pair it is tested on "
    "all digits seen so far, without being told which pair an image comes from. Five methods do this in turn:\n"
)

READING = (
    "[bold]How to read it.[/] [italic]New pair[/]: accuracy on a pair just after learning it. [italic]After all five[/] (Acc): "
    "accuracy on all pairs at the end. [italic]Average on the way[/] (AAA): the same after each pair, averaged. "
    "[italic]Lost[/]: how much of the best accuracy on a pair is gone at the end. A method that learns every new pair but "
    "loses the old ones [bold]forgets[/]. RoLDA adapts to the first pair and never again: what it learns later are statistics of "
    "features, which add up and lose nothing. Prototypes do not even adapt: on digits the frozen features happen to be nearly "
    "enough. Where they are not (242 characters, docs/results), methods that adapt come out ahead.\n"
)

NEXT_STEPS = """\
[bold]What you have[/] in {out}: metrics.json of each method (the whole accuracy matrix), checkpoints after every pair, and figures:
{figures}
[bold]What next[/]
  {lorica} run digits method.name=lora_frozen
      another method on the same digits; `{lorica} list methods` names them
  {lorica} run own_images data.root=FOLDER
      your own images, one folder per class
  {lorica} table {out} --format latex
      the table for a paper
"""


def show(out: Path, console: Screen) -> list[Result]:
    """Runs the methods, prints the table and what it means, draws the figures.

    Returns:
        The results, in the order of `METHODS`; each is in `out`/<method>.
    """
    held = [path for name in METHODS for path in RunFolder(out / name).held(anew=True)]
    require_ours([*held, *(out / "figures").glob("*.*")])
    console.print(INTRODUCTION, markup=True)
    for name, idea in METHODS.items():
        console.print(" ", console.strong(f"{name:<14}"), idea)
    console.print()
    results = []
    with progress_bar(console) as reporter:
        for name in METHODS:
            start = time.perf_counter()
            recipe = read_recipe("digits", {"method.name": name})
            results.append(run(recipe, out=out / name, overwrite=True, progress=reporter))
            console.print(" ", Text("done", "green"), f"{name:<14} {time.perf_counter() - start:4.0f} s")
    drawn = figures.draw_all(results, out / "figures")
    console.print(_table(results))
    names = "".join(f"  {path}\n" for path in drawn if path.suffix == ".png")
    console.print(READING, markup=True)
    said = {"out": str(out), "figures": names, "lorica": _command()}
    console.print(NEXT_STEPS.format(**{key: escape(value) for key, value in said.items()}), markup=True)
    return results


def _command() -> str:
    """What to type for `lorica` here: its path when it is not on the shell's search path."""
    return "lorica" if shutil.which("lorica") else os.path.relpath(Path(sys.executable).with_name("lorica"))


def _table(results: list[Result]) -> Table:
    table = Table("method", title="\nDigits, 5 tasks of 2 classes, accuracy in %", title_justify="left")
    for heading in ("new pair", "after all five", "average on the way", "lost"):
        table.add_column(heading, justify="right")
    for result in results:
        values = (result.new_task, result.acc, result.aaa, result.forgetting)
        table.add_row(result.label, *(f"{100 * value:.1f}" for value in values))
    return table
