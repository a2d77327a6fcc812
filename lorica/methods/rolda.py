"""RoLDA: rotations, a low-rank update on the first task, and on later ones if wanted, and discriminant analysis. Ours,
of known parts.

**First task.** One low-rank update W0 + U D of every projection (U = 0 at the start) is trained to tell 4n classes
apart, the task's n classes in each of four rotations R_r. Each image of a batch, augmented as the recipe says, is
turned by an r of its own, drawn anew at every step:

    loss = CE over c, r of sigma cos(f(R_r x), w_(4c+r)),    sigma = 16, fixed                                       (1)

The rows w start short, with length 1/5, so that steps of Adam turn them fast. `passes` 4: each epoch of the recipe is
four passes, in which an image is seen once in each rotation on average. Then w and the rotations go, the update stays
as it is, and, with `adapt: first`, nothing is trained any more.

**Features.** With c_l the class token that leaves block l and m_l the mean of the other tokens, both normalised as the
backbone normalises what leaves its last block, n(v) = sqrt(d) v / ||v||, of the last L blocks:

    phi(x) = [n(c_l), n(m_l)]_l,    D = 2 L d  (L d, where the backbone has no class token)                          (2)

in the one pass that a prediction takes anyway. Where that is more than `width`, 8192, D is `width` and phi P takes its
place, P ~ N(0, 1/D) drawn from a seed of its own and not stored: wider statistics would outgrow the backbone.

**End of each task**: its images, not augmented, add to the statistics of a linear discriminant over all classes seen,
with one covariance shrunk by g (`lorica.statistics.Discriminant`):

    logit_c = mu_c' Sigma_g^-1 phi - mu_c' Sigma_g^-1 mu_c / 2,    Sigma_g = (1 - g) Sigma + g tr(Sigma)/D I         (3)

Given the trunk, the result is that of all images at once, in whatever order and division classes and images came: more
images of a class that is known count like its first. What is kept of a class is its mean; of all of them together, one
matrix.

**Every task**, with `adapt: always`: the k-th task that is adapted to trains an update of its own by (1), on top of
those before it, of which the k-th part is kept:

    W := W + U_k D_k / k                                                                                             (4)

so that, were each update trained from the same weights, W would be the mean of what the tasks want. Features drift, and
the statistics of the classes before move along. The task's images (in each rotation, where (1) turns them), encoded
without and with the update, give the affine map

    mu_c := A mu_c + b,    S := A S A'                                                                               (5)

(`lorica.statistics.affine_drift`): the one approximation in all this.

**The core alone**, with `adapt: core`: after the first task that is adapted to, both factors stay as they are, and
every later task trains on, by (1), the matrix M [r, r] between them, of each projection:

    W = W0 + U M D,    M = I at first                                                                                (6)

So features move within what the first task has found, and little; the statistics follow by (5). All that is added is
the newest M.

**Frozen tasks** are not adapted to, and (3) reads their classes with the Sigma_g and the centre that the earlier ones
are read with; Sigma takes nothing from their images (`Discriminant.add_frozen`).

**A small beginning.** A task of fewer than `enough` images is not worth adapting to: it is read on features as they
are, and the first one that has as many takes the part of the first task, by (5).

Where the parts are from: adapting in the first session alone, read by a discriminant, Panos et al. (ICCV 2023); a
network tuned once and statistics afterwards, also Zhou et al. (APER, IJCV 2024) and McDonnell et al. (RanPAC, NeurIPS
2023); the four rotations of a class as classes, Zhu et al. (PASS, CVPR 2021); features of several layers, Ahrens et al.
(LayUP, 2024); a discriminant from a stream, Hayes and Kanan (2020); the cosine head, first-session style, APER;
averaging the weights after each task with those before, Marouf et al. (CoMA, ECCV 2024), there with one weight for all
tasks; directions that stay while what weighs them goes on learning, Wu et al. (SD-LoRA, ICLR 2025), there a number for
each task's update; a matrix that trains between two factors that stay, Balazy et al. (LoRA-XS, 2024), there of singular
vectors; statistics moved by a linear map fitted on the new task's images, Rao et al. (SLDC, AAAI 2026), there with a
classifier trained on samples of them. No claim of novelty is made for their combination; it was chosen on held-out data
(`docs/results`).

Equation numbers are this file's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from lorica.adapters.attach import attach, with_increments
from lorica.adapters.lowrank import LowRankUpdates, no_norm
from lorica.backbones.encoder import Classifier, Encoder, Site
from lorica.errors import BackboneError
from lorica.heads import cosines
from lorica.methods.base import Context, LowRankConfig, Method, known_again, places_among
from lorica.parts import moved_by
from lorica.sharing import per_sample
from lorica.statistics import NO_SUMS, SHRINKAGE, Discriminant, affine_drift
from lorica.types import Batch, Inputs, Task

_log = logging.getLogger(__name__)

ROTATIONS = 4
SCALE = 16.0  # sigma
ROW_LENGTH = 0.2  # of w at the start


class RoLDAConfig(LowRankConfig):
    """Options of RoLDA."""

    cross_entropy: Literal["current_task"] = "current_task"
    adapt: Literal["first", "core", "always"] = Field(
        default="first",
        description="to the first task alone; to later ones by the matrix between its factors; or to every one, by an "
        "update each",
    )
    projections: tuple[str, ...] = Field(
        default=("q", "k", "v", "proj", "fc1", "fc2"), description="projections adapted in every block"
    )
    rotations: Literal["auto", "always", "never"] = Field(
        default="auto", description="train on the four rotations of a class as classes of their own; auto = of images"
    )
    enough: int = Field(default=50, ge=1, description="images that a task to adapt to has at least")
    passes: int = Field(
        default=4, ge=0, description="over a task to adapt to for each epoch; 0 = nothing is ever trained"
    )
    layers: int = Field(default=5, ge=1, description="L, last blocks whose features are read")
    width: int = Field(default=8192, ge=1, description="largest D, to which more features are projected")
    shrinkage: float = Field(default=SHRINKAGE, gt=0, le=1, description="g")

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> RoLDAConfig:
        idle = {"adapt", "rank", "projections", "rotations", "enough"} & self.model_fields_set
        idle = {
            key for key in idle if getattr(self, key) != type(self).model_fields[key].default
        }  # a saved recipe has all
        if idle and not self.passes:
            raise ValueError(
                f"{', '.join(sorted(idle))}: without effect where passes is 0, since nothing is trained; leave out"
            )
        return self


class RoLDA(Method):
    """Adapted on the first task or on all, and a linear discriminant on the features of several blocks."""

    name = "rolda"
    Config = RoLDAConfig
    reads_by = "discriminant"
    rewritten = ("discriminant", "core")  # sums, and what is solved from them; what changes were added to
    dropped = ("head", "change")
    config: RoLDAConfig
    core: Tensor  # M, [projections, rank, rank], with adapt: core
    change: nn.Parameter  # of M, on a task that is adapted to by it
    projection: Tensor | None  # P, where D is bounded
    head: nn.Parameter  # w, [rotations * classes, width], on a task that is adapted to

    def __init__(self, config: RoLDAConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        self.adapted: list[int] = []  # indices of the tasks that updates were trained on
        self.rotations = config.rotations != "never" and encoder.modality == "images"
        if config.rotations == "always" and not self.rotations:
            raise BackboneError(
                f"method.rotations: {encoder.name} reads {encoder.modality}, which cannot be turned; use auto or never"
            )
        self.sites = encoder.select(config.projections)
        self.updates = LowRankUpdates(self.sites, device=self.device)
        self._places = {site.name: place for place, site in enumerate(self.sites)}
        if config.adapt == "core":
            self.register_buffer("core", torch.zeros(len(self.sites), 0, 0, device=self.device))
        of_a_block = encoder.number_of_parts * encoder.width
        self.layers = min(config.layers, len(encoder.blocks))
        full = self.layers * of_a_block
        width = min(full, config.width)
        projection = random_projection(full, width).to(self.device) if width < full else None
        self.register_buffer("projection", projection, persistent=False)
        self.discriminant = Discriminant(width, device=self.device)
        if config.passes:
            attach(encoder, self.sites, self.increment, together=True)

    @classmethod
    def fit_defaults(cls, variant: str | None) -> Mapping[str, Any]:
        return {"optimizer": "adam", "learning_rate": 2e-3, "schedule": "cosine"}

    def increment(self, site: Site | tuple[Site, ...], current: float = 1.0) -> Float[Tensor, "*sites out inp"]:
        """The sum of updates of one projection, or of several of one shape, with that much of what the current task
        changes."""
        update = self.updates[site]
        return update(update.up.new_ones(len(update.rank_sizes)), self._weight(site, current))

    def _weight(self, site: Site | tuple[Site, ...], current: float) -> Tensor | float:
        """What stands between the factors of the latest update; M of the projection, or of each, (6)."""
        if self.config.adapt != "core":
            return current
        core = self.core + current * self.change if "change" in self._parameters else current * self.core
        if isinstance(site, Site):
            return core[self._places[site.name]]
        return torch.stack([core[self._places[each.name]] for each in site])

    def passes(self) -> int:
        return self.config.passes

    def grow(self, task: Task) -> None:
        super().grow(task)
        self.discriminant.grow(len(task.new_classes))
        for done in self.dropped:
            self._parameters.pop(done, None)

    def begin_task(self, context: Context) -> None:
        """Decides whether this is a task to adapt to; a frozen one is not."""
        if context.frozen or not self.config.passes or (self.adapted and self.config.adapt == "first"):
            return
        images = sum(len(batch.labels) for batch in context.batches())
        if self._number_of_rows() == 1:
            missing = "a single class has nothing to be told apart from without rotations"
        elif images < self.config.enough:
            missing = f"it has {images} samples, of method.enough={self.config.enough}"
        else:
            if self.task.index and not self.adapted:
                _log.warning("rolda: task %d is adapted to", self.task.index + 1)
            self._start(self.task.index)
            return
        again = self.task.index and self.config.adapt == "first"  # a model that gains a class now and then has heard it
        _log.log(
            logging.INFO if again else logging.WARNING,
            "rolda: task %d is not adapted to, and read on features as they are: %s; a later task will be, if it can",
            self.task.index + 1,
            missing,
        )

    def _number_of_rows(self) -> int:
        return len(self.task.classes) * (ROTATIONS if self.rotations else 1)

    def _start(self, index: int) -> None:
        """Makes room for what the task of that index trains: U, D, or a change of M, and w if that is the current
        one."""
        self.adapted.append(index)
        if self.config.adapt != "core" or len(self.adapted) == 1:
            self.updates.grow(self.config.rank, zero_up=True, norm=no_norm)
            for update in self.updates:
                update.fold()
            if self.config.adapt == "core":
                self.core = torch.eye(self.config.rank).to(self.core).repeat(len(self.sites), 1, 1)
        elif index == self.task.index:
            self.change = nn.Parameter(torch.zeros_like(self.core))
        if index == self.task.index:
            rows = ROW_LENGTH * F.normalize(torch.randn(self._number_of_rows(), self.encoder.width), dim=1)
            self.head = nn.Parameter(rows.to(self.device))

    def trainable(self) -> list[nn.Parameter]:
        if self.task.index not in self.adapted:
            return []
        return [*([self.change] if "change" in self._parameters else self.updates.factors()), self.head]

    def losses(self, batch: Batch) -> Iterator[dict[str, Float[Tensor, ""]]]:
        """Cross-entropy between the classes of the task in each rotation, by cosines (1)."""
        inputs, labels = batch.inputs, self.task.positions(batch.labels)
        if self.rotations:
            turns = per_sample(len(labels), lambda n: torch.randint(ROTATIONS, (n,)))
            turns = turns.to(labels.device, non_blocking=True)
            inputs, labels = rotated(cast(Tensor, inputs), turns), ROTATIONS * labels + turns
        logits = SCALE * cosines(self.encoder.features(inputs), self.head)
        yield {"cross_entropy": F.cross_entropy(logits, labels)}

    @torch.no_grad()
    def end_task(self, context: Context) -> None:
        """Adds the task's images to the discriminant and solves it (3).

        Where the task was adapted to, its update is first divided (4), or its change of M kept (6), and what is known
        of earlier classes moves along with the features (5).
        """
        if self.task.index in self.adapted:
            if self.config.adapt == "always":
                for update in self.updates:
                    update.up.div_(len(self.adapted))
            if not self.discriminant.is_empty():
                self._follow(context)
            if "change" in self._parameters:
                self.core += self.change
                self.change.zero_()
        features, labels = context.gathered(self.features)
        if context.frozen:
            self.discriminant.add_frozen(features, labels, self.config.shrinkage)
        else:
            self.discriminant.add(features, labels)
            self.discriminant.solve(self.config.shrinkage)
        if context.notes_parts:
            self.note_parts("discriminant", self.discriminant.parts(features, labels, frozen=context.frozen))

    def _follow(self, context: Context) -> None:
        """Moves what is known of earlier classes by the map between features before and after the task (5)."""

        def turned(encoder: Encoder, inputs: Inputs) -> Tensor:
            views = [torch.rot90(cast(Tensor, inputs), turn, (2, 3)) for turn in range(ROTATIONS)]
            return torch.stack([self._features_of(encoder, view) for view in views], dim=1)

        encode = turned if self.rotations else self._features_of
        without = with_increments(self.encoder, self.sites, lambda site: self.increment(site, current=0.0))
        before, after = (
            context.gathered(lambda inputs, encoder=encoder: encode(encoder, inputs))[0].flatten(end_dim=-2)
            for encoder in (without, self.encoder)
        )
        moved = affine_drift(before, after)
        self.discriminant.move(*moved)
        if context.notes_parts:
            self.note_parts("discriminant", moved_by(*moved))

    def keeps_features(self, task: Task) -> bool:
        """Always: no frozen task is adapted to."""
        return True

    def cannot_freeze(self, task: Task) -> Iterator[str]:
        """Nothing, of new classes: they are read with the covariance and the centre that the earlier ones have."""
        yield from known_again(task, self.discriminant.remembered())
        if self.discriminant.has_no_sums:
            yield NO_SUMS

    @property
    def trunk_rests(self) -> bool:
        """Once there is nothing more to adapt to."""
        return self.config.adapt == "first" and (bool(self.adapted) or not self.config.passes)

    def trained_on(self) -> Sequence[Task]:
        """The tasks that were adapted to."""
        return [self.tasks[index] for index in self.adapted]

    def solve_again(self) -> None:
        """Solves the discriminant from its sums again (3)."""
        self.discriminant.solve(self.config.shrinkage)

    def features(self, inputs: Inputs, *, layers: int | None = None) -> Float[Tensor, "n features"]:
        """The features phi of equation (2), projected. Where `layers` is given, those of that many last blocks, and not
        projected."""
        return self._features_of(self.encoder, inputs, layers)

    def _features_of(self, encoder: Encoder, inputs: Inputs, layers: int | None = None) -> Tensor:
        found = encoder.features(inputs, layers=layers or self.layers)
        if layers is not None or self.projection is None:
            return found
        with torch.autocast(found.device.type, enabled=False):
            return found @ self.projection

    def predict(self, inputs: Inputs) -> Float[Tensor, "n classes"]:
        return self.discriminant(self.features(inputs))

    def reads_encoder(self) -> bool:
        return self.projection is None

    def summed(self) -> Mapping[str, Callable[[Inputs], Tensor]]:
        return {"discriminant": self.features}

    def classifier(self) -> Classifier:
        weight = self.discriminant.weight
        weight = weight if self.projection is None else weight @ self.projection.T
        return Classifier(weight, self.discriminant.bias, self.layers)

    def diagnostics(self) -> dict[str, Any]:
        """The task that was adapted to last, counted from 1; None so far, or in a run that never adapts."""
        return {"adapted_to_task": self.adapted[-1] + 1 if self.adapted else None}

    def structure(self) -> dict[str, Any]:
        first, later = self.adapted[:1], self.adapted[1:]
        return ({"adapted": first[0]} if first else {}) | ({"also_adapted": later} if later else {})

    def restore_structure(self, structure: Mapping[str, Any]) -> None:
        if "adapted" in structure:
            later = structure.get("also_adapted", [])
            adapted = [structure["adapted"], *later] if isinstance(later, list) else later
            for index in places_among(adapted, len(self.tasks), "adapted"):
                self._start(index)

    def needed_to_learn_on(self) -> tuple[str, ...]:
        """The scatter S and the class means, from which the discriminant is solved."""
        return ("discriminant.scatter", "discriminant.means")


def random_projection(features: int, width: int) -> Float[Tensor, "features width"]:
    """P, the same for a size everywhere: NumPy keeps the stream of a RandomState from version to version."""
    drawn = np.random.RandomState(0).standard_normal((features, width)) / width**0.5
    return torch.from_numpy(drawn.astype(np.float32))


def rotated(
    images: Float[Tensor, "n channels side side"], turns: Int[Tensor, " n"]
) -> Float[Tensor, "n channels side side"]:
    """Each image turned by its number of quarter turns."""
    turned, turns = images, turns.view(-1, 1, 1, 1)
    for number in range(1, ROTATIONS):  # all of them each time: to pick some, the CPU would wait for the device
        turned = torch.where(turns == number, torch.rot90(images, number, dims=(2, 3)), turned)
    return turned
