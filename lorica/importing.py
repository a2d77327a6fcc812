"""Configurations of other code as recipes: LAMDA-PILOT's and SD-LoRA's (JSON), LibContinual's (YAML).

Each key ends in one of four places: a key of the recipe; no effect in the original, which never reads it or reads it
without consequence; no counterpart here, with the reason; or not known. The last three are said in the recipe's header.

What the originals read was found in their sources: LAMDA-PILOT, SD-Lora-CL (its fork) and LibContinual as of 2025.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lorica.config import read_recipe, text_of
from lorica.errors import LoricaError, RecipeError
from lorica.published import CLASSES

_SOURCES = {
    "cifar100": "cifar100",
    "cifar224": "cifar100",
    "cub": "cub200",
    "cub200": "cub200",
    "domainnet": "domainnet",
    "imagenet-a": "imagenet_a",
    "imagenet-r": "imagenet_r",
    "imageneta": "imagenet_a",
    "imagenetr": "imagenet_r",
    "objectnet": "objectnet",
    "omnibenchmark": "omnibenchmark",
    "vtab": "vtab",
}

_DEEPEST = 16
_NEVER_READ = "the original never reads it"
_NO_SAMPLES = "no effect there: this method keeps no samples"
_MAJORITY = (
    "The whole batch there takes the prompts that most of it want, which is left off: a prediction depends on the rest "
    "of its batch then, which tells the task where test data are in order; method.batch_majority=true does the same"
)
_MASK = "part of how the original is built, and fixed here"


@dataclass
class Imported:
    """A configuration of other code, key by key.

    Attributes:
        origin: which code it is for.
        values: sections of a recipe.
        idle: keys with no effect in the original, and why; `lost`: keys without a counterpart here, and why; `unknown`:
            others.
        remarks: what differs beyond single keys.
    """

    origin: str
    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    idle: dict[str, str] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def text(self, name: str) -> str:
        """The recipe, with what became of the other keys in its header."""
        lines = [f"Imported from {name}, a configuration of {self.origin} (give data.root)", *self.remarks]
        lines += [f"No effect in the original: {key} ({why})" for key, why in self.idle.items()]
        lines += [f"Not carried over: {key} ({why})" for key, why in self.lost.items()]
        lines += [f"Not known, and not carried over: {key}" for key in self.unknown]
        sections = [
            f"{key}: {yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1000).splitlines()[0]}"
            for key, value in self.values.items()
            if value != {}
        ]
        return "\n".join([*(f"# {line}" for line in lines), *sections]) + "\n"


def import_recipe(file: str | Path) -> Imported:
    """The recipe that a configuration of LAMDA-PILOT, SD-LoRA or LibContinual stands for.

    Raises:
        LoricaError: a file that is none, or one of a method that is not here.
    """
    file = Path(file)
    given = _parsed(file)
    if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
        raise LoricaError(f"{file}: expected an object with keys, as configurations of LAMDA-PILOT or LibContinual are")
    keys = _Keys(dict(given))
    try:
        if "model_name" in given:
            found = _pilot(keys)
        elif isinstance(given.get("classifier"), Mapping):
            found = _libcontinual(keys)
        else:
            raise LoricaError(
                "no configuration of LAMDA-PILOT or SD-LoRA (they have model_name), nor of LibContinual (classifier)"
            )
        found.unknown = [f"{key}={json.dumps(value, default=str)}" for key, value in keys.left.items()]
        read_recipe({key: value for key, value in found.values.items() if value != {}})
    except RecipeError as error:
        raise LoricaError(
            [f"{file}: what it says is no recipe here: {problem}" for problem in error.problems]
        ) from error
    except LoricaError as error:
        raise LoricaError([f"{file}: {problem}" for problem in error.problems]) from error
    return found


def _parsed(file: Path) -> Any:
    """The content of a JSON or YAML file, in which nothing multiplies."""
    text = text_of(file)
    if file.suffix == ".json":
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise LoricaError(f"{file}: not JSON: {' '.join(str(error).split())}") from error
    depth = 0
    try:
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST:  # before the reader takes time that grows with the square
                raise LoricaError(f"{file}: sections within sections within sections; no configuration has so many")
            if isinstance(event, yaml.CollectionStartEvent) and event.anchor:
                raise LoricaError(f"{file}: the anchor {event.anchor} names a section or a list; write it out")
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise LoricaError(f"{file}: not YAML, of which JSON is a part: {' '.join(str(error).split())}") from error


class _Keys:
    """What a configuration says, which is taken key by key; `left` is what nobody has asked for."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.left = dict(values)

    def take(self, key: str, default: Any = None) -> Any:
        return self.left.pop(key, default)

    def number(self, key: str, kind: Callable[[Any], Any] = float, *, default: float | None = None) -> Any:
        """A key that the method cannot do without, unless there is a default; YAML reads 8e-3 as text."""
        if key not in self.left and default is None:
            raise LoricaError(f"{key}: missing")
        value = self.left.pop(key, default)
        try:
            return kind(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise LoricaError(f"{key}: expected a number, got {value!r:.60}") from error

    def numbers(self, key: str, default: Sequence[Any] = ()) -> list[Any]:
        """One or several; a single one may stand without a list."""
        value = self.left.pop(key, default)
        given = value if isinstance(value, list | tuple) else [value]
        try:
            found = [each if isinstance(each, int | float) else float(each) for each in given]
        except (TypeError, ValueError):
            found = []
        if not found or not all(map(math.isfinite, found)):
            raise LoricaError(f"{key}: expected a number, or a list of some, got {value!r:.60}")
        return found

    def steps(self, key: str) -> list[Any]:
        """Epochs, of which there may be none."""
        return [] if self.left.get(key) in ([], None) else self.numbers(key)

    def section(self, key: str) -> _Keys:
        """Keys below a key, none where it is absent or empty."""
        value = self.left.pop(key, None) or {}
        if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
            raise LoricaError(f"{key}: expected a section with keys, got {value!r:.60}")
        return _Keys(value)

    def said(self, key: str) -> str:
        return f"{key}={json.dumps(self.left.pop(key), default=str)}"


# ---- LAMDA-PILOT, and SD-Lora-CL, which is made of it

_FIRST_TASK = {"adapter": "adapter", "ssf": "scale_and_shift", "finetune": "full"}

_UNREAD = {
    "l2p": ("global_pool", "initializer", "predefined_key"),
    "dualprompt": ("global_pool", "initializer", "predefined_key"),
    "coda_prompt": ("reinit_optimizer", "min_lr"),
    "ranpac": ("use_simplecil",),
    "simplecil": ("batch_size", "init_lr", "min_lr", "optimizer", "tuned_epoch", "weight_decay"),
    "slca": ("model_postfix",),
    "sdlora": ("optimizer", "scheduler", "min_lr", "tuned_epoch", "weight_decay", "init_weight_decay"),
}
"""Keys of the published configurations that nothing reads: neither a model's own file nor what it is built from."""

_SHARED_BY_PROMPTS = (
    *(
        "get_original_backbone",
        "reinit_optimizer",
        "freeze",
        "pretrained",
        "prompt_pool",
        "prompt_key",
        "prompt_key_init",
    ),
    *("head_type", "embedding_key", "pull_constraint", "use_prompt_mask", "shared_prompt_pool", "shared_prompt_key"),
)
_BUILT_SO = {
    "l2p": _SHARED_BY_PROMPTS,
    "dualprompt": (
        *_SHARED_BY_PROMPTS,
        *("use_g_prompt", "use_e_prompt", "use_prefix_tune_for_g_prompt", "use_prefix_tune_for_e_prompt"),
        *("same_key_value", "size", "top_k"),
    ),
    "coda_prompt": ("pretrained",),
    "ease": ("pretrained", "use_diagonal", "use_old_data", "use_reweight", "adapter_num", "moni_adam"),
    "ranpac": ("use_RP",),
}


def _pilot(keys: _Keys) -> Imported:
    model = str(keys.take("model_name")).replace("adam_", "aper_")
    found = Imported("SD-LoRA's released code" if model == "sdlora" else "LAMDA-PILOT")
    method, fit = _pilot_method(model, keys, found), _pilot_fit(model, keys, found)
    benchmark = _benchmark(keys)
    first, later = keys.number("init_cls", int), keys.number("increment", int)
    seed, *other_seeds = keys.numbers("seed", [1993])
    shuffled = keys.take("shuffle", True)
    found.values = {
        "method": method,
        "backbone": {"name": _pilot_backbone(model, keys), "normalisation": "unit"},
        # utils/data.py has another test for this model alone
        "data": {"source": benchmark, "crop_pct": 1.0 if (model, benchmark) == ("coda_prompt", "cifar100") else 0.875},
        "stream": _stream(CLASSES[benchmark], first, later) | {"seed": seed if shuffled else None},
        "fit": fit | {"augment": "crop_flip"},
        "evaluate": {"readout": "aligned"} if model == "slca" else {},
        "seed": seed,  # type: ignore[dict-item]
    }
    if other_seeds:
        others = ", ".join(map(str, other_seeds))
        found.remarks.append(f"Further seeds, each with a class order of its own: {others} (seed=… stream.seed=…)")
    for key in ("prefix", "device", "filepath"):
        keys.take(key)  # where it writes, and on which devices it runs
    _idle(keys, found, ("memory_size", "memory_per_class", "fixed_memory"), _NO_SAMPLES)
    _idle(keys, found, _UNREAD.get(model, ()), _NEVER_READ)
    _idle(keys, found, ("vpt_type", "prompt_token_num", "ffn_num"), "read for backbones of another kind only")
    for key in ("drop", "drop_path"):
        if not keys.left.get(key):
            keys.take(key)
    for key in _BUILT_SO.get(model, ()):
        if key in keys.left:
            found.lost[keys.said(key)] = _MASK
    return found


def _pilot_method(model: str, keys: _Keys, found: Imported) -> dict[str, Any]:
    kind = model.removeprefix("aper_")
    if model == "sdlora":
        return {"name": "sd_lora", "variant": "released_code"}
    if model == "finetune":
        return {"name": "full_finetune", "head_start": "kaiming"}
    if model == "slca":
        for key in ("ca_epochs", "ca_with_logit_norm"):
            if key in keys.left:
                found.lost[keys.said(key)] = "the aligned read-out has its own"
        return {"name": "full_finetune", "head_start": "truncated_normal", "trunk_rate": 0.01}
    if model == "simplecil":
        return {"name": "prototypes"}
    if model == "ease":
        beta = keys.take("beta", 0.0)
        return {
            "name": "ease",
            "rank": keys.number("ffn_num", int),
            "others_weight": keys.take("alpha", 0.1),
            "backbone_weight": beta if keys.take("use_init_ptm", False) else 0.0,
            "recalculate": keys.take("recalc_sim", True),
            "head_scale": 1.0,
        }
    if model == "ranpac" or model.startswith("aper_"):
        backbone = str(keys.left.get("backbone_type", ""))
        kind = kind if model != "ranpac" else next((each for each in ("ssf", "vpt") if each in backbone), "adapter")
        if kind == "vpt" and "vpt" not in backbone:
            found.remarks.append(f"The original fails on this file: backbone_type={backbone} has no prompts")
        tuning = _FIRST_TASK.get(kind) or f"{str(keys.take('vpt_type', 'deep')).lower()}_prompts"
        method = {"name": "ran_pac" if model == "ranpac" else "aper", "tuning": tuning, "head_scale": 1.0}
        if tuning == "adapter":
            method["rank"] = keys.number("ffn_num", int)
        if tuning.endswith("_prompts"):
            method["length"] = keys.number("prompt_token_num", int)
        return method | ({"width": keys.number("M", int)} if model == "ranpac" else {})
    if model in ("l2p", "dualprompt"):
        if keys.take("batchwise_prompt", False):
            found.remarks.append(_MAJORITY)
        shared = {"pull_weight": keys.take("pull_constraint_coeff", 1.0), "start": [-1.0, 1.0], "gradient_clip": 0.0}
        if model == "l2p":
            return {
                "name": "l2p",
                "pool_size": keys.number("size", int),
                "length": keys.number("length", int),
                "selected": keys.number("top_k", int),
                "head_start": "truncated_normal",
                **shared,
            }
        return {
            "name": "dual_prompt",
            "general_length": keys.number("g_prompt_length", int),
            "general_blocks": keys.take("g_prompt_layer_idx", [0, 1]),
            "length": keys.number("length", int),
            "blocks": keys.take("e_prompt_layer_idx", [2, 3, 4]),
            "copy_previous": keys.left.get("shared_prompt_pool", True),
            "head_start": "truncated_normal",
            **shared,
        }
    if model == "coda_prompt":
        given = keys.numbers("prompt_param", [100, 8, 0.0])
        if len(given) != 3:
            raise LoricaError(f"prompt_param: expected a pool, a length and the weight of a penalty, got {given}")
        pool, rows, weight = given
        later = _Keys(keys.left).number("increment", int)
        tasks = CLASSES.get(_SOURCES.get(str(keys.left.get("dataset")).lower(), ""), 0) // max(1, later)
        return {
            "name": "coda_prompt",
            "variant": "released_code",
            "pool": int(pool),
            "total_tasks": max(1, tasks),
            "length": int(rows) // 2,
            "orthogonality_weight": float(weight),
        }
    raise LoricaError(
        f"model_name: {model} is not in lorica, whose methods keep no samples and adapt a pre-trained transformer "
        "(`lorica list methods`)"
    )


def _pilot_fit(model: str, keys: _Keys, found: Imported) -> dict[str, Any]:
    """Optimiser, rate, length; what is fixed in the code and not in the configuration is said here."""
    if model == "simplecil":
        return {"epochs": 1}
    if model in ("finetune", "slca", "sdlora"):
        epochs = keys.number("epochs", int)
        rate = keys.number("lrate")
        fit: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.9, "learning_rate": rate, "epochs": epochs}
        if model != "sdlora":
            fit["weight_decay"] = keys.take("weight_decay", 0.0)
        firsts = {"init_epoch": epochs, "init_lr": rate, "init_weight_decay": fit.get("weight_decay")}
        for key, value in firsts.items():
            if model == "sdlora" and key == "init_weight_decay":
                continue  # among those that are never read
            if key in keys.left and keys.left[key] != value:
                found.lost[keys.said(key)] = "one setting for all tasks here; it is of the first"
            keys.take(key)
        for steps, factor in (("init_milestones", "init_lr_decay"), ("milestones", "lrate_decay")):
            if steps not in keys.left:
                continue
            why = "beyond the last epoch" if min([*_Keys(keys.left).steps(steps), epochs]) >= epochs else None
            for key in (steps, factor):
                if key in keys.left:
                    (found.idle if why else found.lost)[keys.said(key)] = why or "rates do not fall by steps here"
        return fit | {"batch_size": keys.number("batch_size", int)}
    optimizer = str(keys.take("optimizer", "sgd"))
    scheduler = keys.take("scheduler", "cosine")
    if model == "ease":
        for first, later in (("init_epochs", "later_epochs"), ("init_lr", "later_lr")):
            if later in keys.left and keys.left[later] != keys.left.get(first):
                found.lost[keys.said(later)] = "one setting for all tasks here; this is of the later ones"
            keys.take(later)
    if _Keys(keys.left).number("min_lr", default=0.0) and "min_lr" not in _UNREAD.get(model, ()):
        if scheduler == "constant":
            found.idle[keys.said("min_lr")] = "the rate is constant"
        else:
            found.lost[keys.said("min_lr")] = "a cosine ends at 0 here"
    keys.take("min_lr")
    return {
        "optimizer": optimizer,
        **({"momentum": 0.9} if optimizer == "sgd" else {}),
        "learning_rate": keys.number("init_lr"),
        "weight_decay": keys.take("weight_decay", 0.0),
        "schedule": "cosine" if scheduler == "cosine" else "constant",
        "epochs": keys.number("init_epochs" if model == "ease" else "tuned_epoch", int),
        "batch_size": keys.number("batch_size", int),
    }


