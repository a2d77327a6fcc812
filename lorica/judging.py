"""What a model knows of images, or texts, it no longer has, and whether a change made it worse.

Album     digests of all images that were learned, so that none is learned twice; and the few that were set aside
Jury      images with their classes, by which a method is judged
Moved     what became of predictions of old classes
Allowed   how much of that somebody allows
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int32, UInt8
from torch import Tensor

from lorica.checkpoint import Checkpoints
from lorica.data.ahead import by_threads
from lorica.data.samples import Samples
from lorica.data.sources.base import likeness
from lorica.errors import DataError, LoricaError, RegressionError
from lorica.evaluation import require_numbers
from lorica.journal import line_of_descent
from lorica.methods.base import Method
from lorica.parts import additions_in, packed, without
from lorica.progress import Reporter, Silent
from lorica.types import Inputs, Task, Tokens

DIGEST = 16
"""Bytes by which an image is known."""

_BATCH = 256

Kept: TypeAlias = UInt8[Tensor, "n 3 s s"] | Int32[Tensor, "n length"]
"""Inputs as they are set aside: images of bytes, or the ids of tokens and -1 after a text's last."""


def kept_form(inputs: Inputs) -> Kept:
    """Inputs as they are set aside."""
    if isinstance(inputs, Tokens):
        return inputs.ids.masked_fill(~inputs.mask, -1).int()
    return cast(Tensor, inputs).mul(255).round().to(torch.uint8)


def inputs_of(kept: Kept) -> Inputs:
    """What was set aside, as an encoder reads it."""
    if kept.dtype == torch.int32:
        return Tokens(kept.clamp_min(0).long(), kept >= 0)
    return kept.float() / 255


def _together(several: Sequence[Tensor]) -> Tensor:
    """What was set aside at several times, in one tensor, as wide as the longest text needs."""
    width = max(each.shape[1] for each in several)
    return torch.cat(
        [F.pad(each, (0, width - each.shape[1]), value=-1) if each.ndim == 2 else each for each in several]
    )


class Unseen(NamedTuple):
    """Of samples that have come, those that a model has not learned yet.

    Attributes:
        places: of them among all that have come, each once.
        digests: of their names and contents.
        elsewhere: how many of them were learned as another class.
        copies: how many are there besides that are copies of one of them.
    """

    places: Int[Tensor, " m"]
    digests: UInt8[Tensor, "m 16"]
    elsewhere: int
    copies: int


