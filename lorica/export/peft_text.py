"""A LoRA adapter of Hugging Face's PEFT over a plain encoder of transformers, with the tokeniser and the classifier
beside it: `lorica.export.peft` has the adapter, `lorica.export.hf_text` the rest."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from lorica.adapters.attach import unadapted
from lorica.backbones import TINY_TEXT
from lorica.export import hf_text
from lorica.export.peft import NAME, adapted, embedded, quiet, remark, require_adapter
from lorica.export.subject import Subject, extra
from lorica.export.target import Loaded

PACKAGES = ("peft", "transformers")


def require(subject: Subject) -> None:
    """LoricaError: PEFT is missing; or a method without low-rank updates of linear layers or without a linear head."""
    require_adapter(subject)


def write(subject: Subject, folder: Path) -> None:
    """Writes adapter_config.json and adapter_model.safetensors, the tokeniser, and the classifier."""
    model = adapted(subject, _base(subject), subject.encoder.name)
    with quiet():
        model.save_pretrained(folder, save_embedding_layers=False)  # it would look on the hub for them
    weight, bias, _ = subject.classifier(NAME)
    with torch.random.fork_rng([]):
        head = nn.Linear(weight.shape[1], len(weight), bias=bias is not None)
    head.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})
    hf_text.write_around(subject, head, folder)


def load(subject: Subject, folder: Path) -> Loaded:
    """What PEFT makes of the folder and the plain encoder."""
    peft = extra("peft", "export-peft")
    with quiet():
        model = peft.PeftModel.from_pretrained(_base(subject), folder).eval()
    return hf_text.classifying(model, folder, remark(subject))


def _base(subject: Subject) -> nn.Module:
    """The model of transformers with its own weights alone."""
    return unadapted(subject.encoder).plain_model().eval().cpu()  # type: ignore[attr-defined]


def readme(subject: Subject) -> str:
    """How to load it."""
    wrapped = 'model = PeftModel.from_pretrained(model, "FOLDER").eval()\n'
    code = hf_text.lines(subject, "from peft import PeftModel\n", "BACKBONE", wrapped)
    name, at, _ = subject.encoder.tag.rpartition("@")
    where = f"{name}, on the hub." if at else f"the folder with the weights {subject.encoder.tag}."
    if subject.encoder.name == TINY_TEXT:
        where = embedded(TINY_TEXT)
    return f"{code}\nBACKBONE is {where}\nIts fingerprint is {subject.encoder.fingerprint}.\n"
