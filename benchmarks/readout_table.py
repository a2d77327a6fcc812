"""Is it the trunk or the read-out? Every trunk with every read-out, from one training of each trunk.

    python benchmarks/readout_table.py omniglot --methods lora,sd_lora --tuned docs/results/omniglot-tuning.json
    data.root=… backbone.weights=…

Each method learns the recipe's stream once for each seed, while several read-outs (`lorica.methods.readout`) watch:
what they keep of a task, they take at its end. Training is that of `lorica run`, bit for bit, and so is the result of
each read-out. `--tuned` takes settings from what a sweep chose (`lorica sweep`, …-search.json); of several files, the
last that names a method counts. Writes docs/results/RECIPE-readouts.md and .json; what is done is in
runs/RECIPE-readouts/ and not done again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor, nn

from lorica.assembly import Assembly, arrivals, assemble
from lorica.config import read_recipe
from lorica.descent import Fit
from lorica.evaluation import accuracy_row, plain_form
from lorica.files import write_json, write_text
from lorica.methods import Context, Drift, Kind, Method, Readout
from lorica.metrics import aaa, acc
from lorica.progress import progress_bar
from lorica.report.tables import Spread
from lorica.sweep.plan import chosen_settings, of_method, slug, without_places
from lorica.terminal import Screen
from lorica.training import learn_task
from lorica.types import Batch, Inputs, Task, seen_classes

LAYERS = 5
READOUTS: dict[str, tuple[Kind, int | None, Drift]] = {
    "means": ("prototypes", None, "none"),
    "discriminant": ("discriminant", None, "none"),
    f"means of {LAYERS} layers": ("prototypes", LAYERS, "none"),
    f"discriminant of {LAYERS} layers": ("discriminant", LAYERS, "none"),
    f"ridge of {LAYERS} layers": ("ridge", LAYERS, "none"),
    f"means of {LAYERS} layers, affine drift": ("prototypes", LAYERS, "affine"),
    f"discriminant of {LAYERS} layers, affine drift": ("discriminant", LAYERS, "affine"),
}
OWN = "its own"


@dataclass(frozen=True)
class Once(Context):
    """A context in which read-outs of the same layers share the features of a task's images."""

    known: dict[int | None, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def gathered(self, features: Callable[[Inputs], Tensor], **of: Any) -> tuple[Tensor, Tensor]:
        layers = features.__self__.layers  # pyright: ignore[reportFunctionMemberAccess]
        if layers not in self.known:
            self.known[layers] = super().gathered(features, **of)
        return self.known[layers]


class Shown(Method):
    """A method as a read-out sees it that does not teach it."""

    def __init__(self, method: Method) -> None:
        super().__init__(method.config, method.encoder)
        self.method, self.tasks = method, method.tasks
        vars(self).update(name=method.name, trains_encoder=method.trains_encoder)

    def grow(self, task: Task) -> None:
        """Somebody else sees to that."""

    def trainable(self) -> list[nn.Parameter]:
        return []

    def losses(self, batch: Batch) -> Iterator[dict[str, Tensor]]:
        return iter(())

    def features(self, inputs: Inputs, **layers: Any) -> Tensor:
        return self.method.features(inputs, **layers)

    def predict(self, inputs: Inputs) -> Tensor:
        return self.method.predict(inputs)


class Watched(Method):
    """A method that learns as ever, and the read-outs that watch it."""

    def __init__(self, learner: Method) -> None:
        super().__init__(learner.config, learner.encoder)
        self.learner, self.tasks = learner, learner.tasks
        vars(self).update(name=learner.name)
        self.readouts: Any = nn.ModuleDict(
            {
                name: Readout(Shown(learner), kind, layers=layers, drift=drift)
                for name, (kind, layers, drift) in READOUTS.items()
                if not list(Readout.cannot_read(type(learner), kind, layers=layers))
            }
        )

    def grow(self, task: Task) -> None:
        """Read-outs that follow drift look at the method before it grows."""
        if task.index == 0:
            self.learner.grow(task)
        for readout in self.readouts.values():
            readout.grow(task)
        if task.index > 0:
            self.learner.grow(task)

    def begin_task(self, context: Context) -> None:
        for readout in self.readouts.values():
            readout.begin_task(context)
        self.learner.begin_task(context)

    def passes(self) -> int:
        return self.learner.passes()

    def trainable(self) -> list[nn.Parameter]:
        return self.learner.trainable()

    def rate_factors(self) -> Mapping[nn.Parameter, float]:
        return self.learner.rate_factors()

    def losses(self, batch: Batch) -> Iterator[dict[str, Tensor]]:
        return self.learner.losses(batch)

    def edit_gradients(self) -> None:
        self.learner.edit_gradients()

    def end_task(self, context: Context) -> None:
        self.learner.end_task(context)
        once = Once(**vars(context))
        for readout in self.readouts.values():
            readout.end_task(once)

    def predict(self, inputs: Inputs) -> Tensor:
        return self.learner.predict(inputs)


def main(
    recipe: str,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[key.sub=value]…")] = None,
    methods: Annotated[str, typer.Option(help="comma-separated, method[:variant][+option=value…]")] = "lora,sd_lora",
    seeds: Annotated[str, typer.Option(help="comma-separated")] = "0",
    tuned: Annotated[list[Path] | None, typer.Option(help="a file of settings that a sweep chose")] = None,
    out: Annotated[Path, typer.Option(help="where the table goes")] = Path("docs/results"),
) -> None:
    """Read every trunk in every way."""
    name = f"{Path(recipe).stem}-readouts"
    chosen = {method: settings for file in tuned or [] for method, settings in chosen_settings(file).items()}
    found: dict[str, dict[str, list[list[float]]]] = {}
    for seed in seeds.split(","):
        for method in methods.split(","):
            rate = [f"{key}={value}" for key, value in chosen.get(method, {}).items()]
            given = [*of_method(method), *rate, *(overrides or []), f"seed={seed}", "evaluate.readout=head"]
            done = Path("runs") / name / f"{slug(method)}-seed{seed}.json"
            if not done.exists():
                done.parent.mkdir(parents=True, exist_ok=True)
                write_json(done, {"given": given, "matrices": read_all(recipe, given)})
            written = json.loads(done.read_text())
            if written["given"] != given:
                raise typer.BadParameter(f"{done} was made with {' '.join(written['given'])}; move it away first")
            for reading, matrix in written["matrices"].items():
                found.setdefault(method, {}).setdefault(reading, []).append([acc(matrix), aaa(matrix)])
    command = f"python benchmarks/readout_table.py {recipe} --methods {methods} --seeds {seeds}"
    command += "".join(f" --tuned {file}" for file in tuned or []) + " " + without_places(overrides or [])
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / f"{name}.json", {"command": command, "acc_aaa": found})
    title = f"{Path(recipe).stem.capitalize()}: trunks by their read-outs"
    write_text(out / f"{name}.md", page(title, command, found))
    Console().print(page(title, command, found), markup=False)


