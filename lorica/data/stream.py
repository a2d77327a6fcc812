"""A source's classes as a stream of tasks: class order, label map, training/validation/test splits, and batches.

A class is renumbered by its position in the stream's class order. Each image is decoded once and kept as bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from lorica.data.samples import WORKERS, Samples
from lorica.data.sources import Source, split_per_class
from lorica.data.transforms import augment as augmented
from lorica.data.transforms import centre_crop, fit_square
from lorica.errors import DataError
from lorica.randomness import Draws
from lorica.types import Batch, Task


class ImageCache:
    """Samples as uint8 squares of `size` pixels, decoded by threads on first use and kept while `budget` bytes last.

    What comes after that is decoded at every use: nothing is evicted, so cyclic reading does not thrash.
    """

    def __init__(self, samples: Samples, size: int, budget: int) -> None:
        self._samples = samples
        self._size = size
        capacity = min(len(samples), budget // (3 * size * size))
        self._store = torch.empty(capacity, 3, size, size, dtype=torch.uint8)  # the system gives the pages when written
        self._slots = torch.full((len(samples),), -1)
        self._used = 0

    def fetch(self, indices: Int[Tensor, " n"]) -> UInt8[Tensor, "n 3 s s"]:
        """The images of these sample numbers. DataError naming all of them that cannot be read."""
        slots = self._slots[indices]
        if (slots >= 0).all():
            return self._store[slots]
        images = torch.empty(len(indices), 3, self._size, self._size, dtype=torch.uint8)
        images[slots >= 0] = self._store[slots[slots >= 0]]
        absent = (slots < 0).nonzero().flatten().tolist()
        with ThreadPoolExecutor(WORKERS) as pool:
            decoded = [pool.submit(self._decode, int(indices[position])) for position in absent]
        problems: list[str] = []
        for position, image in zip(absent, decoded, strict=True):
            try:
                images[position] = image.result()
            except DataError as error:
                problems += error.problems
                continue
            if self._used < len(self._store):
                self._store[self._used] = images[position]
                self._slots[indices[position]] = self._used
                self._used += 1
        if problems:
            raise DataError(problems)
        return images

    def _decode(self, index: int) -> UInt8[Tensor, "3 s s"]:
        return torch.from_numpy(fit_square(self._samples.decode(index), self._size))


class Split:
    """Samples of one or more tasks. `labels`: classes in stream order; `indices`: numbers in the source's samples."""

    def __init__(
        self, cache: ImageCache, indices: Int[Tensor, " n"], labels: Int[Tensor, " n"], image_size: int
    ) -> None:
        self._cache = cache
        self._image_size = image_size
        self.indices = indices
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def number_of_batches(self, batch_size: int) -> int:
        """Batches in one pass, a smaller last one included."""
        return -(-len(self) // batch_size)

    def batches(
        self,
        batch_size: int,
        *,
        device: torch.device,
        augment: str = "none",
        draws: Draws | None = None,
        first: int = 0,
    ) -> Iterator[Batch]:
        """One pass from batch number `first` on: float32 inputs in [0, 1], the last batch maybe smaller.

        With `draws` it is in random order and augmented, else in order and not augmented.
        """
        if draws is None and augment != "none":
            raise ValueError(f"augment={augment!r} needs draws")
        order = (
            torch.arange(len(self)) if draws is None else torch.randperm(len(self), generator=draws.generator("order"))
        )
        for step in range(first, self.number_of_batches(batch_size)):
            chosen = order[step * batch_size : (step + 1) * batch_size]
            images = self._cache.fetch(self.indices[chosen]).to(device).float().div_(255)
            if draws is None:
                images = centre_crop(images, self._image_size)
            else:
                generator = draws.at(step=step).generator("augmentation")
                images = augmented(images, augment, self._image_size, generator)
            yield Batch(images, self.labels[chosen].to(device))


class Stream:
    """The classes of a source in a fixed order, arriving in groups; give either `tasks` or `classes_per_task`.

    `tasks=T`: T groups as even as possible, the larger ones first. `classes_per_task`: a number (the last group may be
    smaller), or one number per task. `seed` orders the classes by RandomState(seed).permutation; None keeps the
    source's order. `validation_fraction` of each class's training images is held out by a seed of its own. Images are
    decoded to squares of round(image_size / crop_pct) pixels, of which the centre `image_size` are used unless an
    augmentation crops. The cache is divided between training and test images by their number. DataError for a
    division into tasks that is impossible, or that leaves a task without test or validation images.
    """

    def __init__(
        self,
        source: Source,
        *,
        tasks: int | None = None,
        classes_per_task: int | Sequence[int] | None = None,
        seed: int | None = 1993,
        image_size: int,
        crop_pct: float = 1.0,
        validation_fraction: float = 0.0,
        validation_seed: int = 0,
        cache_bytes: int = 2**31,
    ) -> None:
        number = len(source.class_names)
        sizes = _task_sizes(number, tasks, classes_per_task)
        if not 0 < crop_pct <= 1:
            raise DataError(f"data.crop_pct: expected more than 0 and at most 1, got {crop_pct}")
        if not 0 <= validation_fraction < 1:
            raise DataError(f"data.validation_fraction: expected at least 0 and less than 1, got {validation_fraction}")
        order = np.arange(number) if seed is None else np.random.RandomState(seed).permutation(number)
        self.source = source
        self.class_order: tuple[int, ...] = tuple(order.tolist())
        self.class_names: tuple[str, ...] = tuple(source.class_names[name] for name in self.class_order)
        stops = accumulate(sizes)
        self.tasks: tuple[Task, ...] = tuple(
            Task.of_new_classes(index, stop - size, self.class_names[stop - size : stop])
            for index, (size, stop) in enumerate(zip(sizes, stops, strict=True))
        )

        position = np.argsort(order)  # class number in the source -> in the stream
        self._train_labels = torch.from_numpy(position[source.train.labels])
        self._test_labels = torch.from_numpy(position[source.test.labels])
        kept, held = np.arange(len(source.train)), np.arange(0)
        if validation_fraction > 0:
            kept, held = split_per_class(source.train.labels, validation_fraction, validation_seed)
        self._kept, self._held = torch.from_numpy(kept), torch.from_numpy(held)
        self._require_images("test", self._test_labels)
        if validation_fraction > 0:
            self._require_images("validation", self._train_labels[self._held])
        self._image_size = image_size
        canvas = round(image_size / crop_pct)
        train_share = len(source.train) / max(1, len(source.train) + len(source.test))
        train_bytes = int(cache_bytes * train_share)
        self._train_cache = ImageCache(source.train, canvas, train_bytes)
        self._test_cache = ImageCache(source.test, canvas, cache_bytes - train_bytes)

    def train(self, task: Task) -> Split:
        """The training images of a task, without those held out for validation."""
        return self._split(self._train_cache, self._kept, self._train_labels, task)

    def validation(self, task: Task) -> Split:
        """The training images of a task that were held out; empty when `validation_fraction` is 0."""
        return self._split(self._train_cache, self._held, self._train_labels, task)

    def test(self, task: Task) -> Split:
        """The test images of a task."""
        return self._split(self._test_cache, torch.arange(len(self._test_labels)), self._test_labels, task)

    def train_all(self) -> Split:
        """The training images of all tasks, without those held out: for joint training."""
        return Split(self._train_cache, self._kept, self._train_labels[self._kept], self._image_size)

    def _require_images(self, use: str, labels: Int[Tensor, " n"]) -> None:
        present = set(labels.tolist())
        problems = [
            f"stream.tasks: task {task.index + 1} ({', '.join(task.class_names)}) has no {use} images"
            for task in self.tasks
            if present.isdisjoint(task.classes)
        ]
        if problems:
            raise DataError(problems)

    def _split(self, cache: ImageCache, indices: Int[Tensor, " m"], labels: Int[Tensor, " n"], task: Task) -> Split:
        of_task = torch.isin(labels[indices], torch.tensor(task.classes))
        return Split(cache, indices[of_task], labels[indices[of_task]], self._image_size)


def _task_sizes(classes: int, tasks: int | None, classes_per_task: int | Sequence[int] | None) -> list[int]:
    """Classes in each task."""
    if (tasks is None) == (classes_per_task is None):
        given = "neither" if tasks is None else "both"
        raise DataError(f"stream.tasks: expected either stream.tasks or stream.classes_per_task, {given} given")
    if tasks is not None:
        if not 1 <= tasks <= classes:
            raise DataError(f"stream.tasks: expected 1 to {classes}, the number of classes; got {tasks}")
        return [classes // tasks + (index < classes % tasks) for index in range(tasks)]
    if isinstance(classes_per_task, int):
        if not 1 <= classes_per_task <= classes:
            raise DataError(
                f"stream.classes_per_task: expected 1 to {classes}, the number of classes; got {classes_per_task}"
            )
        return [min(classes_per_task, classes - start) for start in range(0, classes, classes_per_task)]
    sizes = list(classes_per_task or ())
    if any(size < 1 for size in sizes):
        raise DataError(f"stream.classes_per_task: expected at least 1 class in every task, got {sizes}")
    if sum(sizes) != classes:
        raise DataError(f"stream.classes_per_task: {sizes} sums to {sum(sizes)}, but there are {classes} classes")
    return sizes
