"""Merging, as a study: the sum of a run's low-rank updates is solved anew after training (`lorica merge`).

With W_t the weight of a projection at the end of task t, as the run's own model uses it, and W_0 the pre-trained one,
the update of task t is what the task changed,

    D_t = W_t - W_{t-1},    W_0 + sum_{k<=t} D_k = W_t                                                               (1)

which needs no more of a method than that it adds something to the weights: it is the task's product of O-LoRA; for
plain LoRA, trained on and on, the difference of two checkpoints; for SD-LoRA alpha_t times the new unit direction, and
what the task changed in the magnitudes of earlier ones. A rule makes one update of D_1 … D_t, an entry or a projection
at a time:

    average     1/t sum D_k                                                                                          (2)
    sum         sum D_k: the run's own weights                                                                       (3)
    ties        trim, elect a sign, mean of those that agree (Yadav et al., 2023)                                    (4)
    magmax      of each entry the value of largest magnitude (Marczak et al., 2024)                                  (5)
    fisher      mean weighted by Fisher information (Matena and Raffel, 2022)                                        (6)
    spectral    the sum with all of its singular values the same (Iso-C; Marczak et al., 2025)                       (7)

Averages, sums and (7) depend on the sum alone, so that for them it is no matter which task changed what.

`study` replays the stream as an incremental learner would: at stage t the updates of tasks 1 … t are merged by the
rule, times one `scale`, and put into the plain backbone; the features of task t's training images, not augmented, add
to the statistics of a read-out, while those of earlier classes stay or follow the affine map between the trunks of
stages t-1 and t on the images of task t (`lorica.methods.readout`, whose code this is). No image of an earlier task is
looked at. Stage t is then tested on the test data of tasks 1 … t.

Deviations from the sources: their models are trained independently from W_0, or their vectors reach from W_0 to each
W_t (MagMax, in sequence), where (1) goes from task to task; only adapted projections are merged; their scales are tuned
on held-out data.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from rich import box
from rich.table import Table
from torch import Tensor, nn

from lorica.adapters.attach import attach, attached, merged
from lorica.assembly import Assembly, assemble, saved_recipe
from lorica.backbones.encoder import Encoder, Site
from lorica.checkpoint import Checkpoints
from lorica.config import Recipe
from lorica.data.sources import Source
from lorica.data.stream import Split
from lorica.errors import CheckpointError, LoricaError
from lorica.evaluation import accuracy_row
from lorica.files import RunFolder, taken, write_json
from lorica.isolation import isolated
from lorica.linalg import double
from lorica.methods import Drift, Kind, Method, MethodConfig, Readout, build_method, find_method
from lorica.metrics import MEASURES
from lorica.ownership import require_ours
from lorica.progress import Reporter, Silent
from lorica.randomness import Draws
from lorica.results import READ_OUTS, Measured, Result, read_result
from lorica.run import require_same_classes, require_same_samples
from lorica.training import Fit, learn_task
from lorica.types import Batch, Inputs, Task

FILE = "merging.json"

TRIMMED_TO = 0.2
"""Share of a task's entries that `ties` keeps."""

_FISHER_BATCH = 32  # a gradient of each image's own is there for one projection at a time


def average(updates: Float[Tensor, " tasks *shape"]) -> Float[Tensor, "*shape"]:
    """The mean of the tasks' updates, 1/t sum_k D_k (2)."""
    return updates.mean(dim=0)


def added(updates: Float[Tensor, " tasks *shape"]) -> Float[Tensor, "*shape"]:
    """The sum of the tasks' updates, sum_k D_k (3) (task arithmetic; Ilharco et al., ICLR 2023)."""
    return updates.sum(dim=0)


