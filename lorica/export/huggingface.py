"""A folder that Hugging Face's transformers load: `AutoModelForImageClassification.from_pretrained("FOLDER")`.

A ViT that is built as the first one was (a class token, read from the last block; nothing more) becomes their own
`ViTForImageClassification`, for which there are tools of all kinds and which needs no timm where it is used. Any other
one stays timm's, in the layout that `TimmWrapperForImageClassification` reads: its numbers are those of the same
modules.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from timm.layers import Mlp, PatchEmbed
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from lorica.export import timm as timm_target
from lorica.export.subject import Subject, extra, normalised
from lorica.export.target import Loaded
from lorica.files import write_json

NAME = "Hugging Face"
PACKAGES = ("transformers", "timm")


def require(subject: Subject) -> None:
    """LoricaError: transformers are missing; or a method that is no plain ViT with a linear head, or one of no
    library."""
    classifier = subject.classifier(NAME)
    model = subject.encoder.with_classifier(classifier)
    if next(differences(cast(VisionTransformer, model)), None):
        subject.architecture(NAME)
    extra("transformers", "export-hf")


def write(subject: Subject, folder: Path) -> None:
    """Writes model.safetensors, config.json and, for their own ViT, preprocessor_config.json."""
    model = cast(VisionTransformer, subject.plain_model(NAME))
    if next(differences(model), None):
        timm_target.write(subject, folder)
        return
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in _renamed(model)}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    write_json(folder / "config.json", _config(subject, model))
    write_json(folder / "preprocessor_config.json", _preparation(subject))


def load(subject: Subject, folder: Path) -> Loaded:
    """What transformers make of the folder."""
    transformers = extra("transformers", "export-hf")
    verbosity = transformers.utils.logging
    before, bars = verbosity.get_verbosity(), verbosity.is_progress_bar_enabled()
    verbosity.set_verbosity_error()
    verbosity.disable_progress_bar()
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        model = transformers.AutoModelForImageClassification.from_pretrained(folder, local_files_only=True).eval()
    finally:
        verbosity.set_verbosity(before)
        if bars:
            verbosity.enable_progress_bar()
    known = processor.to_dict()
    known = known.get("data_config") or {"mean": known["image_mean"], "std": known["image_std"]}

    @torch.no_grad()
    def predict(squares: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n classes"]:
        return model(pixel_values=normalised(squares, known["mean"], known["std"])).logits

    def prepare(picture: Any) -> Float[Tensor, "3 s s"]:
        return processor(picture, return_tensors="pt")["pixel_values"][0]

    labels = model.config.id2label
    return Loaded(predict, prepare, [labels[number] for number in range(len(labels))], f"a {type(model).__name__}")


def readme(subject: Subject) -> str:
    """How to load it."""
    return (
        "```python\n"
        "from PIL import Image\n"
        "from transformers import AutoImageProcessor, AutoModelForImageClassification\n\n"
        'processor = AutoImageProcessor.from_pretrained("FOLDER")\n'
        'model = AutoModelForImageClassification.from_pretrained("FOLDER").eval()\n'
        'inputs = processor(Image.open("unknown.png").convert("RGB"), return_tensors="pt")\n'
        "print(model.config.id2label[model(**inputs).logits.argmax().item()])\n"
        "```\n"
    )


def differences(vit: VisionTransformer) -> Iterator[str]:
    """In what a ViT differs from those that `ViTForImageClassification` can be."""
    absent = (nn.Identity, type(None))
    embedding, projection = vit.patch_embed, getattr(vit.patch_embed, "proj", None)
    if type(vit) is not VisionTransformer:
        yield f"it is a {type(vit).__name__}"
    if not vit.has_class_token or vit.num_prefix_tokens != 1 or vit.global_pool != "token":
        yield "it does not read the class token alone"
    if vit.pos_embed is None or vit.no_embed_class:
        yield "its positions are encoded otherwise"
    if type(embedding) is not PatchEmbed or not isinstance(projection, nn.Conv2d) or projection.bias is None:
        yield "its patches are embedded otherwise"
    others = {"norm_pre": vit.norm_pre, "fc_norm": vit.fc_norm, "patch_embed.norm": getattr(embedding, "norm", None)}
    yield from (f"it has {name}" for name, module in others.items() if not isinstance(module, absent))
    norms: list[nn.Module] = [vit.norm]
    for number, block in enumerate(_blocks(vit)):
        attention, mlp = getattr(block, "attn", None), getattr(block, "mlp", None)
        if type(block) is not Block or type(attention) is not Attention or type(mlp) is not Mlp:
            yield f"block {number} is no plain one"
            continue
        norms += [block.norm1, block.norm2]
        more = (block.ls1, block.ls2, attention.q_norm, attention.k_norm, getattr(attention, "norm", None), mlp.norm)
        if not all(isinstance(each, absent) for each in more) or getattr(attention, "gate", None) is not None:
            yield f"block {number} has norms, gates or scales of its own"
        if type(mlp.act) is not nn.GELU or mlp.act.approximate != "none" or attention.proj.bias is None:
            yield f"block {number} computes otherwise"
        if attention.num_heads * attention.head_dim != vit.embed_dim or mlp.fc1.bias is None or mlp.fc2.bias is None:
            yield f"block {number} has other sizes"
    if any(not _is_layer_norm(norm) for norm in norms):
        yield "its norms are others"
    elif len({cast(nn.LayerNorm, norm).eps for norm in norms}) > 1:
        yield "its norms differ"


def _blocks(vit: VisionTransformer) -> list[Any]:
    return list(cast(nn.Sequential, vit.blocks))


def _is_layer_norm(norm: nn.Module) -> bool:
    return isinstance(norm, nn.LayerNorm) and norm.weight is not None and norm.bias is not None


def _config(subject: Subject, vit: VisionTransformer) -> dict[str, Any]:
    first = _blocks(vit)[0]
    return {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "hidden_size": vit.embed_dim,
        "num_hidden_layers": len(_blocks(vit)),
        "num_attention_heads": cast(Attention, first.attn).num_heads,
        "intermediate_size": cast(Mlp, first.mlp).fc1.out_features,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": cast(nn.LayerNorm, vit.norm).eps,
        "image_size": list(vit.patch_embed.img_size),
        "patch_size": list(vit.patch_embed.patch_size),
        "num_channels": 3,
        "qkv_bias": cast(Attention, first.attn).qkv.bias is not None,
        "id2label": {str(number): name for number, name in enumerate(subject.class_names)},
        "label2id": {name: number for number, name in enumerate(subject.class_names)},
    }


def _preparation(subject: Subject) -> dict[str, Any]:
    """CLIP's preparation is that of lorica: the short side to so many pixels, and of these the centre."""
    mean, std = subject.normalisation
    side = subject.reader.image_size
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": subject.reader.canvas},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }


