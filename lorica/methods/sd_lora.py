"""SD-LoRA: scalable decoupled low-rank adaptation (Wu et al., ICLR 2025).

The update of every task is split into a direction and a magnitude. Directions of earlier tasks stay as they were learned;
all magnitudes keep training. With U "up" and D "down" (the paper writes A and B), the weight of each adapted projection
while learning task t is

    W = W0 + sum_{k<=t} alpha_k U_k D_k / ||U_k D_k||_F                                                (paper, Eq. 4)

where alpha_k is ONE scalar per task, shared by all projections, and U_k, D_k belong to one projection. At task t train
alpha_1 … alpha_t, U_t, D_t and the head's rows for the task's classes, by cross-entropy on the task's data alone
(Eq. 1, Algorithm 1). Prediction is the argmax over the head's rows of all tasks, with the final weights, which merge into
W0: no task identity, no selection, no extra cost.

`variant: paper` (default) computes Eq. 4. What the paper leaves open is decided so:
  * the cross-entropy runs over the current task's logits, as in every reference code (`cross_entropy` changes it);
  * D starts uniform in +-1/sqrt(d_in), as in LoRA; U starts uniform in +-1/sqrt(d_out), since U = 0 has no direction;
  * alpha starts at 1 and is carried across tasks. Algorithm 1, line 1, can also be read as starting all of them anew at
    each task: `reset_magnitudes: true`.

`variant: released_code` computes what the authors' repository computes (WuYichen-97/SD-Lora-CL, commit 8bacded):

    W = W0 + sum_{k<t} alpha_k U_k D_k / (||U_k||_F ||D_k||_F)  +  alpha_t U_t D_t

with U_t = 0 at the start, every alpha set to 0.8 again at each task, and SGD with momentum 0.9 whatever the
configuration says. The function therefore jumps when a task begins. Not reproduced from there: its limit of 20 tasks,
its unused orthogonality loss, and its evaluation path, which overwrites the sum of the updates with the last one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from lorica.adapters.attach import attach
from lorica.adapters.lowrank import LowRankUpdates, frobenius_norm, norm_product
from lorica.backbones.encoder import Encoder, Site
from lorica.methods.base import LinearHeadMethod, LowRankConfig
from lorica.types import Task


class SDLoRAConfig(LowRankConfig):
    """Options of SD-LoRA."""

    variant: Literal["paper", "released_code"] = "paper"
    reset_magnitudes: bool | None = Field(
        default=None, description="start all magnitudes anew at each task; absent = as the variant does"
    )


class SDLoRA(LinearHeadMethod):
    """Directions that stay, magnitudes that keep learning."""

    name = "sd_lora"
    Config = SDLoRAConfig
    config: SDLoRAConfig

    def __init__(self, config: SDLoRAConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        self.paper = config.variant == "paper"
        self.initial_magnitude = 1.0 if self.paper else 0.8
        self.resets = not self.paper if config.reset_magnitudes is None else config.reset_magnitudes
        sites = encoder.select(config.projections)
        self.directions = LowRankUpdates(sites, device=self.device)
        self.magnitudes = nn.Parameter(torch.empty(0, device=self.device))  # alpha_1 … alpha_t
        attach(encoder, sites, self.increment)

    @classmethod
    def fit_defaults(cls, variant: str | None) -> Mapping[str, Any]:
        return {"optimizer": "sgd"} if variant == "released_code" else {}

    def increment(self, site: Site) -> Float[Tensor, "out inp"]:
        """The sum over tasks in Eq. 4, for one projection."""
        directions = self.directions[site]
        current = self.magnitudes[-1]
        if self.paper:
            current = current / frobenius_norm(directions.up, directions.down)
        return directions(self.magnitudes[:-1], current)

    def grow(self, task: Task) -> None:
        super().grow(task)
        norm = frobenius_norm if self.paper else norm_product
        self.directions.grow(self.config.rank, zero_up=not self.paper, norm=norm)
        carried = self.magnitudes.detach()
        if self.resets:
            carried = torch.full_like(carried, self.initial_magnitude)
        self.magnitudes = nn.Parameter(torch.cat([carried, carried.new_tensor([self.initial_magnitude])]))

    def trainable(self) -> list[nn.Parameter]:
        return [self.magnitudes, *self.directions.factors(), *self.head_parameters()]

    def diagnostics(self) -> dict[str, Any]:
        return {"magnitudes": self.magnitudes.detach().tolist()}
