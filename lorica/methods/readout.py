"""Another way to read a method's predictions: nearest class means of its features in place of its head.

What trains, and how, is the method's own business. At the end of each task the mean feature of each new class is taken from the
task's images, not augmented; means of earlier classes stay as they were, since their images are gone, even where features have
moved on. An image belongs to the class whose mean has the largest cosine with its feature (released codes of several methods print
this accuracy beside that of their head).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lorica.methods.base import Context, Method
from lorica.statistics import ClassMeans
from lorica.types import Batch, Inputs, Task


class ClassMeanReadout(Method):
    """A method, read by class means.

    Attributes:
        learner: the method. Its own predictions are still there.
        means: class means of its features, from the first task on.
    """

    means: ClassMeans

    def __init__(self, learner: Method) -> None:
        super().__init__(learner.config, learner.encoder)
        self.learner = learner
        self.tasks = learner.tasks
        self.name, self.trains_encoder, self.learns_all_at_once = (  # pyright: ignore[reportAttributeAccessIssue]
            learner.name,
            learner.trains_encoder,
            learner.learns_all_at_once,
        )

    @staticmethod
    def cannot_read(method: type[Method]) -> Iterator[str]:
        """Why a method has no features that class means could be taken of."""
        if method.features is Method.features:
            yield (
                f"evaluate.readout: {method.name} predicts by class means already, or has no space that all classes share; "
                "use evaluate.readout=head"
            )

    def grow(self, task: Task) -> None:
        self.learner.grow(task)
        if task.index == 0:
            self.learner.eval()
            with torch.no_grad():
                width = self.features(self.encoder.example(1)).shape[1]
            self.means = ClassMeans(width, device=self.device)
        self.means.grow(len(task.new_classes))

    def begin_task(self, context: Context) -> None:
        self.learner.begin_task(context)

    def trainable(self) -> list[nn.Parameter]:
        return self.learner.trainable()

    def losses(self, batch: Batch) -> Iterator[dict[str, Float[Tensor, ""]]]:
        return self.learner.losses(batch)

    def edit_gradients(self) -> None:
        self.learner.edit_gradients()

    def end_task(self, context: Context) -> None:
        self.learner.end_task(context)
        self.means.add(*context.gathered(self.features))

    def features(self, inputs: Inputs) -> Float[Tensor, "n features"]:
        return self.learner.features(inputs)

    def predict(self, inputs: Inputs) -> Float[Tensor, "n classes"]:
        return self.means(self.features(inputs))

    def diagnostics(self) -> dict[str, Any]:
        return self.learner.diagnostics()

    def structure(self) -> dict[str, Any]:
        return self.learner.structure()

    def restore_structure(self, structure: Mapping[str, Any]) -> None:
        self.learner.restore_structure(structure)

    def needed_to_learn_on(self) -> tuple[str, ...]:
        return tuple(f"learner.{name}" for name in self.learner.needed_to_learn_on())

    def own_state(self) -> dict[str, Tensor]:
        own = {f"learner.{name}": value for name, value in self.learner.own_state().items()}
        return own | {f"means.{name}": value for name, value in self.means.state_dict().items()}
