"""What a method is: one `nn.Module` in one file, driven through these hooks by the training loop.

For each task the loop calls, in this order

    grow(task)            make room: new factors, new head rows (structure and random starts only)
    begin_task(context)   look at the task's data before training (most methods need nothing)
    trainable()           the parameters to train; the loop freezes every other one. Empty: no descent
    losses(batch)         yields dictionaries of named scalars; one optimiser step for each yield, on their sum
    edit_gradients()      after the backward pass, before the step
    end_task(context)     consolidate: prototypes, projections, statistics

and `predict(inputs)` gives logits over the classes seen so far. A prediction must not depend on the rest of its batch.

A task can be learned *frozen*: the logits of earlier classes, of any batch, are to the bit what they were. Only what
new classes need is added; a method says whether it can (`cannot_freeze`), and the contract suite holds it to that.

Classes can be *forgotten*: `forget` takes out what is remembered of them. It asks every module that remembers classes
(`Remembering`). Of sums over all classes that takes the parts of all additions (`lorica.parts`), which `end_task` notes
where the context says so, and whoever learns keeps (`taken_parts`). What training has left of them stays: `traces_of`.

Two models of a method can be *joined* where all that they remember of classes are sums over samples, of features that
are the same in both: `summed` says which, and `join` adds them up. A method that trains on every task refuses.

Several processes can learn together, and a batch can be computed in parts one after another. So the losses of a batch
are the means of those of its parts, weighted by their samples, or do not depend on samples (a penalty on weights); all
parts yield equally often, and what `losses` draws for single samples it draws by `lorica.sharing.per_sample`. What
changes with every step, `edit_gradients` counts, which is called once for each yield. A method whose losses are
otherwise says so (`undivided`), and each process then computes whole batches. Gradients are those of `trainable`, added
up over all processes before `edit_gradients`, however `losses` came to them.

Everything a method remembers is in its `state_dict` (its encoder's weights only if it trains them: `trains_encoder`).
The shape of that state follows from the tasks it was grown for and from `structure()`, plain values that most methods
do not need, so that a checkpoint loads by growing again, restoring the structure and copying the tensors in.
A method never imports another method, the loop, the data or the recipe.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, cast, get_args, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lorica.backbones.encoder import Classifier, Encoder
from lorica.errors import CheckpointError, LoricaError
from lorica.methods.config import LowRankConfig as LowRankConfig
from lorica.methods.config import MethodConfig
from lorica.methods.config import Variants as Variants
from lorica.parts import NO_PARTS, Parts
from lorica.processes import Processes
from lorica.randomness import Draws
from lorica.sharing import Share
from lorica.types import Batch, Inputs, Task, seen_classes

SAME = 1e-5
"""Share of the largest by which rounding may move features of the same input on two machines."""


@runtime_checkable
class Data(Protocol):
    """A task's training data, as `lorica.data.stream.Split` provides it."""

    def batches(
        self,
        batch_size: int,
        *,
        device: torch.device,
        augment: str = "none",
        draws: Draws | None = None,
        first: int = 0,
        share: Share = ...,
    ) -> Iterator[Batch]:
        """One pass from batch number `first` on; in random order and augmented where there are `draws`. Only one of
        several processes asks for a `share` of it, see `lorica.sharing.Share`."""
        ...

    def number_of_batches(self, batch_size: int) -> int:
        """Batches of a pass."""
        ...


@runtime_checkable
class Rereadable(Data, Protocol):
    """Data of which features are computed once, as long as what computes them stays what it is (`lorica.unread`)."""

    @property
    def unread(self) -> Any:
        """The same samples as `Data` whose inputs are `Unread`; `forget()` drops what is kept of them."""
        ...


Losses = Callable[[Batch], Iterator[dict[str, Float[Tensor, ""]]]]


@runtime_checkable
class Descend(Protocol):
    """Trains some parameters of the method being learned, beside the main descent: a stage of its own.

    Args:
        parameters: what trains; everything else is frozen meanwhile.
        epochs: passes over the data.
        losses: gives the terms of the loss of each batch; by default `Method.losses`.
        data: what gives the batches, in each epoch anew; by default the task's training data.
        settings: keys of the recipe's `fit` section that have other values in this stage: optimizer, learning_rate,
            schedule, batch_size, ….
    """

    def __call__(
        self, parameters: list[nn.Parameter], epochs: int, *, losses: Losses = ..., data: Data = ..., **settings: Any
    ) -> None: ...


