"""Every method in every variant, at the scale of the tiny backbone."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lorica.data.images import ImageReader
from lorica.data.stream import Stream
from lorica.methods import Method, MethodConfig, find_method, method_names

# keys that a variant has no default for, or whose default is for deeper backbones than the tiny one
OPTIONS = {
    ("inf_lora", "paper"): {"total_tasks": 30},
    ("inf_lora", "released_code"): {"total_tasks": 30},
    "dual_prompt": {"general_blocks": (0,), "blocks": (1,)},
    "hide_prompt": {"alignment_epochs": 2},
    "ran_pac": {"width": 64},
    "rolda": {"enough": 20},  # a task has 24 images
    ("rolda", "always"): {"adapt": "always"},
    ("rolda", "core"): {"adapt": "core"},
    "sd_lora_rr": {"reduced_ranks": (2, 1)},
    ("sd_lora_kd", "absorbing"): {"refit_epochs": 1, "tolerance": 0.9},
}


@pytest.fixture(
    params=[
        *((name, variant) for name in method_names() for variant in find_method(name).variants()),
        ("rolda", "always"),
        ("rolda", "core"),
    ],
    ids=lambda param: "-".join(filter(None, param)),
)
def kind(request: pytest.FixtureRequest):
    """Builds the method of each name and variant around an encoder."""
    return kind_of(*request.param)


def kind_of(name: str, variant: str | None) -> Callable[..., Method]:
    """What builds the method of that name and variant."""

    def build(encoder, **options):
        cls = find_method(name)
        options |= {"variant": variant} if variant in cls.variants() and variant else {}
        options |= OPTIONS.get(name, {}) | OPTIONS.get((name, variant), {})
        options |= {"rank": 2} if "rank" in cls.Config.model_fields else {}
        return cls(cls.Config(name=name, **options), encoder)

    return build


@pytest.fixture
def small() -> Callable[[str], MethodConfig]:
    """The config of the method of that name, default variant, at that scale."""

    def config(name: str) -> MethodConfig:
        kind = find_method(name).Config
        return kind(name=name, **OPTIONS.get(name, {}), **({"rank": 2} if "rank" in kind.model_fields else {}))

    return config


@pytest.fixture
def stream(six_classes) -> Stream:
    return Stream(six_classes, tasks=3, reader=ImageReader(32))