def read_all(recipe: str, given: list[str]) -> dict[str, list[list[float]]]:
    """The accuracy matrix of a method's own predictions and of each read-out, by name."""
    parts = assemble(read_recipe(recipe, given))
    watched = Watched(parts.method)
    matrices: dict[str, list[list[float]]] = {name: [] for name in (OWN, *watched.readouts)}
    tasks = parts.stream.tasks
    with progress_bar(Screen(stderr=True)) as reporter:
        for task, data in arrivals(parts.stream, watched.learner):
            fit = Fit(**parts.recipe.fit.model_dump())
            learn_task(
                watched, task, data, fit, seed=parts.recipe.seed, accelerator=parts.accelerator, reporter=reporter
            )
            stages = range(len(tasks)) if watched.learner.learns_all_at_once else [task.index]
            for stage in stages:
                seen = tasks[: stage + 1]
                row = accuracy_row(
                    watched.learner, seen, parts.test_data, accelerator=parts.accelerator, reporter=reporter
                )
                for name, each in {OWN: row, **rows_of_readouts(watched, seen, parts)}.items():
                    matrices[name].append(each)
    return matrices


@torch.inference_mode()
def rows_of_readouts(watched: Watched, tasks: Sequence[Task], parts: Assembly) -> dict[str, list[float]]:
    """A row of the matrix for each read-out, from features that those of the same layers share."""
    plain = plain_form(watched.learner.eval())
    splits: list[Any] = [parts.test_data(task.index) for task in tasks]
    sizes = [len(split) for split in splits]
    if plain.takes_unread and plain.trunk_rests:  # features may be known
        splits = [split.unread for split in splits]
    right: dict[str, list[Tensor]] = {name: [] for name in watched.readouts}
    with parts.accelerator.autocast():
        for batch in splits[0].followed_by(splits[1:]).batches(256, device=parts.accelerator.device):
            features = {
                layers: plain.features(batch.inputs, **({} if layers is None else {"layers": layers}))
                for layers in {readout.layers for readout in watched.readouts.values()}
            }
            for name, readout in watched.readouts.items():
                logits = readout.statistics(features[readout.layers])[:, : seen_classes(tasks)]
                right[name].append(logits.argmax(dim=1) == batch.labels)
    return {
        name: [int(each.sum()) / len(each) for each in torch.cat(found).split(sizes)] for name, found in right.items()
    }


def page(title: str, command: str, found: dict[str, dict[str, list[list[float]]]]) -> str:
    """The table as Markdown: a line for each trunk, Acc / AAA in percent."""
    columns = [OWN, *READOUTS]
    lines = [
        f"# {title}",
        "",
        "Made by the following command; do not edit. Acc / AAA in percent, mean ± standard deviation over seeds; – "
        "where a method cannot be read so.",
        "What each read-out is: [readouts.md](../readouts.md).",
        "",
        f"    {command}",
        "",
        f"| trunk | {' | '.join(columns)} |",
        f"|---|{'---:|' * len(columns)}",
    ]
    for method, readings in found.items():
        cells = [
            " / ".join(Spread.of(column).percent() for column in zip(*readings[each], strict=True))
            if each in readings
            else "–"
            for each in columns
        ]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    typer.run(main)