_NETWORK = re.compile(r"(?:pretrained_vit_b16_224|vit_base_patch16_224)(_in21k)?(?:_([a-z0-9_]+))?")
"""The networks of PILOT: a checkpoint, and for what it is built."""

_BUILT_FOR = ("adapter", "coda_prompt", "dualprompt", "ease", "l2p", "lora", "sd_lora", "sdlora", "slca", "ssf", "vpt")


def _pilot_backbone(model: str, keys: _Keys) -> str:
    """PILOT pins timm 0.6.12, where the name means augreg; SD-LoRA's code takes timm 1.0.9, where it means augreg2."""
    name = str(keys.take("backbone_type", ""))
    known = _NETWORK.fullmatch(name.lower())
    if known is None or known[2] not in (None, *_BUILT_FOR):
        raise LoricaError(
            f"backbone_type: {name} is no ViT-B/16 that these configurations are for; expected vit_base_patch16_224 or "
            f"vit_base_patch16_224_in21k, behind which may stand {', '.join(f'_{each}' for each in _BUILT_FOR)}"
        )
    if known[1]:
        return "vit_base_patch16_224.augreg_in21k"
    return f"vit_base_patch16_224.{'augreg2' if model == 'sdlora' else 'augreg'}_in21k_ft_in1k"


