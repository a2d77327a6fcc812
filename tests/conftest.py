"""What the tests share: tiny random encoders of images and of texts, and six classes of each that a glance tells
apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import timm
import torch
from hypothesis import settings
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from lorica.backbones.hf_text import FAMILIES, HFText
from lorica.backbones.timm_vit import TimmViT
from lorica.data.images import ImageArrays
from lorica.data.sources import Source, arrays
from lorica.data.sources.base import make_source
from lorica.data.texts import Texts
from lorica.results import Result
from lorica.run import run

# how long an example takes says how busy the machine is
settings.register_profile("lorica", deadline=None)
settings.load_profile("lorica")

COLOURS = ((230, 30, 30), (30, 230, 30), (30, 30, 230), (230, 230, 30), (230, 30, 230), (30, 230, 230))
COMMON = ("a", "the", "of", "is", "not", "and")
CLASS_NAMES = ("red", "green", "blue", "yellow", "magenta", "cyan")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny tensors are slower with more, and sums come out the same on every machine."""
    torch.set_num_threads(1)


@pytest.fixture
def tiny_encoder() -> Callable[..., TimmViT]:
    """`tiny_encoder(seed=0)`: a new random ViT of two blocks for 32x32 images, always the same for a seed."""

    def make(seed: int = 0) -> TimmViT:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0)
        encoder = TimmViT(vit, name="tiny", tag=f"tiny.random{seed}", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        return encoder.requires_grad_(False).eval()

    return make


@pytest.fixture(scope="session")
def tiny_tokenizer() -> str:
    """A word a token, between [CLS] and [SEP]; the JSON of it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *COMMON,
        *(f"{name}{number}" for name in CLASS_NAMES for number in range(4)),
    ]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", words.index("[CLS]")), ("[SEP]", words.index("[SEP]"))]
    )
    return made.to_str()


@pytest.fixture
def tiny_text_folder(tiny_text_encoder: Callable[..., HFText], tiny_tokenizer: str, tmp_path: Path) -> Path:
    """The tiny BERT as transformers saves it."""
    from tokenizers import Tokenizer

    folder = tmp_path / "checkpoint"
    cast(Any, tiny_text_encoder().plain_model()).save_pretrained(folder)
    Tokenizer.from_str(tiny_tokenizer).save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def tiny_text_encoder(tiny_tokenizer: str) -> Callable[..., HFText]:
    """`tiny_text_encoder(seed=0, family="bert")`: a new random encoder of two layers, always the same for a seed."""
    import transformers

    sizes = {"vocab_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2, "pad_token_id": 0}
    common = sizes | {"hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 40}
    configs: dict[str, Any] = {
        "bert": (transformers.BertModel, transformers.BertConfig, common),
        "roberta": (transformers.RobertaModel, transformers.RobertaConfig, common),
        "modernbert": (
            transformers.ModernBertModel,
            transformers.ModernBertConfig,
            common | {"local_attention": 8, "global_attn_every_n_layers": 2},
        ),
        "t5": (
            transformers.T5EncoderModel,
            transformers.T5Config,
            {"vocab_size": 40, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2,
                "pad_token_id": 0,
             "feed_forward_proj": "gated-gelu"},
        ),
    }  # fmt: skip

    def make(seed: int = 0, family: str = "bert", pooling: Any = "mean") -> HFText:
        model, config, values = configs[family]
        off = {key: 0.0 for key, value in vars(config()).items() if "dropout" in key and isinstance(value, float)}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            built = model._from_config(config(**values, **off), attn_implementation="sdpa", **FAMILIES[family].options)
        encoder = HFText(
            built, name=f"tiny_{family}", tag=f"tiny.random{seed}", pooling=pooling, tokenizer=tiny_tokenizer,
            padding=0, longest=32
        )  # fmt: skip
        return encoder.requires_grad_(False).eval()

    return make


@pytest.fixture(scope="session")
def six_topics() -> Source:
    """Texts of two to nine words, of which every second is one of its class's own; 12 to train and 6 to test in each
    class."""
    random = np.random.RandomState(0)

    def half(number: int, name: str) -> Texts:
        labels = np.repeat(np.arange(len(CLASS_NAMES)), number)
        texts = [
            " ".join(
                f"{CLASS_NAMES[label]}{random.randint(4)}" if place % 2 else COMMON[random.randint(len(COMMON))]
                for place in range(random.randint(2, 10))
            )
            for label in labels
        ]
        return Texts(texts, labels, name)

    return make_source("six_topics", CLASS_NAMES, half(12, "train"), half(6, "test"), {})


@pytest.fixture(scope="session")
def six_classes() -> Source:
    """Noisy 32x32 squares in six colours, 12 to train and 6 to test in each class."""
    random = np.random.RandomState(0)
    return arrays(_coloured(random, 12), _coloured(random, 6), CLASS_NAMES)


@pytest.fixture(scope="session")
def six_classes_file(six_classes: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as an .npz file."""
    file = tmp_path_factory.mktemp("data") / "six.npz"
    train, test = six_classes.train, six_classes.test
    assert isinstance(train, ImageArrays)
    assert isinstance(test, ImageArrays)
    np.savez(
        file,
        x_train=train.images,
        y_train=train.labels,
        x_test=test.images,
        y_test=test.labels,
        class_names=np.array(CLASS_NAMES),
    )
    return file


@pytest.fixture(scope="session")
def small_recipe(six_classes_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """SD-LoRA on the six classes in three tasks, on timm's smallest ViT with random weights: well under a second."""
    weights = tmp_path_factory.mktemp("weights") / "test_vit.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(timm.create_model("test_vit", img_size=32, num_classes=0).state_dict(), weights)
    return {
        "method": {"name": "sd_lora"},
        "backbone": {"name": "test_vit", "weights": str(weights), "image_size": 32},
        "data": {"source": "arrays", "root": str(six_classes_file)},
        "stream": {"tasks": 3},
        "fit": {"epochs": 2, "batch_size": 12, "learning_rate": 0.01, "augment": "shift"},
        "device": "cpu",
    }


@pytest.fixture(scope="session")
def finished_run(small_recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A run of that recipe; tests read its folder and copy it before they change anything."""
    return run(small_recipe, out=tmp_path_factory.mktemp("runs") / "finished", progress=False)


def _coloured(random: np.random.RandomState, number: int) -> tuple[np.ndarray, np.ndarray]:
    labels = np.repeat(np.arange(len(COLOURS)), number)
    noise = random.randint(-25, 26, (len(labels), 32, 32, 3))
    return (np.array(COLOURS)[labels][:, None, None, :] + noise).clip(0, 255).astype(np.uint8), labels