class Album:
    """Classes and images that the present version of a model knows.

    Attributes:
        names: of the classes, by their numbers.
        forgotten: numbers of those that are not predicted any more.
        hidden: those of them that are still in sums and means.
        traces: what the model still has of classes that were forgotten.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints, self._lines = checkpoints, checkpoints.lines
        self._path = path = line_of_descent(self._lines, len(self._lines))
        self._there = [number for number in path if number > checkpoints.purged]  # of which there are files
        self.names = checkpoints.class_names
        self.forgotten = forgotten_after(checkpoints, len(self._lines))
        took = {gone: self._lines[number - 1] for number in path for gone in self._lines[number - 1].forgotten}
        notes = {gone: line.change.note for gone, line in took.items() if line.change and gone in self.forgotten}
        self.hidden = {gone for gone, note in notes.items() if note.get("hidden")}
        self.traces = list(dict.fromkeys(trace for note in notes.values() for trace in note.get("remarks", ())))
        self._numbers = {likeness(name): number for number, name in enumerate(self.names)}
        self._forgotten_by: dict[
            int, set[int]
        ] = {}  # a line's number: classes that later ones took out of what it added
        self._known: dict[bytes, set[int]] = {}  # of which classes an image was learned
        self._kept: list[tuple[Tensor, Tensor]] = []
        for number in self._there:
            line = self._lines[number - 1]
            hides = line.change and line.change.note.get("hidden")
            for gone in line.forgotten:
                self._kept = [(images[labels != gone], labels[labels != gone]) for images, labels in self._kept]
                if hides:  # its images are in the sums, where they must not count twice, and can be taken out
                    continue
                self._known = {digest: labels - {gone} for digest, labels in self._known.items() if labels != {gone}}
                for earlier in self._there[: self._there.index(number)]:
                    self._forgotten_by.setdefault(earlier, set()).add(gone)
            if line.images is not None:
                found = checkpoints.tensors(line.images)
                for digest, label in zip(found["digests"].numpy(), found["digest_labels"].tolist(), strict=True):
                    self._known.setdefault(bytes(digest), set()).add(label)
                if "kept" in found:
                    self._kept.append((found["kept"], found["kept_labels"]))

    @property
    def frozen(self) -> int:
        """How many of the latest tasks were learned frozen."""
        learned = [line for number in self._path if (line := self._lines[number - 1]).tasks]
        notes = [line.change.note if line.change else {} for line in reversed(learned)]
        return next((place for place, note in enumerate(notes) if not note.get("frozen")), len(notes))

    @property
    def live(self) -> list[int]:
        """Numbers of the classes that are predicted."""
        return [number for number in range(len(self.names)) if number not in self.forgotten]

    def number_of(self, name: str) -> int | None:
        """Of a class that is known by this name, or by one that looks the same."""
        return self._numbers.get(likeness(name))

    def parts(self, since: int = 0) -> list[Mapping[str, Tensor]]:
        """What was kept to forget by of each task after that version, without classes that were forgotten since."""
        kept = []
        for number in self._there:
            saved = self._lines[number - 1].parts
            if saved is not None and number > since:
                found = without(self._checkpoints.tensors(saved), self._forgotten_by.get(number, set()))
                kept += additions_in(found)
        return kept

    def remains(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """All that is known of the images, and all that was kept to forget by, as one version would have it."""
        images, labels = self.kept()
        known: dict[str, Tensor] = {} if images is None else {"kept": images, "kept_labels": labels}
        if self._known:
            pairs = [(digest, label) for digest, labels in self._known.items() for label in sorted(labels)]
            digests = np.frombuffer(b"".join(digest for digest, _ in pairs), np.uint8).reshape(-1, DIGEST).copy()
            known |= {
                "digests": torch.from_numpy(digests),
                "digest_labels": torch.tensor([label for _, label in pairs]),
            }
        return known, packed(self.parts())

    def version_in_common(self, other: Album) -> int:
        """The last one that both present versions come of; 0 where there is none."""
        same = self._checkpoints.lines_in_common(other._checkpoints)
        pairs = zip(self._path, other._path, strict=False)
        return max((one for one, another in pairs if one == another <= same), default=0)

    def has_forgotten(self, since: int) -> bool:
        """Whether classes are not predicted any more, or sums that came from that version have lost samples."""
        return bool(self.forgotten) or any(
            self._lines[number - 1].forgotten for number in self._path if number > since > 0
        )

    def since(self, number: int, places: Sequence[int]) -> dict[str, Tensor]:
        """What is known of the images of the versions after that one, for another album.

        Args:
            places: the number there of each class.
        """
        pieces: dict[str, list[Tensor]] = {}
        for each in self._there:
            saved = self._lines[each - 1].images
            if each <= number or saved is None:
                continue
            found = self._checkpoints.tensors(saved)
            gone = torch.tensor(sorted(self._forgotten_by.get(each, ())), dtype=torch.long)
            for name, labels in (("digests", "digest_labels"), ("kept", "kept_labels")):
                if name in found:
                    stay = ~torch.isin(found[labels], gone)
                    pieces.setdefault(name, []).append(found[name][stay])
                    pieces.setdefault(labels, []).append(torch.tensor(places)[found[labels][stay]])
        return {name: (_together if name == "kept" else torch.cat)(several) for name, several in pieces.items()}

    def known_already(self, known: Mapping[str, Tensor]) -> int:
        """How many images of another album (`since`) are known here as of the same class."""
        pairs = zip(map(bytes, known["digests"].numpy()), known["digest_labels"].tolist(), strict=True)
        return sum(label in self._known.get(digest, ()) for digest, label in pairs)

    def task_of(self, names: Sequence[str], index: int) -> Task:
        """Classes of these names as the next task; those that are not known get the next numbers, in their order."""
        numbered: dict[int, str] = {}
        new = []
        for name in names:
            number = self.number_of(name)
            if number is None:
                number = len(self.names) + len(new)
                new.append(number)
            numbered[number] = name if number >= len(self.names) else self.names[number]
        ordered = sorted(numbered)
        return Task(index, tuple(ordered), tuple(new), tuple(numbered[number] for number in ordered))

    def kept(self) -> tuple[Kept | None, Int[Tensor, " n"]]:
        """The images that were set aside, in the order in which they came, and the numbers of their classes."""
        if not self._kept:
            return None, torch.zeros(0, dtype=torch.long)
        images, labels = zip(*self._kept, strict=True)
        return _together(images), torch.cat(labels)

    def to_set_aside(self, labels: Int[Tensor, " n"], keep: int, seed: int) -> Bool[Tensor, " n"]:
        """Which of these images to set aside: of each class what `keep` still lacks, and a fifth of them at most."""
        have = Counter(self.kept()[1].tolist())
        aside = torch.zeros(len(labels), dtype=torch.bool)
        for label in labels.unique().tolist():
            members = (labels == label).nonzero().flatten().numpy()
            number = min(max(0, keep - have[label]), len(members) // 5)
            aside[torch.from_numpy(np.random.RandomState(seed).permutation(members)[:number])] = True
        return aside

    def unseen(
        self,
        samples: Samples,
        numbers: Sequence[int | None],
        reporter: Reporter | None = None,
        *,
        things: str = "images",
    ) -> Unseen:
        """Which samples have not been learned yet, by name and contents.

        Args:
            numbers: of the classes that the samples' labels stand for, None where it is not known.
            things: what the samples are called.

        Raises:
            DataError: samples that cannot be read; or one that is there twice under unlike classes.
        """
        shown = reporter or Silent()
        shown.stage(f"looking which {things} are new", len(samples))

        def digest(index: int) -> bytes | str:
            try:
                return samples.digest(index)[:DIGEST]
            except OSError as error:
                return f"{samples.describe(index)}: cannot be read: {error.strerror or error}"

        made = by_threads(digest, range(len(samples)), after_each=shown.step)
        problems = [each for each in made if isinstance(each, str)]
        found = [each for each in made if isinstance(each, bytes)]
        if problems:
            raise DataError(problems)
        first: dict[bytes, int] = {}
        indices, elsewhere, copies = [], 0, 0
        for index, (each, label) in enumerate(zip(found, samples.labels.tolist(), strict=True)):
            twin = first.setdefault(each, index)
            if twin != index and samples.labels[twin] != label:
                problems.append(
                    f"{samples.describe(index)}: the same {things[:-1]} is there as another class, "
                    f"{samples.describe(twin)}; remove one"
                )
            known = self._known.get(each, ())
            if numbers[label] in known:
                continue
            if twin == index:
                indices.append(index)
                elsewhere += bool(known)
            else:
                copies += 1
        if problems:
            raise DataError(problems)
        chosen = [np.frombuffer(found[index], np.uint8) for index in indices]
        digests = torch.from_numpy(np.stack(chosen)) if chosen else torch.zeros(0, DIGEST, dtype=torch.uint8)
        return Unseen(torch.tensor(indices, dtype=torch.long), digests, elsewhere, copies)


def forgotten_after(checkpoints: Checkpoints, number: int) -> set[int]:
    """Numbers of the classes that a version does not predict."""
    gone = set[int]()
    for each in line_of_descent(checkpoints.lines, number):
        line = checkpoints.lines[each - 1]
        gone -= {number for task in line.tasks for number in task.classes}
        gone |= set(line.forgotten)
    return gone


@dataclass(frozen=True)
class Jury:
    """Images with their classes.

    Attributes:
        labels: numbers of their classes.
        fetch: gives the inputs of some of them by their places.
    """

    labels: Int[Tensor, " n"]
    fetch: Callable[[Int[Tensor, " m"]], Inputs]

    @classmethod
    def of_kept(cls, images: Kept | None, labels: Int[Tensor, " n"]) -> Jury:
        """A jury of the images that were set aside."""

        def fetch(places: Int[Tensor, " m"]) -> Inputs:
            assert images is not None
            return inputs_of(images[places])

        return cls(labels, fetch)

    @torch.inference_mode()
    def logits(self, method: Method) -> Float[Tensor, "n classes"]:
        """The logits of all images, over all classes of the method, on the CPU."""
        parts = [
            require_numbers(method.predict(self.fetch(places).to(method.device)), method).float().cpu()
            for places in torch.arange(len(self.labels)).split(_BATCH)
            if len(places)
        ]
        return torch.cat(parts) if parts else torch.zeros(0, 0)


def right(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"], live: Sequence[int]) -> Bool[Tensor, " n"]:
    """Whether the largest logit among the classes that are predicted is that of an image's own class."""
    if not len(labels):
        return torch.zeros(0, dtype=torch.bool)
    numbers = torch.tensor(live)
    return numbers[logits[:, numbers].argmax(dim=1)] == labels


