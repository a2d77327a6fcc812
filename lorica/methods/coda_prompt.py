"""CODA-Prompt: prompts assembled from components, with weights that depend on the input (Smith et al., CVPR 2023).

Each of some blocks (0 to 4) has components m of its own: a prompt P_m, [2, length, D] (rows of keys, then of values),
a key K_m, [D], and an attention A_m, [D]. With q(x) the feature that the frozen backbone gives x, * the product by
entries, and m over the components of all tasks so far, the block attends to the rows p(x) as a prefix:

    alpha_m(x) = cos(q(x) * A_m, K_m)                      no softmax: weights lie in [-1, 1]                       (1)
    p(x) = sum_m alpha_m(x) P_m                                                                                     (2)
    loss = cross-entropy + mu sum_blocks [ o(K) + o(A) + o(P) ],    o(X) = mean over the entries of (X X' - I)^2    (3)

The rows of X are those of all tasks, each P_m flattened to one. A task trains its own components and head rows; earlier
components are constants. New rows of P, K and A start with length 1, orthogonal to each other and to all earlier rows
of their block. The head starts as `nn.Linear` and sees the pooled feature. No task identity; a prediction takes two
passes.

`variant: paper` (default)  mu = 0.1, the paper's number
`variant: released_code`    mu = 0, as in the scripts of GT-RIPL/CODA-Prompt since new rows start orthogonal there

`orthogonality_weight` sets mu alone. The code's first release has 0.1 too, but multiplies o by a factor of 1e-6 that is
gone since, and its author later advised weights of that size (the repository's issue 12).
The published L = 8 counts rows of keys and of values together: that is `length` 4. The published pool of 100 is shared
by a known number of tasks. Here each task brings `components` (10), so that no number needs to be known; `pool` and
`total_tasks` together say it as the source does.

Decided, or done otherwise than in the released code:
  * its projection takes each earlier row off a new one by itself. They have been trained and are no longer orthogonal,
    so that cosines of 0.2 are left; here a QR decomposition takes off their span;
  * K and A have only D dimensions. Once the rows of all tasks would outnumber them, new ones are orthonormal among
    themselves and orthogonal to as many of the latest earlier rows as there is room for;
  * a pool that its tasks do not divide, and a task beyond the last, are refused. The code leaves the remainder unused,
    and with more tasks than components trains the head alone. It also drops incomplete batches;
  * optimiser settings are the code's (Adam, 1e-3, in both releases), but its rate falls epoch by epoch along a quarter
    of a cosine's period (for a single epoch it divides by zero), ours step by step along half of one.

Not reproduced: the first release draws the pool of all tasks orthonormal before the first one. Equation numbers are
this file's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from lorica.adapters.prefix import prefixes, query
from lorica.backbones.encoder import Encoder
from lorica.errors import BackboneError, RecipeError
from lorica.linalg import orthonormal_continuation
from lorica.methods.base import Variants
from lorica.methods.linear_head import LinearHeadConfig, LinearHeadMethod
from lorica.types import Batch, Inputs, Task


def overlap(rows: Float[Tensor, "blocks m size"]) -> Float[Tensor, ""]:
    """o of (3), summed over blocks."""
    deviations = rows @ rows.mT - torch.eye(rows.shape[1], device=rows.device)
    return deviations.square().mean(dim=(1, 2)).sum()


class CODAPromptConfig(LinearHeadConfig):
    """Options of CODA-Prompt; what is absent is as the variant does."""

    variant: Literal["paper", "released_code"] = "paper"
    components: int | None = Field(
        default=None, ge=1, description="components that each task brings; 10 without a pool"
    )
    pool: int | None = Field(default=None, ge=1, description="components of all total_tasks, in place of components")
    total_tasks: int | None = Field(default=None, ge=1, description="the tasks that share the pool")
    length: int = Field(default=4, ge=1, description="rows of keys, and of values, that a block attends to")
    blocks: tuple[int, ...] = Field(default=(0, 1, 2, 3, 4), min_length=1, description="blocks with prompts, from 0")
    orthogonality_weight: float | None = Field(default=None, ge=0, description="mu; paper: 0.1, released_code: 0")
    by_variant: ClassVar[Variants] = {
        "paper": {"orthogonality_weight": 0.1},
        "released_code": {"orthogonality_weight": 0.0},
    }

    @model_validator(mode="after")
    def _fits_together(self) -> CODAPromptConfig:
        if (self.pool is None) != (self.total_tasks is None):
            raise ValueError(
                "pool and total_tasks belong together; give both, or components (those of one task) instead"
            )
        if self.pool is not None and self.total_tasks is not None:
            if self.components is not None:
                raise ValueError(
                    "components and pool: give one of them; pool / total_tasks are the components of a task"
                )
            if self.pool % self.total_tasks:
                fitting = -(-self.pool // self.total_tasks) * self.total_tasks
                raise ValueError(
                    f"pool {self.pool}: expected a multiple of total_tasks, {self.total_tasks}; give {fitting}, or "
                    "components (those of one task) instead of both"
                )
        return self

    @property
    def of_a_task(self) -> int:
        """How many components a task brings."""
        return self.pool // self.total_tasks if self.pool and self.total_tasks else self.components or 10


class CODAPrompt(LinearHeadMethod):
    """Prompts that are weighted sums of components; each task adds some and leaves the earlier ones alone.

    Attributes:
        prompts, keys, attentions: P, K and A, one parameter for each task: [blocks, components, …].
    """

    name = "coda_prompt"
    Config = CODAPromptConfig
    config: CODAPromptConfig
    source_start = "linear"

    def __init__(self, config: CODAPromptConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        self.blocks = encoder.prefix_blocks(config.blocks, key="method.blocks")
        if config.of_a_task > encoder.width:
            raise BackboneError(
                f"method.components: the new rows of a task are orthonormal, and {encoder.name} has {encoder.width} "
                f"dimensions; {config.of_a_task} components for each task are too many"
            )
        self.orthogonality_weight: float = config.of_variant()["orthogonality_weight"]
        self.prompts, self.keys, self.attentions = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()

    @classmethod
    def fit_defaults(cls, variant: str | None) -> Mapping[str, Any]:
        return {"optimizer": "adam", "learning_rate": 1e-3, "weight_decay": 0.0, "schedule": "cosine"}

    def grow(self, task: Task) -> None:
        total, width = self.config.total_tasks, self.encoder.width
        if total is not None and task.index >= total:
            raise RecipeError(
                f"method.total_tasks: the pool is for {total} tasks and this is task {task.index + 1}; give the number "
                "of all tasks, or method.components in place of method.pool and method.total_tasks"
            )
        super().grow(task)
        for rows, shape in (
            (self.prompts, (2, self.config.length, width)),
            (self.keys, (width,)),
            (self.attentions, (width,)),
        ):
            none = torch.empty(len(self.blocks), 0, math.prod(shape))
            earlier = torch.cat([none, *(each.detach().cpu().flatten(2) for each in rows)], dim=1)
            fresh = orthonormal_continuation(earlier, self.config.of_a_task).unflatten(2, shape)
            rows.append(nn.Parameter(fresh.to(self.device)))

    def trainable(self) -> list[nn.Parameter]:
        return [self.prompts[-1], self.keys[-1], self.attentions[-1], *self.head_parameters()]

    def weights(self, queries: Float[Tensor, "n dim"]) -> Float[Tensor, "n blocks m"]:
        """The weights alpha_m of (1), for each input and block; a weight is 0 where q * A_m or K_m is zero."""
        attentions, keys = torch.cat(list(self.attentions), dim=1), torch.cat(list(self.keys), dim=1)
        with torch.autocast(queries.device.type, enabled=False):
            q = queries.float()
            products = torch.einsum("nd,bmd->nbm", q, attentions * F.normalize(keys, dim=2))
            squares = torch.einsum("nd,bmd->nbm", q.square(), attentions.square())
            return products / squares.clamp_min(1e-24).sqrt()

    def assembled(self, queries: Float[Tensor, "n dim"]) -> Float[Tensor, "n blocks 2 length dim"]:
        """The prompts p(x) of (2), for each input and block."""
        components = torch.cat(list(self.prompts), dim=1)
        with torch.autocast(queries.device.type, enabled=False):
            return torch.einsum("nbm,bmsld->nbsld", self.weights(queries), components)

    def features(self, inputs: Inputs, *, layers: int | None = None) -> Float[Tensor, "n features"]:
        rows = self.assembled(query(self.encoder, inputs))
        return self.encoder.features(inputs, prefixes=prefixes(self.blocks, rows), layers=layers)

    def losses(self, batch: Batch) -> Iterator[dict[str, Float[Tensor, ""]]]:
        for terms in super().losses(batch):
            yield terms | self.regularisers()

    def regularisers(self) -> dict[str, Float[Tensor, ""]]:
        """The second term of (3), where it has a weight."""
        if not self.orthogonality_weight:
            return {}
        with torch.autocast(self.device.type, enabled=False):  # small inner products, lost in bfloat16
            parts = [torch.cat(list(rows), dim=1).flatten(2) for rows in (self.keys, self.attentions, self.prompts)]
            return {"orthogonality": self.orthogonality_weight * torch.stack([overlap(each) for each in parts]).sum()}
