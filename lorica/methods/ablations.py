"""The three ablation rows of SD-LoRA's Table 4: what is lost when one half of the idea is taken away.

With the unit directions X_k = U_k D_k / ||U_k D_k||_F, the weight of a projection while learning task t is

    W = W0 + alpha X_1                        lora_fixed, row A: X_1 trains at the first task, alpha always
    W = W0 + alpha X                          lora_single, row B: one direction and alpha, both trained on and on
    W = W0 + sum_{k<t} X_k + alpha_t X_t      lora_frozen, row C: earlier coefficients do not train

and SD-LoRA itself is row D. One scalar alpha serves all projections, as there; starts, head, loss and optimiser are
SD-LoRA's too, so that with one seed rows A and B agree with SD-LoRA after the first task. No reference code exists for
these rows.

Figs. 2b and 2c compare with two baselines that are not normalised: `lora_fixed` with `normalised: false`, W0 + alpha
U_1 D_1, which starts as LoRA does, at U_1 = 0; and one direction that trains on and on without alpha, which is `lora`.

The colours that mark what trains in the paper's table are lost in our copy; the reading above follows its prose.
Row C literally sets the coefficient of a finished direction to 1 (`frozen_coefficient: one`, the default), so that its
function jumps when the next task begins; `learned` keeps each alpha as it was trained.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from lorica.adapters.attach import attach
from lorica.adapters.lowrank import LowRankUpdates, frobenius_norm
from lorica.backbones.encoder import Encoder, Site
from lorica.methods.linear_head import LinearHeadMethod, LowRankHeadConfig
from lorica.types import Task


class LoRAFrozenConfig(LowRankHeadConfig):
    """Options of row C."""

    frozen_coefficient: Literal["one", "learned"] = "one"


class LoRAFixedConfig(LowRankHeadConfig):
    """Options of row A."""

    normalised: bool = Field(default=True, description="a unit direction; false as in Fig. 2's fixed baseline")


class Ablation(LinearHeadMethod):
    """The common part; the rows differ in two switches."""

    Config = LowRankHeadConfig
    config: LowRankHeadConfig
    new_direction_per_task: ClassVar[bool] = False
    direction_trains: ClassVar[Literal["always", "first_task"]] = "always"

    def __init__(self, config: LowRankHeadConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        sites = encoder.select(config.projections)
        self.directions = LowRankUpdates(sites, device=self.device)
        self.magnitude = nn.Parameter(torch.ones((), device=self.device))  # alpha, or alpha_t
        self.register_buffer("frozen_magnitudes", torch.empty(0, device=self.device))  # of directions 1 … t-1
        attach(encoder, sites, self.increment, together=True)

    frozen_magnitudes: Tensor

    @property
    def normalised(self) -> bool:
        """Whether directions are divided by their norms."""
        return True

    def increment(self, site: Site | tuple[Site, ...]) -> Float[Tensor, "*sites out inp"]:
        """The row's sum of weighted unit directions, for one projection, or for several of one shape."""
        directions = self.directions[site]
        norm = frobenius_norm(directions.up, directions.down) if self.normalised else 1.0
        return directions(self.frozen_magnitudes, self.magnitude / norm)

    def grow(self, task: Task) -> None:
        super().grow(task)
        if len(self.tasks) == 1 or self.new_direction_per_task:
            self.directions.grow(self.config.rank, zero_up=not self.normalised)

    def trainable(self) -> list[nn.Parameter]:
        parameters = [self.magnitude, *self.head_parameters()]
        if self.direction_trains == "always" or len(self.tasks) == 1:
            parameters += self.directions.factors()
        return parameters

    def diagnostics(self) -> dict[str, Any]:
        return {"magnitudes": [*self.frozen_magnitudes.tolist(), self.magnitude.item()]}


class LoRAFixed(Ablation):
    """Row A: the first task's direction for good."""

    name = "lora_fixed"
    Config = LoRAFixedConfig
    config: LoRAFixedConfig
    direction_trains = "first_task"

    @property
    def normalised(self) -> bool:
        return self.config.normalised


class LoRASingle(Ablation):
    """Row B: one direction, always in training."""

    name = "lora_single"


class LoRAFrozen(Ablation):
    """Row C: a new direction per task, earlier coefficients fixed."""

    name = "lora_frozen"
    Config = LoRAFrozenConfig
    config: LoRAFrozenConfig
    new_direction_per_task = True

    def grow(self, task: Task) -> None:
        super().grow(task)
        if len(self.tasks) > 1:
            finished = self.magnitude.detach()
            if self.config.frozen_coefficient == "one":
                finished = torch.ones_like(finished)
            self.frozen_magnitudes = torch.cat([self.frozen_magnitudes, finished.view(1)])
            self.magnitude = nn.Parameter(torch.ones_like(finished))