@dataclass(frozen=True)
class Moved:
    """What a change did to the predictions of the images by which classes are judged that were there before.

    Attributes:
        images: how many these are.
        lost, won: of them, right before and wrong after; the other way.
        fell: the classes with fewer right afterwards: number, right before, right after, images.
    """

    images: int
    lost: int
    won: int
    fell: tuple[tuple[int, int, int, int], ...]

    @classmethod
    def between(cls, labels: Int[Tensor, " n"], before: Bool[Tensor, " n"], after: Bool[Tensor, " n"]) -> Moved:
        """Compares what was right of the same images before and after a change, of all of them and class by class."""
        fell = []
        for label in labels.unique().tolist():
            own = labels == label
            one, other = int(before[own].sum()), int(after[own].sum())
            if other < one:
                fell.append((label, one, other, int(own.sum())))
        return cls(len(labels), int((before & ~after).sum()), int((~before & after).sum()), tuple(fell))

    @property
    def drop(self) -> float:
        """The fall of accuracy, in percentage points."""
        return 100 * (self.lost - self.won) / max(1, self.images)


@dataclass(frozen=True)
class Allowed:
    """How much worse old classes may become.

    Attributes:
        drop: of accuracy over all images that judge them, in percentage points; None for any.
        flips: images that were right and become wrong; None for any.
    """

    drop: float | None = None
    flips: int | None = None

    @property
    def asks(self) -> bool:
        """Whether there is any bound."""
        return self.drop is not None or self.flips is not None

    def require(self, moved: Moved, names: Sequence[str], things: str = "images") -> None:
        """RegressionError: more was lost, with the classes that fell; `things` is what was judged."""
        problems = []
        if self.drop is not None and moved.drop > self.drop:
            problems.append(f"max_drop: {self.drop:g} points are allowed, and old classes would lose {moved.drop:.1f}")
        if self.flips is not None and moved.lost > self.flips:
            problems.append(
                f"max_flips: {self.flips} {things} are allowed, and {moved.lost} of {moved.images} would be told wrong "
                "that are told right now"
            )
        if problems:
            fell = [
                f"{names[number]}: {before} of {images} right, then {after}"
                for number, before, after, images in moved.fell[:20]
            ]
            raise RegressionError([*problems, "the model is left as it was", *fell])


def require_bounds(drop: float | None, flips: int | None) -> Allowed:
    """LoricaError: bounds that are no numbers from 0 on."""
    problems = [
        f"{name}: expected a number from 0 on, got {value!r}"
        for name, value in (("max_drop", drop), ("max_flips", flips))
        if value is not None and not (isinstance(value, int | float) and value >= 0)
    ]
    if problems:
        raise LoricaError(problems)
    return Allowed(drop, flips)