@dataclass(frozen=True)
class Context:
    """What `begin_task` and `end_task` are given.

    Attributes:
        task: the task.
        batches: its training data in order, not augmented, anew at each call; all of it in every process, unless told
            to give a share.
        epochs: of the descent on this task, as the recipe says.
        steps: batches that this descent takes, over all its passes.
        descend: another stage of training, see `Descend`.
        frozen: the logits of earlier classes are to keep their bits; the method has said that it can
            (`Method.cannot_freeze`).
        notes_parts: `end_task` is to note what each class adds to sums, for `Method.taken_parts`.
        processes: those that learn together.
    """

    task: Task
    batches: Callable[..., Iterator[Batch]]
    epochs: int
    steps: int
    descend: Descend
    frozen: bool = False
    notes_parts: bool = False
    processes: Processes = Processes()

    def own_batches(self) -> Iterator[Batch]:
        """What falls to this process of `batches`, maybe nothing: for sums, which `processes.added` then adds up over
        all of them."""
        return self.batches(**self.processes.taking)

    def gathered(
        self, features: Callable[[Inputs], Tensor], *, of: Collection[int] | None = None
    ) -> tuple[Float[Tensor, "samples ..."], Int[Tensor, " samples"]]:
        """What `features` makes of all inputs of `batches` (or of those `of` some of the task's classes), and their
        labels; without gradients, in float32 whatever the precision of the run. Each process computes its share, and
        all have all of them."""
        with torch.no_grad():
            pairs = [(features(batch.inputs), batch.labels) for batch in self.own_batches()]
        columns = [torch.cat(parts) for parts in zip(*pairs, strict=True)] or [None, None]
        found, labels = map(self.processes.gathered, columns)
        if of is None or set(of) == set(self.task.classes):
            return found, labels
        own = torch.isin(labels, torch.tensor(list(of), dtype=torch.long, device=labels.device))
        return found[own], labels[own]


