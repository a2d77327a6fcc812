"""The texts and the training of tools/pretrain_tiny_text.py, at tiny size."""

from __future__ import annotations

import math
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from lorica.backbones import load_backbone
from tests.tools.test_pretrain_tiny_vit import _load_tool

tool = _load_tool("pretrain_tiny_text")

WORDS = """\
# fruit
> eat | bite into
= apple, pear
= knife, plate
~ ripe | sweet
# weather
> predict
= rain, snow
= cloud, sky
~ wet
"""
RUNS = [["The first one reads a file.", "It then closes the file."], ["A list of the names is kept."]]


@pytest.fixture
def everyday(tmp_path: Path):
    (tmp_path / "words.txt").write_text(WORDS)
    return tool.Requests(tmp_path / "words.txt")


def test_words_as_they_are_inflected() -> None:
    assert [tool.acted(each) for each in ("pay for", "use up", "look at")] == ["paid for", "used up", "looked at"]
    assert [tool.acting(each) for each in ("stop", "make", "see", "get out")] == [
        "stopping",
        "making",
        "seeing",
        "getting out",
    ]
    assert [tool.plural(each) for each in ("box", "berry", "day", "shoes", "card")] == [
        "boxes",
        "berries",
        "days",
        "shoes",
        "cards",
    ]


def test_a_text_is_of_the_groups_it_says(everyday) -> None:
    assert (len(everyday.sections), everyday.groups) == (2, 8)
    words = {0: ("eat", "ate", "bit"), 1: ("appl", "pear"), 2: ("kni", "plate"), 3: ("ripe", "sweet")}
    words |= {4: ("predict",), 5: ("rain", "snow"), 6: ("cloud", "sky", "skies"), 7: ("wet",)}
    seen = set()
    for number in range(300):
        text, section, groups = everyday.draw(Random(number))
        assert "{" not in text
        for group in groups:
            assert group // 4 == section
            assert any(word in text for word in words[group]), (text, group)
        seen |= {*groups}
    assert seen == set(range(8))
    assert everyday.draw(Random(5)) == everyday.draw(Random(5))


def test_counted_vectors_are_of_mutual_information() -> None:
    """Two tokens side by side, and two others: what they share with each other is all there is, log 2 of it."""
    texts = [[5, 6], [7, 8]] * 4
    vectors = tool.counted_vectors(texts, 9, 2)
    # of each pair: n_ij = 4 of n = 16, n_i = 4, m_j = 4
    expected = np.zeros((9, 9))
    for one, other in ((5, 6), (6, 5), (7, 8), (8, 7)):
        expected[one, other] = math.log(4 * 16 / (4 * 4))
    values = np.linalg.svd(expected, compute_uv=False)[:2]
    np.testing.assert_allclose(np.sort((vectors**2).sum(axis=0)), np.sort(values), atol=1e-6)


def kept(work: Path) -> dict[str, Any]:
    """What a training left of itself."""
    with safe_open(work / "training.safetensors", framework="pt") as held:
        return {key: held.get_tensor(key) for key in held.keys()} | {"step": int(held.metadata()["step"])}  # noqa: SIM118


def test_a_run_goes_on_where_it_stopped_and_writes_an_encoder(
    everyday, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"WIDTH": 8, "VOCABULARY": 120, "DRAWN": 60, "REQUESTS": 4, "PAIRS": 2}.items():
        monkeypatch.setattr(tool, name, value)
    monkeypatch.setattr(tool, "docstrings", lambda: iter(RUNS * 2))
    (tmp_path / "everyday_words.txt").write_text(WORDS)
    (tmp_path / "held_out_requests.txt").write_text((tool.HERE / "held_out_requests.txt").read_text())
    monkeypatch.setattr(tool, "HERE", tmp_path)
    trained = tool.train

    def interrupted(training, work: Path, steps: int, rate: float, seed: int) -> None:
        trained(training, work, 2, rate, seed)
        assert kept(work)["step"] == 2

    monkeypatch.setattr(tool, "train", interrupted)
    tool.main(tmp_path / "once", tmp_path / "work", steps=4)
    monkeypatch.setattr(tool, "train", trained)
    tool.main(tmp_path / "out", tmp_path / "work", steps=2)
    one, other = (load_backbone("hf:x", weights=tmp_path / name) for name in ("once", "out"))
    assert one.fingerprint == other.fingerprint
    assert (one.width, one.pooling, len(one.blocks)) == (8, "mean", 2)
    assert "held out, bags of words: 14." in capsys.readouterr().out
    before = kept(tmp_path / "work")
    tool.main(tmp_path / "out", tmp_path / "work", steps=3)
    after = kept(tmp_path / "work")
    assert after["step"] == 3
    assert after.keys() == before.keys()
    moments = {key.split(".")[-1] for key in after if key.startswith("optimiser")}
    assert moments == {"step", "exp_avg", "exp_avg_sq"}
    name = "training.model.embeddings.word_embeddings.weight"
    assert not torch.equal(before[name], after[name])


def test_docstrings_are_sentences_each_once() -> None:
    runs = tool.docstrings()
    first = [next(runs) for _ in range(200)]
    said = [sentence for run in first for sentence in run]
    assert len(set(said)) == len(said)
    assert all(sentence[0].isupper() and sentence[-1] in ".!?" and len(sentence.split()) >= 4 for sentence in said)
