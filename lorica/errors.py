"""The one family of errors that a user can cause and mend.

A message says where (a dotted recipe path or a file), what was expected, what was given, and what to do. Several
problems found together are raised together: one `LoricaError` with one line a problem. The command line prints these
lines without a traceback and exits with code 2; any other exception is a fault of lorica.
"""

from __future__ import annotations

from collections.abc import Sequence


class LoricaError(Exception):
    """A mistake of the user's, or of the world around the run; `problems` holds one line each."""

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class RecipeError(LoricaError):
    """A recipe that is not valid: unknown key, wrong type, impossible combination."""


class DataError(LoricaError):
    """Data that cannot be used: missing folder, unreadable image, empty class, fewer classes than tasks."""


class BackboneError(LoricaError):
    """A backbone that cannot be built: unknown name, missing weights, no network, no such projection."""


class CheckpointError(LoricaError):
    """A checkpoint that cannot be used: truncated, altered, or of another backbone, method or stream."""


class TrainingError(LoricaError):
    """Training that cannot go on: a loss that is not finite."""


class RegressionError(LoricaError):
    """A change of a model by which more of what it could do would be lost than its owner allows."""
