"""HiDe-Prompt: a prompt for each task, and a classifier that says which task (Wang et al., NeurIPS 2023).

The objective is taken apart into three. **Within-task prediction** (WTP): p_t, rows of keys and values for the
attention of blocks 0 to 4, starts as a copy of p_{t-1} and trains with the head's new rows. With f(x; p) the features
of x under prefixes p, and earlier prompts as constants,

    e_t = (1 - a) p_t + a mean_{i<t} p_i,  e_0 = p_0              and after training p_t := e_t                     (1)
    loss = CE(head(f(x; e_t))) over the task's logits + w L_c                                                      (2)
    L_c = CE(rows of M M' / 0.8, each row's own number as its class)                                               (3)

with M the stored centroids of all earlier classes and below them the batch's features: (3) moves features away from
all others, labels do not matter. **Task-identity inference** (TII): on the frozen features z = f(x),

    g(z) = head_I(LN(z + W2 GELU(W1 z)))                                                                           (4)

trains by cross-entropy over the task's logits, as a stage of its own. **Task-adaptive prediction** (TAP): each class
is remembered by Gaussians, of z and of f(x; p_t), from one pass over its images, not augmented. From the second task
on both heads, and W1, W2, LN with theirs, are trained on draws from the Gaussians of all classes seen, by
cross-entropy over all logits: SGD with momentum 0.9, rate 0.005 falling by a cosine, no weight decay, 30 epochs of as
many batches as there are old classes, of 5 times the recipe's batch size (head) and once (TII). All Gaussians are
drawn from alike. They are, by `statistics`,

    multi_centroid (default)    mean and variances of each of 10 clusters that k-means finds                       (5)
    variance | covariance       mean and variances, or mean and covariance, of the class

with 1e-4 added to each variance. A **prediction** takes two passes, and each input its own prompt:

    tau = task of the class argmax g(f(x)),          logits = head(f(x; p_tau)) over all classes seen              (6)

`variant: default`          M in (3) has rows of length 1, so that the term acts: our reading, since the paper's formula
                            is not at hand (and called `paper` by earlier versions).
`variant: released_code`    M as it is (thu-ml/HiDe-Prompt). ViT-B's features leave a LayerNorm with |m|^2 near 768:
                            each row's own product towers over the others, L_c and its gradient are 0 in float32.

`scrambled: true` hands prefixes out as the code does, in training, statistics and predictions
(`lorica.adapters.prefix`). HiDe's published numbers contain it, hence the option, for replication only: predictions
then depend on their batch.

Equation numbers are this file's; what is not in the paper's text is the released code's. Defaults are its ImageNet-R
line: 20 rows, w = 0.5, a = 0.01, Adam at 0.03 * 24 / 256 = 0.0028125 (the code scales its rate by the batch size of one
device over 256), cosine, no weight decay. CIFAR-100: 5 rows, w = 0.1. Done otherwise than there:
  * one rate for prompt and head, where the code gives its head a tenth; no clipping of the gradient's norm at 1;
  * TII trains at the end of each task, after the prompt, with a rate of its own (5e-4, constant) and the recipe's
    number of epochs; the code trains it first, in a run of its own, and multiplies this rate and TII's 0.005 by
    24 / 256;
  * a class with fewer images, or different ones, than clusters has fewer clusters, drawn more often so that classes
    stay balanced (the code stops); clusters without variance are drawn with 1e-4 (the code skips them, and so whole
    classes);
  * variances are over n throughout (the code: n - 1 in `variance` and `covariance`), and the statistics are in the
    checkpoint; the draws of an epoch are made batch by batch, from the same distribution, and TAP's rate falls with
    each of them (the code: with each epoch);
  * W1 and W2 start as torch's linear layers (the code: truncated normal, 0.02, as both heads do here too).
A class that returns in a later task trains along there, but is remembered and found as before; a task without a new
class is refused, since no input would find its prompt.
Not here: HiDe-LoRA, and HiDe-Adapter, which the code does not have either.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, field_validator
from torch import Tensor, nn

from lorica.adapters.prefix import TaskPrompts, prefixes, query, scrambled
from lorica.backbones.encoder import Encoder
from lorica.heads import GrowingLinear, HeadStart
from lorica.methods.base import Context, MethodConfig, Variants, only_old_classes
from lorica.methods.linear_head import LinearHeadConfig, LinearHeadMethod
from lorica.statistics import Gaussians, PseudoFeatures
from lorica.types import Batch, Inputs, Task, seen_classes

TEMPERATURE = 0.8  # of (3)
ALIGNMENT: dict[str, Any] = {
    "optimizer": "sgd",
    "learning_rate": 0.005,
    "momentum": 0.9,
    "schedule": "cosine",
    "weight_decay": 0.0,
}


class HiDePromptConfig(LinearHeadConfig):
    """Options of HiDe-Prompt."""

    variant: Literal["default", "released_code"] = "default"
    length: int = Field(default=20, ge=1, description="rows of keys, and of values, of a prompt in each block")
    blocks: tuple[int, ...] = Field(default=(0, 1, 2, 3, 4), min_length=1, description="blocks that a prompt enters")
    previous_share: float = Field(default=0.01, ge=0, le=1, description="a, the share of earlier prompts in a prompt")
    contrast_weight: float = Field(default=0.5, ge=0, description="w of the contrastive term")
    identity_epochs: int | None = Field(default=None, ge=1, description="of TII; absent = as many as the recipe's")
    identity_learning_rate: float = Field(default=5e-4, gt=0, description="of TII")
    statistics: Literal["multi_centroid", "variance", "covariance"] = Field(
        default="multi_centroid", description="what each class is remembered by"
    )
    centroids: int = Field(default=10, ge=1, description="clusters of a class, of multi_centroid")
    alignment_epochs: int = Field(default=30, ge=0, description="of TAP; 0 = none")
    scrambled: bool = Field(
        default=False,
        description="mix prefixes up as the released code does; replication only, predictions then depend on the batch",
    )
    by_variant: ClassVar[Variants] = {"default": {"normalised": True}, "released_code": {"normalised": False}}
    renamed: ClassVar[Mapping[str, Mapping[str, str]]] = {"variant": {"paper": "default"}}

    @field_validator("variant", mode="before")
    @classmethod
    def _todays_name(cls, variant: Any) -> Any:
        return cls.as_now({"variant": variant})["variant"]


def contrast(
    centroids: Float[Tensor, "m features"], features: Float[Tensor, "n features"], *, normalised: bool
) -> Float[Tensor, ""]:
    """The contrastive term between remembered centroids and the batch's features (3)."""
    with torch.autocast(features.device.type, enabled=False):
        rows = torch.cat([centroids, features.float()])
        rows = F.normalize(rows, dim=1) if normalised else rows
        return F.cross_entropy(rows @ rows.T / TEMPERATURE, torch.arange(len(rows), device=rows.device))