# ---- LibContinual

_LIBCONTINUAL = {
    "cl_lora": ("cl_lora", {"variant": "released_code"}),
    "codaprompt": ("coda_prompt", {"variant": "released_code"}),
    "dualprompt": ("dual_prompt", {"start": [0.0, 1.0], "copy_previous": False, "gradient_clip": 0.0}),
    "inflora": ("inf_lora", {"variant": "released_code", "head_start": "linear"}),
    "inflora_opt": ("inf_lora", {"variant": "released_code", "head_start": "linear"}),
    "l2p": ("l2p", {"variant": "paper", "start": [0.0, 1.0], "gradient_clip": 1.0}),
    "ranpac": ("ran_pac", {"head_scale": 1.0}),
    "sd_lora": ("sd_lora", {"variant": "released_code"}),
}

_UNTAGGED = {
    "vit_base_patch16_224": "vit_base_patch16_224.augreg_in21k_ft_in1k",
    "vit_base_patch16_224_in21k": "vit_base_patch16_224.augreg_in21k",
}
"""What the timm of its time made of names without a tag."""

_OF_LIBCONTINUAL = {
    "pool_size": "pool_size",
    "top_k": "selected",
    "pull_constraint_coeff": "pull_weight",
    "init_mag": "initial_magnitude",
}