def ties(updates: Float[Tensor, " tasks *shape"], *, share: float = TRIMMED_TO) -> Float[Tensor, "*shape"]:
    """(4), TIES (Yadav et al., NeurIPS 2023). Of each update only the `share` of entries with the largest magnitudes
    stays, D'_k. Then for each entry

        gamma = sign(sum_k D'_k),    mean of those D'_k whose sign is gamma

    and 0 where none is left, or where they cancel. Entries as large as the smallest one that stays, stay too. The paper
    trims over all weights together, and so does `study`.
    """
    trimmed = updates.clone()
    for update in trimmed:
        entries = update.abs().flatten()
        kept = max(1, round(share * len(entries)))
        update[update.abs() < entries.kthvalue(len(entries) - kept + 1).values] = 0
    elected = trimmed.sum(dim=0).sign()
    agree = (trimmed.sign() == elected) & (elected != 0)
    return (trimmed * agree).sum(dim=0) / agree.sum(dim=0).clamp_min(1)


def magmax(updates: Float[Tensor, " tasks *shape"]) -> Float[Tensor, "*shape"]:
    """(5), MagMax (Marczak et al., ECCV 2024): each entry is D_k's with k = argmax_k |D_k|."""
    return updates.gather(0, updates.abs().argmax(dim=0, keepdim=True))[0]


def fisher(
    updates: Float[Tensor, " tasks *shape"], information: Float[Tensor, " tasks *shape"]
) -> Float[Tensor, "*shape"]:
    """(6), Fisher merging (Matena and Raffel, NeurIPS 2022): sum_k F_k D_k / sum_k F_k for each entry; its mean where
    no task has any information on it.

    Args:
        information: F_k, the diagonal of each task's Fisher information (`fisher_information`), none below 0.
    """
    total = information.sum(dim=0)
    weights = torch.where(total > 0, information / total.where(total > 0, 1.0), 1 / len(updates))
    return (weights * updates).sum(dim=0)


def spectral(updates: Float[Tensor, "tasks out inp"]) -> Float[Tensor, "out inp"]:
    """(7), Iso-C (isotropic merging in the common subspace; Marczak et al., ICML 2025): with U S V' the singular value
    decomposition of sum_k D_k,

        mean(S) U V'

    There the mean is over all min(out, inp) singular values. A sum of low-rank updates has fewer that are not zero, and
    no vectors for the others: mean and product are over those above rounding, so that neither depends on the width.
    """
    vectors, values, others = torch.linalg.svd(double(updates.sum(dim=0)), full_matrices=False)
    there = values > values[:1] * max(updates.shape[1:]) * torch.finfo(updates.dtype).eps
    if not there.any():
        return torch.zeros_like(updates[0])
    return (values[there].mean() * vectors[:, there] @ others[there]).to(updates)


ELEMENTWISE: Mapping[str, Callable[[Tensor], Tensor]] = {
    "average": average,
    "sum": added,
    "ties": ties,
    "magmax": magmax,
}
"""The rules that need the updates alone, in any shape."""

RULES = (*ELEMENTWISE, "fisher", "spectral")


