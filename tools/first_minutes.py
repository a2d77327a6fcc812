"""The first minutes with lorica, by a stopwatch: what is typed, when, and what appears, from a fresh clone on.

    python tools/first_minutes.py PHOTOS WEIGHTS > docs/first_minutes.md

PHOTOS has `train` and `test` with a folder for each class, those of `MAY`, `JUNE` and `OTHER` among them; WEIGHTS are
DeiT-Ti's. Nothing is kept of the clone. What pip says while it fills `.venv` is counted and not shown.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
COLUMNS = 100
MAY, JUNE, OTHER = ("emu", "flamingo", "ibis"), ("pigeon", "rooster"), "anchor"
PHOTOS = 3  # of each class, to be told apart
COMMANDS = (
    "make demo",
    ".venv/bin/lorica --version",
    ".venv/bin/lorica run digits method.name=rolda",
    ".venv/bin/lorica learn birds --data may backbone.name=deit_tiny_patch16_224 backbone.weights=deit.safetensors",
    ".venv/bin/lorica learn birds --data june",
    ".venv/bin/lorica predict birds unsorted",
    ".venv/bin/lorica history birds",
    ".venv/bin/lorica rollback birds --to 1",
    ".venv/bin/lorica rollback birds --to 2",
    ".venv/bin/lorica export birds --to onnx",
)


def main(photos: Path, weights: Path) -> None:
    """Prints the page."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder, "lorica")
        began = time.monotonic()
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        blocks = [stamped(0, "git clone … lorica && cd lorica", [])]
        prepare(clone, photos, weights)
        for command in COMMANDS:
            at = time.monotonic() - began
            print(f"{at:6.0f}  {command}", file=sys.stderr, flush=True)
            blocks.append(stamped(at, command, run(command, clone)))
        took = time.monotonic() - began
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=clone, capture_output=True, text=True)
    machine = f"{os.cpu_count()} cores ({platform.machine()}, no GPU), Python {platform.python_version()}"
    lines = (
        "# The first minutes, by a stopwatch\n",
        "What is typed from a clone on, minutes and seconds since it began, and all that appears but for pip's lines.",
        "Nobody paused to read.",
        f"Photographs are Caltech-101's, 24 of each class ({', '.join(MAY)}; {', '.join(JUNE)}); `unsorted` has "
        "others of them,",
        f"and of an {OTHER}, which the model has never been shown.",
        f"{clock(took)} in all, on {machine}, at commit {commit.stdout.strip()}; the load of all that ran was "
        f"{os.getloadavg()[1]:.1f} at the end.\n",
        "    python tools/first_minutes.py PHOTOS WEIGHTS\n",
        "```",
        *blocks,
        "```",
    )
    print("\n".join(lines))


def prepare(clone: Path, photos: Path, weights: Path) -> None:
    """Puts photographs where the commands look for them."""
    for month, names in (("may", MAY), ("june", JUNE)):
        for name in names:
            shutil.copytree(photos / "train" / name, clone / month / name)
    for name in (*MAY, *JUNE, OTHER):
        for file in sorted((photos / "test" / name).iterdir())[:PHOTOS]:
            (clone / "unsorted").mkdir(exist_ok=True)
            shutil.copy(file, clone / "unsorted" / f"{name}-{file.name}")
    (clone / "deit.safetensors").symlink_to(weights.resolve())


def run(command: str, clone: Path) -> list[str]:
    """Lines that a command prints; that of set-up are counted in place of shown.

    Raises:
        SystemExit: it fails.
    """
    terminal = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        command,
        shell=True,
        cwd=clone,
        env=terminal | {"COLUMNS": str(COLUMNS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{command}\n{done.stdout}")
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    if ".venv/bin/lorica demo" in lines:  # make says so before it begins
        shown = lines.index(".venv/bin/lorica demo")
        began = next(number for number, line in enumerate(lines) if line.startswith("Setting up"))
        hidden = shown - began - 1
        lines = [*lines[: began + 1], f"… {hidden} lines of pip", *lines[shown:]]
    return lines


def stamped(at: float, command: str, lines: list[str]) -> str:
    """A command with the time at which it was typed, and what it printed."""
    return "\n".join([f"[{clock(at)}] $ {command}", *lines, ""])


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02}"


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
