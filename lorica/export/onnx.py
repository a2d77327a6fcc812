"""An ONNX graph of a method as a whole: `onnxruntime.InferenceSession("FOLDER/model.onnx")`.

    images   uint8, [n, 3, s, s]: RGB squares of the size that the backbone takes, any number of them
    logits   float32, [n, classes]

Bytes are what image files hold, so that nobody can mistake their range; dividing by 255 and the normalisation are in
the graph, and so is all that the method does: several blocks, random features, prompts, a space for each task. Names of
the classes and how an image becomes a square are in the graph's metadata, as JSON.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from lorica.errors import LoricaError
from lorica.evaluation import plain_form
from lorica.export.subject import Subject, extra
from lorica.export.target import Loaded
from lorica.methods import Method

NAME = "ONNX"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")

ONE_FILE = 2**30
"""Weights of more bytes than that go into a file of their own, model.onnx.data: a graph holds less than 2 GiB."""


class Whole(nn.Module):
    """Bytes in, logits out: all, or some `columns` of them."""

    def __init__(self, method: Method, columns: Int[Tensor, " classes"] | None) -> None:
        super().__init__()
        self.method, self.columns = method, columns

    def forward(self, images: UInt8[Tensor, "n 3 s s"]) -> Float[Tensor, "n classes"]:
        logits = self.method.predict(images.to(torch.float32) / 255)
        return logits if self.columns is None else logits[:, self.columns]


def require(subject: Subject) -> None:
    """LoricaError: a package is missing, or a method whose predictions depend on the rest of the batch."""
    for replication in ("batch_majority", "scrambled"):
        if getattr(subject.method.config, replication, False):
            raise LoricaError(
                f"method.{replication}: predictions depend on what else is in the batch, which is for replication "
                "alone and not exported"
            )
    for package in PACKAGES:
        extra(package, "export-onnx")


def write(subject: Subject, folder: Path) -> None:
    """Writes model.onnx.

    Raises:
        LoricaError: a method that does something which torch cannot put into a graph.
    """
    side = subject.reader.image_size
    whole = Whole(plain_form(subject.method), subject.predictor.columns).eval()
    example = torch.zeros(3, 3, side, side, dtype=torch.uint8, device=subject.method.device)
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                whole,
                (example,),
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes={"images": {0: torch.export.Dim("n")}},
                custom_translation_table={torch.ops.aten.sort.stable: _stable_sort()},
                dynamo=True,
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()
        raise LoricaError(
            f"{subject.called} cannot be put into an ONNX graph "
            f"({reason[0] if reason else type(error).__name__:.200}); use the learner itself, or export to timm where "
            "it has one linear head"
        ) from error
    assert program is not None  # without a file's name, torch gives the program
    program.model.metadata_props.update({key: json.dumps(value) for key, value in _metadata(subject).items()})
    size = sum(each.numel() * each.element_size() for each in whole.state_dict().values())
    with _quiet():
        program.save(folder / "model.onnx", external_data=size > ONE_FILE)


def _metadata(subject: Subject) -> dict[str, Any]:
    mean, std = subject.normalisation
    return {
        "class_names": list(subject.class_names),
        "method": subject.method.name,
        "backbone": subject.encoder.tag,
        "image_size": subject.reader.image_size,
        "resize_short_side": subject.reader.canvas,
        "interpolation": "bicubic",
        "crop": "centre",
        "mean_in_graph": mean,
        "std_in_graph": std,
    }


def _stable_sort() -> Any:
    """Sorting that leaves equals in their order, for which torch has no translation: TopK does that, with the lower
    index first."""
    op = extra("onnxscript", "export-onnx").opset18

    def sort(self: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
        size = op.Gather(op.Shape(self), op.Constant(value_ints=[dim]))
        return op.TopK(self, size, axis=dim, largest=int(descending), sorted=1)

    return sort


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporter warns of its own ways, on every channel."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [each.level for each in loggers]
    try:
        for each in loggers:
            each.setLevel(logging.ERROR)
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for each, level in zip(loggers, before, strict=True):
            each.setLevel(level)


def load(subject: Subject, folder: Path) -> Loaded:
    """What onnxruntime makes of the folder, on the processor."""
    onnxruntime = extra("onnxruntime", "export-onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), sess_options=options, providers=["CPUExecutionProvider"]
    )
    metadata = session.get_modelmeta().custom_metadata_map

    def predict(squares: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n classes"]:
        pixels = (squares * 255).round().to(torch.uint8).numpy()
        try:
            found = session.run(["logits"], {"images": pixels})[0]
        except Exception as error:  # onnxruntime's errors have no common base of their own
            raise LoricaError(
                f"{subject.called}: onnxruntime cannot run the graph with {len(pixels)} images: {error}"
            ) from error
        return torch.from_numpy(np.asarray(found))

    return Loaded(predict, None, json.loads(metadata["class_names"]))


def readme(subject: Subject) -> str:
    """How to load it."""
    canvas, side = subject.reader.canvas, subject.reader.image_size
    return (
        "```python\n"
        "import json\n\n"
        "import numpy\n"
        "import onnxruntime\n"
        "from PIL import Image\n\n"
        'session = onnxruntime.InferenceSession("FOLDER/model.onnx")\n'
        'image = Image.open("unknown.png").convert("RGB")\n'
        f"size = [int({canvas} * each / min(image.size)) for each in image.size]  # the short side has {canvas} "
        f"pixels\nleft, top = (round((each - {side}) / 2) for each in size)  # of them the centre, {side} x {side}\n"
        f"image = image.resize(size, Image.Resampling.BICUBIC).crop((left, top, left + {side}, top + {side}))\n"
        "pixels = numpy.asarray(image).transpose(2, 0, 1)[None]  # bytes, [n, 3, height, width]\n"
        '(logits,) = session.run(["logits"], {"images": pixels})\n'
        'names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])\n'
        "print(names[logits[0].argmax()])\n"
        "```\n"
    )
