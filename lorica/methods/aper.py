"""APER: the backbone tuned to the first task, beside the plain one, read by class means (Zhou et al., IJCV 2024).

It was called ADAM before. With f(x) the feature of the plain backbone and g(x) that of one tuned to the classes C_1 of
the first task,

    loss = CE over c in C_1 of sigma cos(g(x), w_c)        sigma learned from 16; first task only                   (1)
    phi(x) = [f(x); g(x)]                                                                                          (2)
    p_c = mean of phi(x) over the training images x of class c, not augmented                                      (3)
    score of class c = cos(phi(x), p_c)                                                                            (4)

After the first task w and sigma go, g stays as it is, and nothing trains any more: later tasks add means. The order in
which later classes come changes nothing but the order of the scores. In (3) raw features are averaged; the cosine (4)
is over both halves at once, so that the half with the longer features counts for more. A prediction takes two passes.

`tuning` says what makes g of f. Beside it, the authors' settings for CIFAR-100 (zhoudw-zdw/RevisitingCIL, ViT-B/16 of
ImageNet-21k): SGD, momentum 0.9, weight decay 5e-4, and a rate that falls by a cosine to 0, from

                                                                                 rate  epochs  batch
    adapter (default)  a bottleneck beside the MLP of each block, rank 64        0.01      20     48
    scale_and_shift    of what leaves each operation, by channel                 0.01      20     48
    deep_prompts       5 tokens before each block                                0.05       5     16
    shallow_prompts    5 tokens before the first block                           0.01      20     48
    full               a copy of the backbone, all of whose weights train        0.01       5    128

`fit_defaults` has the line of adapter, whatever the tuning; epochs and batch are the recipe's. Of the authors' other
lines: adapter on ImageNet-R 0.05, batch 24, decay 5e-3; deep prompts on ObjectNet and OmniBenchmark 0.01, 20 epochs.
LAMDA-PILOT (ImageNet-1k): adapter the same, and on ImageNet-R 0.05, 10 epochs, batch 16, decay 5e-3; full 6 epochs,
decay 0.05.

Equation numbers are this file's. Done otherwise than in the released code: prompts start uniform, as VPT's own do (the
code: zeros), and enter before the other tokens, which attention cannot tell from after them. The scale sigma starts at
16 (the code: 1, `head_scale: 1`), from where the rates that train do not throw it about. A first task of one class is
refused, since (1) is then always 0. ResNets are not here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lorica.backbones.encoder import Encoder
from lorica.methods.base import Context, known_again
from lorica.methods.first_task import FirstTaskConfig, FirstTaskMethod
from lorica.statistics import ClassMeans
from lorica.types import Inputs, Task


class APERConfig(FirstTaskConfig):
    """Options of APER."""

    tuning: Literal["adapter", "scale_and_shift", "deep_prompts", "shallow_prompts", "full"] = "adapter"


class APER(FirstTaskMethod):
    """Nearest class mean by cosine, in plain and tuned features together."""

    name = "aper"
    Config = APERConfig
    reads_by = "prototypes"
    config: APERConfig

    def __init__(self, config: APERConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        self.means = ClassMeans(2 * encoder.width, device=self.device)

    def grow(self, task: Task) -> None:
        super().grow(task)
        self.means.grow(len(task.new_classes))

    def end_task(self, context: Context) -> None:
        """Adds the means of the task's classes in plain and tuned features together (3)."""
        features, labels = context.gathered(self.features)
        self.means.add(features, labels)
        self.measure(features[:, self.encoder.width :], labels)

    def features(self, inputs: Inputs, *, layers: int | None = None) -> Float[Tensor, "n features"]:
        """The features phi(x) of (2); if several blocks are asked for, those of several blocks in each half."""
        return torch.cat([self.encoder.features(inputs, layers=layers), self.tuned(inputs, layers=layers)], dim=1)

    def cannot_freeze(self, task: Task) -> Iterator[str]:
        """Nothing, of new classes after the first task: each has a mean of its own."""
        yield from known_again(task, self.means.remembered())

    def summed(self) -> Mapping[str, Callable[[Inputs], Tensor]]:
        return {"means": self.features}

    def predict(self, inputs: Inputs) -> Float[Tensor, "n classes"]:
        return self.means(self.features(inputs))
