"""A run whose process ended within a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lorica.descent import Descent
from lorica.run import run
from lorica.session import Session


class StoppedHere(Exception):
    """Stands for the end of a process."""


def stopped_in(folder: Path, recipe: dict[str, Any]) -> Path:
    """A run whose process ended within its second task, after a snapshot."""
    between = Session._between_steps

    def stopping(session: Session, descent: Descent) -> None:
        session.snapshot_seconds = 1e-9
        between(session, descent)
        if (descent.draws.task, descent.taken) == (1, 1):
            raise StoppedHere

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "_between_steps", stopping)
        with pytest.raises(StoppedHere):
            run(recipe, out=folder, progress=False)
    assert (folder / "snapshot.safetensors").exists()
    return folder
