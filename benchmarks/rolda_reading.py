"""What RoLDA's settings are worth, on held-out data: how long it adapts, how many blocks it reads, the shrinkage, a
bounded width.

    python benchmarks/rolda_reading.py omniglot --passes 0,1,4 data.root=… backbone.weights=…

A fifth of the training images is held out, and the seed is one that no table uses. For each number of passes the method
learns the stream once; what is read differently afterwards needs no other training, so that one pass over the images
serves all readings. The accuracy is that over all tasks at the end. Writes docs/results/RECIPE-rolda-reading.md and
.json; what is done is in runs/RECIPE-rolda-reading/ and not done again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from jaxtyping import Float
from rich.console import Console
from torch import Tensor, nn

from lorica.adapters.attach import merged
from lorica.assembly import assemble
from lorica.config import read_recipe
from lorica.descent import Fit
from lorica.files import write_json, write_text
from lorica.methods.rolda import RoLDA, random_projection
from lorica.metrics import acc
from lorica.progress import progress_bar
from lorica.statistics import ClassMeans, Discriminant
from lorica.sweep.plan import without_places
from lorica.terminal import Screen
from lorica.training import learn_task
from lorica.types import Inputs

HELD_OUT = ["data.validation_fraction=0.2", "data.evaluate_on=validation", "seed=1000", "method.name=rolda"]
DEFAULT = {"layers": 5, "shrinkage": 0.2, "width": 8192}
READINGS: dict[str, dict[str, Any]] = {
    "as it is": {},
    **{f"layers {number}": {"layers": number} for number in (1, 2, 3, 4, 6, 8, 12)},
    **{f"shrinkage {g:g}": {"shrinkage": g} for g in (0.01, 0.05, 0.1, 0.4, 0.7)},
    **{f"width {width}, projected": {"width": width} for width in (384, 768, 1152)},
    "nearest mean": {"shrinkage": None},
    "nearest mean, layers 1": {"shrinkage": None, "layers": 1},
}


def main(
    recipe: str,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[key.sub=value]…")] = None,
    passes: Annotated[str, typer.Option(help="comma-separated")] = "0,4",
    out: Annotated[Path, typer.Option(help="where the table goes")] = Path("docs/results"),
) -> None:
    """Read RoLDA's trunks in several ways."""
    name = f"{Path(recipe).stem}-rolda-reading"
    found: dict[str, dict[str, float]] = {}
    for number in passes.split(","):
        given = [*(overrides or []), *HELD_OUT, f"method.passes={number}"]
        done = Path("runs") / name / f"passes-{number}.json"
        if not done.exists():
            done.parent.mkdir(parents=True, exist_ok=True)
            write_json(done, {"given": given, "acc": read_all(recipe, given)})
        written = json.loads(done.read_text())
        if written["given"] != given:
            raise typer.BadParameter(f"{done} was made with {' '.join(written['given'])}; move it away first")
        found[number] = written["acc"]
    command = f"python benchmarks/rolda_reading.py {recipe} --passes {passes} {without_places(overrides or [])}"
    lines = [
        f"# {Path(recipe).stem.capitalize()}: RoLDA read in several ways",
        "",
        "Made by the following command; do not edit. Acc in percent on held-out data, one run (seed 1000) for each "
        "number of passes.",
        "",
        f"    {command}",
        "",
        f"| reading | {' | '.join(f'{number} passes' for number in found)} |",
        f"|---|{'---:|' * len(found)}",
        *(f"| {each} | {' | '.join(f'{100 * of[each]:.1f}' for of in found.values())} |" for each in READINGS),
        "",
    ]
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / f"{name}.json", {"command": command, "acc": found})
    write_text(out / f"{name}.md", "\n".join(lines))
    Console().print("\n".join(lines), markup=False)


def read_all(recipe: str, given: list[str]) -> dict[str, float]:
    """Acc of each reading after one training."""
    parts = assemble(read_recipe(recipe, given))
    method, tasks = parts.method, parts.stream.tasks
    assert isinstance(method, RoLDA)
    classes = parts.stream.tasks[-1].classes[-1] + 1
    readers = {name: _Reading(method, classes, **{**DEFAULT, **reading}) for name, reading in READINGS.items()}
    rows: dict[str, list[float]] = {name: [] for name in readers}
    with progress_bar(Screen(stderr=True)) as reporter, torch.no_grad():
        for task in tasks:
            fit, data = Fit(**parts.recipe.fit.model_dump()), parts.stream.train(task)
            with torch.enable_grad():
                learn_task(method, task, data, fit, seed=1000, accelerator=parts.accelerator, reporter=reporter)
            encoder = merged(method.encoder)
            for batch in data.batches(256, device=method.device):
                features = layers_of(encoder, batch.inputs)
                for reader in readers.values():
                    reader.add(features, batch.labels)
        for reader in readers.values():
            reader.finish()
        for task in tasks:
            batch = next(parts.test_data(task.index).batches(10**6, device=method.device))
            features = layers_of(encoder, batch.inputs)
            for name, reader in readers.items():
                rows[name].append((reader(features).argmax(dim=1) == batch.labels).float().mean().item())
    return {name: acc([[0.0] * number for number in range(1, len(row))] + [row]) for name, row in rows.items()}


def layers_of(encoder: Any, inputs: Inputs) -> Float[Tensor, "n layers features"]:
    """What every block has to say of the inputs."""
    number = len(encoder.blocks)
    return encoder.layered_features(inputs, number).unflatten(1, (number, -1))


class _Reading(nn.Module):
    """One way to read: the last blocks, projected where these are more features than `width`, by a discriminant or by
    means."""

    def __init__(self, method: RoLDA, classes: int, *, layers: int, shrinkage: float | None, width: int) -> None:
        super().__init__()
        self.layers, self.shrinkage = layers, shrinkage
        full = min(layers, len(method.encoder.blocks)) * method.encoder.number_of_parts * method.encoder.width
        self.projection = random_projection(full, width) if width < full else None
        kind = ClassMeans if shrinkage is None else Discriminant
        self.statistics = kind(min(full, width), device=method.device)
        self.statistics.grow(classes)

    def add(self, features: Float[Tensor, "n layers features"], labels: Tensor) -> None:
        self.statistics.add(self._read(features), labels)

    def finish(self) -> None:
        if isinstance(self.statistics, Discriminant):
            assert self.shrinkage is not None
            self.statistics.solve(self.shrinkage)

    def forward(self, features: Float[Tensor, "n layers features"]) -> Float[Tensor, "n classes"]:
        return self.statistics(self._read(features))

    def _read(self, features: Float[Tensor, "n layers features"]) -> Float[Tensor, "n read"]:
        read = features[:, -self.layers :].flatten(1)
        return read if self.projection is None else read @ self.projection


if __name__ == "__main__":
    typer.run(main)
