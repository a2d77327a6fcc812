"""Other ways to read a method's features than its own predictions: class means, a discriminant, ridge regression, an
aligned head.

What trains, and how, is the method's own business. At the end of each task its features f of the task's images, not
augmented, add to statistics of the classes (`lorica.statistics`), and the classifier follows from those alone:

    prototypes      cos(f(x), mean of f over class c); released codes of several methods print this beside their head's
                    accuracy
    discriminant    linear discriminant analysis with one covariance, shrunk by 0.2
    ridge           ridge regression to one-hot labels, with a constant; its ridge is chosen on each task's own images
    aligned         a linear head, trained on draws from one Gaussian for each class: SLCA's classifier alignment
                    (docs/readouts.md)

`layers` L: f is what the last L blocks make of x, `Encoder.layered_features`, as the method has changed the backbone;
absent = the single vector that the method's classifier reads.

`drift`: statistics of earlier classes are of features as they were, and the images are gone. With `none` they stay as
they are, even where the features have moved on. With `affine` the features of each new task's images are taken before
the task, as the method was at the end of the task before, and after it; a map x -> A x + b between the two, fitted by a
ridge regression towards the identity (`lorica.statistics.affine_drift`), moves the statistics of earlier classes before
the new images are added. Where no feature of these images has moved, nothing is fitted or moved, so that a trunk that
stays keeps the bits of its statistics.

Until a task is learned, its images' features from before are held (and stored in snapshots): 4 D bytes for each image
and D features. They are in no checkpoint.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lorica.backbones.encoder import Classifier
from lorica.errors import TrainingError
from lorica.methods.base import Context, Method, known_again
from lorica.methods.config import Drift, Kind
from lorica.parts import moved_by
from lorica.statistics import (
    NO_SUMS,
    AlignedHead,
    ClassMeans,
    Discriminant,
    PseudoFeatures,
    RidgeHead,
    affine_drift,
)
from lorica.types import Batch, Inputs, Task

PLACES: Mapping[Kind, str] = {
    "prototypes": "means",
    "discriminant": "discriminant",
    "ridge": "regression",
    "aligned": "alignment",
}
"""What the statistics of each kind are called in checkpoints."""

ALIGNMENT_EPOCHS = 5
"""Of as many batches as there are classes, so that each class is drawn once in a batch's size for each of them."""

ALIGNMENT: Mapping[str, Any] = {
    "batch_size": 256,
    "optimizer": "sgd",
    "learning_rate": 0.01,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "schedule": "cosine",
    "clip_norm": 0.0,
}
"""How a head is aligned, in place of what the recipe's `fit` says: SLCA's."""


