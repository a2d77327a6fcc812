"""What a recipe can say of every method, and of how its features are read. No torch is needed to say it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

Variants = Mapping[str, Mapping[str, Any]]

Kind = Literal["prototypes", "discriminant", "ridge", "aligned"]
"""What can read features, see `lorica.methods.readout`."""

Drift = Literal["none", "affine"]
"""What becomes there of earlier classes' statistics."""


class MethodConfig(BaseModel):
    """The `method` section of a recipe; a method's own `Config` adds its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str = Field(description="name of the method, or a .py file that defines one")
    sha256: str | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="of the contents of that .py file; a run notes it",
    )
    cross_entropy: Literal["current_task", "all_seen"] = Field(
        default="current_task",
        description="which logits enter the loss: those of the task's own classes, or of all seen so far",
    )

    renamed: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    """Keys with values that earlier versions called otherwise, and what these are called now."""

    by_variant: ClassVar[Variants] = {}
    """For each variant what it decides, by name: keys of this config, where the recipe leaves them out, and what is no
    key."""

    @classmethod
    def as_now(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """The options of an earlier version under today's names."""
        return {
            key: cls.renamed[key].get(value, value) if key in cls.renamed and isinstance(value, str) else value
            for key, value in values.items()
        }

    def of_variant(self) -> dict[str, Any]:
        """What `by_variant` has for this config's variant, with the keys that this config gives in place of it."""
        own = self.by_variant[getattr(self, "variant")]  # noqa: B009 (configs without variants have no such field)
        given = {key: getattr(self, key, None) for key in own}
        return {key: own[key] if given[key] is None else given[key] for key in own}


class LowRankConfig(MethodConfig):
    """What every low-rank method can be told."""

    rank: int = Field(default=10, ge=1, description="rank of a direction")
    projections: tuple[str, ...] = Field(default=("q", "v"), description="projections adapted in every block")
