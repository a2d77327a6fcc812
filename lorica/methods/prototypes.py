"""Class-mean prototypes on the frozen backbone (the SimpleCIL baseline of Zhou et al., 2023).

After each task, one pass over its training images without augmentation gives the mean feature of every new class; an
image belongs to the class whose mean has the largest cosine with its own feature. Nothing trains and nothing is
forgotten. Raw features are averaged and the mean is normalised, not the reverse. More images of a class that is known
count like its first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from jaxtyping import Float
from torch import Tensor, nn

from lorica.backbones.encoder import Encoder
from lorica.methods.base import Context, Method, MethodConfig, known_again
from lorica.statistics import ClassMeans
from lorica.types import Batch, Inputs, Task


class Prototypes(Method):
    """Nearest class mean by cosine."""

    name = "prototypes"
    reads_by = "prototypes"

    def __init__(self, config: MethodConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        self.means = ClassMeans(encoder.width, device=self.device)

    def grow(self, task: Task) -> None:
        super().grow(task)
        self.means.grow(len(task.new_classes))

    def trainable(self) -> list[nn.Parameter]:
        return []

    def losses(self, batch: Batch) -> Iterator[dict[str, Tensor]]:
        return iter(())

    def end_task(self, context: Context) -> None:
        self.means.add(*context.gathered(self.features))

    def features(self, inputs: Inputs, *, layers: int | None = None) -> Float[Tensor, "n features"]:
        return self.encoder.features(inputs, layers=layers)

    def keeps_features(self, task: Task) -> bool:
        return True

    def cannot_freeze(self, task: Task) -> Iterator[str]:
        """Nothing, of new classes: each has a mean of its own."""
        yield from known_again(task, self.means.remembered())

    def trained_on(self) -> Sequence[Task]:
        """No task: nothing is ever trained."""
        return ()

    def summed(self) -> Mapping[str, Callable[[Inputs], Tensor]]:
        return {"means": self.features}

    def predict(self, inputs: Inputs) -> Float[Tensor, "n classes"]:
        return self.means(self.features(inputs))

    def reads_encoder(self) -> bool:
        return True

    def classifier(self) -> None:
        """Cosine scores also divide by the feature's length, which no linear classifier can."""
        return
