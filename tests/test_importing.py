"""Configurations of other code: what becomes of every key of theirs."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from lorica.config import read_recipe
from lorica.errors import LoricaError
from lorica.importing import Imported, import_recipe

STREAM = {
    "dataset": "cifar224",
    "shuffle": True,
    "init_cls": 10,
    "increment": 10,
    "seed": [1993],
    "device": ["0"],
    "prefix": "x",
}
NO_MEMORY = {"memory_size": 0, "memory_per_class": 0, "fixed_memory": False}
VIT = {"backbone_type": "pretrained_vit_b16_224"}

SD_LORA = STREAM | NO_MEMORY | {
    "model_name": "sdlora", "backbone_type": "vit_base_patch16_224", "optimizer": "adam", "scheduler": "cosine",
    "min_lr": 5e-3,
    "tuned_epoch": 20, "filepath": "./x/", "init_epoch": 20, "init_lr": 8e-3, "init_milestones": [60],
    "init_lr_decay": 0.1,
    "init_weight_decay": 5e-4, "epochs": 20, "lrate": 8e-3, "milestones": [40, 70], "lrate_decay": 0.1,
    "batch_size": 128, "weight_decay": 2e-4,
}  # fmt: skip
EASE = STREAM | NO_MEMORY | {
    "model_name": "ease", "backbone_type": "vit_base_patch16_224_ease", "init_cls": 5, "increment": 5,
    "init_epochs": 20, "later_epochs": 20,
    "init_lr": 0.025, "later_lr": 0.025, "batch_size": 48, "weight_decay": 5e-4, "min_lr": 0, "optimizer": "sgd",
    "scheduler": "cosine",
    "vpt_type": "Deep", "prompt_token_num": 5, "ffn_num": 64, "recalc_sim": True, "alpha": 0.1, "use_init_ptm": False,
    "beta": 3,
}  # fmt: skip
RANPAC = STREAM | VIT | {
    "model_name": "ranpac", "backbone_type": "pretrained_vit_b16_224_in21k_vpt", "use_simplecil": False,
    "tuned_epoch": 20, "init_lr": 0.01,
    "batch_size": 48, "weight_decay": 5e-4, "min_lr": 0, "ffn_num": 64, "optimizer": "sgd", "vpt_type": "deep",
    "prompt_token_num": 7,
    "use_RP": True, "M": 5000,
}  # fmt: skip
L2P = STREAM | {
    "model_name": "l2p", "backbone_type": "vit_base_patch16_224_l2p", "tuned_epoch": 5, "init_lr": 0.001875,
    "batch_size": 16, "weight_decay": 0,
    "min_lr": 1e-5, "optimizer": "adam", "scheduler": "constant", "size": 10, "length": 5, "top_k": 5,
    "global_pool": "token",
    "batchwise_prompt": True, "pull_constraint_coeff": 0.1, "drop": 0.0,
}  # fmt: skip
INF_LORA = """
dataset: &dataset imagenet-r
task_num: 10
init_cls_num: &first 20
inc_cls_num: *first
epoch: 20
batch_size: 128
seed: 42
workers: 24
test_trfms: [{Resize: {size: 256}}, {CenterCrop: {size: 224}}]
train_trfms: [{RandomResizedCrop: {size: 224}}]
optimizer: {name: SGD, kwargs: {lr: 8e-3, momentum: 0.9}}
lr_scheduler: {name: Constant}
backbone:
  name: vit_pt_imnet
  kwargs: {pretrained: True, model_name: vit_base_patch16_224_in21k, lora_rank: 12, act_layer: GELU}
classifier:
  name: InfLoRA_OPT
  kwargs: {use_ca: False, dataset: *dataset, task_num: 10, lame: 1.0, lamb: 0.98, embd_dim: 768}
