"""The embedded text encoder is a real one: frozen, it tells requests apart by class means, as bags of words cannot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer

from lorica.backbones import TINY_TEXT, backbone_names, load_backbone, modality_of, tiny_text
from lorica.data.sources.requests import requests
from lorica.data.texts import TextReader, Texts
from lorica.errors import BackboneError


def by_class_means(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    means = np.stack([train[labels == label].mean(axis=0) for label in range(labels.max() + 1)])
    return (test @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T).argmax(axis=1)


@torch.inference_mode()
def test_frozen_features_tell_requests_apart_better_than_bags_of_words() -> None:
    """By twenty points and more, one forward pass of 800 texts; weighted words and bare ones."""
    encoder = load_backbone(TINY_TEXT).eval()
    source = requests()
    assert isinstance(source.train, Texts)
    assert isinstance(source.test, Texts)
    reader = TextReader(**encoder.reading())
    one, other = (encoder.features(reader.of(half.texts)).numpy() for half in (source.train, source.test))
    found = float((by_class_means(one, source.train.labels, other) == source.test.labels).mean())
    for weighted in (False, True):
        counted = TfidfVectorizer(sublinear_tf=True, use_idf=weighted)
        words, asked = counted.fit_transform(source.train.texts), counted.transform(source.test.texts)
        bare = by_class_means(words.toarray(), source.train.labels, asked.toarray())
        assert found > float((bare == source.test.labels).mean()) + 0.2


def test_it_is_an_ordinary_encoder_of_at_most_eight_megabytes() -> None:
    files = [path for path in (Path(tiny_text.__file__).parent / TINY_TEXT).rglob("*") if path.is_file()]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in files}
    assert sum(path.stat().st_size for path in files) < 8e6
    encoder = load_backbone(TINY_TEXT)
    assert encoder.tag == "lorica_tiny_text.docs1"
    assert encoder.modality == "texts"
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    assert load_backbone(TINY_TEXT, pretrained=False).tag == "lorica_tiny_text.random"
    assert TINY_TEXT in backbone_names()
    assert modality_of(TINY_TEXT) == "texts"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"weights": Path("folder")}, "ships with its weights; leave the key out, or name backbone.name=hf:NAME"),
        ({"image_size": 32}, r"^backbone\.image_size: lorica_tiny_text reads texts, not images; leave out"),
    ],
)
def test_what_it_does_not_take(given: dict, message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        load_backbone(TINY_TEXT, **given)
