"""RanPAC: random features of a backbone adapted once, and ridge regression on them (McDonnell et al., NeurIPS 2023).

On the **first task** a small module in the frozen backbone (`tuning`) and a cosine head are trained by

    loss = cross-entropy of sigma cos(f(x), row),    sigma learned from 16                                         (1)

over its classes. Then the head goes, the module stays as it is, and nothing is trained any more. A fixed random layer,
drawn once after this, widens the features:

    h(x) = relu(f(x) W),    W ~ N(0, 1), [d, M]                                                                    (2)

without bias or scaling. At the **end of each task** one pass over its images, not augmented, adds to two sums, with H
the rows h of these images and Y their one-hot labels over all classes seen; the head follows from the sums:

    G := G + H'H,    Q := Q + H'Y                                                                                  (3)
    W_o = (G + lambda I)^-1 Q,    logits = h(x) W_o                                                                (4)

so that, given f and lambda, the result is that of one regression on the images of all tasks, whatever their order.
For each task lambda is chosen among 1e-8, 1e-7, …, 1e8, as that with which a regression on a random 80 % of the task's
own images has the least mean squared error on the other 20 %; no test data, and no image of an earlier task. (4) takes
that of the latest task, through which the order may enter.

`tuning: adapter` (default)   bottlenecks of `rank` 64 beside every MLP, scaled by 0.1, dropout 0.1 in training
`tuning: scale_and_shift`     of what leaves every linear layer and norm (SSF)
`tuning: deep_prompts`        `length` 5 new tokens before every block (VPT)
`tuning: none`                the pre-trained features; nothing is ever trained

The paper's defaults otherwise: M = 10,000; SGD with momentum 0.9 at 0.01, falling by a cosine, weight decay 5e-4 (and
batches of 48, 20 epochs). Its tuning depends on the dataset: adapter for CIFAR-100 and CUB, scale_and_shift for
ImageNet-R, ImageNet-A and VTAB, deep_prompts for OmniBenchmark and Cars.

Between tasks M^2 numbers of float64 are held and stored with the newest checkpoint: 800 MB for M = 10,000, whatever the
number of tasks (with each of them, so that learning can go on from any, only if `checkpoints: everything`). While a
task ends there are, beside its H in float32, two more of that size for (4), or for lambda some matrices with as many
rows and columns as M or as images in the 80 %, whichever is less. The time of (3) and (4) grows with M^2 and M^3, that
of lambda with the cube of the smaller of M and those 80 % (`benchmarks/ridge_time.py`).

Equation numbers are this file's; what is not in the paper's text is that of the released code
(RanPAC/RanPAC). Done otherwise than there:
  * the sums, factorisations and solutions are in float64: with lambda below 1, they mean little in the code's float32;
  * one eigendecomposition serves every lambda, of H H' where that is smaller than H' H; (4) takes a Cholesky
    factorisation (`lorica.statistics`). A lambda that vanishes beside G in float64 is raised until it does not;
  * an error that is not finite never wins; in the code NaN does, by numpy's argmin;
  * sigma starts at 16, from where the rates that train do not throw it about (the code: 1, `head_scale: 1`), and the
    rate falls step by step (the code: epoch by epoch);
  * prompts of deep_prompts start uniform, as VPT's own do (the code: at zero);
  * logits are not multiplied by a learned sigma, which changes no argmax;
  * a task of a single image, which cannot be divided, keeps the lambda of the task before (1, if there is none).
Nor is there a cosine in (4): PILOT's RanPAC normalises h and the columns of W_o, which is another classifier.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from lorica.backbones.encoder import Encoder
from lorica.methods.base import Context, known_again
from lorica.methods.first_task import FirstTaskConfig, FirstTaskMethod
from lorica.statistics import NO_SUMS, RidgeHead
from lorica.types import Inputs, Task


class RanPACConfig(FirstTaskConfig):
    """Options of RanPAC."""

    tuning: Literal["adapter", "scale_and_shift", "deep_prompts", "none"] = "adapter"
    width: int = Field(default=10_000, ge=1, description="M, number of random features; 8 M^2 bytes are stored")


class RanPAC(FirstTaskMethod):
    """Adapted on the first task, then ridge regression on random features."""

    name = "ran_pac"
    rewritten = ("regression",)  # sums, and what is solved from them
    Config = RanPACConfig
    config: RanPACConfig
    projection: Tensor  # W

    def __init__(self, config: RanPACConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        self.register_buffer("projection", torch.zeros(encoder.width, config.width, device=self.device))
        self.regression = RidgeHead(config.width, device=self.device)

    def grow(self, task: Task) -> None:
        super().grow(task)
        self.regression.grow(len(task.new_classes))

    def needed_to_learn_on(self) -> tuple[str, ...]:
        """The sums G and Q, from which the regression is solved."""
        return ("regression.gram", "regression.targets")

    def features(self, inputs: Inputs, *, layers: int | None = None) -> Float[Tensor, "n features"]:
        """f(x), or what several blocks make of x; the random features are of the former."""
        return self.tuned(inputs, layers=layers)

    def reads_encoder(self) -> bool:
        """True where nothing is tuned: features are then those of the plain backbone."""
        return self.tuning is None

    def random_features(self, features: Float[Tensor, "n features"]) -> Float[Tensor, "n width"]:
        """The random features ReLU(f W) (2)."""
        with torch.autocast(features.device.type, enabled=False):
            return F.relu(features.float() @ self.projection)

    @torch.no_grad()
    def end_task(self, context: Context) -> None:
        """Adds the task's random features to G and Q (3), chooses the ridge and solves (4)."""
        features, labels = context.gathered(self.features)
        self.measure(features, labels)
        if self.task.index == 0:
            self.projection.copy_(torch.randn(self.projection.shape))
        order = torch.randperm(len(labels)).to(labels.device)
        h, labels = self.random_features(features[order]), labels[order]
        (self.regression.fit_frozen if context.frozen else self.regression.fit)(h, labels)
        if context.notes_parts:
            self.note_parts("regression", self.regression.parts(h, labels, frozen=context.frozen))

    def cannot_freeze(self, task: Task) -> Iterator[str]:
        """Nothing, of new classes after the first task: (4) is a regression for each class by itself, of which those of
        earlier classes then have not seen the new images. With the next task that is not frozen they have."""
        yield from known_again(task, self.regression.remembered())
        if self.regression.has_no_sums:
            yield NO_SUMS

    def traces_of(self, classes: Collection[int], *, frozen: int = 0) -> Iterator[str]:
        """What the base says, and the ridge lambda, which a task's images have chosen."""
        yield from super().traces_of(classes, frozen=frozen)
        yield from self.regression.trace_of(classes, self.tasks[-1 - frozen])

    def solve_again(self) -> None:
        """Solves (4) anew with lambda as it is, since it was chosen on images that are gone."""
        self.regression.solve(self.regression.ridge.item())

    def summed(self) -> Mapping[str, Callable[[Inputs], Tensor]]:
        """Of random features, which are the same in two models where their seed is, and f."""
        return {"regression": lambda inputs: self.random_features(self.features(inputs))}

    def predict(self, inputs: Inputs) -> Float[Tensor, "n classes"]:
        return self.regression(self.random_features(self.features(inputs)))

    def diagnostics(self) -> dict[str, Any]:
        """lambda of the latest task, and after the first one what `measure` noted."""
        return {"ridge": self.regression.ridge.item(), **super().diagnostics()}
