"""A folder with an encoder of texts that transformers load, every update in its weights, and the classifier beside it.

transformers have no model that classifies by what is pooled here (theirs put a layer of their own between), so that a
few lines of the folder's README do it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from lorica.backbones.hf_text import FAMILIES, TextClassifier, load_hf_text, quietly
from lorica.export.subject import Subject, extra
from lorica.export.target import Loaded
from lorica.files import write_json
from lorica.reading import read_json
from lorica.types import Tokens

NAME = "Hugging Face"
PACKAGES = ("transformers",)
_HEAD, _SETTINGS = "classifier.safetensors", "classifier.json"


def require(subject: Subject) -> None:
    """LoricaError: a method without a linear head on what is pooled of the last block."""
    subject.classifier(NAME)
    extra("transformers", "text")


def write(subject: Subject, folder: Path) -> None:
    """Writes model.safetensors and config.json, tokenizer.json with tokenizer_config.json, and the classifier."""
    found = cast(TextClassifier, subject.plain_model(NAME))
    with quietly():
        cast(Any, found.model).save_pretrained(folder)
    write_around(subject, found.head, folder)


def write_around(subject: Subject, head: nn.Linear, folder: Path) -> None:
    """Writes the tokeniser and the classifier."""
    written, longest = subject.reader.tokeniser.made_of
    tokenizer = Tokenizer.from_str(written)
    tokenizer.enable_truncation(longest)
    tokenizer.save(str(folder / "tokenizer.json"))
    padding = tokenizer.id_to_token(subject.reader.padding)
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": longest, "pad_token": padding},
    )
    save_file({name: each.detach().clone().contiguous() for name, each in head.state_dict().items()}, folder / _HEAD)
    write_json(folder / _SETTINGS, {"pooling": subject.encoder.pooling, "class_names": list(subject.class_names)})


def load(subject: Subject, folder: Path) -> Loaded:
    """What transformers make of the folder."""
    pooling = read_json(folder / _SETTINGS)["pooling"]
    model = load_hf_text("exported", weights=folder, pooling=pooling).plain_model()
    return classifying(model, folder, f"a {type(model).__name__} with a linear classifier of its {pooling}")


def classifying(encoder: nn.Module, folder: Path, remark: str) -> Loaded:
    """A model of transformers with the classifier of the folder."""
    settings, head = read_json(folder / _SETTINGS), load_file(folder / _HEAD)
    linear = nn.Linear(head["weight"].shape[1], head["weight"].shape[0], bias="bias" in head)
    linear.load_state_dict(head)
    model = TextClassifier(encoder, settings["pooling"], linear).eval()

    @torch.no_grad()
    def predict(tokens: Tokens) -> Float[Tensor, "n classes"]:
        return model(tokens)

    return Loaded(predict, None, settings["class_names"], remark)


def readme(subject: Subject) -> str:
    """How to load it."""
    return lines(subject, "", "FOLDER", "")


def lines(subject: Subject, imports: str, weights: str, wrapped: str) -> str:
    """The lines that load an encoder from its weights and classify a text by it.

    Args:
        imports: further lines before them.
        weights: where the encoder's are.
        wrapped: further lines after it.
    """
    family = FAMILIES[subject.encoder.model.config.model_type]
    # as lorica loads them: transformers would go on in half precision where the file has that
    settings = {"dtype": '"float32"'} | dict(family.options)
    kind, options = family.model, "".join(f", {name}={value}" for name, value in settings.items())
    pooled = (
        "hidden[:, 0]"
        if subject.encoder.pooling == "cls"
        else '(hidden * inputs["attention_mask"][..., None]).sum(1) / inputs["attention_mask"].sum(1, keepdim=True)'
    )
    return (
        "```python\n"
        "import json\n"
        "from pathlib import Path\n\n"
        f"{imports}"
        f"from transformers import AutoTokenizer, {kind}\n"
        "from safetensors.torch import load_file\n\n"
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n'
        f'model = {kind}.from_pretrained("{weights}"{options}).eval()\n'
        f"{wrapped}"
        f'head = load_file("FOLDER/{_HEAD}")\n'
        f'names = json.loads(Path("FOLDER/{_SETTINGS}").read_text())["class_names"]\n'
        'inputs = tokenizer(["what is my balance"], return_tensors="pt", padding=True, truncation=True)\n'
        'hidden = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state\n'
        f"pooled = {pooled}\n"
        'logits = pooled @ head["weight"].T + head.get("bias", 0)\n'
        "print(names[logits.argmax().item()])\n"
        "```\n"
    )
