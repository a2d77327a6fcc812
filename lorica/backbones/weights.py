"""Weights from a local safetensors file in timm's layout: whether they are those of a model, and into it.

A file is judged by its header alone (names, shapes and types of its tensors), so that `lorica check` can do it without
reading a weight, for a model on the meta device.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

from lorica.errors import BackboneError

BESIDE = ("head.", "head_dist.", "fc.", "classifier.", "pre_logits.", "mask_token")
"""How the names begin of what a file may hold beside a backbone: classifiers, and the token that hid patches in
training."""

_PICKLED = (b"PK", b"\x80")
"""How files of `torch.save` begin: its archives, and what it wrote before these."""

_CONVERT = (
    """python -c "import sys, torch, safetensors.torch as s; w = torch.load(sys.argv[1], 'cpu', weights_only=True); """
    """w = w.get('model', w.get('state_dict', w)); """
    """s.save_file({k: v.clone() for k, v in w.items()}, 'weights.safetensors')\""""
)

_LISTED = 4
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Weights:
    """A file that holds the weights of a model.

    Attributes:
        path: the file.
        prefix: what its names have before those of the model (`module.`, say).
    """

    path: Path
    prefix: str

    @classmethod
    def of(cls, vit: VisionTransformer, path: Path, name: str) -> Weights:
        """The file as one for this model, which errors call `name`.

        Raises:
            BackboneError: not a whole safetensors file, or one of another model: layers that lack, are left over or
                have other shapes. Classifiers may be left over, and position embeddings be those of another image size.
        """
        shapes, types = header(path)
        expected = {key: tuple(value.shape) for key, value in vit.state_dict().items()}
        first = next(key for key in expected if key.startswith("blocks."))
        prefixes = sorted(key.removesuffix(first) for key in shapes if f".{key}".endswith(f".{first}"))
        misfit = f"backbone.weights: {path} does not fit {name}:"
        if not prefixes:
            raise BackboneError(
                f"{misfit} it has no {first}, but {_listed(shapes)}; give a safetensors file in timm's layout"
            )
        if len(prefixes) > 1:
            raise BackboneError(
                f"{misfit} it holds {len(prefixes)} networks, whose names begin with "
                f"{_listed([prefix or 'nothing' for prefix in prefixes])}; give a file of one of them"
            )
        (prefix,) = prefixes
        own = {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}
        outside = {key: shape for key, shape in shapes.items() if not key.startswith(prefix)}
        problems = [*_misfits(own, outside, expected, vit)]
        problems += [f"{key} is of type {kind}, not a float" for key, kind in types.items() if "F" not in kind][:1]
        if problems:
            under = f" (names without {prefix})" if prefix else ""
            raise BackboneError(
                f"{misfit} {'; '.join(problems)}{under}; choose the backbone.name that these weights are of"
            )
        return cls(path, prefix)

    def load_into(self, vit: VisionTransformer) -> None:
        """Copies the weights in; position embeddings are resampled to the model's image size, as timm does it."""
        with safe_open(self.path, framework="pt") as file:
            state = {key: file.get_tensor(self.prefix + key) for key in vit.state_dict()}
        vit.load_state_dict(checkpoint_filter_fn(state, vit))


def header(path: Path) -> tuple[dict[str, Shape], dict[str, str]]:
    """Shapes and types of the tensors in a file, by name."""
    try:
        with path.open("rb") as file:
            begins = file.read(40)
        if begins.startswith(b"version https://git-lfs"):
            raise BackboneError(
                f"backbone.weights: {path} is a Git LFS pointer in place of the weights; fetch them with `git lfs pull`"
            )
        if begins.startswith(_PICKLED):
            raise BackboneError(
                [
                    f"backbone.weights: {path} is not a .safetensors file but one of torch.save, and that is not read, "
                    "as unpickling can run what is in it; convert it once, and give the new file:",
                    f"{_CONVERT} {shlex.quote(str(path))}",
                ]
            )
        with safe_open(path, framework="pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (it is no mapping)
            return (
                {key: tuple(part.get_shape()) for key, part in slices.items()},
                {key: part.get_dtype() for key, part in slices.items()},
            )
    except OSError as error:
        raise BackboneError(
            f"backbone.weights: {path} cannot be read ({error.strerror}); mend its permissions"
        ) from error
    except SafetensorError as error:
        raise BackboneError(
            f"backbone.weights: {path} is not a whole safetensors file ({str(error)[:120]}): it is cut off, or another "
            "kind of file under that name; get it again"
        ) from error


def _misfits(
    own: Mapping[str, Shape], outside: Collection[str], expected: Mapping[str, Shape], vit: VisionTransformer
) -> Iterator[str]:
    """What is wrong with a file's tensors: those of its network, and the names of others."""
    theirs, ours = _measures(own), _measures(expected)
    yield from (
        f"{theirs[what]} {what}, not {ours[what]}" for what in ours if theirs.get(what, ours[what]) != ours[what]
    )
    if missing := expected.keys() - own.keys():
        yield f"it lacks {_listed(missing)}"
    surplus = {key for key in own if key not in expected and not key.startswith(BESIDE)}
    surplus |= {key for key in outside if not key.startswith(BESIDE)}
    if surplus:
        yield f"it also has {_listed(surplus)}, which are no part of that backbone"
    other = [key for key in own.keys() & expected.keys() if not _fits(key, own[key], expected[key], vit)]
    if other:
        yield "other shapes: " + _listed(
            [f"{key} {_product(own[key])}, not {_product(expected[key])}" for key in other]
        )


def _fits(key: str, shape: Shape, expected: Shape, vit: VisionTransformer) -> bool:
    """Whether a tensor has the shape, or is position embeddings of another square grid."""
    if key != "pos_embed" or shape == expected or len(shape) != 3 or shape[::2] != expected[::2]:
        return shape == expected
    patches = shape[1] - (0 if vit.no_embed_class else vit.num_prefix_tokens)
    return patches > 0 and math.isqrt(patches) ** 2 == patches


def _measures(shapes: Mapping[str, Shape]) -> dict[str, str]:
    """What people know an architecture by, as far as its tensors tell."""
    measures = {"blocks": str(len({key.split(".")[1] for key in shapes if key.startswith("blocks.")}))}
    patches = shapes.get("patch_embed.proj.weight", ())
    if len(patches) == 4:
        measures |= {
            "dimensions": str(patches[0]),
            "channels": str(patches[1]),
            "pixels in a patch": _product(patches[2:]),
        }
    return measures


def _product(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _listed(names: Collection[str]) -> str:
    shown = ", ".join(name[:60] for name in sorted(names)[:_LISTED])
    return f"{shown} and {len(names) - _LISTED} more" if len(names) > _LISTED else shown or "nothing"