class Readout(Method):
    """A method, read by statistics of its features.

    Attributes:
        learner: the method. Its own predictions are still there.
        kind, drift: as in the module's docstring.
        layers: L, no more than the backbone has blocks; None for the vector that the method's classifier reads.
        before: features of the images of the task under way, from before it; empty where nothing is moved.
    """

    kind: Kind
    drift: Drift
    before: Tensor

    def __init__(self, learner: Method, kind: Kind, *, layers: int | None = None, drift: Drift = "none") -> None:
        super().__init__(learner.config, learner.encoder)
        self.learner, self.kind, self.drift = learner, kind, drift
        self.takes_unread = learner.takes_unread
        self.layers = layers and min(layers, len(learner.encoder.blocks))
        self.tasks = learner.tasks
        self.name, self.trains_encoder, self.learns_all_at_once = (  # pyright: ignore[reportAttributeAccessIssue]
            learner.name,
            learner.trains_encoder,
            learner.learns_all_at_once,
        )
        own = (PLACES[kind],) if kind != "prototypes" or drift != "none" else ()
        self.rewritten = (*own, *(f"learner.{name}" for name in learner.rewritten))  # pyright: ignore[reportAttributeAccessIssue]
        self.misfits, self.undivided, self.unshared = (  # pyright: ignore[reportAttributeAccessIssue]
            learner.misfits,
            learner.undivided,
            learner.unshared,
        )
        self._until_begun: list[Method] = []  # the method as it was before it grew, until the task begins
        self._aligning = False  # a head is trained, and the method is not

    @staticmethod
    def cannot_read(method: type[Method], kind: Kind, *, layers: int | None) -> Iterator[str]:
        """Why a method cannot be read so, or why that would say nothing, in the form in which errors name a recipe's
        keys."""
        if method.features is Method.features:
            yield (
                f"evaluate.readout: {method.name} gives no features in a space that all its classes share, which "
                f"{kind} needs; use evaluate.readout=head"
            )
        elif layers is not None and "layers" not in inspect.signature(method.features).parameters:
            yield (
                f"evaluate.layers: {method.name} gives the features that its classifier reads, and not those of "
                "several blocks (its `features` takes no layers); leave evaluate.layers out"
            )
        elif kind == method.reads_by and layers is None:
            yield (
                f"evaluate.readout: {method.name} predicts by {kind} of these features already; use "
                "evaluate.readout=head, or other features with evaluate.layers"
            )
        elif kind == "aligned" and method.learns_all_at_once:
            yield (
                f"evaluate.readout: {method.name} learns all classes at once, so that its head has no tasks to align; "
                "use evaluate.readout=head"
            )

    @property
    def statistics(self) -> ClassMeans | Discriminant | RidgeHead | AlignedHead:
        """What is remembered of the classes; from the first task on."""
        return getattr(self, PLACES[self.kind])

    def grow(self, task: Task) -> None:
        if task.index == 0:
            self.learner.grow(task)
            self._make_statistics()
        else:
            # a method that has just been grown for the tasks of a checkpoint has learned nothing that could drift
            if self.drift == "affine" and not self.statistics.is_empty():
                shared = {} if self.trains_encoder else {id(each): each for each in self.encoder.parameters()}
                self._until_begun = [copy.deepcopy(self.learner, shared).eval()]
            self.learner.grow(task)
        self.statistics.grow(len(task.new_classes))

    def _make_statistics(self) -> None:
        self.learner.eval()
        with torch.no_grad():
            width = self.features(self.encoder.example(1)).shape[1]
        match self.kind:
            case "prototypes":
                made = ClassMeans(width, device=self.device)
            case "discriminant":
                made = Discriminant(width, device=self.device)
            case "ridge":
                made = RidgeHead(width, intercept=True, device=self.device)
            case "aligned":
                made = AlignedHead(width, device=self.device)
        setattr(self, PLACES[self.kind], made)
        if self.drift == "affine":
            self.register_buffer("before", torch.zeros(0, width, device=self.device), persistent=False)

    def begin_task(self, context: Context) -> None:
        for earlier in self._until_begun:
            # growing may have moved features already: by a new direction, by a prompt that inputs may pick
            self.before, _ = context.gathered(lambda inputs, earlier=earlier: self._features_of(earlier, inputs))
        self._until_begun = []
        self.learner.begin_task(context)

    def trainable(self) -> list[nn.Parameter]:
        return self.learner.trainable()

    def losses(self, batch: Batch) -> Iterator[dict[str, Float[Tensor, ""]]]:
        return self.learner.losses(batch)

    def passes(self) -> int:
        return self.learner.passes()

    def rate_factors(self) -> Mapping[nn.Parameter, float]:
        return self.learner.rate_factors()

    def edit_gradients(self) -> None:
        """The method's gradients are its own business, and those of the head that is being aligned are not."""
        if not self._aligning:
            self.learner.edit_gradients()

    def end_task(self, context: Context) -> None:
        self.learner.end_task(context)
        features, labels = context.gathered(self.features)
        if self.drift == "affine" and len(self.before):
            self._follow(features, context)
            self.before = self.before[:0].clone()
        match self.statistics:
            case ClassMeans() as means:
                means.add(features, labels)
            case Discriminant() as discriminant if context.frozen:
                discriminant.add_frozen(features, labels)
            case Discriminant() as discriminant:
                discriminant.add(features, labels)
                discriminant.solve()
            case RidgeHead() as regression:
                order = torch.randperm(len(labels)).to(labels.device)
                (regression.fit_frozen if context.frozen else regression.fit)(features[order], labels[order])
            case AlignedHead() as head:
                new = ~head.remembered()[labels]
                head.fit(features[new], labels[new])
                self._align(head, context)
        if context.notes_parts:
            self.note_parts(PLACES[self.kind], self.statistics.parts(features, labels, frozen=context.frozen))

    def _align(self, head: AlignedHead, context: Context) -> None:
        """Trains the head on draws, from where the method's own one is, if that reads these features."""
        own = self.learner.classifier()
        read = own and Classifier(*own).layers
        if own is not None and (self.layers == read or (self.layers is None and self.reads_encoder())):
            head.start(*own[:2])
            if context.task.index == 0:  # whose head has no others to be aligned with
                return
        else:
            head.start()

        def losses(batch: Batch) -> Iterator[dict[str, Float[Tensor, ""]]]:
            yield {"alignment": F.cross_entropy(head.normalised(head(batch.inputs)), batch.labels)}

        data = PseudoFeatures(head, len(head.shares()), times=1)
        self._aligning = True
        try:
            context.descend([head.weight, head.bias], ALIGNMENT_EPOCHS, losses=losses, data=data, **ALIGNMENT)
        finally:
            self._aligning = False

    @torch.no_grad()
    def _follow(self, after: Float[Tensor, "n features"], context: Context) -> None:
        """Moves what is remembered as the features of these images have moved."""
        if len(self.before) != len(after):
            raise TrainingError(
                f"evaluate.drift: the task began with {len(self.before)} images and ends with {len(after)}; begin it "
                "anew with data that stays as it is"
            )
        if not torch.equal(self.before, after):
            moved = affine_drift(self.before, after)
            self.statistics.move(*moved)
            if context.notes_parts and self.kind in (
                "discriminant",
                "ridge",
            ):  # the others note none that could be moved
                self.note_parts(PLACES[self.kind], moved_by(*moved))

    def features(self, inputs: Inputs, *, layers: int | None = None) -> Float[Tensor, "n features"]:
        return self._features_of(self.learner, inputs, layers)

    def _features_of(self, method: Method, inputs: Inputs, layers: int | None = None) -> Float[Tensor, "n features"]:
        layers = layers or self.layers
        # a method that cannot give layers takes no such argument
        return method.features(inputs) if layers is None else method.features(inputs, layers=layers)

    def predict(self, inputs: Inputs) -> Float[Tensor, "n classes"]:
        return self.statistics(self.features(inputs))

    def reads_encoder(self) -> bool:
        return self.learner.reads_encoder()

    def classifier(self) -> Classifier | None:
        """The discriminant, the regression or the aligned head, where the features are the encoder's; a cosine with
        means is not linear."""
        if not self.reads_encoder():
            return None
        own = self.learner.classifier()
        layers = Classifier(*own).layers if self.layers is None and own else self.layers
        match self.statistics:
            case Discriminant() as discriminant:
                return Classifier(discriminant.weight, discriminant.bias, layers)
            case RidgeHead() as regression:
                return Classifier(regression.weight[:-1].T.contiguous(), regression.weight[-1], layers)
            case AlignedHead() as head:
                return Classifier(head.weight, head.bias, layers)
        return None

    @property
    def trunk_rests(self) -> bool:
        return self.learner.trunk_rests

    def keeps_features(self, task: Task) -> bool:
        return self.learner.keeps_features(task)

    def cannot_freeze(self, task: Task) -> Iterator[str]:
        """Nothing, of new classes and statistics whose scores need no training, where the method leaves its features as
        they are."""
        if not self.learner.keeps_features(task):
            yield f"{self.name} goes on training its features, which moves the scores of earlier classes"
        if self.kind == "aligned":
            yield "an aligned head is trained anew after every task, which moves the scores of earlier classes"
        elif not self.tasks:
            yield from known_again(task, torch.zeros(0, dtype=torch.bool))
        else:
            statistics = self.statistics
            yield from known_again(task, statistics.remembered())
            if isinstance(statistics, Discriminant | RidgeHead) and statistics.has_no_sums:
                yield NO_SUMS

    def taken_parts(self) -> dict[str, Tensor]:
        """What the read-out recorded of its additions, and what the method did."""
        learners = {f"learner.{name}": tensor for name, tensor in self.learner.taken_parts().items()}
        return super().taken_parts() | learners

    def trained_on(self) -> Sequence[Task]:
        return self.learner.trained_on()

    def traces_of(self, classes: Collection[int], *, frozen: int = 0) -> Iterator[str]:
        """The traces that the method has, though its own predictions are not read here, and those of the read-out's
        statistics."""
        yield from self.learner.traces_of(classes, frozen=frozen)
        match self.statistics:
            case RidgeHead() as regression:
                yield from regression.trace_of(classes, self.tasks[-1 - frozen])
            case AlignedHead():
                yield (
                    f"the aligned head was trained on draws that stood for {self._names(sorted(classes))}, too; with "
                    "the next task it is aligned anew without"
                )

    def solve_again(self) -> None:
        """The method's, too. A ridge stays, and a head is aligned anew with the next task."""
        self.learner.solve_again()
        match self.statistics:
            case Discriminant() as discriminant:
                discriminant.solve()
            case RidgeHead() as regression:
                regression.solve(regression.ridge.item())

    def summed(self) -> Mapping[str, Callable[[Inputs], Tensor]]:
        """The method's, too; none where it has none, or where a head is aligned."""
        learners = {f"learner.{name}": features for name, features in self.learner.summed().items()}
        return {PLACES[self.kind]: self.features} | learners if learners and self.kind != "aligned" else {}

    def cannot_join(
        self, other: Method, common: Method | None = None, places: Sequence[int] | None = None
    ) -> Iterator[str]:
        if self.kind == "aligned":
            yield (
                "an aligned head is trained on draws after every task, and no sum of two is what one trained on all of "
                "them would be"
            )
        else:
            yield from super().cannot_join(other, common, places)

    def diagnostics(self) -> dict[str, Any]:
        return self.learner.diagnostics()

    def structure(self) -> dict[str, Any]:
        return self.learner.structure()

    def restore_structure(self, structure: Mapping[str, Any]) -> None:
        self.learner.restore_structure(structure)

    def needed_to_learn_on(self) -> tuple[str, ...]:
        place = PLACES[self.kind]
        own = (f"{place}.{name}" for name in self.statistics.sums)
        return (*own, *(f"learner.{name}" for name in self.learner.needed_to_learn_on()))

    def own_state(self) -> dict[str, Tensor]:
        own = {f"learner.{name}": value for name, value in self.learner.own_state().items()}
        place = PLACES[self.kind]
        return own | {f"{place}.{name}": value for name, value in self.statistics.state_dict().items()}

    def load_running_state(self, state: Mapping[str, Tensor]) -> None:
        found = state.get("before")
        if self.drift == "affine" and found is not None and found.dim() == 2:  # as many rows as the task has images
            self.before = torch.zeros(len(found), self.before.shape[1], device=self.device)
        super().load_running_state(state)