"""


def imported(content: dict[str, Any] | str, tmp_path: Path) -> Imported:
    file = tmp_path / ("theirs.yaml" if isinstance(content, str) else "theirs.json")
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    found = import_recipe(file)
    mine = tmp_path / "mine.yaml"
    mine.write_text(found.text(file.name))
    assert read_recipe(mine) == read_recipe({key: value for key, value in found.values.items() if value != {}})
    return found


def test_sd_lora(tmp_path: Path) -> None:
    """Its optimiser, schedule and weight decay are never read: it always is SGD at a constant rate."""
    found = imported(SD_LORA, tmp_path)
    assert found.values["method"] == {"name": "sd_lora", "variant": "released_code"}
    assert found.values["fit"] == {
        "optimizer": "sgd", "momentum": 0.9, "learning_rate": 8e-3, "epochs": 20, "batch_size": 128,
        "augment": "crop_flip",
    }  # fmt: skip
    assert found.values["stream"] == {"tasks": 10, "seed": 1993}
    assert found.values["backbone"]["name"] == "vit_base_patch16_224.augreg2_in21k_ft_in1k"
    never = {key.partition("=")[0] for key, why in found.idle.items() if why == "the original never reads it"}
    assert never == {"optimizer", "scheduler", "min_lr", "tuned_epoch", "weight_decay", "init_weight_decay"}
    assert found.idle["milestones=[40, 70]"] == "beyond the last epoch"
    assert not found.lost
    assert not found.unknown


def test_rates_that_fall_by_steps_are_not_dropped_in_silence(tmp_path: Path) -> None:
    found = imported(SD_LORA | {"init_milestones": [10, 15], "init_lr": 0.01}, tmp_path)
    assert {key.partition("=")[0] for key in found.lost} == {"init_milestones", "init_lr_decay", "init_lr"}


def test_ease(tmp_path: Path) -> None:
    found = imported(EASE, tmp_path)
    assert found.values["method"] == {
        "name": "ease", "rank": 64, "others_weight": 0.1, "backbone_weight": 0.0, "recalculate": True,
        "head_scale": 1.0,
    }  # fmt: skip
    assert found.values["stream"] == {"tasks": 20, "seed": 1993}
    assert found.values["backbone"]["name"] == "vit_base_patch16_224.augreg_in21k_ft_in1k"
    assert found.idle['vpt_type="Deep"'] == "read for backbones of another kind only"
    assert imported(EASE | {"use_init_ptm": True}, tmp_path).values["method"]["backbone_weight"] == 3


def test_ran_pac_takes_its_tuning_from_the_backbone(tmp_path: Path) -> None:
    found = imported(RANPAC, tmp_path)
    assert found.values["method"] == {
        "name": "ran_pac",
        "tuning": "deep_prompts",
        "head_scale": 1.0,
        "length": 7,
        "width": 5000,
    }
    assert found.values["backbone"]["name"] == "vit_base_patch16_224.augreg_in21k"
    assert set(found.idle) == {"use_simplecil=false", "ffn_num=64"}


def test_a_choice_of_the_batch_is_left_off_and_said(tmp_path: Path) -> None:
    found = imported(L2P, tmp_path)
    assert "batch_majority" not in found.values["method"]
    assert any("The whole batch there takes the prompts" in remark for remark in found.remarks)
    assert found.idle["min_lr=1e-05"] == "the rate is constant"
    assert found.idle['global_pool="token"'] == "the original never reads it"


def test_lib_continual(tmp_path: Path) -> None:
    found = imported(INF_LORA, tmp_path)
    assert found.values["method"] == {
        "name": "inf_lora", "variant": "released_code", "head_start": "linear", "rank": 12, "total_tasks": 10,
        "energy": [0.98, 1.0],
    }  # fmt: skip
    assert found.values["data"] == {"source": "imagenet_r", "crop_pct": 0.875}
    assert found.values["fit"]["learning_rate"] == 0.008
    assert found.idle == {"workers=24": "the original never reads it"}
    assert found.unknown == ['backbone.act_layer="GELU"']


def test_distillation_that_never_happens_is_sd_lora(tmp_path: Path) -> None:
    """LibContinual's own reading of SD-LoRA is that of the released code, whatever else its file asks for."""
    asked = (
        "{name: SD_LoRA, kwargs: {init_mag: 1.0, rank_reduction: [False, 4, 8, 8, 6], knowledge_dist: [True, 9e-4]}}"
    )
    found = imported(INF_LORA[: INF_LORA.index("classifier:")] + f"classifier: {asked}\n", tmp_path)
    assert found.values["method"] == {
        "name": "sd_lora",
        "variant": "released_code",
        "rank": 12,
        "initial_magnitude": 1.0,
    }
    assert any(key.startswith("classifier.knowledge_dist") for key in found.idle)


