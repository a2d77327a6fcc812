"""A method of one's own: a learned scale and shift of frozen features, at the first task only.

lorica run digits method.name=examples/my_method.py
"""

import torch
from torch import nn

from lorica.methods import LinearHeadMethod


class ScaleAndShift(LinearHeadMethod):
    """A learned scale and shift of frozen features, at the first task only."""

    name = "scale_and_shift"

    def __init__(self, config, encoder):
        super().__init__(config, encoder)
        self.scale = nn.Parameter(torch.ones(encoder.width, device=self.device))
        self.shift = nn.Parameter(torch.zeros(encoder.width, device=self.device))

    def trainable(self):
        first = [self.scale, self.shift] if len(self.tasks) == 1 else []
        return [*first, *self.head_parameters()]

    def features(self, inputs):
        return self.encoder.features(inputs) * self.scale + self.shift

    def classifier(self):
        return None  # not one linear layer on plain features
