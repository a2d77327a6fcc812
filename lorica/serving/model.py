"""What serving asks of a model; any object that has it can be served."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Protocol, runtime_checkable


@runtime_checkable
class Answer(Protocol):
    """What a model says of one image or text.

    Attributes:
        class_name: of the most probable class.
        probability: of it, between 0 and 1.
        unknown: it is more likely of none of the model's classes.
    """

    @property
    def class_name(self) -> str: ...
    @property
    def probability(self) -> float: ...
    @property
    def unknown(self) -> bool: ...


@runtime_checkable
class Version(Protocol):
    """One change of a model.

    Attributes:
        number: of the version, from 1.
        date: when, ISO 8601.
        kind: learned, rolled back, forgot, joined or purged.
        classes: what it was about.
        images: how many were learned, or texts.
        accuracy: on these classes when it was made, a fraction; None where it was not measured.
        accuracy_now: the same by the model as it is.
    """

    @property
    def number(self) -> int: ...
    @property
    def date(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def classes(self) -> Sequence[str]: ...
    @property
    def images(self) -> int: ...
    @property
    def accuracy(self) -> float | None: ...
    @property
    def accuracy_now(self) -> float | None: ...


@runtime_checkable
class Model(Protocol):
    """What can be served; it is asked from several threads at once."""

    @property
    def class_names(self) -> Sequence[str]:
        """The classes that it can answer."""
        ...

    def classify(self, images: Sequence[BytesIO] | Sequence[str], *, batch_size: int = ...) -> Sequence[Answer]:
        """An answer for each image file, or each text. DataError when one of them cannot be read."""
        ...

    def history(self) -> Sequence[Version]:
        """What has become of it, oldest first."""
        ...
