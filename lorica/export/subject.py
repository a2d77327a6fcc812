"""What is exported: a method with what it has learned, how it reads images, and the names of its classes."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lorica.adapters.attach import merged, unadapted
from lorica.backbones import timm_arguments
from lorica.backbones.encoder import Classifier, Encoder
from lorica.backbones.hf_text import HFText
from lorica.backbones.timm_vit import TimmViT
from lorica.errors import LoricaError
from lorica.learner import Learner
from lorica.methods import Method, Readout
from lorica.predictor import Predictor


@dataclass(frozen=True)
class Subject:
    """A learner as the targets see it. Encoder and reader are those of texts for a target of texts, and of images for
    all others.

    Attributes:
        predictor: what is exported.
        method: with all that it has learned.
        reader: of its inputs.
        class_names: in the order of the predictor's logits.
        encoder: of the method.
    """

    predictor: Predictor
    method: Method
    reader: Any  # ImageReader, or TextReader
    class_names: tuple[str, ...]
    encoder: Any  # TimmViT, or HFText

    @classmethod
    def of(cls, learner: Learner | Predictor) -> Subject:
        """LoricaError: nothing has been learned, or what reads something else than images or texts."""
        predictor = learner.predictor if isinstance(learner, Learner) else learner
        method, reader = predictor.method, predictor.reader
        if not predictor.class_names:
            raise LoricaError(f"{method.name}: has learned nothing yet, so that there is nothing to export")
        encoder = method.encoder
        if not isinstance(encoder, TimmViT | HFText):
            raise LoricaError(
                f"{method.name}: {encoder.name} reads {encoder.modality}; only what reads images or texts can be "
                "exported"
            )
        return cls(predictor, method, reader, predictor.class_names, encoder)

    @property
    def reads_texts(self) -> bool:
        """Whether these are an encoder and a reader of texts."""
        return self.encoder.modality == "texts"

    @property
    def instead(self) -> str:
        """What to do with a method that no plain backbone with a classifier can express."""
        if self.reads_texts:
            return "there is no export of it over texts: use `lorica predict` or `lorica serve`"
        return "export to onnx, which takes the whole of it"

    @property
    def without_adapter(self) -> str:
        """What to do with a method that has no low-rank updates to write."""
        classifier = self.predictor.classifier()
        if classifier is None or classifier.layers is not None:
            return self.instead
        return f"export to {'hf' if self.reads_texts else 'timm, hf or onnx'}"

    def plain_name(self, linear: str) -> str:
        """What a layer of the encoder is called in the library's own model."""
        return self.encoder.plain_name(linear) if self.reads_texts else linear.removeprefix("vit.")

    @property
    def called(self) -> str:
        """The method's name, and how it is read if not by its own predictions."""
        return (
            f"{self.method.name}, read by {self.method.kind}," if isinstance(self.method, Readout) else self.method.name
        )

    @property
    def normalisation(self) -> tuple[list[float], list[float]]:
        """Mean and deviation of each channel, in units of [0, 1] images."""
        return self.encoder.mean.flatten().tolist(), self.encoder.std.flatten().tolist()

    def classifier(self, target: str) -> Classifier:
        """The linear map from the backbone's own features to the logits.

        Raises:
            LoricaError: there is none, which a `target` that is a plain backbone with a classifier would need.
        """
        classifier = self.predictor.classifier()
        if classifier is None:
            raise LoricaError(
                f"{self.called} does not classify by one linear layer on the backbone's features, which is all that "
                f"{target} has; {self.instead}"
            )
        if classifier.layers is not None:
            raise LoricaError(
                f"{self.called} reads what leaves {classifier.layers} blocks, and a model of {target} reads the last "
                f"one alone; {self.instead}"
            )
        return classifier

    @torch.no_grad()
    def plain_model(self, target: str) -> nn.Module:
        """A ViT of timm's, or an encoder of texts, with every update in its weights and the head as its classifier;
        LoricaError: as `classifier`."""
        classifier = self.classifier(target)
        return merged(self.encoder).with_classifier(classifier).eval().cpu()

    def architecture(self, target: str) -> tuple[str, dict[str, Any]]:
        """See `lorica.backbones.timm_arguments`."""
        try:
            return timm_arguments(self.encoder)
        except LoricaError as error:
            raise LoricaError(f"{error}; {target} cannot. Export to onnx, which needs no timm") from None

    @torch.no_grad()
    def fingerprint(self) -> str:
        """A short hash of the backbone, of what the method has learned for predictions, and of the class names."""
        digest = hashlib.sha256(repr((self.encoder.fingerprint, self.method.name, self.class_names)).encode())
        sums = set(self.method.needed_to_learn_on())
        for name, tensor in sorted(self.method.own_state().items()):
            if name not in sums:
                digest.update(f"{name} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]


@torch.no_grad()
def without_updates(encoder: Encoder) -> dict[str, Tensor]:
    """The weights of an encoder's ViT as it was before anything was attached, in timm's names."""
    return {name: tensor.cpu() for name, tensor in unadapted(encoder).get_submodule("vit").state_dict().items()}


def normalised(
    squares: Float[Tensor, "n 3 s s"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "n 3 s s"]:
    """Images in [0, 1] less the mean of each channel, over its deviation."""
    centre, spread = (torch.tensor(list(each)).view(1, -1, 1, 1) for each in (mean, std))
    return (squares - centre) / spread


def extra(module: str, name: str) -> ModuleType:
    """A package that lorica does not need otherwise; LoricaError: it is not installed, with the word that installs
    it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise LoricaError(
            f"{error.name or module} is not installed, which this export needs; pip install 'lorica[{name}]'"
        ) from error
