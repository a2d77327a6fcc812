"""A LoRA adapter of Hugging Face's PEFT over the plain timm backbone: `PeftModel.from_pretrained(base, "FOLDER")`.

All that a method adds to a linear layer, sum_k c_k U_k D_k, becomes one adapter of that layer, B A with A the stacked
D_k and B the stacked c_k U_k, scaled by 1. timm's fused qkv is one layer: the rows of A are those of its q, k and v
parts, and B is zero outside the rows of each part. Layers may have adapters of different ranks. The classifier comes
with the adapter.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lorica.adapters.attach import attached
from lorica.adapters.lowrank import Factored
from lorica.backbones import TINY
from lorica.backbones.encoder import Site
from lorica.errors import LoricaError
from lorica.evaluation import apart
from lorica.export.subject import Subject, extra, normalised, without_updates
from lorica.export.target import Loaded

NAME = "PEFT"
PACKAGES = ("peft", "transformers", "timm")

EXACT = 1e-5
"""Share of an update's largest number by which its factors may be apart from it: rounding."""

Factors = tuple[Float[Tensor, "out ranks"], Float[Tensor, "ranks inp"]]


def require(subject: Subject) -> None:
    """LoricaError: PEFT is missing; or a method without low-rank updates of linear layers or without a linear head."""
    require_adapter(subject)
    subject.architecture(NAME)


def require_adapter(subject: Subject) -> None:
    """The same, of images and of texts."""
    method = subject.method
    if method.trains_encoder or not attached(subject.encoder):
        what = (
            "trains the backbone's own weights"
            if method.trains_encoder
            else "adds no low-rank updates to linear layers"
        )
        raise LoricaError(f"{subject.called} {what}, so that there is no adapter to write; {subject.without_adapter}")
    subject.classifier(NAME)
    adapters(subject)
    extra("peft", "export-peft")


@torch.no_grad()
def adapters(subject: Subject) -> dict[str, Factors]:
    """B and A of every linear layer that has updates, by its name in the library's own model.

    Raises:
        LoricaError: an update that is not a sum of products which the method has factors of.
    """
    modules = [each for each in subject.method.modules() if isinstance(each, Factored)]
    parts: dict[str, list[tuple[Site, Factors]]] = {}
    for site, increment in attached(subject.encoder).items():
        parts.setdefault(site.linear, []).append((site, _factors(subject, modules, site, increment)))
    stacked = {}
    for name, sites in parts.items():
        linear = subject.encoder.get_submodule(name)
        rows = next(iter(linear.parameters())).shape[0]
        up = torch.zeros(rows, sum(down.shape[0] for _, (_, down) in sites))
        first = 0
        for site, (own, down) in sites:
            up[slice(*site.rows), first : first + len(down)] = own.cpu()
            first += len(down)
        if first:
            stacked[subject.plain_name(name)] = up, torch.cat([down.cpu() for _, (_, down) in sites])
    if not stacked:
        raise LoricaError(
            f"{subject.called} has no update yet, so that there is no adapter to write; {subject.without_adapter}"
        )
    return stacked