def _libcontinual(keys: _Keys) -> Imported:
    found = Imported("LibContinual")
    classifier, backbone = keys.section("classifier"), keys.section("backbone")
    called = str(classifier.take("name"))
    if called.lower() not in _LIBCONTINUAL:
        raise LoricaError(
            f"classifier.name: {called} is not in lorica; of LibContinual's, {', '.join(sorted(_LIBCONTINUAL))} are"
        )
    network = str(backbone.take("name", ""))
    if "vit" not in network.lower():
        raise LoricaError(
            f"backbone.name: {network} is no vision transformer of timm's; lorica has no other backbone for images"
        )
    benchmark = _benchmark(keys, "cifar100")
    tasks = keys.number("task_num", int)
    first, later = keys.number("init_cls_num", int), keys.number("inc_cls_num", int)
    options, built = classifier.section("kwargs"), backbone.section("kwargs")
    method = _libcontinual_method(called.lower(), options, built, tasks, found)
    for key in (
        "init_cls_num",
        "inc_cls_num",
        "task_num",
        "total_cls_num",
        "num_class",
        "feat_dim",
        "embd_dim",
        "dataset",
        "total_sessions",
    ):
        options.take(key)  # said already
    name = str(built.take("model_name", "vit_base_patch16_224"))
    if "." not in name:
        if name not in _UNTAGGED:
            raise LoricaError(
                f"backbone.kwargs.model_name: {name} does not say which checkpoint it is; expected "
                f"{' or '.join(_UNTAGGED)}, or a name of timm's with its tag, like vit_base_patch16_224.dino"
            )
        name = _UNTAGGED[name]
        found.remarks.append(f"Its checkpoint follows from the timm of its time: {name}")
    for key in ("pretrained", "attn_layer", "transformer_layer", "norm_layer_eps", "num_classes"):
        built.take(key)
    for key in ("total_sessions", "init_cls", "embd_dim"):
        built.take(key)  # sizes that the stream and the network have already said
    seed = keys.take("seed", 1993)
    found.values = {
        "method": method,
        "backbone": {"name": name, "normalisation": "unit"},
        "data": {"source": benchmark, "crop_pct": _crop(keys.take("test_trfms"), benchmark)},
        "stream": _stream(CLASSES[benchmark], first, later) | {"seed": seed},
        "fit": _libcontinual_fit(keys, found)
        | {"augment": "crop_flip" if "Crop" in str(keys.take("train_trfms", "RandomResizedCrop")) else "none"},
        "seed": seed,  # type: ignore[dict-item]
    }
    _idle(keys, found, ("workers", "total_cls_num", "warmup", "augment"), _NEVER_READ)
    for key in (
        "setting",
        "image_size",
        "save_path",
        "data_root",
        "n_gpu",
        "device_ids",
        "deterministic",
        "num_workers",
        "pin_memory",
    ):
        keys.take(key)
    for key in ("val_per_epoch", "testing_times", "testing_per_task", "shuffle", "includes"):
        keys.take(key)
    if keys.section("buffer").section("kwargs").take("buffer_size"):
        found.lost["buffer"] = "old samples are not kept here"
    keys.left |= {f"classifier.{key}": value for key, value in (classifier.left | options.left).items()}
    keys.left |= {f"backbone.{key}": value for key, value in built.left.items()}
    return found


