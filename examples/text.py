"""Learns what requests are about, two intents at a time: `python examples/text.py ENCODER [FOLDER]` (needs
lorica[text]).

ENCODER is a folder of an encoder as transformers saves it (config.json, model.safetensors, tokenizer.json):
all-MiniLM-L6-v2, say.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import lorica

OPENINGS = (
    "please",
    "can you",
    "i want to",
    "how do i",
    "could somebody",
    "help me to",
    "tell me how to",
    "today i have to",
)
INTENTS = {
    "balance": ("check my balance", "see what is left on my account", "know how much money i have"),
    "transfer": ("send money to my sister", "make a transfer to savings", "pay my rent from checking"),
    "flight": ("book a flight to rome", "find a plane ticket for friday", "fly to berlin next week"),
    "weather": ("know if it will rain", "see the forecast for tomorrow", "hear how cold it gets tonight"),
}


def requests(openings: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Texts that begin in these ways, and what each is about."""
    pairs = [(f"{opening} {what}", name) for name, whats in INTENTS.items() for what in whats for opening in openings]
    texts, labels = zip(*pairs, strict=True)
    return list(texts), list(labels)


def main(encoder: Path, folder: Path) -> None:
    """Two tasks of two intents, and a request of each that begins as none in training does."""
    source = lorica.texts(requests(OPENINGS[:6]), requests(OPENINGS[6:]))
    recipe = {
        "method": {"name": "rolda"},
        "backbone": {"name": "hf:encoder", "weights": str(encoder)},
        "stream": {"tasks": 2},
        "fit": {"epochs": 1, "batch_size": 12, "learning_rate": 0.002},
    }
    result = lorica.run(recipe, source=source, out=folder / "run", resume=True)
    print(f"of four intents, {100 * result.acc:.0f} % right")
    asked = ["i need to check my balance", "i need to fly to berlin"]
    print(dict(zip(asked, lorica.load(folder / "run").predict(asked), strict=True)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else tempfile.mkdtemp()))