def _factors(subject: Subject, modules: list[Any], site: Site, increment: Callable[[], Tensor]) -> Factors:
    """Watches what the method computes an increment from."""
    found: list[Factors] = []

    def watch(module: Any, given: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> None:
        found.append(module.as_factors(*given, **named))

    handles = [module.register_forward_hook(watch, with_kwargs=True) for module in modules]
    try:
        expected = increment()
    finally:
        for handle in handles:
            handle.remove()
    nothing = expected[:, :0], expected[:0]
    up = torch.cat([nothing[0], *(up for up, _ in found)], dim=1)
    down = torch.cat([nothing[1], *(down for _, down in found)])
    if not apart(up @ down, expected) <= EXACT:
        raise LoricaError(
            f"{subject.called} computes the update of {site.name} otherwise than as a sum of products of low rank, so "
            f"that there is no exact adapter; {subject.without_adapter}"
        )
    return up, down


def write(subject: Subject, folder: Path) -> None:
    """Writes adapter_config.json and adapter_model.safetensors."""
    base = _base(subject)
    heads = [name for name in ("head", "head_dist") if isinstance(getattr(base, name, None), nn.Linear)]
    model = adapted(subject, base, subject.architecture(NAME)[0], heads)
    weight, bias, _ = subject.classifier(NAME)
    with torch.no_grad():
        for name in heads:
            head = model.base_model.model.get_submodule(name).modules_to_save["default"]
            head.weight.copy_(weight)
            head.bias.copy_(torch.zeros(len(weight)) if bias is None else bias)
    with quiet():
        model.save_pretrained(folder)


def adapted(subject: Subject, base: nn.Module, called: str, heads: Sequence[str] = ()) -> Any:
    """PEFT's model of a plain one and the method's updates.

    Args:
        called: what PEFT notes as the name of the plain one.
        heads: layers of it that are saved beside the updates.
    """
    peft = extra("peft", "export-peft")
    updates = adapters(subject)
    ranks = {name: down.shape[0] for name, (_, down) in updates.items()}
    most = max(ranks.values())
    mixed = ranks if len(set(ranks.values())) > 1 else {}
    config = peft.LoraConfig(
        r=most,
        lora_alpha=most,  # so that the scale is 1
        rank_pattern=mixed,
        alpha_pattern=mixed,
        target_modules=list(updates),
        modules_to_save=list(heads),
        inference_mode=True,
    )
    vars(base)["name_or_path"] = called
    with quiet():
        model = peft.get_peft_model(base, config)
    with torch.no_grad():
        for name, (up, down) in updates.items():
            layer = model.base_model.model.get_submodule(name)
            layer.lora_B["default"].weight.copy_(up)
            layer.lora_A["default"].weight.copy_(down)
    return model


def quiet() -> warnings.catch_warnings[None]:
    """PEFT looks for the base on the hub, and warns that timm's models are not there as its own are."""
    return warnings.catch_warnings(action="ignore")


def _base(subject: Subject) -> nn.Module:
    """timm's model with the backbone's own weights, and a head of the right size that has learned nothing."""
    architecture, arguments = subject.architecture(NAME)
    with torch.random.fork_rng([]):
        base = timm.create_model(architecture, pretrained=False, num_classes=len(subject.class_names), **arguments)
    missing, unknown = base.load_state_dict(without_updates(subject.encoder), strict=False)
    assert not unknown
    assert all(name.startswith("head") for name in missing)
    return base.eval()


def load(subject: Subject, folder: Path) -> Loaded:
    """What PEFT makes of the folder and the plain backbone."""
    peft = extra("peft", "export-peft")
    with quiet():
        model = peft.PeftModel.from_pretrained(_base(subject), folder).eval()
    mean, std = subject.normalisation

    @torch.no_grad()
    def predict(squares: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n classes"]:
        return model(normalised(squares, mean, std))

    return Loaded(predict, None, subject.class_names, remark(subject))


def remark(subject: Subject) -> str:
    """What there is to say of the adapter."""
    updates = adapters(subject)
    ranks = sorted({down.shape[0] for _, down in updates.values()})
    return f"an adapter of {len(updates)} layers, rank {' to '.join(map(str, ranks[:1] + ranks[1:][-1:]))}"


def embedded(name: str) -> str:
    """Where weights that ship with lorica are, for a reader who has it installed."""
    return (
        f"what lorica ships as lorica/backbones/{name}; where it is installed, this prints its place:\n\n"
        f'    python -c \'from importlib.resources import files; print(files("lorica") / "backbones" / "{name}")\'\n'
    )


def readme(subject: Subject) -> str:
    """How to load it."""
    architecture, arguments = subject.architecture(NAME)
    given = "".join(f", {key}={value!r}" for key, value in arguments.items())
    classes, mean_std = len(subject.class_names), subject.normalisation
    name, rest = subject.encoder.name, ""
    weights = embedded(f"{TINY}.safetensors") if name == TINY else f"the weights {subject.encoder.tag}."
    if name == TINY or "(" in subject.encoder.tag or subject.encoder.tag.endswith(".random"):
        rest = 'base.load_state_dict(load_file("BACKBONE"), strict=False)  # all but the head\n'
        imports, source = "from safetensors.torch import load_file\n", f"\nBACKBONE is {weights}\n"
    else:
        given = f", pretrained=True{given}"
        imports, source, architecture = "", "", subject.encoder.tag
    return (
        "```python\n"
        "import timm\n"
        "from peft import PeftModel\n"
        f"{imports}\n"
        f'base = timm.create_model("{architecture}", num_classes={classes}{given})\n'
        f"{rest}"
        'model = PeftModel.from_pretrained(base, "FOLDER").eval()\n'
        "```\n"
        f"{source}"
        f"\nThe base has fingerprint {subject.encoder.fingerprint}. Images of {subject.reader.image_size} x "
        f"{subject.reader.image_size} pixels in [0, 1], less the mean {mean_std[0]}, over the deviation {mean_std[1]}. "
        "`export.json` has the class names.\n"
    )
