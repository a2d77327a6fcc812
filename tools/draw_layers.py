"""Draws the floors of the house, as import-linter keeps them, into docs/figures/layers.svg: `python
tools/draw_layers.py`."""

from __future__ import annotations

import tomllib
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).parents[1]
WIDTH, ROW, GAP, PADDING = 860, 30, 6, 10


def drawn() -> str:
    """The picture."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    floors = [[room.strip() for room in floor.split("|")] for floor in contracts[0]["layers"]]
    height = len(floors) * (ROW + GAP) + 2 * PADDING
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="12" role="img">',
        "<title>The floors of lorica: a module imports from the lines below its own only</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    for number, rooms in enumerate(floors):
        top, share = PADDING + number * (ROW + GAP), sum(len(room) + 4 for room in rooms)
        left = float(PADDING)
        for room in rooms:
            wide = (WIDTH - 2 * PADDING - GAP * (len(rooms) - 1)) * (len(room) + 4) / share
            parts.append(
                f'<rect x="{left:.1f}" y="{top}" width="{wide:.1f}" height="{ROW}" rx="4" '
                'fill="#e8eef7" stroke="#5b7aa8"/>'
                f'<text x="{left + wide / 2:.1f}" y="{top + ROW / 2 + 4}" text-anchor="middle" '
                f'fill="#1b2a41">{escape(room)}</text>'
            )
            left += wide + GAP
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    """Write it."""
    (ROOT / "docs" / "figures" / "layers.svg").write_text(drawn())


if __name__ == "__main__":
    main()
