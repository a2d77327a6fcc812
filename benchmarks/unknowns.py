"""How probable are predictions, and are images of classes that come later in the stream told from those learned?
(`lorica.calibration`)

    python benchmarks/unknowns.py omniglot --methods rolda,prototypes --seeds 0,1 data.root=… backbone.weights=…

Each method learns the first half of the stream's tasks without a fifth of the training images, which are set aside:
temperature and thresholds are fitted on them. Seed s also orders the classes, by RandomState(1993 + s), so that the
spread is over which classes are unknown, too. Later classes are divided: against training images of those that come
next scores are chosen (validation), against test images of the last ones they are measured. Where a method has a
discriminant, Mahalanobis distances are compared, too, with its covariance S_g:

    mahalanobis  -min_c (f - mu_c)' S_g^-1 (f - mu_c)        relative  mahalanobis + (f - m)' B_g^-1 (f - m)

m and B_g are mean and covariance of all images, shrunk alike (Lee et al. 2018; Ren et al. 2021). `--tuned` takes
settings from what a sweep chose (`lorica sweep`, …-search.json). Writes docs/results/RECIPE-unknowns.md and .json; what
is learned is in runs/RECIPE-unknowns/ and not learned again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import torch
import typer
from jaxtyping import Float
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from lorica.assembly import assemble
from lorica.calibration import (
    FEWEST,
    SCORE,
    Calibration,
    Score,
    auroc,
    expected_calibration_error,
    fit,
    is_unknown,
    probabilities,
    scores,
)
from lorica.config import read_recipe
from lorica.data.stream import Split, Stream
from lorica.descent import Fit
from lorica.environment import environment
from lorica.evaluation import plain_form, require_numbers
from lorica.files import replacing, write_json, write_text
from lorica.linalg import unpacked
from lorica.methods import Method
from lorica.methods.rolda import RoLDA
from lorica.progress import Reporter, progress_bar
from lorica.report.tables import Spread
from lorica.sweep.plan import chosen_settings, of_method, slug, without_places
from lorica.terminal import Screen
from lorica.training import learn_task

ORDER = 1993  # of the classes, with seed 0
ASIDE = 0.2
SCORES: tuple[Score, ...] = get_args(Score)
DISTANCES = ("mahalanobis", "relative")
FEW = (5, 10, 20, 50, 100)
DRAWS = 200


def main(
    recipe: str,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[key.sub=value]…")] = None,
    methods: Annotated[str, typer.Option(help="comma-separated, method[:variant][+option=value…]")] = "rolda",
    seeds: Annotated[str, typer.Option(help="comma-separated")] = "0,1",
    tuned: Annotated[Path | None, typer.Option(help="take the settings that a sweep chose, from its file")] = None,
    page: Annotated[str | None, typer.Option(help="name of the table; by default RECIPE-unknowns")] = None,
    out: Annotated[Path, typer.Option(help="where the table goes")] = Path("docs/results"),
) -> None:
    """Measure probabilities and unknowns."""
    name = f"{Path(recipe).stem}-unknowns"
    chosen = chosen_settings(tuned) if tuned else {}
    runs = []
    for seed in map(int, seeds.split(",")):
        for method in methods.split(","):
            rate = [f"{key}={value}" for key, value in chosen.get(method, {}).items()]
            given = [*of_method(method), *rate, *(overrides or [])]
            given += [f"seed={seed}", f"stream.seed={ORDER + seed}", f"data.validation_fraction={ASIDE}"]
            done = Path("runs") / name / f"{slug(method)}-seed{seed}.safetensors"
            if not done.exists():
                done.parent.mkdir(parents=True, exist_ok=True)
                facts = {"given": json.dumps(given), "environment": json.dumps(environment())}
                found = learn(recipe, given)
                with replacing(done) as file:
                    file.write(save({key: value.contiguous() for key, value in found.items()}, metadata=facts))
            with safe_open(done, framework="pt") as file:
                found, facts = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
            if json.loads(facts["given"]) != given:
                raise typer.BadParameter(f"{done} was made with {facts['given']}; move it away first")
            measured = measure(found, seed)
            runs.append({"method": method, "seed": seed, "environment": json.loads(facts["environment"])} | measured)
    command = f"python benchmarks/unknowns.py {recipe} --methods {methods} --seeds {seeds}"
    command += (f" --tuned {tuned}" if tuned else "") + (f" --page {page}" if page else "")
    command = f"{command} {without_places(overrides or [])}".rstrip()
    name = page or name
    text = written(Path(recipe).stem.capitalize(), command, runs)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / f"{name}.json", {"command": command, "runs": runs})
    write_text(out / f"{name}.md", text)
    Console().print(text, markup=False)


def learn(recipe: str, given: list[str]) -> dict[str, Tensor]:
    """Logits, labels and distances of four groups of images, by "group.what", after the first half of the tasks."""
    parts = assemble(read_recipe(recipe, given))
    method, stream = parts.method, parts.stream
    tasks = stream.tasks
    number = len(tasks) // 2
    if number < 1 or len(tasks) < number + 2:
        raise typer.BadParameter(
            f"{recipe}: expected at least 3 tasks, to learn some and keep two unknown; got {len(tasks)}"
        )
    with progress_bar(Screen(stderr=True)) as reporter:
        for task in tasks[:number]:
            settings = Fit(**parts.recipe.fit.model_dump())
            data = stream.train(task)
            learn_task(
                method, task, data, settings, seed=parts.recipe.seed, accelerator=parts.accelerator, reporter=reporter
            )
        method.eval()
        with torch.inference_mode(), parts.accelerator.autocast():
            far = distances(method) if isinstance(method, RoLDA) else None
            return {
                f"{group}.{what}": value
                for group, split in groups(stream, number).items()
                for what, value in read(group, split, method, far, reporter).items()
            }


def groups(stream: Stream, learned: int) -> dict[str, Split]:
    """Images set aside and test images of the classes learned; training images of classes that come next, test images
    of the last ones."""
    known, later = stream.tasks[:learned], stream.tasks[learned:]
    following, last = later[: len(later) // 2], later[len(later) // 2 :]

    def joined(splits: Sequence[Split]) -> Split:
        return splits[0].followed_by(splits[1:])

    return {
        "aside": joined([stream.validation(task) for task in known]),
        "test": joined([stream.test(task) for task in known]),
        "next": joined([split(task) for task in following for split in (stream.train, stream.validation)]),
        "last": joined([stream.test(task) for task in last]),
    }


Distances = Callable[[Float[Tensor, "n features"], Float[Tensor, "n classes"]], dict[str, Tensor]]


def distances(method: RoLDA) -> Distances:
    """What gives both distances, from features and logits, which have the larger part of them already."""
    discriminant, shrinkage = method.discriminant, method.config.shrinkage
    counts, means = discriminant.counts, discriminant.means
    scatter = unpacked(discriminant.scatter, discriminant.width)
    centre, mean = means.mean(dim=0), (counts[:, None] * means).sum(dim=0) / counts.sum()
    apart = means - mean
    between = apart.T @ (counts[:, None] * apart)

    def factor(covariance: Tensor) -> Tensor:
        shrunk = (1 - shrinkage) * covariance
        shrunk.diagonal().add_(shrinkage * covariance.diagonal().mean())
        return torch.linalg.cholesky(shrunk)

    within = factor(scatter / (counts.sum() - len(counts)))
    total = factor((scatter + between) / (counts.sum() - 1))

    def length(features: Tensor, lower: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(lower, features.T, upper=False).square().sum(dim=0)

    def measured(features: Tensor, logits: Tensor) -> dict[str, Tensor]:
        features = features.to(centre)
        nearest = length(features - centre, within) - 2 * logits.to(centre).amax(dim=1)
        return {"mahalanobis": -nearest, "relative": length(features - mean, total) - nearest}

    return measured


def read(group: str, split: Split, method: Method, far: Distances | None, reporter: Reporter) -> Mapping[str, Tensor]:
    """Labels and logits of the images, and distances where there are any."""
    plain = plain_form(method)
    reporter.stage(f"{method.name}: {group}", split.number_of_batches(256))
    found: dict[str, list[Tensor]] = {}
    for batch in split.batches(256, device=method.device):
        logits = require_numbers(plain.predict(batch.inputs), method)
        more = far(plain.features(batch.inputs), logits) if far else {}
        for what, value in {"labels": batch.labels, "logits": logits, **more}.items():
            found.setdefault(what, []).append(value.cpu())
        reporter.step()
    return {what: torch.cat(values) for what, values in found.items()}


def measure(found: Mapping[str, Tensor], seed: int) -> dict[str, Any]:
    """What a table says of one run, fractions."""
    aside, labels = found["aside.logits"], found["aside.labels"]
    readings = {score: fit(aside, labels, score=score) for score in SCORES}
    scored: dict[str, Callable[[str], Tensor]] = {
        score: lambda group, reading=reading: scores(found[f"{group}.logits"], reading)
        for score, reading in readings.items()
    }
    scored |= {
        distance: lambda group, distance=distance: found[f"{group}.{distance}"]
        for distance in DISTANCES
        if f"aside.{distance}" in found
    }
    usual = readings[SCORE]
    test, truth = found["test.logits"], found["test.labels"]
    return {
        "classes": usual.classes,
        "images": {group: len(found[f"{group}.labels"]) for group in ("aside", "test", "next", "last")},
        "temperature": usual.temperature,
        "accuracy": right(test, truth).double().mean().item(),
        "error_uncalibrated": calibration_error(test, truth, usual.model_copy(update={"temperature": 1.0})),
        "error": calibration_error(test, truth, usual),
        "auroc_validation": {name: auroc(of("aside"), of("next")) for name, of in scored.items()},
        "auroc": {name: auroc(of("test"), of("last")) for name, of in scored.items()},
        "rejected_known": {name: rejected(test, reading) for name, reading in readings.items()},
        "rejected_unknown": {name: rejected(found["last.logits"], reading) for name, reading in readings.items()},
        "older_only": older_only(found, usual.among // 2),
        "few": [few(aside, labels, number, np.random.RandomState(seed)) for number in FEW if 2 * number <= len(labels)],
    }


def right(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.argmax(dim=1) == labels


def calibration_error(logits: Tensor, labels: Tensor, reading: Calibration) -> float:
    return expected_calibration_error(probabilities(logits, reading).amax(dim=1), right(logits, labels))


def rejected(logits: Tensor, reading: Calibration) -> float:
    return is_unknown(logits, reading).double().mean().item()


def older_only(found: Mapping[str, Tensor], number: int) -> dict[str, dict[str, float]]:
    """What becomes of test images where only of that many classes, the first learned, images were set aside."""
    covered = found["aside.labels"] < number
    reading = fit(found["aside.logits"][covered], found["aside.labels"][covered])
    of_covered = found["test.labels"] < number
    return {
        name: {
            "rejected": rejected(found["test.logits"][chosen], reading),
            "error": calibration_error(found["test.logits"][chosen], found["test.labels"][chosen], reading),
        }
        for name, chosen in {"covered": of_covered, "not_covered": ~of_covered}.items()
    }


def few(logits: Tensor, labels: Tensor, number: int, random: np.random.RandomState) -> dict[str, Any]:
    """What becomes of that many images set aside, on the others of them: means over draws, and the range that nine of
    ten are in.

    Besides the threshold of `fit`, two that could take its place where images are few: the smallest score, and where a
    normal distribution has its twentieth.
    """
    kept: dict[str, list[float]] = {}
    for _ in range(DRAWS):
        order = torch.from_numpy(random.permutation(len(labels)))
        some, others = order[:number], order[number:]
        reading = fit(logits[some], labels[some])
        of_some, of_others = scores(logits[some], reading), scores(logits[others], reading)
        kept.setdefault("temperature", []).append(reading.temperature)
        kept.setdefault("error", []).append(calibration_error(logits[others], labels[others], reading))
        kept.setdefault("rejected", []).append(rejected(logits[others], reading))
        below = {"rejected_smallest": of_some.min(), "rejected_normal": of_some.mean() - 1.645 * of_some.std()}
        for name, threshold in below.items():
            kept.setdefault(name, []).append((of_others < threshold).double().mean().item())
    spread = {
        name: [float(np.mean(values)), *np.quantile(values, (0.05, 0.95)).tolist()] for name, values in kept.items()
    }
    return {"number": number} | spread


def written(data: str, command: str, runs: Sequence[Mapping[str, Any]]) -> str:
    """The tables as Markdown."""
    return "\n".join([*_head(data, command, runs), *_calibrated(runs), *_scored(runs), *_older_only(runs), *_few(runs)])


def _by_method(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    methods: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        methods.setdefault(run["method"], []).append(run)
    return methods


def _percent(values: Sequence[float]) -> str:
    return Spread.of(values).percent()


def _head(data: str, command: str, runs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    images, machine = runs[0]["images"], runs[0]["environment"]
    methods = " and ".join(dict.fromkeys(run["method"] for run in runs))
    commits = ", ".join(dict.fromkeys(str(run["environment"]["git_revision"])[:7] for run in runs))
    yield from (
        f"# {data}: images of unknown classes, {methods}",
        "",
        "Made by the following command; do not edit. What it means: [unknowns.md](../unknowns.md).",
        "",
        f"    {command}",
        "",
        f"{runs[0]['classes']} classes learned, in the first half of the tasks; {images['aside']} images set aside, "
        f"{images['test']} test images; unknown are {images['next']} training images of the classes that come next "
        f"(validation) and {images['last']} test images of the last ones (test). Class order RandomState({ORDER} + "
        f"seed). Percent; mean ± sample standard deviation over seeds. Machine: {machine['cpu_count']} CPU cores "
        f"({machine['machine']}), torch {machine['torch']}. Commit: {commits}.",
        "",
    )


def _calibrated(runs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield from (
        "## Probabilities, on test images of the classes learned",
        "",
        "| method | seeds | accuracy | T | ECE, T = 1 | ECE | known called unknown | unknown called so |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    )
    for method, own in _by_method(runs).items():
        temperatures = ", ".join(f"{run['temperature']:.3g}" for run in own)
        columns = [
            [run["accuracy"] for run in own],
            [run["error_uncalibrated"] for run in own],
            [run["error"] for run in own],
            [run["rejected_known"][SCORE] for run in own],
            [run["rejected_unknown"][SCORE] for run in own],
        ]
        accuracy, *others = map(_percent, columns)
        yield f"| {' | '.join([method, str(len(own)), accuracy, temperatures, *others])} |"
    yield from (
        "",
        f"ECE: expected calibration error, 15 bins. The last two columns: at the fitted threshold of the {SCORE}.",
        "",
    )


def _scored(runs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield from (
        "## Scores",
        "",
        "| method | score | AUROC, validation | AUROC, test | known called unknown | unknown called so |",
        "|---|---|---:|---:|---:|---:|",
    )
    for method, own in _by_method(runs).items():
        for score in own[0]["auroc"]:
            measures = ("auroc_validation", "auroc", "rejected_known", "rejected_unknown")
            cells = [_percent([run[each][score] for run in own]) if score in own[0][each] else "–" for each in measures]
            yield f"| {' | '.join([method, score, *cells])} |"
    yield ""


def _older_only(runs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield from (
        "## Classes of which no image was set aside",
        "",
        "Fitted on images of the first half of the classes alone; test images of these, and of the others.",
        "",
        "| method | known called unknown, covered | not covered | ECE, covered | not covered |",
        "|---|---:|---:|---:|---:|",
    )
    for method, own in _by_method(runs).items():
        cells = [
            _percent([run["older_only"][which][measure] for run in own])
            for measure in ("rejected", "error")
            for which in ("covered", "not_covered")
        ]
        yield f"| {' | '.join([method, *cells])} |"
    yield ""


def _few(runs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield from (
        "## Few images set aside",
        "",
        f"As many of those set aside are drawn {DRAWS} times, and the others measured: mean, and the range of nine "
        f"draws in ten, of all seeds. With fewer than {FEWEST} no threshold is fitted.",
        "",
        "| method | images | T | ECE | known called unknown | below the smallest | below a normal twentieth |",
        "|---|---:|---:|---:|---:|---:|---:|",
    )
    for method, own in _by_method(runs).items():
        for rows in zip(*(run["few"] for run in own), strict=True):
            cells = [f"{_ranged([row['temperature'] for row in rows], 1, '.3g')}"]
            cells += [
                _ranged([row[each] for row in rows], 100, ".1f")
                for each in ("error", "rejected", "rejected_smallest", "rejected_normal")
            ]
            yield f"| {' | '.join([method, str(rows[0]['number']), *cells])} |"
    yield ""


def _ranged(rows: Sequence[Sequence[float]], factor: float, form: str) -> str:
    mean, low, high = (factor * value for value in np.mean(rows, axis=0))
    return f"{mean:{form}} ({low:{form}} to {high:{form}})"


if __name__ == "__main__":
    typer.run(main)
