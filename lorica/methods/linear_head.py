"""The family of most methods: features that adapt, and a linear head with a block of rows for each task."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from lorica.backbones.encoder import Classifier, Encoder
from lorica.heads import GrowingLinear, HeadStart
from lorica.methods.base import LowRankConfig, Method, MethodConfig, lone_classes
from lorica.types import Batch, Inputs, Task


class LinearHeadConfig(MethodConfig):
    """What every method with a linear head can be told; each has its source's start as the default."""

    head_start: HeadStart | None = Field(
        default=None,
        description="where new rows of the head start: zeros, kaiming (+-sqrt(3/width)), linear (as nn.Linear) or "
        "truncated_normal (0.02); absent = as the method's source",
    )


class LowRankHeadConfig(LinearHeadConfig, LowRankConfig):
    """What every low-rank method with a linear head can be told."""


class LinearHeadMethod(Method):
    """The common ground of most methods: features, a linear head with a block of rows per task, cross-entropy.

    A subclass says how the features adapt (`grow`), what they are if not the encoder's (`features`), and what trains
    (`trainable`). New rows of the head start at zero where neither the recipe nor `source_start` says otherwise: no
    random row then competes with what is learned (measured: docs/results/discussion.md, "Where heads start").

    Attributes:
        source_start: where rows start in the method's source, unless `by_variant` has a `head_start`.
        head_start: where they do start.
    """

    Config: ClassVar[type[MethodConfig]] = LinearHeadConfig
    source_start: ClassVar[HeadStart] = "zeros"

    def __init__(self, config: MethodConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        by_variant = config.of_variant().get("head_start") if config.by_variant else None
        self.head_start: HeadStart = by_variant or getattr(config, "head_start", None) or self.source_start
        self.head = GrowingLinear(encoder.width, start=self.head_start, device=self.device)

    @classmethod
    def misfits(cls, config: MethodConfig, tasks: Sequence[Task]) -> Iterator[str]:
        yield from super().misfits(config, tasks)
        if config.cross_entropy == "current_task":
            yield from lone_classes(tasks, "method.cross_entropy=all_seen, or larger tasks")

    def grow(self, task: Task) -> None:
        super().grow(task)
        self.head.grow(len(task.new_classes))
        self.head.isolate(task.classes)

    def head_parameters(self) -> list[nn.Parameter]:
        """The head's share of `trainable`: the rows of the task's classes, or all rows when all of them enter the
        loss."""
        return (
            self.head.rows_of(self.task.classes)
            if self.config.cross_entropy == "current_task"
            else list(self.head.parameters())
        )

    def losses(self, batch: Batch) -> Iterator[dict[str, Float[Tensor, ""]]]:
        yield {"cross_entropy": self.cross_entropy(self.predict(batch.inputs), batch.labels)}

    def cross_entropy(self, logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> Float[Tensor, ""]:
        """Over the logits of the task's own classes, or of all seen so far, as the recipe says."""
        if self.config.cross_entropy == "all_seen":
            return F.cross_entropy(logits, labels)
        return F.cross_entropy(logits[:, self.task.columns], self.task.positions(labels))

    def features(self, inputs: Inputs, *, layers: int | None = None) -> Float[Tensor, "n features"]:
        return self.encoder.features(inputs, layers=layers)

    def predict(self, inputs: Inputs) -> Float[Tensor, "n classes"]:
        return self.head(self.features(inputs))

    def traces_of(self, classes: Collection[int], *, frozen: int = 0) -> Iterator[str]:
        yield from super().traces_of(classes, frozen=frozen)
        yield f"other rows of the head were trained beside those of {self._names(sorted(classes))}, which are zero"

    def classifier(self) -> Classifier | None:
        """The head's, unless a subclass has other features than the encoder's, or other logits than the head's."""
        own, plain = type(self), LinearHeadMethod
        is_plain = (own.features, own.predict) == (plain.features, plain.predict)
        return Classifier(*self.head.stacked()) if is_plain else None
