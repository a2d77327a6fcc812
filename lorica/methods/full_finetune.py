"""Sequential full fine-tuning: every weight of the backbone and the head keeps training, task after task.

The lower bound of the comparisons. Two reference codes disagree on the loss, which moves the bound: LAMDA-PILOT takes the
cross-entropy over the current task's logits (the default here), mammoth over all classes seen (`cross_entropy: all_seen`).
With the former, old head rows stay as they are and forgetting happens in the features alone. Head rows start as
LAMDA-PILOT's, uniform in +-sqrt(3/d).

The SD-LoRA paper says that all methods train with Adam at 0.008, which destroys a fully trainable ViT; LAMDA-PILOT uses SGD at
0.001 with weight decay. The default here is Adam at 1e-4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from lorica.methods.linear_head import LinearHeadMethod


class FullFinetune(LinearHeadMethod):
    """Trains everything, protects nothing."""

    name = "full_finetune"
    trains_encoder = True
    source_start = "kaiming"

    @classmethod
    def fit_defaults(cls, variant: str | None) -> Mapping[str, Any]:
        return {"learning_rate": 1e-4}

    def trainable(self) -> list[nn.Parameter]:
        return [*self.encoder.parameters(), *self.head_parameters()]
