"""Ways to keep adapting: what is left of an update where magnitudes alone train, and what maps may change."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from lorica.statistics import affine_drift

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def script() -> Any:
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("keep_adapting")
    del sys.modules["keep_adapting"]


@pytest.fixture(scope="module")
def vit(script: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "deit.safetensors"
    save_file(timm.create_model("deit_tiny_patch16_224", num_classes=0).state_dict(), file)
    return script.ViT(32, file)


def images(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(number, 3, 32, 32), torch.arange(number) % 4 // 2 + torch.arange(number) % 2 * 2


@pytest.mark.parametrize("way", ["magnitudes", "cores"])
def test_the_factors_of_the_first_task_stay_and_what_is_between_them_trains(way: str, script: Any, vit: Any) -> None:
    stream = replace(script.STREAMS["omniglot"], side=32, batch=4, passes=2)
    x, y = images(8)
    update = script.Update(vit.weights)
    first = script.train(vit, vit.weights, x, y, stream, script.Way(), update)
    factors = [each.detach().clone() for each in update.up + update.down]
    update.rest(cores=way == "cores")
    weights = [weight + change for weight, change in zip(vit.weights, first, strict=True)]
    changes = script.train(vit, weights, x, y, stream, script.WAYS[way], update)
    assert all(map(torch.equal, factors, update.up + update.down))
    for up, down, between, change in zip(update.up, update.down, update.magnitudes, changes, strict=True):
        matrix = between if way == "cores" else torch.diag_embed(between[:, 0])
        moved = matrix - torch.eye(script.RANK)
        assert moved.any()
        expected = torch.einsum("por,prs,psi->poi", up, moved, down).flatten(0, 1)
        torch.testing.assert_close(change, expected, rtol=1e-3, atol=1e-6)


def test_pseudo_features_train_rows_of_earlier_classes_and_leave_their_gaussians(script: Any, vit: Any) -> None:
    stream = replace(script.STREAMS["omniglot"], side=32, batch=4, passes=1)
    x, y = images(8)
    means, factor = torch.randn(2, script.TOKEN), torch.eye(script.TOKEN)
    before = means.clone()
    torch.manual_seed(2)
    with_rows = script.train(
        vit, vit.weights, x, y, stream, script.WAYS["negatives"], script.Update(vit.weights), earlier=(means, factor)
    )
    torch.manual_seed(2)
    with_draws = script.train(
        vit,
        vit.weights,
        x,
        y,
        stream,
        script.WAYS["pseudo-features"],
        script.Update(vit.weights),
        earlier=(means, factor),
    )
    assert torch.equal(means, before)
    assert not all(map(torch.equal, with_rows, with_draws))


def test_maps(script: Any) -> None:
    """Layer by layer a map is that of each layer by itself; one of low rank is the whole map where that is of low
    rank."""
    torch.manual_seed(3)
    old = torch.randn(400, script.LAYERS * 6).double()
    new = old + 0.3 * torch.randn_like(old)
    weight, bias = script._layer_by_layer(old, new)
    own = affine_drift(old[:, 6:12], new[:, 6:12])
    torch.testing.assert_close((weight[6:12, 6:12], bias[6:12]), own)
    assert not weight[:6, 6:].any()
    whole = torch.eye(100).double() + torch.randn(100, 5).double() @ torch.randn(5, 100).double()
    old = torch.randn(300, 100).double()
    new = old @ whole.T + 1
    weight, bias = script._of_low_rank(whole, old, new)
    torch.testing.assert_close(weight, whole)
    torch.testing.assert_close(bias, torch.ones(100).double())


def test_a_way_is_learned_task_by_task(script: Any, vit: Any) -> None:
    stream = script.Stream(32, 2, "shift", 4, passes=1)
    x, y = images(16)
    held_x, held_y = images(8)
    order = torch.argsort(y, stable=True)
    found = script.learn(
        stream, script.Way(magnitudes=True, pseudo=1.0), (x[order], y[order], held_x, held_y), vit, None
    )
    assert set(found["acc"]) == {*found["aaa"], "all encoded again"}
    assert all(0 <= each <= 100 for each in found["acc"].values())
