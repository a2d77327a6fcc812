"""Export: what was learned as files of other libraries, each loaded back and compared before it takes its place.

    timm    a plain timm model, `timm.create_model("local-dir:…", pretrained=True)`
    hf      Hugging Face's `AutoModelForImageClassification`
    peft    a LoRA adapter of PEFT over the plain timm backbone
    onnx    the method as a whole, for onnxruntime

What reads texts goes to `hf` and `peft`: an encoder of transformers, or an adapter for one, and a classifier beside it.

Each is one module here (`lorica.export.target.Target`). How others load them: docs/export.md.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from PIL import Image

from lorica.assembly import build_source, saved_recipe
from lorica.data.images import Images, pixels_of
from lorica.data.texts import Texts
from lorica.errors import LoricaError
from lorica.evaluation import apart, require_numbers
from lorica.export.staging import RECORD, arriving
from lorica.export.subject import Subject, normalised
from lorica.export.target import Loaded, Target
from lorica.files import RunFolder, refusals, write_json, write_text
from lorica.isolation import isolated
from lorica.learner import Learner
from lorica.ownership import require_export, sha256
from lorica.predictor import Predictor
from lorica.progress import Reporter, Silent
from lorica.types import Inputs

__all__ = ["AGREE", "MOST", "TARGETS", "Exported", "export", "own_images"]

TARGETS = {"timm": "timm", "hf": "huggingface", "peft": "peft", "onnx": "onnx"}
"""What can be exported to, and the module that does it."""

_OF_TEXTS = {"hf": "hf_text", "peft": "peft_text"}
"""The same for what reads texts."""

AGREE = 1e-4
"""Share of the largest logit by which an export may differ from the method: some roundings in float32, and no
defect."""

TIE = 1e-5
"""Share of the largest logit within which two classes count as equal, so that rounding may say which is the first."""

MOST = 64
"""Images that are compared; of more, as many at equal distances."""

BATCHES = (1, 3, 8)
"""How many at a time, in turn: one alone, and numbers that no graph was made with."""

_LEVELS = 8.0  # of 255: mean difference within which two ways of resizing and cropping are the same
_AREAS = (
    4  # along each side, whose colours are compared: where an odd pixel is left over, libraries cut one pixel apart
)


@dataclass(frozen=True)
class Exported:
    """What became of an export.

    Attributes:
        folder: where it is.
        difference: the largest one between its logits and the method's.
        share: the same, as a share of the largest logit.
        images: how many were compared.
        real: whether these were given, and are not noise.
        pixels: mean difference of the colours of areas that the target's own preparation gives an image, in steps of
            255; None where it has none.
        remark: what there is to say of the form it took.
    """

    folder: Path
    difference: float
    share: float
    images: int
    real: bool
    pixels: float | None
    remark: str


@isolated()
def export(
    learner: Learner | Predictor,
    folder: Path | str,
    to: str,
    images: Sequence[Any] = (),
    *,
    reporter: Reporter | None = None,
) -> Exported:
    """Writes what a learner has learned in the form of another library.

    It is made beside its place, loaded back from its files and compared with the method on the images, several at a
    time, and only then takes the place of an earlier export. A kill at any moment leaves the earlier one or the new
    one.

    Args:
        folder: made where it is missing; it may hold an earlier export.
        to: one of `TARGETS`.
        images: to compare on, as `Learner.predict` takes them; without any, noise.

    Raises:
        LoricaError: a target that cannot express the method, a package that is missing, a folder with anything else in
            it, an image that cannot be read, or an export that gives other logits; nothing is changed then.
    """
    reporter = reporter or Silent()
    if to not in TARGETS:
        near = difflib.get_close_matches(to, TARGETS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(TARGETS)}"
        raise LoricaError(f"{to!r}: no target of that name; {hint}")
    folder = Path(folder)
    learner.method.eval()
    subject = Subject.of(learner)
    targets = _OF_TEXTS if subject.reads_texts else TARGETS
    if to not in targets:
        possible = [name for name in targets if _takes(_target(targets[name]), subject)]
        remedy = f"export to {' or '.join(possible)}" if possible else subject.instead
        raise LoricaError(f"{subject.encoder.name} reads texts, which {to} does not take here; {remedy}")
    target = _target(targets[to])
    target.require(subject)
    with refusals(folder):
        require_export(folder)
    pictures, squares = _compared_on(subject, images)
    record: dict[str, Any] = {
        "lorica": version("lorica"),
        "target": to,
        "method": subject.method.name,
        "fingerprint": subject.fingerprint(),
        "backbone": {
            "name": subject.encoder.name,
            "tag": subject.encoder.tag,
            "fingerprint": subject.encoder.fingerprint,
        },
        "class_names": list(subject.class_names),
        "files": {},
    }
    reporter.stage(f"{subject.method.name} to {target.NAME}", 3)
    with arriving(folder, record) as new:
        target.write(subject, new)
        reporter.step("written")
        loaded = target.load(subject, new)
        reporter.step("loaded back")
        compared = _compare(subject, loaded, squares, target.NAME)
        pixels = _compare_preparation(subject, loaded, pictures, target.NAME)
        exported = Exported(folder, *compared, len(squares), bool(images), pixels, loaded.remark)
        write_text(new / "README.md", _readme(subject, target, exported))
        del loaded
        files = sorted(path for path in new.rglob("*") if path.is_file() and path != new / RECORD)
        record["files"] = {path.relative_to(new).as_posix(): sha256(path) for path in files}
        record["compared"] = {
            "largest_difference": exported.difference,
            "share_of_largest_logit": exported.share,
            "images": exported.images,
            "real": exported.real,
            "pixels": exported.pixels,
        }
        record["versions"] = {name: version(name) for name in ("torch", *target.PACKAGES)}
        record["written"] = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(new / RECORD, record)
        reporter.step("compared")
    return exported


def _target(module: str) -> Target:
    return cast(Target, importlib.import_module(f"{__name__}.{module}"))


def _takes(target: Target, subject: Subject) -> bool:
    """Whether a target can express what was learned, with the packages that are there."""
    try:
        target.require(subject)
    except LoricaError:
        return False
    return True


def own_images(run: Path | str, given: Mapping[str, Any], *, method_file: Path | None = None) -> list[Any]:
    """Some test images, or texts, of a run's own data, from all over it; none where the data is not there any more.

    Args:
        given: where the data is now, if it was moved, as `lorica.assembly.saved_recipe` takes it.
    """
    recipe = saved_recipe(RunFolder(run), given, method_file=method_file)
    try:
        samples = build_source(recipe).test
        places = np.linspace(0, len(samples) - 1, min(MOST, len(samples))).round().astype(int)
        if isinstance(samples, Texts):
            return [samples.texts[int(place)] for place in places]
        if not isinstance(samples, Images):
            return []
        return [samples.decode(int(place)) for place in places]
    except LoricaError:
        return []


def _compared_on(subject: Subject, images: Sequence[Any]) -> tuple[list[Image.Image], Inputs]:
    """Some pictures, and squares of numbers that bytes can have: of images that were given, or noise and a gradient. Of
    texts no pictures, and tokens."""
    places = np.linspace(0, len(images) - 1, min(MOST, len(images))).round().astype(int)
    if subject.reads_texts:
        chosen: Any = [images[place] for place in places]
        return [], subject.reader.of(chosen) if chosen else subject.encoder.probe(MOST).to("cpu")
    if len(images):
        given = [pixels_of(images[place], subject.reader.decoding) for place in places]
        return [Image.fromarray(each) for each in given], subject.reader.of(given)
    gradient = _gradient(2 * subject.reader.canvas)
    noise = torch.cat([subject.encoder.probe(8), subject.encoder.example(1)]).cpu()
    return [Image.fromarray(gradient)], torch.cat([(noise * 255).round() / 255, subject.reader.of([gradient])])


def _gradient(side: int) -> UInt8[np.ndarray, "h w 3"]:
    """A picture that is wider than high, with a colour of its own at every place."""
    height, width = side, side * 3 // 2
    down, right = np.meshgrid(np.linspace(0, 255, height), np.linspace(0, 255, width), indexing="ij")
    return np.stack([down, right, 255 - (down + right) / 2], axis=2).astype(np.uint8)


@torch.inference_mode()
def _compare(subject: Subject, loaded: Loaded, squares: Inputs, name: str) -> tuple[float, float]:
    """The largest difference of logits, and the share that this is of the largest logit.

    Raises:
        LoricaError: it is larger than rounding, another class comes first, or the names are others.
    """
    method, columns = subject.method, subject.predictor.columns
    if tuple(loaded.class_names) != subject.class_names:
        raise LoricaError(
            f"{subject.called}: nothing is exported, since {name} reads other class names from it; this is a defect of "
            "lorica's"
        )
    expected, found, first, turn = [], [], 0, 0
    while first < len(squares) or turn < len(BATCHES):
        size = BATCHES[turn % len(BATCHES)]
        batch = squares[torch.arange(first, first + size) % len(squares)]
        logits = require_numbers(method.predict(batch.to(method.device)), method).cpu()
        expected.append(logits if columns is None else logits[:, columns.cpu()])
        found.append(loaded.predict(batch).cpu().clone())
        first, turn = first + size, turn + 1
    theirs, ours = torch.cat(found).float(), torch.cat(expected).float()
    if theirs.shape != ours.shape:
        raise LoricaError(
            f"{subject.called}: nothing is exported, since {name} gives logits of shape {list(theirs.shape)} in place "
            f"of {list(ours.shape)}"
        )
    difference, share = (theirs - ours).abs().max().item(), apart(theirs, ours)
    chosen = ours.gather(1, theirs.argmax(dim=1, keepdim=True)).flatten()
    changed = int((ours.amax(dim=1) - chosen > TIE * ours.abs().max()).sum())
    if changed or not share <= AGREE:
        raise LoricaError(
            f"{subject.called}: nothing is exported, since {name} gives other logits than the method, by "
            f"{difference:.2g} or {100 * share:.2g}% of the largest, and another class for {changed} of {len(ours)} "
            "images"
        )
    return difference, share


def _compare_preparation(subject: Subject, loaded: Loaded, pictures: Sequence[Image.Image], name: str) -> float | None:
    """Mean difference of the colours of areas that the target's own preparation gives the pictures, in steps of 255;
    their median.

    Raises:
        LoricaError: it makes something else of them.
    """
    if loaded.prepare is None:
        return None
    mean, std = subject.normalisation
    apart_by = []
    for picture in pictures:
        ours = normalised(subject.reader.of([picture]), mean, std)[0]
        theirs = loaded.prepare(picture)
        if theirs.shape != ours.shape:
            raise LoricaError(
                f"{subject.called}: nothing is exported, since {name} makes {list(theirs.shape)} of an image and not "
                f"{list(ours.shape)}"
            )
        areas = F.adaptive_avg_pool2d((theirs - ours) * torch.tensor(std).view(3, 1, 1) * 255, _AREAS)
        apart_by.append(areas.abs().mean().item())
    median = float(np.median(apart_by))
    if not median <= _LEVELS:
        raise LoricaError(
            f"{subject.called}: nothing is exported, since {name} prepares images otherwise, by {median:.3g} of 255 on "
            "average"
        )
    return median


def _readme(subject: Subject, target: Target, exported: Exported) -> str:
    what = f"{'given' if exported.real else 'random'} {subject.encoder.modality}"
    upright = "" if subject.reads_texts else " Images are read upright, in RGB."
    return (
        f"# {subject.method.name} for {target.NAME}\n\n"
        f"{len(subject.class_names)} classes, learned by lorica on {subject.encoder.tag}. FOLDER is where this folder "
        f"is.{upright}\n\n{target.readme(subject)}\n"
        f"Loaded back and compared with the method on {exported.images} {what}: the largest difference of a logit is "
        f"{exported.difference:.2g}, {exported.share:.2g} of the largest.\n"
    )