@pytest.mark.parametrize(
    ("change", "crop", "augment"),
    [
        (("", ""), 0.875, "crop_flip"),
        (("{Resize: {size: 256}}", "{Resize: {size: 224}}"), 1.0, "crop_flip"),
        (("test_trfms: [{Resize: {size: 256}}, {CenterCrop: {size: 224}}]\n", ""), 0.875, "crop_flip"),
        (("train_trfms: [{RandomResizedCrop: {size: 224}}]\n", ""), 0.875, "crop_flip"),
        (("[{RandomResizedCrop: {size: 224}}]", "[{ToTensor: {}}]"), 0.875, "none"),
    ],
)
def test_sizes_at_test_and_augmentation(change: tuple[str, str], crop: float, augment: str, tmp_path: Path) -> None:
    found = imported(INF_LORA.replace(*change), tmp_path)
    assert (found.values["data"]["crop_pct"], found.values["fit"]["augment"]) == (crop, augment)


def test_a_slow_start_of_the_rate_is_not_dropped_in_silence(tmp_path: Path) -> None:
    slow = "{name: CosineAnnealingWarmUp, kwargs: {K: 20, warmup_length: 30}}"
    found = imported(INF_LORA.replace("{name: Constant}", slow), tmp_path)
    assert list(found.lost) == ["lr_scheduler.warmup_length=30"]


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        ("pretrained_vit_b16_224", "augreg2_in21k_ft_in1k"),
        ("vit_base_patch16_224_in21k", "augreg_in21k"),
        ("Pretrained_ViT_b16_224_in21k_adapter", "augreg_in21k"),
    ],
)
def test_a_network_is_the_checkpoint_that_its_name_meant(network: str, expected: str, tmp_path: Path) -> None:
    found = imported(SD_LORA | {"backbone_type": network}, tmp_path)
    assert found.values["backbone"]["name"] == f"vit_base_patch16_224.{expected}"


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        ("vit_base_patch16_224", "vit_base_patch16_224.augreg_in21k_ft_in1k"),
        ("vit_base_patch16_224_in21k", "vit_base_patch16_224.augreg_in21k"),
        ("vit_small_patch16_224.dino", "vit_small_patch16_224.dino"),
    ],
)
def test_a_network_of_lib_continual_is_its_checkpoint(network: str, expected: str, tmp_path: Path) -> None:
    found = imported(INF_LORA.replace("vit_base_patch16_224_in21k", network), tmp_path)
    assert found.values["backbone"]["name"] == expected


@pytest.mark.parametrize(("first", "later", "expected"), [(50, 10, [50] + [10] * 5), (10, 35, [10, 35, 35, 20])])
def test_uneven_streams(first: int, later: int, expected: list[int], tmp_path: Path) -> None:
    found = imported(SD_LORA | {"init_cls": first, "increment": later, "shuffle": False}, tmp_path)
    assert found.values["stream"] == {"classes_per_task": expected, "seed": None}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (SD_LORA | {"model_name": "icarl"}, "model_name: icarl is not in lorica"),
        (SD_LORA | {"dataset": "mnist"}, "dataset: mnist is not a benchmark of lorica"),
        (SD_LORA | {"backbone_type": "resnet18"}, "backbone_type: resnet18 is no ViT-B/16"),
        (SD_LORA | {"backbone_type": "vit_base_patch16_224_dino"}, "expected vit_base_patch16_224 or "),
        (SD_LORA | {"backbone_type": "vit_base_patch16_clip_224"}, "vit_base_patch16_clip_224 is no ViT-B/16 that"),
        (SD_LORA | {"seed": []}, "seed: expected a number, or a list of some, got []"),
        (INF_LORA.replace("{name: SGD,", "[{name: SGD,").replace("0.9}}", "0.9}}]"), "optimizer: expected a section"),
        (SD_LORA | {"epochs": "many"}, "epochs: expected a number, got 'many'"),
        (SD_LORA | {"batch_size": -3}, "what it says is no recipe here"),
        ({key: value for key, value in SD_LORA.items() if key != "increment"}, "increment: missing"),
        (SD_LORA | {"increment": 0}, "10 classes, then 0 at a time: not a stream of 100"),
        ({"hello": 1}, "no configuration of LAMDA-PILOT"),
        ("- a\n- b\n", "expected an object with keys"),
        ("a: [1, 2\n", "not YAML"),
        ("[" * 8000, "sections within sections within sections"),
        ('["' * 8000, "not YAML"),
        ("a: &a [1, 2]\nb: *a\n", "the anchor a names a section or a list"),
        (INF_LORA.replace("InfLoRA_OPT", "DER"), "classifier.name: DER is not in lorica"),
        (INF_LORA.replace("name: vit_pt_imnet", "name: clip"), "backbone.name: clip is no vision transformer"),
        (INF_LORA.replace("vit_base_patch16_224_in21k", "vit_small_patch16_224"), "vit_small_patch16_224 does not say"),
        (INF_LORA.replace("224_in21k", "224_dino"), "or a name of timm's with its tag, like vit_base_patch16_224.dino"),
    ],
)
def test_what_is_no_recipe_is_refused_with_the_file(
    content: dict[str, Any] | str, message: str, tmp_path: Path
) -> None:
    file = tmp_path / ("theirs.yaml" if isinstance(content, str) else "theirs.json")
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(LoricaError) as caught:
        import_recipe(file)
    assert all(str(file) in problem for problem in caught.value.problems)
    assert message in str(caught.value)