class Method(nn.Module, ABC):
    """A class-incremental learning method around one encoder.

    Class attributes:
        name: what recipes call it.
        Config: its section of the recipe.
        trains_encoder: its checkpoints include the encoder's weights.
        learns_all_at_once: it is given the data of all tasks in one go (upper bounds).
        rewritten: names of submodules and tensors below the method that a later task writes again without training them
            in its main stage; all other state of a learned task keeps its bits, which the contract suite checks.
        dropped: names of submodules that a learned task no longer needs; its checkpoints leave them out.
        reads_by: the `evaluate.readout` that its own predictions are already, over its `features`; None where there
            is none.
        takes_unread: its inputs may be `lorica.unread.Unread`, of which features are kept. They are no tensors until
            something reads them, which other libraries need not do: so a class from outside this library gets tensors,
            unless it says True itself.
    """

    name: ClassVar[str]
    Config: ClassVar[type[MethodConfig]] = MethodConfig
    trains_encoder: ClassVar[bool] = False
    learns_all_at_once: ClassVar[bool] = False
    rewritten: ClassVar[tuple[str, ...]] = ()
    dropped: ClassVar[tuple[str, ...]] = ()
    reads_by: ClassVar[str | None] = None
    takes_unread: bool = False

    def __init_subclass__(cls, **given: Any) -> None:
        super().__init_subclass__(**given)
        if "takes_unread" not in vars(cls):
            cls.takes_unread = cls.__module__.partition(".")[0] == __name__.partition(".")[0]

    def __init__(self, config: MethodConfig, encoder: Encoder) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.tasks: list[Task] = []
        self._parts: dict[str, Tensor] = {}  # noted since they were taken last
        _ = encoder.fingerprint  # taken now, before anything is attached or trained

    @classmethod
    def variants(cls) -> tuple[str | None, ...]:
        """The values of `method.variant` it knows; (None,) for a method that has only one reading."""
        field = cls.Config.model_fields.get("variant")
        return (None,) if field is None else get_args(field.annotation)

    @classmethod
    def fit_defaults(cls, variant: str | None) -> Mapping[str, Any]:
        """Values of the recipe's `fit` section that suit this method better than the library's; the user's win."""
        return {}

    @classmethod
    def misfits(cls, config: MethodConfig, tasks: Sequence[Task]) -> Iterator[str]:
        """Why a method with that config cannot learn these tasks, in the form in which errors name a recipe's keys.

        Asked before anything is learned. Overriding methods yield from this first.

        Args:
            tasks: all that the method will be given, in order.
        """
        total = getattr(config, "total_tasks", None)
        if total is not None and total < len(tasks):
            yield f"method.total_tasks: the stream has {len(tasks)} tasks, which is more than {total}"

    @classmethod
    def undivided(cls, config: MethodConfig) -> Iterator[str]:
        """Why the losses of a batch are not the means of those of its parts, weighted by their samples. Each of several
        processes then computes whole batches: with the same result, and no sooner; and a batch is not computed in
        parts."""
        return iter(())

    @classmethod
    def unshared(cls, config: MethodConfig) -> Iterator[str]:
        """Why predictions depend on what else is in a batch, so that several processes, each of which computes some of
        it, cannot have those of a lone one, and are refused."""
        return iter(())

    @property
    def task(self) -> Task:
        """The task being learned, or learned last."""
        return self.tasks[-1]

    @property
    def device(self) -> torch.device:
        """Where the encoder is; new parameters belong there."""
        return next(self.encoder.parameters()).device

    def grow(self, task: Task) -> None:
        """Makes room for a task. Overriding methods call this first."""
        self.tasks.append(task)

    def begin_task(self, context: Context) -> None:
        """Before training on a task."""

    def passes(self) -> int:
        """Passes over the current task's data for each epoch of the recipe, in the main stage."""
        return 1

    @abstractmethod
    def trainable(self) -> list[nn.Parameter]:
        """Parameters to train on the current task."""

    def rate_factors(self) -> Mapping[nn.Parameter, float]:
        """What the learning rate is multiplied by, in every stage, for parameters that learn slower or faster than
        others; all that it does not name learn at the rate itself."""
        return {}

    @abstractmethod
    def losses(self, batch: Batch) -> Iterator[dict[str, Float[Tensor, ""]]]:
        """Named loss terms of a batch; one optimiser step for each yield."""

    def edit_gradients(self) -> None:
        """Between the backward pass and the optimiser step, once for each yield; the gradients are those of the whole
        batch."""

    def end_task(self, context: Context) -> None:
        """After training on a task."""

    def features(self, inputs: Inputs, *, layers: int | None = None) -> Float[Tensor, "n features"]:
        """What the classifier reads, for a method with one vector of each input in a space that all classes share:
        other read-outs (`lorica.methods.readout`) learn from it. Others leave this as it is.

        Args:
            layers: what the last blocks make of the input in its place, that many or all (`Encoder.layered_features`),
                with all that the method changes in the backbone. A method that cannot say leaves this argument out of
                its signature.
        """
        raise NotImplementedError

    def reads_encoder(self) -> bool:
        """Whether `features` are those of the encoder with its updates merged, so that a linear map of them can be
        exported."""
        return self.classifier() is not None

    @property
    def trunk_rests(self) -> bool:
        """Whether the encoder, or part of what it computes of an input, is the same after later tasks, so that its
        features are worth keeping; whether those that are kept are still right is not left to this
        (`lorica.unread`)."""
        return not self.trains_encoder and self.encoder.is_as_loaded

    @abstractmethod
    def predict(self, inputs: Inputs) -> Float[Tensor, "n classes"]:
        """Logits over all classes seen so far, in stream order."""

    # --- old logits that keep their bits ---

    def keeps_features(self, task: Task) -> bool:
        """Whether `features` stay as they are, to the bit, where that task is learned frozen next."""
        return False

    def cannot_freeze(self, task: Task) -> Iterator[str]:
        """Why that task cannot be learned frozen next, so that all logits of earlier classes keep their bits; nothing
        where it can."""
        yield f"{self.name} trains on every task, which moves the scores of earlier classes"

    # --- forgetting classes ---

    def note_parts(self, place: str, parts: Mapping[str, Tensor]) -> None:
        """Notes the parts (`lorica.parts`) that the submodule of that name has got in this task."""
        self._parts |= {f"{place}.{name}": tensor for name, tensor in parts.items()}

    def taken_parts(self) -> dict[str, Tensor]:
        """The parts that the latest `end_task` noted, which are then noted no longer: flat names, tensors on the CPU.
        They are not in `own_state`; to be kept in order, those of each task as one mapping, as long as classes may have
        to be forgotten."""
        taken, self._parts = self._parts, {}
        return taken

    def trained_on(self) -> Sequence[Task]:
        """The tasks whose images have trained what `features` are computed with; by default all."""
        return self.tasks

    def cannot_forget(self, classes: Collection[int], parts: Parts) -> Iterator[str]:
        """Why `forget` refuses these classes; nothing where it does not."""
        for place, module in self._remembering():
            for label, why in module.unforgettable(classes, parts.within(place)):
                yield f"{self._names([label])} cannot be taken out of {place}: {why}"

    def traces_of(self, classes: Collection[int], *, frozen: int = 0) -> Iterator[str]:
        """What the model still has of these classes once `forget` has taken them out, for people. Where there is
        nothing, it is the model that never had an image of them: sums to rounding in float64, what is solved from them
        to rounding in float32.

        Args:
            frozen: how many of the latest tasks were learned frozen, which choose nothing anew.
        """
        for task in self.trained_on():
            if own := sorted(set(classes) & set(task.classes)):
                yield (
                    f"the trunk was trained on {self.encoder.modality} of {self._names(own)} in task {task.index + 1}, "
                    "and stays as it is; only going back to before that task removes that"
                )

    def forget(self, classes: Collection[int], parts: Parts = NO_PARTS) -> None:
        """Takes out what is remembered of some classes: their samples from sums, their means, their rows. They keep
        their numbers, and have columns of logits still, which say nothing: whoever predicts leaves them out. Images of
        them can be learned again.

        What has no statistics of single classes (a trunk, prompts, other rows of a head) stays as it is: see
        `traces_of`.

        Args:
            classes: numbers of classes that have been learned.
            parts: what `taken_parts` gave after each task so far, in order, without what is of classes that were
                forgotten before (`lorica.parts.without`).

        Raises:
            LoricaError: everything in `cannot_forget`, and nothing has changed then; or a sum of which next to nothing
                stays, without the parts of the other classes, from which it is then added up anew. The method is then
                to be loaded again.
        """
        if why := list(self.cannot_forget(classes, parts)):
            raise LoricaError(why)
        for place, module in self._remembering():
            module.forget(classes, parts.within(place))
        self.solve_again()

    def solve_again(self) -> None:
        """Computes anew what follows from statistics, once classes have been taken out of them, or taken up from
        another model."""

    # --- joining two models ---

    def summed(self) -> Mapping[str, Callable[[Inputs], Tensor]]:
        """The submodules (`Summing`) that are all it remembers of classes, by name, and the features that each of them
        sums up, which stay what they are once the trunk has come to rest. By default none, and nothing can be
        joined."""
        return {}

    def cannot_join(
        self, other: Method, common: Method | None = None, places: Sequence[int] | None = None
    ) -> Iterator[str]:
        """Why `join` refuses, the first thing that is in the way; nothing where it does not."""
        own, whose = self.summed(), {"this": self, "the other": other} | ({"the common": common} if common else {})
        if not own:
            yield (
                f"{self.name} trains on every task, so that each of two models has a trunk or a head of its own, and "
                f"no sum of the two is what one that learned everything would be; let one of them learn the "
                f"{self.encoder.modality} of both"
            )
            return
        if any(each.name != self.name or each.summed().keys() != own.keys() for each in whose.values()):
            expected = "two other models" if common else "another model"
            yield f"expected {expected} of {self.name}, not read otherwise; only they can be joined"
            return
        if empty := [who for who, each in whose.items() if not each.tasks]:
            yield (
                f"{empty[0]} model has learned nothing; name one that "
                f"has{' and from which both went on' if common else ''}"
            )
            return
        if any(getattr(module, "has_no_sums", False) for each in whose.values() for module in each._sums()):
            yield (
                "the sums of a model are not there; they are kept after the newest task alone, or with "
                "checkpoints=everything"
            )
            return
        base, name = (common, "the common one") if common else (self, "this one")
        for who, each in whose.items():
            if each is not base and (unlike := each._unlike(base)):
                yield f"{who} model has {unlike}; its statistics mean something else than those of {name}"
                return
        shared = len(common.tasks) if common else 0
        for who, each in whose.items() if common else ():
            pairs = zip(each._sums(), base._sums(), strict=True)
            if each.tasks[:shared] != base.tasks[:shared] or not all(one.contains(before) for one, before in pairs):
                yield (
                    f"{who} model has not begun with the {shared} tasks of the common one and its "
                    f"{self.encoder.modality}; name the one from which both went on"
                )
                return
        ours, later = self.tasks[shared:], other.tasks[shared:]
        if not later:
            yield "the other model has nothing that this model does not have"
        if places is not None:
            return
        since = " since the common one" if common else ""
        if twice := {name for task in ours for name in task.new_names} & {n for task in later for n in task.new_names}:
            yield f"both models have learned {', '.join(sorted(twice))}{since}; join classes that are different"
        elif ours and later and ours[0] == later[0]:
            yield (
                f"both models went on with the same task {shared + 1}, which would count twice; name as the common one "
                "what it was after that"
            )

    def join(self, other: Method, common: Method | None = None, places: Sequence[int] | None = None) -> None:
        """Takes up what another model has learned: it is then one that learned all of it, but for rounding. Nothing is
        compared or trained, and what an earlier change has left frozen is solved again.

        Args:
            other: it stays as it is.
            common: what both were once, from which they went on; its samples are in both. None: they have none in
                common.
            places: the number here of each of the other's classes, of new ones the next numbers in their order. For
                those who know that no image is in both, but for those of the common one: a class may then be in both.
                Absent = no class may be.

        Raises:
            LoricaError: everything in `cannot_join`, and nothing has changed then.
        """
        if why := list(self.cannot_join(other, common, places)):
            raise LoricaError(why)
        shared, known = (seen_classes(common.tasks) if common else 0), seen_classes(self.tasks)
        if places is None:
            later = seen_classes(other.tasks) - shared
            places = [*range(shared), *range(known, known + later)]
        before = common._sums() if common else [None] * len(self._sums())
        for own, theirs, once in zip(self._sums(), other._sums(), before, strict=True):
            own.join(theirs, once, places)
        names = {
            number: name for task in self.tasks for number, name in zip(task.classes, task.class_names, strict=True)
        }
        for task in other.tasks[len(common.tasks) if common else 0 :]:
            numbered = {places[number]: name for number, name in zip(task.classes, task.class_names, strict=True)}
            new = tuple(number for number in sorted(numbered) if number not in names)
            names = numbered | names
            classes = tuple(sorted(numbered))
            self.tasks.append(Task(len(self.tasks), classes, new, tuple(names[number] for number in classes)))
        self.solve_again()

    def _sums(self) -> list[Summing]:
        return [cast(Summing, self.get_submodule(place)) for place in self.summed()]

    @torch.no_grad()
    def _unlike(self, other: Method) -> str:
        """What it has that makes its features others than those of that model; empty where random inputs have the same
        in both."""
        if self.encoder.fingerprint != other.encoder.fingerprint:
            return "another backbone"
        if self.encoder.reading() != other.encoder.reading():
            return "another size of inputs"
        theirs = other.summed()
        for place, features in self.summed().items():
            found, expected = (
                of(each.encoder.probe(2)).cpu() for of, each in ((features, self), (theirs[place], other))
            )
            if found.shape != expected.shape or not (found - expected).abs().max() <= SAME * expected.abs().max():
                if self.trained_on() or other.trained_on():
                    return (
                        f"a trunk of its own, trained on other {self.encoder.modality}; models that were once copies "
                        "of one have the same"
                    )
                return "another normalisation, other options, or random features drawn from another seed"
        return ""

    def _remembering(self) -> Iterator[tuple[str, Remembering]]:
        for place, module in self.named_modules():
            if isinstance(module, Remembering):
                yield place, module

    def _names(self, classes: Collection[int]) -> str:
        names = {
            number: name for task in self.tasks for number, name in zip(task.classes, task.class_names, strict=True)
        }
        return ", ".join(names.get(number, f"class {number}") for number in classes)

    def diagnostics(self) -> dict[str, Any]:
        """Plain values worth recording after each task."""
        return {}

    def classifier(self) -> Classifier | None:
        """The linear map that turns features of the merged encoder into logits (for export), or None where there is
        none."""
        return None

    def structure(self) -> dict[str, Any]:
        """Plain values, beside the tasks, that the shape of the state depends on, and what else a method counts in a
        task."""
        return {}

    def restore_structure(self, structure: Mapping[str, Any]) -> None:
        """Takes the shape of the state from which `structure` was taken; the method has been grown for its tasks.

        What it takes, `structure` must then give back. It comes from a file: a method whose structure says how large
        its tensors are looks at that first.

        Raises:
            ValueError: a structure that no state of the method has.
        """

    def own_state(self) -> dict[str, Tensor]:
        """The tensors a checkpoint holds: everything but a frozen encoder and what is dropped."""
        out = (*self.dropped, *(() if self.trains_encoder else ("encoder",)))
        return {key: value for key, value in self.state_dict().items() if key.partition(".")[0] not in out}

    def load_own_state(self, state: Mapping[str, Tensor]) -> None:
        """Copies a checkpoint's tensors in. The method must have been grown for the checkpoint's tasks.

        Raises:
            CheckpointError: everything in `misfits_of`; nothing has been copied then.
        """
        _copy_in(self, self.own_state(), state)

    def needed_to_learn_on(self) -> tuple[str, ...]:
        """Names of large tensors of `own_state` that predictions do not need, but learning on does (sums over all that
        was learned, say). They change with every task, so that runs keep those of the newest task alone unless
        asked."""
        return ()

    def running_state(self) -> dict[str, Tensor]:
        """The tensors that a task under way has: those of `own_state`, what is dropped at its end, and buffers that no
        checkpoint holds."""
        tensors = itertools.chain(self.named_parameters(), self.named_buffers())
        return {key: value for key, value in tensors if self.trains_encoder or key.partition(".")[0] != "encoder"}

    def load_running_state(self, state: Mapping[str, Tensor]) -> None:
        """Copies the tensors of a task under way in. The method must have been grown for that task, too.

        Raises:
            CheckpointError: as `load_own_state`.
        """
        _copy_in(self, self.running_state(), state)


