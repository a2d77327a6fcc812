"""Learns everyday requests, four intents at a time, on the embedded text encoder, offline: `python examples/text.py
[FOLDER] [ENCODER]` (needs lorica[text]).

ENCODER is a folder of another encoder as transformers saves it (config.json, model.safetensors, tokenizer.json):
all-MiniLM-L6-v2, say. Texts of one's own are `data.source: table`, or `lorica.texts` in place of the source.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import lorica

ASKED = ("could you send a plumber, the sink is dripping", "please put the meeting off until friday")


def main(folder: Path, encoder: Path | None = None) -> None:
    """800 requests of 20 intents in five tasks, and two requests that are in none of them."""
    recipe = {
        "method": {"name": "rolda"},
        "data": {"source": "requests"},
        "stream": {"tasks": 5},
        "fit": {"epochs": 2, "batch_size": 32},
    }
    if encoder is not None:
        recipe["backbone"] = {"name": "hf:encoder", "weights": str(encoder)}
    result = lorica.run(recipe, out=folder / "run", resume=True)
    print(f"of twenty intents, {100 * result.acc:.0f} % right")
    print(dict(zip(ASKED, lorica.load(folder / "run").predict(list(ASKED)), strict=True)))


if __name__ == "__main__":
    main(
        Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()),
        Path(sys.argv[2]) if len(sys.argv) > 2 else None,
    )
