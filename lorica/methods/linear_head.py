"""The family of most methods: features that adapt, and a linear head with a block of rows for each task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lorica.backbones.encoder import Encoder
from lorica.heads import GrowingLinear
from lorica.methods.base import Method, MethodConfig, lone_classes
from lorica.types import Batch, Inputs, Task


class LinearHeadMethod(Method):
    """The common ground of most methods: features, a linear head with a block of rows per task, cross-entropy.

    A subclass says how the features adapt (`grow`), what they are if not the encoder's (`features`), and what trains
    (`trainable`).
    """

    def __init__(self, config: MethodConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        self.head = GrowingLinear(encoder.width, device=self.device)

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
        """The head's share of `trainable`: the rows of the task's classes, or all rows when all of them enter the loss."""
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

    def features(self, inputs: Inputs) -> Float[Tensor, "n features"]:
        return self.encoder.features(inputs)

    def predict(self, inputs: Inputs) -> Float[Tensor, "n classes"]:
        return self.head(self.features(inputs))

    def classifier(self) -> tuple[Tensor, Tensor | None] | None:
        return self.head.stacked()
