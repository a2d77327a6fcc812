"""Sequential full fine-tuning: every weight of the backbone and the head keeps training, task after task.

The lower bound of the comparisons. Two reference codes disagree on the loss, which moves the bound: LAMDA-PILOT takes
the cross-entropy over the current task's logits (the default here), mammoth over all classes seen (`cross_entropy:
all_seen`). With the former, old head rows stay as they are and forgetting happens in the features alone. Head rows
start as LAMDA-PILOT's, uniform in +-sqrt(3/d).

`trunk_rate` is the slow learner of SLCA (Zhang et al., ICCV 2023): everything but the head learns at that fraction of
`fit.learning_rate`, there a hundredth (SGD, 0.01 for the head). The other half of SLCA, alignment of the classifier, is
a read-out, see docs/readouts.md.

The SD-LoRA paper says that all methods train with Adam at 0.008, which destroys a fully trainable ViT; LAMDA-PILOT uses
SGD at 0.001 with weight decay. The default here is Adam at 1e-4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from torch import nn

from lorica.methods.linear_head import LinearHeadConfig, LinearHeadMethod


class FullFinetuneConfig(LinearHeadConfig):
    """Options of full fine-tuning."""

    trunk_rate: float = Field(
        default=1.0,
        gt=0,
        exclude_if=lambda value: value == 1,  # as in recipes from before there was this key
        description="the learning rate of everything but the head, as a fraction of fit.learning_rate; SLCA: 0.01",
    )


class FullFinetune(LinearHeadMethod):
    """Trains everything, protects nothing."""

    name = "full_finetune"
    Config = FullFinetuneConfig
    config: FullFinetuneConfig
    trains_encoder = True
    source_start = "kaiming"

    @classmethod
    def fit_defaults(cls, variant: str | None) -> Mapping[str, Any]:
        return {"learning_rate": 1e-4}

    def trainable(self) -> list[nn.Parameter]:
        return [*self.encoder.parameters(), *self.head_parameters()]

    def rate_factors(self) -> Mapping[nn.Parameter, float]:
        return dict.fromkeys(self.encoder.parameters(), self.config.trunk_rate)