@runtime_checkable
class Remembering(Protocol):
    """A module that remembers classes, and can take them out again."""

    def unforgettable(self, classes: Collection[int], parts: Parts) -> Iterator[tuple[int, str]]:
        """Each of `classes` that cannot be taken out, with the reason."""
        ...

    def forget(self, classes: Collection[int], parts: Parts) -> None:
        """Takes classes out, as if no sample of theirs had been added, as far as it can; `parts` are those of this
        module.

        Raises:
            LoricaError: everything in `unforgettable`.
        """
        ...


class Summing(Protocol):
    """A module of sums over samples of classes, which can take up those of another one of its kind."""

    def contains(self, earlier: Any) -> bool:
        """Whether it can be the earlier one with samples added."""
        ...

    def join(self, other: Any, common: Any, places: Sequence[int]) -> None:
        """Takes up what another one has added, see `lorica.statistics.Discriminant.join`."""
        ...


@runtime_checkable
class Completing(Protocol):
    """A module with tensors that states of earlier versions do not have, and which follow from those that these
    have."""

    def completed(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Such tensors of its own, computed from those in `state`, whose types have not been looked at."""
        ...


@runtime_checkable
class Particular(Protocol):
    """A module, or a method, that knows more of its tensors than their types: those that count or number something."""

    def faults(self, state: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
        """The name of each of its own tensors in `state` whose values cannot be, and why; types have been looked at."""
        ...


def misfits_of(method: Method, own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, str]:
    """What keeps the tensors of a checkpoint from being a method's own, by name: one that is missing or left over, of
    another dtype or shape, not finite, or with values that its module refuses (`Particular`). What its module completes
    (`Completing`) is not missing."""
    state = _completed(method, own, state)
    wrong = dict.fromkeys(own.keys() - state.keys(), "is missing")
    wrong |= dict.fromkeys(state.keys() - own.keys(), "is unknown")
    for key in own.keys() & state.keys():
        given, expected = state[key], own[key]
        if given.dtype != expected.dtype:
            wrong[key] = f"has dtype {_name(given)}, expected {_name(expected)}"
        elif given.shape != expected.shape:
            wrong[key] = f"has shape {tuple(given.shape)}, expected {tuple(expected.shape)}"
        elif not_finite := number_not_finite(given):
            wrong[key] = f"has {not_finite} of {given.numel()} numbers that are not finite, expected none"
    for place, module in method.named_modules():
        if isinstance(module, Particular):
            prefix = f"{place}." if place else ""
            inside = {key.removeprefix(prefix): state[key] for key in own if key.startswith(prefix) and key in state}
            sound = {key: tensor for key, tensor in inside.items() if prefix + key not in wrong}
            wrong |= {prefix + key: why for key, why in module.faults(sound)}
    return dict(sorted(wrong.items()))


def _completed(method: Method, own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The state, with what an earlier version did not put there."""
    missing = own.keys() - state.keys()
    for place, module in method.named_modules() if missing else ():
        if isinstance(module, Completing):
            prefix = f"{place}." if place else ""
            inside = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
            made = {prefix + key: tensor for key, tensor in module.completed(inside).items()}
            state = {**state, **{key: tensor for key, tensor in made.items() if key in missing}}
    return state


def number_not_finite(tensor: Tensor) -> int:
    """How many of its numbers are NaN or infinite."""
    return tensor.numel() - int(tensor.isfinite().sum())


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _copy_in(method: Method, own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    if wrong := misfits_of(method, own, state):
        raise CheckpointError([f"{key:.200} {why}" for key, why in wrong.items()])
    state = _completed(method, own, state)
    with torch.no_grad():
        for key, tensor in own.items():
            tensor.copy_(state[key])


def lone_classes(tasks: Sequence[Task], remedy: str) -> Iterator[str]:
    """What `misfits` says of tasks with a single class, whose loss over their own logits is always 0."""
    alone = [task for task in tasks if len(task.classes) == 1]
    if alone:
        yield (
            f"method.cross_entropy: task {alone[0].index + 1} has a single class, and a loss over its own logits "
            f"alone is always 0; use {remedy}"
        )


def only_old_classes(tasks: Sequence[Task], why: str) -> Iterator[str]:
    """What `misfits` says of tasks without a new class."""
    old = [task for task in tasks if not task.new_classes]
    if old:
        yield (
            f"stream: task {old[0].index + 1} has no new class, and {why}; use a method that takes more of old classes"
        )


def known_again(task: Task, remembered: Bool[Tensor, " classes"]) -> Iterator[str]:
    """What `cannot_freeze` says of a task with classes that are remembered, or where nothing is."""
    if not remembered.any():
        yield "nothing has been learned whose scores could stay"
    known = {number for number, yes in enumerate(remembered.tolist()) if yes}
    if again := [name for number, name in zip(task.classes, task.class_names, strict=True) if number in known]:
        yield (
            f"{', '.join(again)}: learned already, and more samples of a class move its scores; give new classes alone"
        )


def places_among(given: Any, tasks: int, key: str) -> list[int]:
    """The tasks (from 0, ascending) that a method's structure names under that key. ValueError: it names none of
    `tasks`."""
    fits = isinstance(given, list) and all(type(each) is int for each in given)
    if not fits or not set(given) <= set(range(tasks)) or sorted(set(given)) != given:
        raise ValueError(f"{key} is {given!r:.60}, expected different tasks from 0 to {tasks - 1}, ascending")
    return given.copy()


def shapes_of(method: Method, parameters: list[nn.Parameter]) -> dict[str, torch.Size]:
    """Names and shapes of some of a method's parameters."""
    wanted = {id(parameter) for parameter in parameters}
    return {name: each.shape for name, each in method.named_parameters() if id(each) in wanted}
