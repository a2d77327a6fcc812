"""What launchers say of this process in its environment. No torch is needed to read it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from lorica.errors import LoricaError

# what launchers set: how many processes there are, and which of them this one is
_SIZES = (
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "OMPI_COMM_WORLD_SIZE",
    "MV2_COMM_WORLD_SIZE",
    "PMI_SIZE",
    "SLURM_STEP_NUM_TASKS",
)
_RANKS = ("RANK", "LOCAL_RANK", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_RANK", "PMI_RANK")
_NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # beside WORLD_SIZE


def launched() -> int:
    """How many processes the launcher of this one has started, as far as they can find each other; 1 for a lone one.

    Raises:
        LoricaError: this is one of several that cannot.
    """
    several = [name for name in _SIZES if os.environ.get(name, "1") not in ("", "0", "1")]
    if not several:
        return 1
    missing = [name for name in ("WORLD_SIZE", *_NEEDED) if not os.environ.get(name)]
    number = os.environ.get("WORLD_SIZE", "")
    if missing or not number.isdigit() or int(number) < 2:
        name = several[0]
        raise LoricaError(
            f"this is one of several processes ({name} is {os.environ[name]!r:.40}) that cannot find each other "
            f"({missing[0] if missing else 'WORLD_SIZE'} says nothing); start them by `torchrun` or `accelerate "
            f"launch`, on each node by one of these alone, or unset {name}"
        )
    return int(number)


def is_main() -> bool:
    """Whether this is the first process of a launcher, or a lone one."""
    return os.environ.get("WORLD_SIZE", "1") in ("", "0", "1") or os.environ.get("RANK", "0") == "0"


def require_alone(what: str) -> None:
    """LoricaError where this is one of several processes."""
    several = [name for name in _SIZES if os.environ.get(name, "1") not in ("", "0", "1")]
    if several:
        raise LoricaError(
            f"this is one of several processes ({several[0]} is {os.environ[several[0]]!r:.40}), and {what}; `lorica "
            "run` alone shares its work; start this without `torchrun`, `accelerate launch`, `mpirun` or `srun`, or "
            f"unset {several[0]}"
        )


_heard = False


def be_heard() -> None:
    """From now on this process tells its errors, whichever it is: it has been chosen among the others."""
    global _heard
    _heard = True


def is_heard() -> bool:
    """Whether an error of the user's is this process's to tell. Before processes have found each other all have the
    same ones, and the first on each node tells."""
    return _heard or os.environ.get("WORLD_SIZE", "1") in ("", "0", "1") or os.environ.get("LOCAL_RANK", "0") == "0"


@contextmanager
def as_a_lone_one() -> Iterator[None]:
    """Hides what launchers leave in the environment: a lone process is an ordinary one, whatever its rank, and what
    `accelerate launch` was told of precision, accumulation and the like is for the recipe to say."""
    told = [name for name in os.environ if name in (*_SIZES, *_RANKS) or name.startswith("ACCELERATE_")]
    hidden = {name: os.environ.pop(name) for name in told}
    try:
        yield
    finally:
        os.environ.update(hidden)