def chosen_rules(text: str) -> tuple[str, ...]:
    """The rules in a text such as "ties,magmax", each once; "all" stands for all of `RULES`.

    Raises:
        LoricaError: a name that is no rule's, all such names at once.
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    if names == ("all",):
        return RULES
    problems = []
    for name in names:
        if name not in RULES:
            near = difflib.get_close_matches(name, RULES, n=1)
            hint = f"did you mean {near[0]}?" if near else f"give all, or some of {', '.join(RULES)}, with commas"
            problems.append(f"--rule: no rule {name!r:.40}; {hint}")
    if problems:
        raise LoricaError(problems)
    return names


def fisher_information(
    method: Method, data: Split, sites: Sequence[Site], *, generator: torch.Generator
) -> Float[Tensor, " weights"]:
    """The diagonal Fisher information of the weights of some sites, one after another, on a task's images:

        F = 1/N sum_n (d log p(y_n | x_n) / dW)^2,    y_n drawn from p(. | x_n)

    with p the model's own distribution over the task's classes, by its own head, as it is after the task. One label is
    drawn for each image.

    Args:
        method: after the task; its head's rows for the task's classes give p.
        data: the task's training data.
        generator: draws the labels.
    """
    plain = merged(method)
    passed: dict[str, tuple[Tensor, Tensor]] = {}  # what entered each layer, and what left it
    for name in {site.linear: None for site in sites}:
        layer = plain.encoder.get_submodule(name)  # `merged` has just made it: neither hook nor gradient outlives this
        layer.requires_grad_()
        layer.register_forward_hook(lambda _, given, left, name=name: passed.update({name: (given[0].detach(), left)}))
    sums = [torch.zeros(site.out_features, site.in_features, device=method.device) for site in sites]
    for batch in data.batches(_FISHER_BATCH, device=method.device):
        logits = plain.predict(batch.inputs)[:, method.task.columns]
        drawn = torch.multinomial(logits.detach().cpu().softmax(dim=1), 1, generator=generator)[:, 0]
        loss = F.cross_entropy(logits, drawn.to(logits.device), reduction="sum")
        slopes = dict(zip(passed, torch.autograd.grad(loss, [left for _, left in passed.values()]), strict=True))
        for total, site in zip(sums, sites, strict=True):
            slope = slopes[site.linear][..., slice(*site.rows)]
            total += torch.einsum("nlo,nli->noi", slope, passed[site.linear][0]).square().sum(dim=0)
    return torch.cat([total.flatten() for total in sums]) / len(data)


@dataclass(frozen=True)
class Updates:
    """The updates (1) of a run.

    Attributes:
        sites: the projections that they are of.
        of_tasks: D_1 … D_T, each flattened, site after site.
        information: the Fisher information of each entry, where it was asked for.
    """

    sites: tuple[Site, ...]
    of_tasks: Float[Tensor, "tasks weights"]
    information: Float[Tensor, "tasks weights"] | None = None

    def merged(self, rule: str, tasks: int) -> Float[Tensor, " weights"]:
        """One update of the first so many tasks' by one of `RULES`, flattened as they are."""
        first = self.of_tasks[:tasks]
        if rule == "fisher":
            assert self.information is not None
            return fisher(first, self.information[:tasks])
        if rule == "spectral":
            return torch.cat([spectral(matrices).flatten() for matrices in self._matrices(first)])
        return ELEMENTWISE[rule](first)

    def _matrices(self, flat: Float[Tensor, "tasks weights"]) -> Iterator[Float[Tensor, "tasks out inp"]]:
        shapes = [(site.out_features, site.in_features) for site in self.sites]
        parts = flat.split([rows * columns for rows, columns in shapes], dim=1)
        return (part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True))

    def by_site(self, flat: Float[Tensor, " weights"]) -> dict[str, Float[Tensor, "out inp"]]:
        """A merged update as a matrix for each site, by the site's name."""
        return {site.name: part[0] for site, part in zip(self.sites, self._matrices(flat[None]), strict=True)}


class MergedTrunk(Method):
    """A backbone with merged updates in it, which change with each task and are not trained: what a `Readout` reads.

    Args:
        sites: the projections that have updates.
        merged_after: gives the update of each site by its name, once that many tasks are there.
    """

    name = "merge"

    def __init__(
        self,
        config: MethodConfig,
        encoder: Encoder,
        sites: Sequence[Site],
        merged_after: Callable[[int], Mapping[str, Tensor]],
    ) -> None:
        super().__init__(config, encoder)
        self.merged_after = merged_after
        self.updates: Mapping[str, Tensor] = {}
        attach(encoder, sites, self.increment)

    def increment(self, site: Site) -> Float[Tensor, "out inp"]:
        """The merged update of one projection."""
        return self.updates[site.name]

    def grow(self, task: Task) -> None:
        super().grow(task)
        self.updates = self.merged_after(len(self.tasks))

    def trainable(self) -> list[nn.Parameter]:
        return []

    def losses(self, batch: Batch) -> Iterator[dict[str, Float[Tensor, ""]]]:
        return iter(())

    def features(self, inputs: Inputs, *, layers: int | None = None) -> Float[Tensor, "n features"]:
        return self.encoder.features(inputs, layers=layers)

    def predict(self, inputs: Inputs) -> Float[Tensor, "n classes"]:
        raise NotImplementedError("merged weights have no head; a Readout reads them")


