"""Plain LoRA trained on and on, and its joint upper bound.

One update per projection, W = W0 + U D with D uniform in +-1/sqrt(d_in) and U = 0 at the first task (Hu et al., 2022),
no scaling, continued through all tasks without a reset: the "vanilla" curve of SD-LoRA's Fig. 2, which forgets. The
head grows by a block of rows per task.

`joint` is the same model given the data of all tasks at once, the upper bound of a class-incremental comparison. Its
accuracy matrix asks that one final model at every stage about the classes seen by then: row t is a bound on row t.
It trains the update and all head rows once. No reference code exists for either; optimiser and epochs are those of the
comparison.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lorica.adapters.attach import attach
from lorica.adapters.lowrank import LowRankUpdates
from lorica.backbones.encoder import Encoder, Site
from lorica.methods.linear_head import LinearHeadMethod, LowRankHeadConfig
from lorica.types import Task


class LoRA(LinearHeadMethod):
    """One low-rank update for all tasks."""

    name = "lora"
    Config = LowRankHeadConfig
    config: LowRankHeadConfig

    def __init__(self, config: LowRankHeadConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        sites = encoder.select(config.projections)
        self.updates = LowRankUpdates(sites, device=self.device)
        attach(encoder, sites, self.increment, together=True)

    def increment(self, site: Site | tuple[Site, ...]) -> Float[Tensor, "*sites out inp"]:
        """U D of one projection, or of several of one shape."""
        return self.updates[site](torch.empty(0, device=self.device), 1.0)

    def grow(self, task: Task) -> None:
        super().grow(task)
        if len(self.tasks) == 1:
            self.updates.grow(self.config.rank, zero_up=True)

    def trainable(self) -> list[nn.Parameter]:
        return [*self.updates.factors(), *self.head_parameters()]


class Joint(LoRA):
    """Plain LoRA on all tasks at once."""

    name = "joint"
    learns_all_at_once = True
