"""The benchmark of other people's code, without that code: what it compares, what it refuses, and what it leaves
behind. A stand-in computes a step of the released formula from plain tensors."""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import typer
from torch import nn
from typer.testing import CliRunner

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SIZES = {"batch": 2, "repeats": 2, "image_size": 32, "rank": 3}


@pytest.fixture(scope="module")
def peers() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("peers")


class Plain(nn.Module):
    """The released formula, written into dense weights of a copy of the backbone; `wrong` multiplies the newest."""

    def __init__(self, peers: ModuleType, given: Any, tasks: int, wrong: float) -> None:
        super().__init__()
        self.encoder = peers.step_time._copy(given.encoder)
        self.factors = [
            [(nn.Parameter(up.clone()), nn.Parameter(down.clone())) for up, down in sites]
            for sites in given.factors[:tasks]
        ]
        self.magnitudes = nn.ParameterList([nn.Parameter(torch.tensor([0.5 + 0.1 * k])) for k in range(tasks)])
        self.head = nn.Linear(given.encoder.width, 10 * tasks)
        self.wrong = wrong

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        width, weights = self.encoder.width, {}
        for block in range(len(self.encoder.blocks)):
            q, v = (
                sum(
                    alpha * self.wrong * up @ down
                    if sites is self.factors[-1]
                    else alpha * up @ down / (up.norm() * down.norm())
                    for alpha, sites in zip(self.magnitudes, self.factors, strict=True)
                    for up, down in [sites[2 * block + kind]]
                )
                for kind in (0, 1)
            )
            name = f"vit.blocks.{block}.attn.qkv.weight"
            weights[name] = self.encoder.get_parameter(name) + torch.cat([q, torch.zeros(width, width), v])
        tokens = torch.func.functional_call(self.encoder, weights, (images,))
        return self.head(tokens)


def stand_in(peers: ModuleType, wrong: float = 1.0) -> Any:
    def grow(given: Any, tasks: int) -> Any:
        model = Plain(peers, given, tasks, wrong)
        model.encoder.forward = model.encoder.features
        labels = given.labels

        def step() -> None:
            model.zero_grad()
            F.cross_entropy(model(given.images)[:, 10 * (tasks - 1) :], labels).backward()

        head = (model.head.weight, model.head.bias)
        return peers.Grown(step, model, list(model.magnitudes), head, unused=(lambda: None) if tasks > 1 else None)

    return peers.Peer(peers.RELEASED, "abcdefg", grow)


def test_what_computes_the_same_is_timed_beside_both_variants(peers) -> None:
    results = peers.measure([stand_in(peers)], "vit_tiny_patch16_224", [1, 3], **SIZES)
    named = [(result.what, result.tasks, result.commit) for result in results]
    assert named == [
        (what, tasks, commit)
        for what, commit in ((peers.OWN, ""), (peers.OWN_RELEASED, ""), (peers.RELEASED, "abcdefg"))
        for tasks in (1, 3)
    ]
    for result in results:
        for name in ("seconds", "ratio_to_floor", "ratio_to_peft", "ratio_to_sd_lora"):
            lower, upper = getattr(result, f"{name}_quartiles")
            assert 0 < lower <= getattr(result, name) <= upper < math.inf
        assert result.kept_megabytes > 0
        assert (result.unused_seconds is None) == (result.what != peers.RELEASED or result.tasks == 1)
        assert (result.apart is None) == (result.what != peers.RELEASED)
    assert all(result.ratio_to_sd_lora == 1 for result in results if result.what == peers.OWN)
    cells = [list(column.cells) for column in peers._table(results).columns]
    assert cells[0][-1] == "released code, abcdefg"
    assert cells[1] == ["1", "3"] * 3


@pytest.mark.parametrize("tasks", [1, 2])
def test_what_computes_something_else_is_refused(peers, tasks) -> None:
    with pytest.raises(ValueError, match=f"released code, {tasks} tasks: .* it computes something else"):
        peers.measure([stand_in(peers, wrong=1.2)], "vit_tiny_patch16_224", [tasks], **SIZES)


def test_bytes_kept_for_the_backward_pass(peers) -> None:
    layer = nn.Linear(100, 50, bias=False)
    images = torch.rand(1000, 100, requires_grad=True)

    def step() -> None:
        hidden = layer(images)  # keeps the images, and weights, which do not count
        torch.sigmoid(hidden).sum().backward()  # keeps what it gives

    assert peers.kept_for_backward(step, layer) == pytest.approx(4 * (1000 * 100 + 1000 * 50) / 1e6)


def test_shims_are_gone_afterwards(peers) -> None:
    before = (torch.Tensor.cuda, nn.Module.cuda, torch.load)
    with peers.shims():
        assert torch.zeros(2).cuda().device.type == "cpu"
        assert nn.Linear(2, 2).cuda().weight.device.type == "cpu"
    assert (torch.Tensor.cuda, nn.Module.cuda, torch.load) == before


def test_modules_of_a_checkout_do_not_stay(peers, tmp_path: Path) -> None:
    (tmp_path / "core").mkdir()
    (tmp_path / "core/__init__.py").write_text("raise ImportError('needs everything')")
    (tmp_path / "core/part.py").write_text("import einops\nfrom einops import rearrange\nVALUE = 5")
    there = [*sys.path], {*sys.modules}
    assert peers._imported(tmp_path, ("core",), "core.part", bare=("core",)).VALUE == 5
    assert sys.path == there[0]
    assert not {name for name in {*sys.modules} - there[1] if name.startswith(("core", "einops"))}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--sd-lora", "FOLDER"], "has no models/sdlora.py: expected a checkout of WuYichen-97/SD-Lora-CL"),
        (["--libcontinual", "FOLDER"], "has no core/trainer.py: expected a checkout of RL-VIG/LibContinual"),
        ([], "give at least one checkout"),
        (["--sd-lora", "FOLDER", "--rank", "4"], "rank 10 and room for 20 tasks"),
        (["--sd-lora", "FOLDER", "--tasks", "21"], "rank 10 and room for 20 tasks"),
    ],
)
def test_what_cannot_be_timed_is_told(peers, tmp_path: Path, monkeypatch, arguments, told) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    app = typer.Typer()
    app.command()(peers.main)
    output = CliRunner().invoke(app, [str(tmp_path) if each == "FOLDER" else each for each in arguments])
    assert output.exit_code == 2
    assert told in output.output


def test_another_commit_is_told_and_json_is_one_object_a_line(peers, tmp_path: Path, monkeypatch) -> None:
    for name in peers.EXPECTED[peers.RELEASED][2]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(peers, "released", lambda checkout, work: stand_in(peers))
    app = typer.Typer()
    app.command()(peers.main)
    options = "--backbone vit_tiny_patch16_224 --image-size 32 --batch 1 --repeats 1 --tasks 2 --threads 1 --json"
    output = CliRunner().invoke(app, ["--sd-lora", str(tmp_path), *options.split()], catch_exceptions=False)
    assert "this script was written for 8bacded" in output.stderr
    lines = [json.loads(line) for line in output.stdout.splitlines()]
    assert [(line["what"], line["tasks"]) for line in lines] == [
        (what, 2) for what in (peers.OWN, peers.OWN_RELEASED, peers.RELEASED)
    ]