def _renamed(vit: VisionTransformer) -> Iterator[tuple[str, Tensor]]:
    """The weights under the names that ViT's checkpoints have had on their hub from the first one on."""
    own = vit.state_dict()
    yield "vit.embeddings.cls_token", own["cls_token"]
    yield "vit.embeddings.position_embeddings", own["pos_embed"]
    width = vit.embed_dim
    for kind in ("weight", "bias"):
        yield f"vit.embeddings.patch_embeddings.projection.{kind}", own[f"patch_embed.proj.{kind}"]
        yield f"vit.layernorm.{kind}", own[f"norm.{kind}"]
        for number in range(len(_blocks(vit))):
            ours, theirs = f"blocks.{number}", f"vit.encoder.layer.{number}"
            for name, part in (
                ("layernorm_before", "norm1"),
                ("layernorm_after", "norm2"),
                ("attention.output.dense", "attn.proj"),
                ("intermediate.dense", "mlp.fc1"),
                ("output.dense", "mlp.fc2"),
            ):
                yield f"{theirs}.{name}.{kind}", own[f"{ours}.{part}.{kind}"]
            if f"{ours}.attn.qkv.{kind}" in own:
                for name, rows in zip(
                    ("query", "key", "value"), own[f"{ours}.attn.qkv.{kind}"].split(width), strict=True
                ):
                    yield f"{theirs}.attention.attention.{name}.{kind}", rows
    yield "classifier.weight", own["head.weight"]
    yield "classifier.bias", own.get("head.bias", torch.zeros(len(own["head.weight"])))