def _libcontinual_method(called: str, options: _Keys, built: _Keys, tasks: int, found: Imported) -> dict[str, Any]:
    name, fixed = _LIBCONTINUAL[called]
    method: dict[str, Any] = {"name": name, **fixed}
    for key in ("lora_rank", *(("rank",) if name == "inf_lora" else ())):  # SiNet, InfLoRA's own network, has `rank`
        if key in built.left:
            method["rank"] = built.number(key, int)
    for key, own in _OF_LIBCONTINUAL.items():
        if key in options.left:
            method["pool" if (name, key) == ("coda_prompt", "pool_size") else own] = options.take(key)
    if name == "inf_lora":
        method |= {"total_tasks": tasks, "energy": [options.take("lamb", 0.95), options.take("lame", 1.0)]}
        if options.take("use_ca", False):
            found.lost["classifier.use_ca"] = "evaluate.readout=aligned aligns the head"
    if name == "coda_prompt":
        found.remarks.append(
            "Its count of tasks never advances, so that all tasks share the first components; here each has its own"
        )
        method |= {"total_tasks": tasks, "orthogonality_weight": options.number("mu", default=0.0)}
        method["length"] = options.number("prompt_length", int) // 2
    if name == "l2p":
        found.remarks.append(_MAJORITY)
        method["length"] = options.number("prompt_length", int)
    if name == "dual_prompt":
        method["general_length"] = options.number("g_prompt_length", int) // 2
        method["length"] = options.number("e_prompt_length", int) // 2
    if name == "ran_pac":
        method["width"] = options.number("M", int)
        if not options.take("first_session_training", True):
            method["tuning"] = "none"
        options.take("use_RP")
    if name == "sd_lora":
        reduced, distilled = options.numbers("rank_reduction", [False]), options.numbers("knowledge_dist", [False])
        if reduced[0]:
            method |= {"name": "sd_lora_rr", "reduced_from": reduced[1:3], "reduced_ranks": reduced[3:5]}
            method.pop("initial_magnitude", None) if method.get("initial_magnitude") == 1.0 else None
        if distilled[0]:
            why = "the branch that would absorb a direction fails, so that its runs are SD-LoRA without distillation"
            found.idle[f"classifier.knowledge_dist={json.dumps(distilled)}"] = why
    return method


