"""CL-LoRA: a shared lower half and task-specific upper halves (He, Duan and Zhu, CVPR 2025).

Blocks are numbered j = 1 … L and L_s = L / 2, rounded down. With U "up" and D "down" (the paper writes B and A,
its code `lora_A` and `lora_B`), the weight of an adapted projection p (q, v) while learning task t is

    W_j = W0_j + U_j D_j                   j <= L_s: one update for all tasks, D fixed (orthonormal), U trained      (1)
    W_j = W0_j + w_t,j,p U_t,j D_t,j       j > L_s:  an update and a block weight w for each task, all trained       (2)

    loss = CE + l1 KD + l2 ORTH,           l1 = 5, l2 = 1e-4; the first task has CE alone                            (3)

CE runs over the task's own classes with a cosine head, sigma cos(f, row), sigma learned from 1. KD keeps the shared
half near its teacher, the shared U at the end of task t-1: with s and s' the logits of the current head on the features
that leave block L_s (pooled and normalised like final ones, the "early exit") with the current and with the teacher's
U,

    KD = -sum_c softmax(s' / 2)_c log softmax(s / 2)_c                                                               (4)

The heads go once a task is learned. A class c of task i is then scored by cos(f_i(x), p_c): f_i has the shared half as
it is now and the upper half of task i, p_c is the mean raw feature in that space at the end of task i. The largest
score wins. The shared half runs once: 1/2 + T/2 passes for T tasks, branches as rows of one batch where that is faster.

`variant: paper` (default) follows the paper, with one step on (3):
  * gradient reassignment: dKD/dU is multiplied by |dKD/dU' - dKD/dU|, U' the teacher's. The product of two gradients
    would all but switch KD off (the factor averages 1e-5 to 1e-3 on digits), so it is divided by its mean in each U
    (`reassignment: product` does not);
  * ORTH = sum_{i != k} ||U_i' U_k||^2 over ordered pairs of tasks, blocks and projections; pairs of earlier tasks are
    constant and left out;
  * in KD the head is a constant: otherwise it can satisfy (4) by making all logits equal;
  * D starts Haar-orthonormal (QR of a Gaussian matrix), U = 0, w uniform in [0.5, 1.5].

`variant: released_code` computes what the authors' repository computes (JiangpengHe/CL-LoRA):
  * two steps for each batch, on l1 KD and then on CE + l2 ORTH. One optimiser takes both, so momentum and weight decay
    act twice a batch on the shared U and on the head; what has no part in KD has no gradient in the first step and is
    skipped;
  * row i of dKD/dU is multiplied by d ||U'_i|| / (sum_j ||U'_j||), which pulls hardest where the teacher is large;
  * ORTH = mean_{i<t} |cos(w_t, w_i)| over the block weights;
  * the head trains by KD too, through both of its sides; D comes from a uniform matrix, whose first row is then nearly
    constant.
Not reproduced: CE computed before the first step and differentiated after it (current torch refuses); block weights for
k, which is not adapted (only ORTH sees them: 6 floats a task on ViT-B/16); T passes where one serves; prototypes of
every class in every space, of which one is used; copies of all adapters after each task. An all-zero teacher has
weights 1, not NaN.

A class that returns in a later task helps to train that task's branch; its prototype stays in its own space. A task
without a new class is refused, since nothing would be scored in its branch.

Neither source adapts old prototypes as the shared half moves: KD is all that protects them. The paper's note names no
optimiser; both variants default to what the code's ImageNet-R setting uses, but for its batches of 32 (here the
recipe's) and a rate that falls epoch by epoch (here step by step).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.func import functional_call

from lorica.adapters.attach import attach, with_increments
from lorica.adapters.linear import Term, of_terms
from lorica.backbones.encoder import Encoder, Site
from lorica.backbones.view import computing, view
from lorica.errors import BackboneError
from lorica.heads import CosineHead
from lorica.linalg import random_orthonormal_rows
from lorica.methods.base import Context, LowRankConfig, Method, MethodConfig, Variants, lone_classes, only_old_classes
from lorica.statistics import ClassMeans
from lorica.types import Batch, Inputs, Task

ROWS_TOGETHER = 32
"""Branches share a batch while it has no more rows than this. One image and 20 branches on a CPU core: 18 ms for 34 ms
one by one on lorica_tiny, 327 ms for 377 ms on DeiT-Ti; from some 32 rows on nothing is gained, and larger batches
lose."""


def mean_one(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Non-negative values over their mean; 1 everywhere where all of them are zero."""
    mean = values.mean()
    return torch.where(mean > 0, values / mean, torch.ones_like(values))


