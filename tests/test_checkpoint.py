"""Checkpoints: what they hold, that they come back bit for bit, and which ones are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lorica.backbones.timm_vit import TimmViT
from lorica.checkpoint import latest_checkpoint, load_checkpoint, load_learned, read_record, save_checkpoint
from lorica.errors import CheckpointError
from lorica.methods import Method, find_method
from lorica.types import Task

MakeEncoder = Callable[..., TimmViT]
TASKS = (Task.of_new_classes(0, 0, ("wren", "lark")), Task.of_new_classes(1, 2, ("kite",)))


def method(encoder: TimmViT, name: str = "sd_lora", **options: Any) -> Method:
    kind = find_method(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(kind.Config(name=name, **options), encoder)


def learned(encoder: TimmViT, name: str = "sd_lora", tasks: tuple[Task, ...] = TASKS, **options: Any) -> Method:
    """A method that went through these tasks; random numbers stand for what it learned."""
    made = method(encoder, name, **options)
    generator = torch.Generator().manual_seed(1)
    for task in tasks:
        made.grow(task)
    with torch.no_grad():
        for tensor in made.own_state().values():
            tensor.copy_(torch.rand(tensor.shape, generator=generator))
    return made.eval()


@pytest.fixture
def saved(tiny_encoder: MakeEncoder, tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoints" / "task_01"
    folder.parent.mkdir()
    save_checkpoint(folder, learned(tiny_encoder()), {"accuracy": [[1.0], [0.5, 0.75]]})
    return folder


@pytest.mark.parametrize("name", ["sd_lora", "lora", "prototypes", "full_finetune", "ease", "ran_pac"])
def test_what_was_learned_comes_back_bit_for_bit(name: str, tiny_encoder: MakeEncoder, tmp_path: Path) -> None:
    before = learned(tiny_encoder(), name)
    save_checkpoint(tmp_path / "task_01", before, {"note": [1, None]})
    after = method(tiny_encoder(), name)
    assert load_checkpoint(tmp_path / "task_01", after) == {"note": [1, None]}
    assert after.tasks == before.tasks
    assert after.own_state().keys() == before.own_state().keys()
    for key, tensor in before.own_state().items():
        assert torch.equal(tensor, after.own_state()[key]), key
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    assert torch.equal(before.predict(images), after.predict(images))


def test_a_frozen_backbone_is_not_stored_and_a_trained_one_is(saved: Path, tiny_encoder: MakeEncoder) -> None:
    assert not [key for key in load_file(saved / "state.safetensors") if key.startswith("encoder.")]
    save_checkpoint(saved, learned(tiny_encoder(), "full_finetune"), {})
    stored = {key for key in load_file(saved / "state.safetensors") if key.startswith("encoder.")}
    assert stored == {f"encoder.{key}" for key in tiny_encoder().state_dict()}


def test_a_checkpoint_is_safetensors_and_json_and_nothing_else_is_left(saved: Path) -> None:
    assert sorted(file.name for file in saved.iterdir()) == ["state.json", "state.safetensors"]
    assert [folder.name for folder in saved.parent.iterdir()] == ["task_01"]


def test_saving_again_replaces(saved: Path, tiny_encoder: MakeEncoder) -> None:
    save_checkpoint(saved, learned(tiny_encoder()), {"again": True})
    assert read_record(saved)["record"] == {"again": True}
    assert [folder.name for folder in saved.parent.iterdir()] == ["task_01"]


def test_a_record_that_json_lacks_leaves_the_old_checkpoint(saved: Path, tiny_encoder: MakeEncoder) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_checkpoint(saved, learned(tiny_encoder()), {"loss": float("nan")})
    assert read_record(saved)["record"] == {"accuracy": [[1.0], [0.5, 0.75]]}
    assert [folder.name for folder in saved.parent.iterdir()] == ["task_01"]


def test_the_latest_is_the_highest_number(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    for name in ("task_09", "task_100", "task_99", ".task_101.cut"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    latest = latest_checkpoint(tmp_path)
    assert latest is not None
    assert latest.name == "task_100"


def test_loading_leaves_the_callers_random_state(saved: Path, tiny_encoder: MakeEncoder) -> None:
    fresh = method(tiny_encoder())
    before = torch.get_rng_state()
    load_learned(saved.parents[1], fresh)
    assert torch.equal(before, torch.get_rng_state())


# ---- refused


def refused(folder: Path, into: Method) -> list[str]:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder, into)
    assert into.tasks == []
    return list(caught.value.problems)


def test_another_backbone_is_refused(saved: Path, tiny_encoder: MakeEncoder) -> None:
    assert refused(saved, method(tiny_encoder(seed=1))) == [
        f"{saved}: learned on another backbone: tiny (tiny.random0), now tiny (tiny.random1)"
    ]


def test_every_option_of_the_method_that_differs_is_listed(saved: Path, tiny_encoder: MakeEncoder) -> None:
    problems = refused(saved, method(tiny_encoder(), rank=4, variant="released_code"))
    assert problems == [
        f"{saved}: method.rank was 10, now 4",
        f"{saved}: method.variant was 'paper', now 'released_code'",
    ]
    assert f"{saved}: method.name was 'sd_lora', now 'prototypes'" in refused(
        saved, method(tiny_encoder(), "prototypes")
    )


@pytest.mark.parametrize("damage", ["truncated", "altered", "missing"])
def test_damaged_tensors_are_refused(damage: str, saved: Path, tiny_encoder: MakeEncoder) -> None:
    file = saved / "state.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(content[:-100])
    else:
        content[-1] ^= 1
        file.write_bytes(content)
    alone = f"{file}: missing, truncated or altered; no earlier one is kept; start anew (--overwrite)"
    assert refused(saved, method(tiny_encoder())) == [alone]
    (saved.parent / "task_00").mkdir()
    expected = f"{file}: missing, truncated or altered; delete {saved} to go back a task"
    assert refused(saved, method(tiny_encoder())) == [expected]
    # and together with what else is wrong
    assert len(refused(saved, method(tiny_encoder(seed=1), rank=4))) == 3


@pytest.mark.parametrize(
    "damage", [lambda text: text[:-9], lambda text: text.replace("wren", "crow"), lambda text: "{}"]
)
def test_a_damaged_record_is_refused(damage: Callable[[str], str], saved: Path, tiny_encoder: MakeEncoder) -> None:
    file = saved / "state.json"
    file.write_text(damage(file.read_text()))
    [problem] = refused(saved, method(tiny_encoder()))
    assert problem.startswith(f"{file}: ")
    assert "altered" in problem or "not a checkpoint of format 2" in problem


def test_another_format_is_refused(saved: Path, tiny_encoder: MakeEncoder) -> None:
    file = saved / "state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 99}))
    [problem] = refused(saved, method(tiny_encoder()))
    assert problem == f"{file}: not a checkpoint of format 2; it needs another lorica version"


def test_no_checkpoint(tmp_path: Path, tiny_encoder: MakeEncoder) -> None:
    with pytest.raises(CheckpointError, match="no task has been finished yet; resume the run first"):
        load_learned(tmp_path, method(tiny_encoder()))
    with pytest.raises(CheckpointError, match=r"task_03: no checkpoint here \(state.json is missing\)"):
        load_checkpoint(tmp_path / "task_03", method(tiny_encoder()))


def test_a_checkpoint_that_is_not_kept(saved: Path, tiny_encoder: MakeEncoder) -> None:
    expected = (
        r"no checkpoint after task 1; there are those after 2; give one of them \(checkpoints=all keeps every task's\)"
    )
    with pytest.raises(CheckpointError, match=expected):
        load_learned(saved.parent.parent, method(tiny_encoder()), tasks=1)
