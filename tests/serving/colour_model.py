"""A model without a network: it knows colours by their mean, and takes grey for none of them."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from lorica.data.decoding import Decoding

COLOURS = {"red": (220, 20, 20), "green": (20, 220, 20), "blue <b>": (20, 20, 220)}


@dataclass
class FakeAnswer:
    class_name: str
    probability: float
    unknown: bool


@dataclass
class FakeVersion:
    number: int
    date: str
    kind: str
    classes: tuple[str, ...]
    images: int
    accuracy: float | None
    accuracy_now: float | None


@dataclass
class ColourModel:
    """`before` is called in every `classify`, in the thread that it runs in."""

    class_names: tuple[str, ...] = tuple(COLOURS)
    before: Callable[[], object] = lambda: None
    calls: list[int] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)

    def classify(self, images: Sequence[io.BytesIO], *, batch_size: int = 256) -> list[FakeAnswer]:
        self.calls.append(len(images))
        self.threads.add(threading.get_ident())
        self.before()
        answers = []
        for image in images:
            mean = Decoding(max_megapixels=1.0).read(image).mean(axis=(0, 1))
            distances = np.linalg.norm(np.array(list(COLOURS.values())) - mean, axis=1)
            shares = np.exp(-distances / 30) / np.exp(-distances / 30).sum()
            answers.append(FakeAnswer(list(COLOURS)[shares.argmax()], float(shares.max()), bool(np.ptp(mean) < 10)))
        return answers

    def history(self) -> list[FakeVersion]:
        return [
            FakeVersion(1, "2026-03-02T09:30:00+01:00", "learned", ("red", "green"), 120, 0.975, 0.95),
            FakeVersion(2, "2026-05-17T16:00:00+02:00", "learned", ("blue <b>",), 60, 1.0, 1.0),
            FakeVersion(3, "2026-05-18T08:15:00+02:00", "rolled back", (), 0, None, None),
        ]


def picture(colour: Sequence[int] = (220, 20, 20), form: str = "PNG", size: tuple[int, int] = (40, 30)) -> bytes:
    """An image file of one colour."""
    file = io.BytesIO()
    Image.new("RGB", size, tuple(colour)).save(file, form)
    return file.getvalue()


def noise(kilobytes: int) -> bytes:
    """A file of about that size which is an image."""
    side = int((kilobytes * 1000 / 3) ** 0.5)
    file = io.BytesIO()
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (side, side, 3), np.uint8)).save(file, "BMP")
    return file.getvalue()