class SharedFactors(nn.Module):
    """U and D of (1) for one projection, [d_out, r] and [r, d_in]; `teacher` is U at the end of the last task."""

    down: Tensor
    teacher: Tensor

    def __init__(self, site: Site, rank: int, *, device: torch.device) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.zeros(site.out_features, rank, device=device))
        self.register_buffer("down", torch.zeros(rank, site.in_features, device=device))
        self.register_buffer("teacher", torch.zeros_like(self.up), persistent=False)  # `grow` takes it from `up`


class TaskFactors(nn.Module):
    """U, D and block weight of (2) for one projection: those of the current task, and those of earlier tasks.

    Attributes:
        up, down, weight: what trains, [d_out, r], [r, d_in] and a scalar.
        earlier_up, earlier_down, earlier_weight: buffers, the same with a leading dimension for the tasks.
    """

    earlier_up: Tensor
    earlier_down: Tensor
    earlier_weight: Tensor

    def __init__(self, site: Site, rank: int, *, device: torch.device) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.zeros(site.out_features, rank, device=device))
        self.down = nn.Parameter(torch.zeros(rank, site.in_features, device=device))
        self.weight = nn.Parameter(torch.ones((), device=device))
        self.register_buffer("earlier_up", torch.zeros(0, *self.up.shape, device=device))
        self.register_buffer("earlier_down", torch.zeros(0, *self.down.shape, device=device))
        self.register_buffer("earlier_weight", torch.zeros(0, device=device))

    @torch.no_grad()
    def start(self, down: Float[Tensor, "r inp"], weight: Float[Tensor, ""], *, earlier: int) -> None:
        """Puts what a task has learned with the earlier ones; then U = 0, and the given D and block weight.

        `earlier` is the number of tasks learned before; the first has nothing to put away.
        """
        if earlier:
            self.earlier_up, self.earlier_down, self.earlier_weight = self.of(0, earlier)
        self.up = nn.Parameter(torch.zeros_like(self.up))
        self.down, self.weight = nn.Parameter(down.to(self.down)), nn.Parameter(weight.to(self.weight))

    def of(self, first: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
        """U, D and block weights of the tasks from `first` to `stop - 1`, stacked."""
        pairs = (self.earlier_up, self.up), (self.earlier_down, self.down), (self.earlier_weight, self.weight)
        ups, downs, weights = (torch.cat([old[first:stop], new[None]])[: stop - first] for old, new in pairs)
        return ups, downs, weights


Update = tuple[Site, Tensor, Tensor]


def _add_updates(updates: Sequence[Update], linear: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """A linear layer's output with task k's low-rank update added to the k-th part of the rows.

    The adapted weight of each branch would be a dense matrix; its factors serve as well, and all branches at once.
    """
    output = linear(inputs)
    for site, ups, downs in updates:
        x = inputs.reshape(len(ups), -1, site.in_features)
        output[..., slice(*site.rows)] += (x @ downs.mT @ ups.mT).view(*output.shape[:-1], site.out_features)
    return output


class CLLoRAConfig(LowRankConfig):
    """Options of CL-LoRA; what is absent is as the variant does."""

    variant: Literal["paper", "released_code"] = "paper"
    cross_entropy: Literal["current_task"] = "current_task"  # the heads of earlier tasks are gone
    distillation: bool = Field(default=True, description="KD of the shared half")
    distillation_weight: float = Field(default=5.0, ge=0, description="l1")
    temperature: float = Field(default=2.0, gt=0, description="of both sides of KD")
    reassignment: Literal["gradients", "product", "rows", "none"] | None = Field(
        default=None,
        description=(
            "what weights KD's gradient: |teacher's - student's| over its mean, the same undivided, or the teacher's "
            "row norms"
        ),
    )
    block_weights: bool = Field(default=True, description="learn w; otherwise it is 1, and has no ORTH")
    orthogonality: Literal["factors", "block_weights", "none"] | None = Field(
        default=None, description="what is pushed apart between tasks"
    )
    orthogonality_weight: float = Field(default=1e-4, ge=0, description="l2")
    by_variant: ClassVar[Variants] = {
        "paper": {
            "reassignment": "gradients", "orthogonality": "factors",
            "two_steps": False, "head_is_distilled": False, "uniform_start": False,
        },
        "released_code": {
            "reassignment": "rows", "orthogonality": "block_weights",
            "two_steps": True, "head_is_distilled": True, "uniform_start": True,
        },
    }  # fmt: skip

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> CLLoRAConfig:
        if not self.distillation and self.reassignment not in (None, "none"):
            raise ValueError(f"reassignment {self.reassignment} needs distillation")
        if not self.block_weights and self.orthogonality == "block_weights":
            raise ValueError("orthogonality of block_weights needs block_weights")
        return self


class CLLoRA(Method):
    """Shared lower half, an upper half for each task."""

    name = "cl_lora"
    Config = CLLoRAConfig
    dropped = ("head",)  # a learned task no longer needs it
    config: CLLoRAConfig
    head: CosineHead

    def __init__(self, config: CLLoRAConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        chosen = config.of_variant()
        self.two_steps: bool = chosen["two_steps"]  # KD has a step of its own
        self.head_is_distilled: bool = chosen["head_is_distilled"]
        self.uniform_start: bool = chosen["uniform_start"]
        self.reassignment, self.orthogonality = chosen["reassignment"], chosen["orthogonality"]
        if self.orthogonality == "block_weights" and not config.block_weights:
            self.orthogonality = "none"
        sites, self.trunk_blocks = encoder.select(config.projections), len(encoder.blocks) // 2
        if not self.trunk_blocks:
            raise BackboneError(f"backbone.name: cl_lora needs two blocks or more; {encoder.name} has one")
        narrowest = min(site.in_features for site in sites)
        if config.rank > narrowest:
            raise BackboneError(
                "method.rank: the rows of D are orthonormal, so that cl_lora can have no more of them than a "
                f"projection has inputs, {narrowest} in {encoder.name}; the rank is {config.rank}"
            )
        rank, half, device = config.rank, self.trunk_blocks, self.device
        self.lower = {site: SharedFactors(site, rank, device=device) for site in sites if site.block < half}
        self.upper = {site: TaskFactors(site, rank, device=device) for site in sites if site.block >= half}
        self.shared = nn.ModuleDict({site.name: factors for site, factors in self.lower.items()})
        self.specific = nn.ModuleDict({site.name: factors for site, factors in self.upper.items()})
        self.means = ClassMeans(encoder.width, device=self.device)
        attach(encoder, list(self.lower), self.increment)  # merging concerns this half; the branches stay branches

    @classmethod
    def misfits(cls, config: MethodConfig, tasks: Sequence[Task]) -> Iterator[str]:
        yield from super().misfits(config, tasks)
        yield from lone_classes(tasks, "larger tasks")
        yield from only_old_classes(tasks, "cl_lora has a space for each task, in which it tells the new classes apart")

    @classmethod
    def undivided(cls, config: MethodConfig) -> Iterator[str]:
        by_variant = config.of_variant().get("reassignment")
        if getattr(config, "distillation", False) and by_variant in ("gradients", "product"):
            yield f"method.reassignment={by_variant} multiplies gradients of a batch with each other"

    @classmethod
    def fit_defaults(cls, variant: str | None) -> Mapping[str, Any]:
        return {"optimizer": "sgd", "learning_rate": 0.05, "weight_decay": 5e-4, "schedule": "cosine"}

    def grow(self, task: Task) -> None:
        super().grow(task)
        rank, uniform = self.config.rank, self.uniform_start
        with torch.no_grad():
            for site, shared in self.lower.items():
                if task.index == 0:
                    shared.down.copy_(random_orthonormal_rows(rank, site.in_features, uniform=uniform))
                shared.teacher.copy_(shared.up)
        for site, specific in self.upper.items():
            weight = torch.rand(()) + 0.5  # drawn in any case, so that an ablation starts and shuffles alike
            weight = weight if self.config.block_weights else torch.ones(())
            specific.start(random_orthonormal_rows(rank, site.in_features, uniform=uniform), weight, earlier=task.index)
        self.head = CosineHead(self.encoder.width, len(task.classes), device=self.device)
        self.means.grow(len(task.new_classes))

    def trainable(self) -> list[nn.Parameter]:
        shared, specific = [each.up for each in self.lower.values()], list(self.upper.values())
        factors = [factor for each in specific for factor in (each.up, each.down)]
        weights = [each.weight for each in specific] if self.config.block_weights else []
        return [*shared, *factors, *weights, *self.head.parameters()]

    # --- the two halves ---

    def increment(self, site: Site) -> Float[Tensor, "out inp"]:
        """U D of (1), for one projection of the shared half."""
        lower = self.lower[site]
        return of_terms(lower.up @ lower.down, [Term(lower.up, lower.up.new_ones(()), lower.down)])

    def trunk(
        self, tokens: Float[Tensor, "n tokens dim"], teaching: Mapping[Site, Tensor] | None = None
    ) -> Float[Tensor, "n tokens dim"]:
        """Embedded tokens through the shared half, with its own U or with those given."""
        encoder = self.encoder
        if teaching is not None:
            encoder = with_increments(encoder, list(teaching), lambda site: teaching[site] @ self.lower[site].down)
        for block in encoder.blocks[: self.trunk_blocks]:
            tokens = block(tokens)
        return tokens

    def branches(
        self, tokens: Float[Tensor, "n tokens dim"], first: int, stop: int
    ) -> Float[Tensor, "tasks n features"]:
        """Features of what leaves the shared half in the spaces of the tasks from `first` to `stop - 1`, as one
        batch."""
        updates: dict[str, list[Update]] = {}
        for site, factors in self.upper.items():
            ups, downs, weights = factors.of(first, stop)
            updates.setdefault(site.linear, []).append((site, weights.view(-1, 1, 1) * ups, downs))
        encoder = view(
            self.encoder,
            {
                self.encoder.get_submodule(linear): computing(partial(_add_updates, own))
                for linear, own in updates.items()
            },
        )
        tokens = tokens.repeat(stop - first, 1, 1)
        for block in encoder.blocks[self.trunk_blocks :]:
            tokens = block(tokens)
        return self.encoder.pool(tokens).unflatten(0, (stop - first, -1))

    # --- learning ---

    def losses(self, batch: Batch) -> Iterator[dict[str, Float[Tensor, ""]]]:
        embedded, later = self.encoder.embed(batch.inputs), self.task.index > 0
        distils = later and self.config.distillation
        if distils and self.two_steps:
            yield {"distillation": self.distil(embedded, self.trunk(embedded))}
        tokens = self.trunk(embedded)  # after that step, with the weights that it left
        features = self.branches(tokens, self.task.index, self.task.index + 1)[0]
        terms = {"cross_entropy": F.cross_entropy(self.head(features), self.task.positions(batch.labels))}
        if distils and not self.two_steps:
            terms["distillation"] = self.distil(embedded, tokens)
        if later and self.orthogonality != "none":
            terms["orthogonality"] = self.config.orthogonality_weight * self.overlap()
        yield terms

    def distil(
        self, embedded: Float[Tensor, "n tokens dim"], tokens: Float[Tensor, "n tokens dim"]
    ) -> Float[Tensor, ""]:
        """l1 KD of (4), from what enters and what leaves the shared half; its gradient is the reassigned one."""
        by_gradients = self.reassignment in ("gradients", "product")
        teaching = {site: each.teacher.detach().requires_grad_(by_gradients) for site, each in self.lower.items()}
        head = {
            name: value if self.head_is_distilled else value.detach() for name, value in self.head.named_parameters()
        }
        taught, learned = (
            functional_call(self.head, head, (self.encoder.pool(each),)) / self.config.temperature
            for each in (self.trunk(embedded, teaching), tokens)
        )
        loss = -self.config.distillation_weight * (taught.softmax(1) * learned.log_softmax(1)).sum(1).mean()
        if self.reassignment == "none":
            return loss
        ups, teachers = [each.up for each in self.lower.values()], list(teaching.values())
        others = list(self.head.parameters()) if self.head_is_distilled else []
        gradients = torch.autograd.grad(loss, [*ups, *others, *(teachers if by_gradients else [])], retain_graph=True)
        own, theirs = gradients[: len(ups)], gradients[len(ups) + len(others) :]
        importance = (
            [(a - b).abs() for a, b in zip(theirs, own, strict=True)]
            if by_gradients
            else [torch.linalg.vector_norm(each, dim=1, keepdim=True) for each in teachers]
        )
        if self.reassignment != "product":
            importance = [mean_one(each) for each in importance]
        reassigned = [each * grad for each, grad in zip(importance, own, strict=True)]
        # a linear function with these gradients, added to the loss's value
        linear = zip([*ups, *others], [*reassigned, *gradients[len(ups) :][: len(others)]], strict=True)
        return loss.detach() + torch.stack([(grad * (each - each.detach())).sum() for each, grad in linear]).sum()

    def overlap(self) -> Float[Tensor, ""]:
        """ORTH of (3), in full precision."""
        factors = list(self.upper.values())
        with torch.autocast(self.device.type, enabled=False):
            if self.orthogonality == "factors":
                return 2 * torch.stack([(each.earlier_up.mT @ each.up).square().sum() for each in factors]).sum()
            earlier = torch.stack([each.earlier_weight for each in factors], dim=1)
            return F.cosine_similarity(earlier, torch.stack([each.weight for each in factors])[None]).abs().mean()

    def end_task(self, context: Context) -> None:
        """The prototypes of the new classes, in the task's own space; of one that returns once it has been forgotten,
        in the space that scores it."""

        def features(inputs: Inputs, space: int) -> Tensor:
            return self.branches(self.trunk(self.encoder.embed(inputs)), space, space + 1)[0]

        known = self.means.remembered()
        for task in self.tasks:
            own = [number for number in task.new_classes if number in self.task.classes and not known[number]]
            if own:
                self.means.add(*context.gathered(partial(features, space=task.index), of=own))

    def predict(self, inputs: Inputs) -> Float[Tensor, "n classes"]:
        tokens, scores = self.trunk(self.encoder.embed(inputs)), []
        # a graph that is exported takes any number of inputs, and so the tasks one after another
        together = 1 if torch.compiler.is_exporting() else max(1, ROWS_TOGETHER // max(1, len(tokens)))
        for first in range(0, len(self.tasks), together):
            tasks = self.tasks[first : first + together]
            for task, features in zip(tasks, self.branches(tokens, first, first + len(tasks)), strict=True):
                scores.append(self.means(features, slice(task.new_classes[0], task.new_classes[-1] + 1)))
        return torch.cat(scores, dim=1)

    def diagnostics(self) -> dict[str, Any]:
        """The latest task's block weights, in the order of the projections."""
        return {"block_weights": [each.weight.item() for each in self.upper.values()]}
