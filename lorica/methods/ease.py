"""EASE: adapters and a feature space for each task, prototypes of all classes in all spaces (Zhou et al., CVPR 2024).

Tasks count from 0, t is the latest. The features phi_i(x) are the frozen backbone's with the adapters of task i beside
the MLP of every block (`Bottlenecks`: rank 64, scale 0.1, dropout 0.1); at their start they are the plain f(x).
While task t is learned, its adapters train with a cosine head, sigma learned from 16, that is dropped afterwards:

    loss = cross-entropy of sigma cos(phi_t(x), w_c) over the classes c of task t alone                            (1)

(a class that returns trains along, and keeps its prototypes; a task without a new class is refused; a task of one class
has nothing to tell apart: its loss is 0 and its space that of the backbone).

Then P_c,i, the mean of phi_i over the training images of class c, is measured for the new classes in all spaces i <= t.
A class o of an earlier task tau cannot be measured in the later spaces i = tau + 1 … t. There its prototype is put
together from those of the classes n of tasks i … t, which are measured in both spaces, by their nearness to o in that
of tau:

    w_o,n = softmax over n of cos(P_o,tau, P_n,tau) / temperature                  P_o,i = sum_n w_o,n P_n,i       (2)

`recalculate: true` (default) does so after each task for every pair of tau and i; `false` does it once, for i = t from
the classes of task t. Completed prototypes are never a source of others. A class c of task tau then has the

    score = cos(phi_tau(x), P_c,tau) + (alpha / t) sum_{i != tau} cos(phi_i(x), P_c,i) + beta cos(f(x), P_c,f)     (3)

with P_c,f the class mean on the plain backbone; alpha = 0.1, and beta = 0 (the code's setting for CUB: 1). At t = 0 the
second term is empty. Each cosine is of one space, not of the features joined. A prediction takes t + 1 passes, one more
with beta: the adapters begin in the first block, so that spaces have no trunk in common.

At temperature 1, which is the method's, (2) is close to a plain mean: cosines that differ by d give weights that differ
by a factor of e^d, and ten classes with cosines spread over 0.2 to 0.9 get weights of 0.07 to 0.14. The old classes of
one task then look alike in later spaces, where (3) moves them together more than it tells them apart.

Equations follow the paper; alpha / t is as in the authors' code (sun-hailong/CVPR24-Ease). The numbers of equations
are this file's, `temperature` is our addition. Done otherwise than in that code:
  * its sigma starts at 1 (`head_scale: 1`). Cross-entropy over cosines is then all but flat, sigma itself rushes to 19
    in ten steps at a rate that trains, or below zero, and all features end in one direction. `scale` and `mean_cosine`
    (of the new prototypes in their own space) in the diagnostics tell;
  * its rate falls epoch by epoch, here step by step;
  * it keeps finished adapters in a plain list, which its checkpoints therefore lack; here they are part of the state;
  * it derives the classes of a task from two sizes, the first task's and everyone else's; here tasks are of any size;
  * one pass over the data serves all spaces at the end of a task, where it takes one for each;
  * not offered: stored images; a single adapter with the cosine of joined features, its setting for OmniBenchmark, that
    is APER; new classes measured in their own space alone, which predicts as `others_weight: 0` does.
The optimiser defaults to that code's for ImageNet-R (there with batches of 16, for 20 epochs).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from lorica.adapters.tuning import Bottlenecks
from lorica.backbones.encoder import Encoder
from lorica.heads import CosineHead, mean_cosine
from lorica.methods.base import Context, Method, MethodConfig, only_old_classes
from lorica.statistics import ClassMeans
from lorica.types import Batch, Inputs, Task, seen_classes


class EASEConfig(MethodConfig):
    """Options of EASE."""

    cross_entropy: Literal["current_task"] = "current_task"  # the heads of earlier tasks are gone
    rank: int = Field(default=64, ge=1, description="hidden units of an adapter")
    scale: float = Field(default=0.1, gt=0, description="of what an adapter adds")
    dropout: float = Field(
        default=0.1, ge=0, lt=1, description="share of an adapter's hidden units dropped in training"
    )
    others_weight: float = Field(default=0.1, ge=0, description="alpha, of the other tasks' spaces together")
    backbone_weight: float = Field(default=0.0, ge=0, description="beta, of the plain backbone; one more pass unless 0")
    recalculate: bool = Field(default=True, description="complete all spaces anew after each task, not only the newest")
    head_scale: float = Field(default=16.0, gt=0, description="where sigma starts; the code: 1")
    temperature: float = Field(default=1.0, gt=0, description="of the softmax over similarities")


class EASE(Method):
    """An adapter for each task, class means in every space."""

    name = "ease"
    rewritten = ("means",)  # completed anew: (2)
    Config = EASEConfig
    dropped = ("head",)  # a learned task no longer needs it
    config: EASEConfig
    head: CosineHead

    def __init__(self, config: EASEConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        Bottlenecks.require_place(encoder)
        self.adapters, self.means = nn.ModuleList(), nn.ModuleList()  # one of each for every task
        self.plain_means = ClassMeans(encoder.width, device=self.device)  # empty without backbone_weight
        self.measured: dict[str, Any] = {}  # of the task learned last

    @classmethod
    def misfits(cls, config: MethodConfig, tasks: Sequence[Task]) -> Iterator[str]:
        yield from super().misfits(config, tasks)
        yield from only_old_classes(tasks, "ease makes a space for each task from the classes that are new in it")

    @classmethod
    def fit_defaults(cls, variant: str | None) -> Mapping[str, Any]:
        return {"optimizer": "sgd", "learning_rate": 0.05, "weight_decay": 5e-3, "schedule": "cosine"}

    def grow(self, task: Task) -> None:
        super().grow(task)
        config, width = self.config, self.encoder.width
        adapters = Bottlenecks(self.encoder, config.rank, scale=config.scale, dropout=config.dropout)
        self.adapters.append(adapters)
        self.head = CosineHead(width, len(task.classes), scale=config.head_scale, device=self.device)
        self.measured = {}
        self.means.append(ClassMeans(width, device=self.device))
        for means in self.class_means():
            means.grow(seen_classes(self.tasks) - len(means.prototypes))

    def trainable(self) -> list[nn.Parameter]:
        return [*self.adapters[-1].parameters(), *self.head.parameters()]

    def losses(self, batch: Batch) -> Iterator[dict[str, Float[Tensor, ""]]]:
        features = cast(Bottlenecks, self.adapters[-1]).features(self.encoder, batch.inputs)
        yield {"cross_entropy": F.cross_entropy(self.head(features), self.task.positions(batch.labels))}

    # --- the spaces: one for each task, then the plain backbone's if it has a weight ---

    def class_means(self) -> list[ClassMeans]:
        """The prototypes of all classes: for the space of each task, then for the plain backbone if it has a weight."""
        return cast(list[ClassMeans], [*self.means, *([self.plain_means] if self.config.backbone_weight else [])])

    def in_spaces(self, inputs: Inputs) -> list[Float[Tensor, "n features"]]:
        """The features in every space."""
        own = [each.features(self.encoder, inputs) for each in cast(list[Bottlenecks], self.adapters)]
        return [*own, self.encoder.features(inputs)] if self.config.backbone_weight else own

    def weights(self) -> Float[Tensor, "spaces classes"]:
        """How much the cosine of each space counts in the score of each class (3)."""
        shape = (len(self.class_means()), seen_classes(self.tasks))
        weights = torch.full(shape, self.config.others_weight / max(1, self.task.index), device=self.device)
        for task in self.tasks:
            weights[task.index, list(task.new_classes)] = 1
        weights[len(self.tasks) :] = self.config.backbone_weight
        return weights

    # --- the end of a task, and predictions ---

    @torch.no_grad()
    def end_task(self, context: Context) -> None:
        """Measures the new classes in every space, and completes the old ones."""
        features, labels = context.gathered(
            lambda inputs: torch.stack(self.in_spaces(inputs), dim=1), of=self.unmeasured()
        )
        for means, own in zip(self.class_means(), features.unbind(1), strict=True):
            means.add(own, labels)
        own = features[:, self.task.index]
        self.measured = {"scale": self.head.scale.item(), "mean_cosine": mean_cosine(own, labels)}
        for space in self.tasks if self.config.recalculate else [self.task]:
            self.complete(space)

    def unmeasured(self) -> list[int]:
        """The task's classes without a mean: those that are new, and those that return once they have been
        forgotten."""
        known = self.class_means()[0].remembered()  # every class is measured in the first space
        return [number for number in self.task.classes if not known[number]]

    def diagnostics(self) -> dict[str, Any]:
        """sigma and the mean cosine between the new prototypes, of a task just learned."""
        return dict(self.measured)

    def complete(self, space: Task) -> None:
        """Puts together, by (2), the prototypes that classes of earlier tasks have in the space of this task."""
        prototypes, known = self.class_means()[space.index].prototypes, slice(space.new_classes[0], None)
        for task in self.tasks[: space.index]:
            shared, old = self.class_means()[task.index], slice(task.new_classes[0], task.new_classes[-1] + 1)
            weights = (shared(shared.prototypes[old], known) / self.config.temperature).softmax(dim=1)
            prototypes[old] = weights @ prototypes[known]

    def predict(self, inputs: Inputs) -> Float[Tensor, "n classes"]:
        """Scores of all classes: weighted sums of cosines over the spaces (3)."""
        pairs = zip(self.class_means(), self.in_spaces(inputs), strict=True)
        cosines = torch.stack([means(features) for means, features in pairs])
        return (self.weights()[:, None] * cosines).sum(dim=0)