class TaskIdentity(nn.Module):
    """The classifier g of equation (4), which gives logits over all classes seen from frozen features. Its random start
    is drawn on the CPU."""

    def __init__(self, width: int, *, start: HeadStart, device: torch.device) -> None:
        super().__init__()
        self.residual = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)).to(device)
        self.norm = nn.LayerNorm(width).to(device)
        self.head = GrowingLinear(width, start=start, device=device)

    def forward(self, features: Float[Tensor, "n features"]) -> Float[Tensor, "n classes"]:
        with torch.autocast(features.device.type, enabled=False):
            return self.head(self.norm(features.float() + self.residual(features.float())))


class HiDePrompt(LinearHeadMethod):
    """A prompt per task, chosen by a classifier on frozen features; heads aligned on remembered Gaussians."""

    name = "hide_prompt"
    rewritten = ("head", "identity")  # aligned once more at the end of a task
    Config = HiDePromptConfig
    config: HiDePromptConfig
    source_start = "truncated_normal"
    identity: TaskIdentity  # from the first task on

    def __init__(self, config: HiDePromptConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        blocks = encoder.prefix_blocks(config.blocks, key="method.blocks")
        self.prompts = TaskPrompts(blocks, config.length, encoder.width, start=(-1.0, 1.0), device=self.device)
        slots, full = (
            config.centroids if config.statistics == "multi_centroid" else 1,
            config.statistics == "covariance",
        )
        self.frozen_features = Gaussians(encoder.width, slots, full=full, device=self.device)
        self.prompted_features = Gaussians(encoder.width, slots, full=full, device=self.device)

    @classmethod
    def misfits(cls, config: MethodConfig, tasks: Sequence[Task]) -> Iterator[str]:
        yield from super().misfits(config, tasks)
        yield from only_old_classes(
            tasks, "hide_prompt has a prompt for each task, found by the classes that are new in it"
        )

    @classmethod
    def undivided(cls, config: MethodConfig) -> Iterator[str]:
        if getattr(config, "contrast_weight", 0):
            yield "method.contrast_weight sets a term in which the features of a batch repel each other"
        yield from cls.unshared(config)

    @classmethod
    def unshared(cls, config: MethodConfig) -> Iterator[str]:
        if getattr(config, "scrambled", False):
            yield "method.scrambled mixes the inputs of a batch up"

    @classmethod
    def fit_defaults(cls, variant: str | None) -> Mapping[str, Any]:
        return {"optimizer": "adam", "learning_rate": 0.03 * 24 / 256, "weight_decay": 0.0, "schedule": "cosine"}

    def grow(self, task: Task) -> None:
        super().grow(task)
        if task.index == 0:
            self.identity = TaskIdentity(self.encoder.width, start=self.head_start, device=self.device)
        self.prompts.grow(copy=True)
        for part in (self.identity.head, self.frozen_features, self.prompted_features):
            part.grow(len(task.new_classes))
        self.identity.head.isolate(task.classes)

    # --- within-task prediction ---

    def trainable(self) -> list[nn.Parameter]:
        return [self.prompts.rows[-1], *self.head_parameters()]

    def mixture(self) -> Float[Tensor, "blocks 2 length dim"]:
        """The prompt in training: the task's own, with a share of the mean of earlier ones, e_t of (1)."""
        *earlier, newest = self.prompts.rows
        if not earlier:
            return newest
        share = self.config.previous_share
        return (1 - share) * newest + share * torch.stack(earlier).mean(dim=0).detach()

    def prompted(
        self, inputs: Inputs, rows: Float[Tensor, "m blocks 2 length dim"], *, layers: int | None = None
    ) -> Float[Tensor, "n features"]:
        """f(x; p), with a prompt for each input or one for all."""
        if self.config.scrambled:
            rows = scrambled(rows.expand(len(inputs), -1, -1, -1, -1))
        return self.encoder.features(inputs, prefixes=prefixes(self.prompts.blocks, rows), layers=layers)

    def losses(self, batch: Batch) -> Iterator[dict[str, Float[Tensor, ""]]]:
        """Cross-entropy under the task's own prompt, and the contrastive term (2)."""
        features = self.prompted(batch.inputs, self.mixture()[None])
        terms = {"cross_entropy": self.cross_entropy(self.head(features), batch.labels)}
        if weight := self.config.contrast_weight:
            normalised = self.config.of_variant()["normalised"]
            # the one wait of a step: how many centroids there are, only the device knows
            terms["contrast"] = weight * contrast(self.prompted_features.centroids(), features, normalised=normalised)
        yield terms

    # --- task-identity inference ---

    def identity_parameters(self) -> list[nn.Parameter]:
        """What trains in (4): old rows of its head only where they are in the loss."""
        identity, masked = self.identity, self.config.cross_entropy == "current_task"
        rows = identity.head.rows_of(self.task.classes) if masked else identity.head.parameters()
        return [*identity.residual.parameters(), *identity.norm.parameters(), *rows]

    def identity_losses(self, batch: Batch) -> Iterator[dict[str, Float[Tensor, ""]]]:
        """Cross-entropy of the classifier that tells the task (4)."""
        logits = self.identity(query(self.encoder, batch.inputs))
        yield {"identity": self.cross_entropy(logits, batch.labels)}

    # --- the end of a task ---

    def end_task(self, context: Context) -> None:
        with torch.no_grad():
            self.prompts.rows[-1].copy_(self.mixture())
        epochs = self.config.identity_epochs or context.epochs
        rate = self.config.identity_learning_rate
        parameters = self.identity_parameters()
        context.descend(parameters, epochs, losses=self.identity_losses, learning_rate=rate, schedule="constant")
        self.remember(context)
        if self.task.index > 0 and self.config.alignment_epochs:
            # classes that have been forgotten may leave fewer shares to draw from
            old = min(seen_classes(self.tasks[:-1]), len(self.prompted_features.shares()))
            self.align(context, self.head, PseudoFeatures(self.prompted_features, old, times=5))
            self.align(context, self.identity, PseudoFeatures(self.frozen_features, old, times=1))

    @torch.no_grad()
    def remember(self, context: Context) -> None:
        """Fits the Gaussians, by default those of equation (5), of the classes that are new and of those that return
        after they have been forgotten. Features under a prompt are those under the newest one as it now is."""

        def both(inputs: Inputs) -> Float[Tensor, "n 2 features"]:
            return torch.stack([query(self.encoder, inputs), self.prompted(inputs, self.prompts.rows[-1][None])], dim=1)

        found, labels = context.gathered(both)
        frozen, prompted = found.unbind(1)
        new = (self.prompted_features.clusters == 0)[labels]
        frozen, prompted, labels = frozen[new], prompted[new], labels[new]
        self.frozen_features.fit(frozen, labels)
        self.prompted_features.fit(prompted, labels)

    def align(self, context: Context, classifier: nn.Module, data: PseudoFeatures) -> None:
        """TAP of one classifier of features."""

        def losses(batch: Batch) -> Iterator[dict[str, Float[Tensor, ""]]]:
            yield {"alignment": F.cross_entropy(classifier(batch.inputs), batch.labels)}

        parameters, epochs = list(classifier.parameters()), self.config.alignment_epochs
        context.descend(parameters, epochs, losses=losses, data=data, **ALIGNMENT)

    # --- prediction ---

    def identify(self, inputs: Inputs) -> Int[Tensor, " n"]:
        """tau of (6): a task for each input."""
        task_of = torch.tensor([task.index for task in self.tasks for _ in task.new_classes], device=self.device)
        return task_of[self.identity(query(self.encoder, inputs)).argmax(dim=1)]

    def features(self, inputs: Inputs, *, layers: int | None = None) -> Float[Tensor, "n features"]:
        """Features under the prompt of the task that each input is told to be of (6)."""
        return self.prompted(inputs, self.prompts.of(self.identify(inputs)), layers=layers)
