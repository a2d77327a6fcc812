"""O-LoRA: a low-rank update per task, kept orthogonal to earlier ones by a penalty (Wang et al., EMNLP Findings 2023).

With U "up" and D "down", the weight of each adapted projection while learning task t is

    W = W0 + s (sum_{i<t} U_i D_i + U_t D_t)                                                                    (1)

where U_i, D_i of earlier tasks are frozen, U_t = 0 at the start and D_t starts uniform in +-1/sqrt(d_in), as in LoRA. A
task lives in the row space of its D; what keeps the spaces apart is the loss, summed over projections,

    loss = cross-entropy + lambda_1 sum_{i<t} L(D_i D_t') + lambda_2 (||U_t||_F + ||D_t||_F)                    (2)

where D_i D_t' is [r, r]. The penalty's gradient reaches D_t alone: it pushes spaces apart but guarantees nothing, and U
is free. All updates are summed for predictions and merge into W0: no task identity, no extra cost.

`variant: paper` (default)  L = sum of squared entries, as the paper's penalty is quoted   s = 1
`variant: released_code`    L = sum of absolute entries (cmnfriend/O-LoRA)                 s = 32 / r, its lora_alpha/r

Each can be had without the other (`penalty`, `scale`). lambda_1 = 0.5 in both, lambda_2 = 0; only the code has it (0
for its short task orders, up to 0.3 for the long one). L grows with the rank, the number of tasks and the lengths of
the rows; `row_normalised: true` divides every row of D by its length, so that entries are cosines.

The paper writes an update as A B and its penalty with A; A is taken for D, as the code does. Equation numbers are this
file's. This is a port: paper and code fine-tune T5 and LLaMA on generated answers, and there is no configuration for
vision. Decided here: rank 10 (theirs: 8), q and v of all blocks, a linear head with a block of rows per task,
cross-entropy over the current task's logits, optimiser and learning rate of the comparison (theirs: AdamW, 1e-3, one
epoch). Not reproduced from the code: its dropout of 0.1 before D, which an update of the weight cannot have; a penalty
multiplied by the number of gradient-accumulation steps; a merge that leaves the last task's update out; and lambdas
that change within a stream (0 for the first task, then 0.5, then 5).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from lorica.adapters.attach import attach
from lorica.adapters.lowrank import LowRankUpdates, no_norm
from lorica.backbones.encoder import Encoder, Site
from lorica.methods.base import Variants
from lorica.methods.linear_head import LinearHeadMethod, LowRankHeadConfig
from lorica.types import Batch, Task


def overlap(
    earlier: Float[Tensor, "rows inp"],
    current: Float[Tensor, "r inp"],
    *,
    penalty: Literal["l1", "squared"],
    row_normalised: bool,
) -> Float[Tensor, ""]:
    """sum_{i<t} L(D_i D_t') of (2) for one projection, D_1 … D_{t-1} stacked; 0 where there are none."""
    if row_normalised:
        earlier, current = F.normalize(earlier, dim=1), F.normalize(current, dim=1)
    entries = earlier @ current.T
    return entries.abs().sum() if penalty == "l1" else entries.square().sum()


class OLoRAConfig(LowRankHeadConfig):
    """Options of O-LoRA; what is absent is as the variant does."""

    variant: Literal["paper", "released_code"] = "paper"
    penalty: Literal["l1", "squared"] | None = Field(default=None, description="L; paper: squared, released_code: l1")
    row_normalised: bool = Field(default=False, description="penalise cosines of rows rather than inner products")
    orthogonality_weight: float = Field(default=0.5, ge=0, description="lambda_1")
    norm_weight: float = Field(default=0.0, ge=0, description="lambda_2")
    scale: float | None = Field(default=None, gt=0, description="s; paper: 1, released_code: 32 / rank")
    by_variant: ClassVar[Variants] = {
        "paper": {"penalty": "squared", "scale": 1.0},
        "released_code": {"penalty": "l1", "scale": None},
    }


class OLoRA(LinearHeadMethod):
    """An update per task, pushed away from the row spaces of the earlier ones."""

    name = "o_lora"
    Config = OLoRAConfig
    config: OLoRAConfig

    def __init__(self, config: OLoRAConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        chosen = config.of_variant()
        self.penalty: Literal["l1", "squared"] = chosen["penalty"]
        self.scale: float = 32 / config.rank if chosen["scale"] is None else chosen["scale"]
        sites = encoder.select(config.projections)
        self.updates = LowRankUpdates(sites, device=self.device)
        attach(encoder, sites, self.increment, together=True)

    def increment(self, site: Site | tuple[Site, ...]) -> Float[Tensor, "*sites out inp"]:
        """s times the sum in (1), for one projection, or for several of one shape."""
        update = self.updates[site]
        return update(update.up.new_full((len(update.rank_sizes),), self.scale), self.scale)

    def grow(self, task: Task) -> None:
        super().grow(task)
        self.updates.grow(self.config.rank, zero_up=True, norm=no_norm)

    def trainable(self) -> list[nn.Parameter]:
        return [*self.updates.factors(), *self.head_parameters()]

    def losses(self, batch: Batch) -> Iterator[dict[str, Float[Tensor, ""]]]:
        for terms in super().losses(batch):
            with torch.autocast(self.device.type, enabled=False):  # small inner products, lost in bfloat16
                terms = terms | self.regularisers()
            yield terms

    def regularisers(self) -> dict[str, Float[Tensor, ""]]:
        """The second and third term of (2); the third where it has a weight."""
        options = {"penalty": self.penalty, "row_normalised": self.config.row_normalised}
        overlaps = [overlap(each.frozen_down, each.down, **options) for each in self.updates]
        terms = {"orthogonality": self.config.orthogonality_weight * torch.stack(overlaps).sum()}
        if self.config.norm_weight:
            norms = [torch.linalg.vector_norm(factor) for factor in self.updates.factors()]
            terms["norms"] = self.config.norm_weight * torch.stack(norms).sum()
        return terms