def _libcontinual_fit(keys: _Keys, found: Imported) -> dict[str, Any]:
    epochs = keys.number("epoch", int)
    optimizer, schedule = keys.section("optimizer"), keys.section("lr_scheduler")
    kind, options = str(optimizer.take("name", "SGD")).lower(), optimizer.section("kwargs")
    fit: dict[str, Any] = {
        "optimizer": kind,
        "learning_rate": options.number("lr"),
        "weight_decay": options.number("weight_decay", default=0.0),
        "epochs": epochs,
        "batch_size": keys.number("batch_size", int),
    }
    if kind == "sgd":
        fit["momentum"] = options.number("momentum", default=0.0)
    if options.numbers("betas", [0.9, 0.999]) != [0.9, 0.999]:
        found.lost["optimizer.betas"] = "0.9 and 0.999 here"
    falls, kwargs = str(schedule.take("name", "Constant")), schedule.section("kwargs")
    steps = {key: kwargs.steps(key) for key in ("milestones", "step_size") if key in kwargs.left}
    for key in ("K", "T_max", "gamma", *steps):
        kwargs.take(key)
    for key, value in kwargs.left.items():
        if value:
            found.lost[f"lr_scheduler.{key}={value}"] = "a cosine begins at once and ends at 0 here"
    fit["schedule"] = "cosine" if "Cosine" in falls else "constant"
    for key, given in steps.items() if falls in ("MultiStepLR", "StepLR") else ():
        why = "beyond the last epoch" if min([*given, epochs]) >= epochs else None
        (found.idle if why else found.lost)[f"lr_scheduler.{key}={given}"] = why or "rates do not fall by steps here"
    first = keys.take("init_epoch", epochs)
    if first != epochs:
        fit["epochs"] = first
        found.remarks.append(
            f"Its first task has {first} epochs and the others {epochs}: one number for all here, the first"
        )
    return fit


