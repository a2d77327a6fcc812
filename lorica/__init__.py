"""lorica: class-incremental learning with pre-trained transformers by low-rank adaptation, without keeping old
samples."""

from typing import TYPE_CHECKING

from lorica.lazy import lazily

if TYPE_CHECKING:
    from lorica.config import Recipe, read_recipe
    from lorica.data.sources import Source, arrays, image_folder, texts
    from lorica.errors import LoricaError
    from lorica.learner import Learner, Version, load
    from lorica.methods import Method, MethodConfig
    from lorica.predictor import Answer, Predictor
    from lorica.results import Result
    from lorica.run import check, run

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "Learner",
    "LoricaError",
    "Method",
    "MethodConfig",
    "Predictor",
    "Recipe",
    "Result",
    "Source",
    "Version",
    "arrays",
    "check",
    "image_folder",
    "load",
    "read_recipe",
    "run",
    "texts",
]

lazily(
    __name__,
    {
        "lorica.config": ["Recipe", "read_recipe"],
        "lorica.data.sources": ["Source", "arrays", "image_folder", "texts"],
        "lorica.errors": ["LoricaError"],
        "lorica.learner": ["Learner", "Version", "load"],
        "lorica.methods": ["Method", "MethodConfig"],
        "lorica.predictor": ["Answer", "Predictor"],
        "lorica.results": ["Result"],
        "lorica.run": ["check", "run"],
    },
)