@pytest.mark.parametrize("odd", [None, True, -1, 0, "x", "", [], [1], [[1]], {}, {"a": 1}, float("inf")])
def test_values_of_another_kind_end_in_no_other_error(
    odd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorica.importing.read_recipe", lambda values: values)  # a recipe's own errors are its own
    name = INF_LORA[: INF_LORA.index("classifier:")]
    of_classifiers = [
        "CodaPrompt, kwargs: {prompt_length: 8, pool_size: 100, mu: 0.0}",
        "DualPrompt, kwargs: {g_prompt_length: 6, e_prompt_length: 20}",
        "RanPAC, kwargs: {M: 100}",
        "SD_LoRA, kwargs: {init_mag: 1.0, rank_reduction: [True, 4, 8, 8, 6], knowledge_dist: [True, 9e-4]}",
    ]
    steps = "lr_scheduler: {name: StepLR, kwargs: {step_size: 80}}\nbuffer: {kwargs: {buffer_size: 0}}\n"
    coda = STREAM | VIT | {"model_name": "coda_prompt", "prompt_param": [100, 8, 0.0], "tuned_epoch": 2}
    configurations: list[dict[str, Any]] = [
        *(SD_LORA, EASE, RANPAC, L2P, L2P | {"model_name": "dualprompt", "g_prompt_length": 5}),
        coda | {"init_lr": 0.1, "batch_size": 8},
        yaml.safe_load(INF_LORA),
        *(yaml.safe_load(f"{name}classifier: {{name: {each}}}\n{steps}") for each in of_classifiers),
    ]
    file = tmp_path / "theirs.yaml"
    for configuration in configurations:
        for path in paths(configuration):
            changed = copy.deepcopy(configuration)
            place = changed
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = odd
            monkeypatch.setattr("lorica.importing._parsed", lambda _, given=changed: given)
            with suppress(LoricaError):
                import_recipe(file)


def paths(values: dict[str, Any], before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, each in values.items():
        yield (*before, key)
        if isinstance(each, dict):
            yield from paths(each, (*before, key))


def test_a_rate_that_falls_by_a_step_is_said(tmp_path: Path) -> None:
    falling = "{name: StepLR, kwargs: {gamma: 0.5, step_size: 10}}"
    assert imported(INF_LORA.replace("{name: Constant}", falling), tmp_path).lost == {
        "lr_scheduler.step_size=[10]": "rates do not fall by steps here"
    }
    never = imported(INF_LORA.replace("{name: Constant}", falling.replace("10", "20")), tmp_path)
    assert never.idle["lr_scheduler.step_size=[20]"] == "beyond the last epoch"


@pytest.mark.parametrize("content", ["{", "[" * 200_000, "{'a': 1}"])
def test_json_that_is_none_is_not_read_as_something_else(content: str, tmp_path: Path) -> None:
    file = tmp_path / "theirs.json"
    file.write_text(content)
    with pytest.raises(LoricaError, match=r"theirs\.json: not JSON"):
        import_recipe(file)


def test_the_network_of_inf_lora_has_other_names_for_its_rank_and_sizes(tmp_path: Path) -> None:
    """A rank that is not carried over would be another model's."""
    sinet = INF_LORA.replace("InfLoRA_OPT", "InfLoRA").replace("vit_pt_imnet", "SiNet_vit")
    sizes = "rank: 12, total_sessions: 10, init_cls: 20, embd_dim: 768"
    found = imported(sinet.replace("lora_rank: 12, act_layer: GELU", sizes), tmp_path)
    assert (found.values["method"]["rank"], found.unknown) == (12, [])