@dataclass(frozen=True)
class Study:
    """What `study` found.

    Attributes:
        run: the run whose updates were merged.
        file: where the numbers are.
        reading: readout, layers, drift and scale, as they were given.
        rules: the accuracy matrix of each rule, and its measures.
        own: those of the run itself, by the label of what predicted: the run's read-out, its head.
    """

    run: Result
    file: Path
    reading: dict[str, Any]
    rules: dict[str, Measured]
    own: dict[str, Measured]

    @property
    def content(self) -> dict[str, Any]:
        """The contents of merging.json."""
        return {
            "run": str(self.run.path),
            "method": self.run.method,
            "variant": self.run.variant,
            "seed": self.run.seed,
            **self.reading,
            "rules": {rule: found.content for rule, found in self.rules.items()},
            "own": {label: found.content for label, found in self.own.items()},
        }


@isolated()
def study(
    path: Path | str,
    out: Path | None = None,
    *,
    rules: Sequence[str] = RULES,
    readout: Kind = "discriminant",
    layers: int | None = None,
    drift: Drift = "none",
    scale: float = 1.0,
    source: Source | None = None,
    given: Mapping[str, Any] | None = None,
    reporter: Reporter | None = None,
) -> Study:
    """Merges the updates of a run's tasks stage by stage, reads and tests each stage, and writes `out`/merging.json.

    Args:
        path: the folder of a run, with the checkpoint after each of its tasks.
        out: absent = the run's folder, analysis.
        rules: some of `RULES`, or "all" alone.
        readout, layers, drift: what reads the merged backbone, see `lorica.methods.readout`.
        scale: every merged update is multiplied by it; 0 leaves the plain backbone.
        source: the data again, for a run that was given it as an object.
        given: where data and weights are now, a device, the method's file, as `lorica.config.read_saved` takes them.

    Raises:
        LoricaError: no such rule or scale, not a run's folder, fewer than two tasks learned, a method without low-rank
            updates of each task, a checkpoint is missing, the data is missing or has changed, or merging.json is not
            lorica's.
    """
    rules = chosen_rules(",".join(rules))
    if not 0 <= scale < inf:
        raise LoricaError(f"--scale: expected a number from 0 on, got {scale}")
    folder, reporter = RunFolder(path), reporter or Silent()
    folder.require()
    out = out or folder.path / "analysis"
    require_ours([out / FILE])
    run, recipe = read_result(folder.path), saved_recipe(folder, given)
    _require_updates_of_tasks(run, recipe)
    parts = assemble(recipe, source)
    updates = _updates(run, parts, reporter, with_information="fisher" in rules)
    number = len(updates.of_tasks)
    counts = [task["test"] for task in run.tasks[:number]]
    found = {}
    for rule in rules:
        reporter.stage(rule, number)
        trunk = MergedTrunk(
            recipe.method,
            parts.method.encoder,
            updates.sites,
            # no `partial`, whose arguments would be copied with the trunk
            lambda tasks, rule=rule: updates.by_site(scale * updates.merged(rule, tasks)),
        )
        reader = Readout(trunk, readout, layers=layers, drift=drift)
        found[rule] = Measured(_replayed(reader, parts, number, reporter), counts)
    own = {run.label: Measured(run.accuracy, counts)}
    if run.head:
        own[f"{run.method} (its head)"] = run.head
    reading = {"readout": readout, "layers": layers, "drift": drift, "scale": scale}
    done = Study(run, out / FILE, reading, found, own)
    with taken(out):
        write_json(done.file, done.content)
    return done


