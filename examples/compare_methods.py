"""Compares three methods on the embedded digits and backbone, and prints the table: `python examples/compare_methods.py
[FOLDER]`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import lorica
from lorica.report import summarise, to_markdown

METHODS = ("sd_lora", "lora", "prototypes")


def main(folder: Path) -> None:
    """Two seeds of each, one epoch a task; runs that are there already are taken as they are."""
    results = [
        lorica.run(
            "digits", method={"name": name}, seed=seed, fit={"epochs": 1}, out=folder / f"{name}-{seed}", resume=True
        )
        for seed in (0, 1)
        for name in METHODS
    ]
    print(to_markdown(summarise(results, sort="acc")))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()))
