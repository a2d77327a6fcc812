"""Linear probe: a growing linear head on the frozen backbone.

Nothing is forgotten, since nothing but the new rows of the head trains; what is missing is any comparison between the
classes of different tasks, whose logits were never trained against each other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lorica.backbones.encoder import Classifier
from lorica.methods.linear_head import LinearHeadMethod
from lorica.types import Inputs, Task


class LinearProbe(LinearHeadMethod):
    """Trains head rows only."""

    name = "linear_probe"

    def trainable(self) -> list[nn.Parameter]:
        return self.head_parameters()

    @torch.no_grad()
    def features(self, inputs: Inputs, *, layers: int | None = None) -> Float[Tensor, "n features"]:
        return self.encoder.features(inputs, layers=layers)

    def keeps_features(self, task: Task) -> bool:
        return True

    def trained_on(self) -> Sequence[Task]:
        """None: the features are the backbone's."""
        return ()

    def classifier(self) -> Classifier:
        """The head: the features are the encoder's."""
        return Classifier(*self.head.stacked())