def summary(done: Study) -> Table:
    """The measures of each rule and of the run itself, in percent, for the terminal."""
    read = READ_OUTS[done.reading["readout"]]
    if (layers := done.reading["layers"]) is not None:
        read += f" of {layers} layer{'' if layers == 1 else 's'}"
    if done.reading["drift"] != "none":
        read += f", {done.reading['drift']} drift"
    headings = {name: measure.heading for name, measure in MEASURES.items() if measure.heading}
    table = Table(
        "merged by",
        *headings.values(),
        title=(
            f"{done.run.path}: {len(done.run.accuracy)} tasks, read by {read}, scale {done.reading['scale']:g}; percent"
        ),
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for rows, prefix in ((done.rules, ""), (done.own, "not merged: ")):
        for label, found in rows.items():
            table.add_row(prefix + label, *(f"{100 * getattr(found, name):z.1f}" for name in headings))
        table.add_section()
    return table


def _require_updates_of_tasks(run: Result, recipe: Recipe) -> None:
    """What can be said against merging before anything is built."""
    number, folder = len(run.accuracy), RunFolder(cast(Path, run.path)).checkpoints
    if find_method(recipe.method.name).learns_all_at_once:
        raise LoricaError(
            f"{run.path}: {run.method} learns all tasks at once, and merging needs an update of each task"
        )
    if number < 2:
        raise LoricaError(
            f"{run.path}: {number} of {len(run.tasks)} tasks learned, and merging needs two; "
            + ("go on with it (--resume)" if len(run.tasks) > 1 else "learn a stream of more tasks (stream.tasks)")
        )
    there = Checkpoints(folder).there()
    if missing := [each for each in range(1, number + 1) if each not in there]:
        remedy = (
            "restore them" if recipe.checkpoints != "newest" else "learn it again with checkpoints=all (it has newest)"
        )
        raise CheckpointError(
            f"{folder}: merging needs the checkpoint after each of the run's {number} tasks, and there is none after "
            f"{', '.join(map(str, missing))}; {remedy}"
        )


def _updates(run: Result, parts: Assembly, reporter: Reporter, *, with_information: bool) -> Updates:
    """What each task changed in each projection, D_t of (1), and the Fisher information if it is asked for; checkpoints
    are read one after another."""
    folder, recipe = RunFolder(cast(Path, run.path)), parts.recipe
    sites, number = tuple(attached(parts.method.encoder)), len(run.accuracy)
    if not sites:
        raise _without_updates(run)
    totals: list[Tensor] = []
    information: list[Tensor] = []
    checkpoints = Checkpoints(folder.checkpoints)
    for index, task in enumerate(parts.stream.tasks[:number]):
        with torch.random.fork_rng([]):  # starting values are drawn, and then replaced
            method = build_method(recipe.method, parts.method.encoder, **recipe.evaluate.reading)
        checkpoints.load(method, index + 1)
        learner = method.learner if isinstance(method, Readout) else method
        if index == 0:
            if not learner.reads_encoder():
                raise _without_updates(run)
            require_same_samples(folder, parts.stream, reporter)
            reporter.stage("updates of the tasks" + ", Fisher information" * with_information, number)
        require_same_classes(folder.path, parts, learner.tasks)
        with torch.no_grad():
            totals.append(torch.cat([give().flatten() for give in attached(learner.encoder).values()]))
        if with_information:
            generator = Draws(recipe.seed, task=index).generator("labels of the Fisher information")
            information.append(fisher_information(learner, parts.stream.train(task), sites, generator=generator))
        reporter.step()
    of_tasks = torch.stack([totals[0], *(after - before for before, after in pairwise(totals))])
    if not of_tasks[1:].any():
        raise LoricaError(
            f"{run.path}: {run.method} changes its backbone at the first task alone; nothing is to be merged"
        )
    return Updates(sites, of_tasks, torch.stack(information) if with_information else None)


def _without_updates(run: Result) -> LoricaError:
    return LoricaError(
        f"{run.path}: {run.method} has no low-rank updates that merge into its backbone, or predicts with more than "
        "those and a head; merge a run of sd_lora, o_lora, inf_lora, lora, or of rolda with adapt=always"
    )


def _replayed(reader: Readout, parts: Assembly, number: int, reporter: Reporter) -> list[list[float]]:
    """The accuracy matrix of a merged trunk that is read as the first so many tasks arrive."""
    rows = []
    fit, tasks = Fit(**parts.recipe.fit.model_dump()), parts.stream.tasks[:number]
    for stage, task in enumerate(tasks, start=1):
        data, accelerator = parts.stream.train(task), parts.accelerator
        learn_task(reader, task, data, fit, seed=parts.recipe.seed, accelerator=accelerator)
        rows.append(accuracy_row(reader, tasks[:stage], parts.test_data, accelerator=accelerator))
        reporter.step(f"{100 * fmean(rows[-1]):.1f} %")
    return rows
