"""The family of methods that adapt to the first task alone, and only remember from then on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from lorica.adapters.tuning import Bottlenecks, Tuning, start_tuning
from lorica.backbones.encoder import Encoder
from lorica.errors import RecipeError
from lorica.heads import CosineHead, mean_cosine
from lorica.methods.base import Method, MethodConfig
from lorica.types import Batch, Inputs, Task

SINGLE_FIRST = (
    "the first task has a single class, and what it trains is trained to tell its classes apart; use a larger first "
    "task"
)


class FirstTaskConfig(MethodConfig):
    """What every method that adapts to the first task can be told; each says which values of `tuning` it takes."""

    cross_entropy: Literal["current_task"] = "current_task"  # only the first task has one
    tuning: str = Field(default="adapter", description="what adapts the backbone to the first task")
    rank: int = Field(default=64, ge=1, description="of tuning adapter: hidden units in each block")
    head_scale: float = Field(default=16.0, gt=0, description="where sigma of the cosine head starts; the codes: 1")
    length: int = Field(default=5, ge=1, description="of deep_prompts and shallow_prompts: tokens of a prompt")


class FirstTaskMethod(Method):
    """The common ground of methods that adapt to the first task alone: a module in the frozen encoder, trained with a
    cosine head over that task's classes, which goes with the next task. From then on nothing descends.

    The recipe says which module (`method.tuning`), a subclass what is remembered (`end_task`) and how it predicts. The
    optimiser defaults to that of RanPAC, and of APER's adapter on CIFAR-100.
    """

    dropped = ("head",)
    config: FirstTaskConfig
    head: CosineHead

    def __init__(self, config: MethodConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        self.tuning: Tuning | None = None
        self.measured: dict[str, Any] = {}
        if self.config.tuning == "adapter":
            Bottlenecks.require_place(encoder)

    @classmethod
    def fit_defaults(cls, variant: str | None) -> Mapping[str, Any]:
        return {"optimizer": "sgd", "learning_rate": 0.01, "weight_decay": 5e-4, "schedule": "cosine"}

    @classmethod
    def misfits(cls, config: MethodConfig, tasks: Sequence[Task]) -> Iterator[str]:
        yield from super().misfits(config, tasks)
        if getattr(config, "tuning", None) != "none" and len(tasks[0].classes) == 1:
            yield f"stream: {SINGLE_FIRST}"

    def grow(self, task: Task) -> None:
        super().grow(task)
        self.measured = {}
        if task.index == 0:
            own = self.config
            self.tuning = start_tuning(own.tuning, self.encoder, rank=own.rank, length=own.length)
            if self.tuning is None:
                return
            if len(task.classes) == 1:
                raise RecipeError(f"stream: {SINGLE_FIRST}")
            self.head = CosineHead(self.encoder.width, len(task.classes), scale=own.head_scale, device=self.device)
        elif "head" in self._modules:
            del self.head

    def trainable(self) -> list[nn.Parameter]:
        if self.tuning is None or self.task.index > 0:
            return []
        return [*self.tuning.parameters(), *self.head.parameters()]

    def losses(self, batch: Batch) -> Iterator[dict[str, Float[Tensor, ""]]]:
        """Cross-entropy of the cosine head, on the first task."""
        yield {"cross_entropy": F.cross_entropy(self.head(self.tuned(batch.inputs)), batch.labels)}

    def measure(self, tuned: Float[Tensor, "n features"], labels: Int[Tensor, " n"]) -> None:
        """Notes how the first task ended, from the features that it tuned: sigma, and the mean cosine between class
        means."""
        if self.task.index == 0 and self.tuning is not None:
            self.measured = {"scale": self.head.scale.item(), "mean_cosine": mean_cosine(tuned, labels)}

    def keeps_features(self, task: Task) -> bool:
        return task.index > 0 or self.config.tuning == "none"

    def trained_on(self) -> Sequence[Task]:
        """The first, unless nothing is tuned."""
        return self.tasks[:1] if self.tuning is not None else ()

    def diagnostics(self) -> dict[str, Any]:
        """After the first task what `measure` noted."""
        return dict(self.measured)

    def tuned(self, inputs: Inputs, *, layers: int | None = None) -> Float[Tensor, "n features"]:
        """Features of the encoder with the module in it; `layers` as in `Encoder.features`."""
        if self.tuning is None:
            return self.encoder.features(inputs, layers=layers)
        return self.tuning.features(self.encoder, inputs, layers=layers)