def _crop(transforms: Any, benchmark: str) -> float:
    """What the test keeps of a resized side; without transforms of its own, a configuration has those of the data
    set."""
    if transforms is None:
        return 1.0 if benchmark == "cifar100" else 0.875
    if not isinstance(transforms, list) or not all(isinstance(each, Mapping) for each in transforms):
        raise LoricaError(f"test_trfms: expected a list of transforms with their options, got {transforms!r:.60}")
    given = _Keys({str(name): options for each in transforms for name, options in each.items()})
    sides = [given.section(name).numbers("size", [0])[0] for name in ("Resize", "CenterCrop")]
    return sides[1] / sides[0] if all(sides) else 1.0


# ---- both


def _benchmark(keys: _Keys, default: str | None = None) -> str:
    name = str(keys.take("dataset", default))
    if name.lower() not in _SOURCES:
        raise LoricaError(
            f"dataset: {name} is not a benchmark of lorica; expected one of {', '.join(sorted(_SOURCES))}"
        )
    return _SOURCES[name.lower()]


def _stream(classes: int, first: int, later: int) -> dict[str, Any]:
    """How classes arrive: `first` of them, then so many at a time, and what is left over in the last task."""
    if not (0 < first <= classes and later > 0):
        raise LoricaError(f"{first} classes, then {later} at a time: not a stream of {classes}")
    if first == later and classes % later == 0:
        return {"tasks": classes // later}
    sizes = [first, *[later] * ((classes - first) // later)]
    rest = classes - sum(sizes)
    return {"classes_per_task": sizes + ([rest] if rest else [])}


def _idle(keys: _Keys, found: Imported, names: tuple[str, ...], why: str) -> None:
    for key in names:
        if key in keys.left:
            found.idle[keys.said(key)] = why
